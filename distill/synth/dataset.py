"""Writing scenes as a data set in the layout of GazeFollow's extended release.

`train_annotations_release.txt` has 17 columns and heads that look in or out of the frame; `test_annotations_release.txt` has 16
(no in/out), in-frame heads only, and several annotators' rows a head. Both appear last and whole: a directory that has them is complete.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from distill.synth.config import GENERATOR_VERSION, SynthConfig
from distill.synth.errors import SynthError
from distill.synth.scene import DrawnHead, draw_scene

RECORD = "synth.json"
TRAIN, TEST = "train_annotations_release.txt", "test_annotations_release.txt"
_SPREAD = 0.018  # standard deviation of one annotator about the true point, in picture widths and heights
_QUALITY = 90
_DEFAULT = SynthConfig()


@dataclass(frozen=True)
class SynthSummary:
    """What was written."""

    out: Path
    train_scenes: int
    test_scenes: int
    train_heads: int
    test_heads: int
    in_frame: int
    """In-frame heads among `train_heads`."""


@dataclass(frozen=True)
class _Written:
    index: int
    test: bool
    path: str
    heads: list[DrawnHead]


def write_dataset(
    out: Path,
    config: SynthConfig = _DEFAULT,
    *,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SynthSummary:
    """Write a data set to directory `out`; the files are the same for any number of `processes` (default: one a core).

    `progress` is called with the scenes written and their total. An earlier output of this function in `out` is replaced.

    Raises:
        SynthError: `out` holds something else, or cannot be written.
    """
    out = Path(out)
    workers = processes if processes is not None else (os.cpu_count() or 1)
    if workers < 1:
        raise SynthError(f"processes is {workers}; give at least 1")
    _claim(out)
    try:
        _replace(
            out / RECORD,
            json.dumps({"generator": GENERATOR_VERSION, "config": asdict(config), "complete": False}, indent=1) + "\n",
        )
        for name in (TRAIN, TEST):
            (out / name).unlink(missing_ok=True)
        written: list[_Written] = []
        for done in _draw_all(out, config, workers):
            written.append(done)
            if progress is not None:
                progress(len(written), config.scenes)
        written.sort(key=lambda w: w.index)
        _sweep(out, {w.path for w in written})
        train, test = [w for w in written if not w.test], [w for w in written if w.test]
        _replace(out / TRAIN, "".join(_train_rows(train)))
        _replace(out / TEST, "".join(_test_rows(test, config)))
        _replace(
            out / RECORD,
            json.dumps({"generator": GENERATOR_VERSION, "config": asdict(config), "complete": True}, indent=1) + "\n",
        )
    except OSError as error:
        raise SynthError(
            f"cannot write the data set to {out}: {error}; free some space or choose another directory"
        ) from error
    return SynthSummary(
        out,
        len(train),
        len(test),
        sum(len(w.heads) for w in train),
        sum(h.inout for w in test for h in w.heads),
        sum(h.inout for w in train for h in w.heads),
    )


def _claim(out: Path) -> None:
    """Make `out`, or accept it if it is empty or an earlier output."""
    try:
        if out.exists() and not out.is_dir():
            raise SynthError(f"{out} is a file; give a directory for the data set")
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / RECORD).is_file():
            raise SynthError(
                f"{out} is not empty and was not written by `distill data synth` (it has no {RECORD}); choose another directory"
            )
    except OSError as error:
        raise SynthError(f"cannot use {out} for the data set: {error}; choose another directory") from error


def _is_test_candidate(index: int, config: SynthConfig) -> bool:
    return int((index + 1) * config.test_fraction + 1e-9) > int(index * config.test_fraction + 1e-9)


def _write_scene(task: tuple[Path, SynthConfig, int]) -> _Written:
    out, config, index = task
    drawn = draw_scene(config.seed, index, config)
    test = _is_test_candidate(index, config) and any(h.inout for h in drawn.heads)
    path = f"{'test2' if test else 'train'}/{index // 1000:08d}/{index:08d}.jpg"
    target = out / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encode_picture(drawn.picture))
    return _Written(index, test, path, drawn.heads)


def encode_picture(picture: Image.Image) -> bytes:
    """A picture as the data set stores it: the bytes of a JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _draw_all(out: Path, config: SynthConfig, workers: int) -> Iterator[_Written]:
    tasks = [(out, config, i) for i in range(config.scenes)]
    if workers == 1:
        yield from map(_write_scene, tasks)
        return
    # a fresh interpreter per worker: forking a process that runs threads (torch does) can hang
    with multiprocessing.get_context("spawn").Pool(min(workers, config.scenes)) as pool:
        yield from pool.imap_unordered(_write_scene, tasks, chunksize=8)


def _sweep(out: Path, keep: set[str]) -> None:
    """Remove pictures of an earlier output that this one does not have."""
    for split in ("train", "test2"):
        for path in sorted((out / split).glob("[0-9]*/[0-9]*.jpg")):
            if path.relative_to(out).as_posix() not in keep:
                path.unlink()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _head_columns(written: _Written, number: int, head: DrawnHead, gaze: tuple[float, float]) -> list[str]:
    return [
        written.path,
        str(number),
        *(f"{v:.5f}" for v in (*head.body, *head.eye, *gaze)),
        *(f"{v:.1f}" for v in head.box),
    ]


def _train_rows(scenes: Iterable[_Written]) -> Iterator[str]:
    number = 0
    for written in scenes:
        for head in written.heads:
            gaze = head.gaze if head.gaze is not None else (-1.0, -1.0)
            yield ",".join([*_head_columns(written, number, head, gaze), str(head.inout), "synth", "False"]) + "\n"
            number += 1


def _test_rows(scenes: Iterable[_Written], config: SynthConfig) -> Iterator[str]:
    number = 0
    for written in scenes:
        rng = np.random.default_rng((config.seed, written.index, 1 << 20))
        for head in written.heads:
            if head.gaze is None:
                continue
            for _ in range(int(rng.integers(8, 11))):
                x, y = np.clip(np.array(head.gaze) + rng.normal(0.0, _SPREAD, 2), 0.0, 0.99999)
                yield ",".join([*_head_columns(written, number, head, (float(x), float(y))), "synth", "False"]) + "\n"
            number += 1
