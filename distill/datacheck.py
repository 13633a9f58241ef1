"""Checking a data set: what is there, what is wrong with it, and what no model at all scores on it.

Every picture is opened once, by its entropy-coded data whole, so that a file cut short is found; its size settles the
boxes that are in pixels. Findings of the pictures join those of the reader under one list: name, count, one example and
what was done. Nothing on disk is changed.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from distill.console import progress
from distill.datacheck_baselines import Baselines, Sizes, score_baselines, score_without_pictures
from distill.errors import DataError
from distill.picture_sizes import SizeMemory
from distill.pictures import digest_bytes, upright_size
from distill.readers.findings import Findings
from distill.scenes import IN, OUT, UNKNOWN, Finding, Head, Scene, SceneSet

# An annotator's rounding and the moving average of video boxes leave fractions of a pixel over the edge.
EDGE_PIXELS = 1.0
_BATCH = 256


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """One split in numbers. ``annotations`` counts gaze points, ``annotators`` is the most that one head has.

    ``pictures`` counts those that could be opened, or None where pictures were not looked at. ``digest`` is of all
    annotations of the split.
    """

    split: str
    scenes: int
    heads: int
    inside: int
    outside: int
    unknown: int
    annotations: int
    annotators: int
    groups: int
    pictures: int | None
    digest: str


@dataclass(frozen=True)
class DataReport:
    """What :func:`check_data` found; :meth:`facts` is the same as plain JSON values."""

    reader: str
    root: Path
    splits: tuple[SplitCounts, ...]
    findings: tuple[Finding, ...]
    files: tuple[Path, ...]
    baselines: Baselines | None = None

    def facts(self) -> dict[str, Any]:
        return {
            "reader": self.reader,
            "root": str(self.root),
            "annotation_files": len(self.files),
            "splits": [asdict(split) for split in self.splits],
            "findings": [asdict(finding) for finding in self.findings],
            "baselines": None if self.baselines is None else asdict(self.baselines),
        }


def check_data(
    sets: Sequence[SceneSet],
    *,
    training: SceneSet | None = None,
    pictures: bool = True,
    baselines: bool = True,
    baseline_heads: int = 2000,
) -> DataReport:
    """Check the splits of one data set.

    Args:
        sets: splits of one data set, each once.
        training: where the head-position prior is taken from; by default the training split among ``sets``.
        pictures: whether to open every picture; False leaves defects of pictures and of boxes in pixels unseen.
        baselines: whether to score the non-model rows on the validation split (else test, else the last one).
        baseline_heads: at most so many heads are scored, evenly spread over the split.

    Raises:
        DataError: no split is given, or the splits are of different data sets.
    """
    if not any(sets) or len({(data.reader, data.root) for data in sets}) != 1:
        raise DataError("a check is of one data set: give at least one split with scenes, all of the same data set")
    findings = Findings()
    opened: dict[str, int] = {}
    with SizeMemory(sets[0].root, upright=sets[0].reader == "folder") as sizes:
        if pictures:
            opened = _check_pictures(sets, findings, sizes)
        # Two splits of one file come with the same findings, two files with findings of one name.
        found = _merged([*dict.fromkeys(finding for data in sets for finding in data.findings), *findings.result()])
        _check_groups(sets, found)
        scored = None
        if baselines:
            evaluated = _evaluated(sets)
            # A prior that has seen the heads it is scored on would flatter.
            apart = {"val": ("train",), "test": ("train", "trainval")}.get(evaluated.split, ())
            training = training or next((data for data in sets if data.split in apart), None)
            scored = score_baselines(evaluated, training, sizes, tuple(opened), baseline_heads)
            scored = scored or score_without_pictures(evaluated, training, baseline_heads)
            scored = _with_human(scored, sets, sizes, tuple(opened), baseline_heads)
    return DataReport(
        reader=sets[0].reader,
        root=sets[0].root,
        splits=tuple(_counts(data, opened.get(data.split) if pictures else None) for data in sets),
        findings=tuple(found),
        files=tuple(dict.fromkeys(file for data in sets for file in data.files)),
        baselines=scored,
    )


def _with_human(scored: Baselines | None, sets: Sequence[SceneSet], sizes: Sizes, opened: Sequence[str], limit: int) -> Baselines | None:
    """The rows with one human's from another split, which the row then names, where only that one has several annotators a head."""
    if scored is None or scored.rows[-1].metrics is not None:
        return scored
    for data in sets:
        if data.split != scored.split and any(len(head.points) > 1 for scene in data.scenes for head in scene.heads):
            human = ("one human",)
            found = score_baselines(data, None, sizes, opened, limit, only=human) or score_without_pictures(data, None, limit, only=human)
            if found is not None and found.rows[0].metrics is not None:
                row = replace(found.rows[0], reason=f"on {data.split}, {found.rows[0].metrics.heads:,} heads")
                return replace(scored, rows=(*scored.rows[:-1], row))
    return scored


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    merged: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        first = merged.get((finding.name, finding.action))
        merged[finding.name, finding.action] = replace(first, count=first.count + finding.count) if first else finding
    return list(merged.values())


def _evaluated(sets: Sequence[SceneSet]) -> SceneSet:
    by_name = {data.split: data for data in sets}
    # An empty split is false.
    return by_name.get("val") or by_name.get("test") or next(data for data in reversed(sets) if data)


def _counts(data: SceneSet, opened: int | None) -> SplitCounts:
    heads = [head for scene in data.scenes for head in scene.heads]
    labels = Counter(head.inout for head in heads)
    return SplitCounts(
        split=data.split,
        scenes=len(data.scenes),
        heads=len(heads),
        inside=labels[IN],
        outside=labels[OUT],
        unknown=labels[UNKNOWN],
        annotations=sum(len(head.points) for head in heads),
        annotators=max((len(head.points) for head in heads), default=0),
        groups=len({scene.group for scene in data.scenes if scene.group}),
        pictures=opened,
        digest=data.digest(),
    )


def _check_groups(sets: Sequence[SceneSet], found: list[Finding]) -> None:
    """A show in two splits flatters; so does one picture, which :func:`_check_pictures` looks for."""
    where: dict[str, set[str]] = defaultdict(set)
    for data in sets:
        for scene in data.scenes:
            if scene.group:
                where[scene.group].add(data.split)
    shared = sorted(group for group, splits in where.items() if len(splits) > 1)
    if shared:
        example = f"{shared[0]}: {', '.join(sorted(where[shared[0]]))}"
        found.append(Finding("show or video in several splits", len(shared), example, "kept; metrics flatter"))


def _check_pictures(sets: Sequence[SceneSet], findings: Findings, sizes: SizeMemory) -> dict[str, int]:
    """Open every picture once; how many of each split could be opened. ``sizes`` receives what was seen."""
    opened: dict[str, int] = {}
    seen: dict[bytes, tuple[str, str]] = {}
    with progress("Checking pictures", total=sum(len(data) for data in sets), unit="pictures") as bar:
        for data in sets:
            opened[data.split] = 0
            for scene, result in _inspected(data):
                bar.update(1)
                if isinstance(result, str):
                    sizes.forget(scene.picture)
                    findings.add(result, str(scene.picture), "not checked further; mend the file or delete its lines")
                    continue
                size, digest = result
                opened[data.split] += 1
                sizes[scene.picture] = size
                split, key = seen.setdefault(digest, (data.split, scene.key))
                if split != data.split:
                    findings.add(
                        "same picture in two splits", f"{split} {key} = {data.split} {scene.key}", "kept; metrics flatter"
                    )
                _check_scene(scene, size, findings)
    return opened


def _inspected(data: SceneSet) -> Iterator[tuple[Scene, tuple[tuple[int, int], bytes] | str]]:
    look = partial(_inspect, exif=data.reader == "folder")
    # Decoding holds no interpreter lock, so threads do.
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for start in range(0, len(data), _BATCH):
            batch = data.scenes[start : start + _BATCH]
            yield from zip(batch, pool.map(look, [scene.picture for scene in batch]), strict=True)


def _inspect(path: Path, *, exif: bool) -> tuple[tuple[int, int], bytes] | str:
    """((width, height), digest of the file), or the defect's name; ``exif``: upright, as a user's photograph is seen."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return "picture missing"
    except (OSError, ValueError):  # a name with a zero byte in it is a ValueError
        return "picture unreadable"
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = upright_size(picture) if exif else picture.size
            # All entropy-coded data is read, the inverse transform at an eighth of the size: half the time.
            picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "picture corrupt"
    return (width, height), digest_bytes(data)


def _check_scene(scene: Scene, size: tuple[int, int], findings: Findings) -> None:
    """Boxes and points against the picture's size; ``normalised`` clamps them when the scene is used."""
    width, height = size
    stated = scene.size or size
    if stated != size:
        sizes = f"{scene.key}: {stated[0]} x {stated[1]}, is {width} x {height}"
        if stated == (height, width) and scene.box_pixels:
            findings.add("picture turned against its annotations", sizes, "refused when used; save it without EXIF orientation")
            return
        findings.add("picture of another size than stated", sizes, "boxes and points scaled with it")
    used = scene.normalised(width, height)
    for head, unit in zip(scene.heads, used.heads, strict=True):
        x0, y0, x1, y1 = head.box
        bw, bh = (width / stated[0], height / stated[1]) if scene.box_pixels else size
        over = max(-min(x0, x1) * bw, -min(y0, y1) * bh, max(x0, x1) * bw - width, max(y0, y1) * bh - height)
        example = f"{scene.key}: person {head.person}, box {x0:g}, {y0:g}, {x1:g}, {y1:g} in {stated[0]} x {stated[1]}"
        if unit.box[0] == unit.box[2] or unit.box[1] == unit.box[3]:
            findings.add("head wholly outside the picture", example, "refused when used; delete the line")
        elif over > EDGE_PIXELS:
            findings.add("head box over the picture's edge", example, "clamped")
        if scene.point_pixels and head.inout != OUT:
            _check_points(scene, head, size, findings)


def _check_points(scene: Scene, head: Head, size: tuple[int, int], findings: Findings) -> None:
    for x, y in head.points:
        if x > size[0] + EDGE_PIXELS or y > size[1] + EDGE_PIXELS:
            findings.add(
                "gaze point outside the picture", f"{scene.key}: {x:g}, {y:g} in {size[0]} x {size[1]}", "moved to the border"
            )


def write_record(report: DataReport, spec: str, out: Path) -> None:
    """Keep a report as JSON, whole or not at all: what was checked (``spec``), digests of its annotations, findings."""
    record = {"kind": "data check", "version": 1, "data": spec, **report.facts()}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_file = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial_file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        partial_file.replace(out)
    finally:
        partial_file.unlink(missing_ok=True)
