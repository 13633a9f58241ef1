"""VideoAttentionTarget: one text file per person and clip, coordinates in pixels.

``annotations/{train,test}/<show>/<clip>/sNN.txt`` without a header: ``frame.jpg,xmin,ymin,xmax,ymax,gazex,gazey``; pictures
in ``images/<show>/<clip>/``. Preparation as in Gaze-LLE (fkryan/gazelle, ``data_prep/preprocess_vat.py``) and, before it,
Chong et al. (ejcgt/attention-target-detection): box coordinates smoothed by an 11-frame moving average per track, padded
with the edge values; tracks joined on the frame; a lone negative gaze coordinate becomes 0; in frame where both are >= 0.
Training takes every 6th frame of a clip, evaluation every frame. Boxes are clamped when the picture's size is known.

Show names come with spaces or underscores, and not always alike in both trees; keys are written with underscores.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distill.errors import DataError
from distill.readers.findings import Findings
from distill.readers.reader import Listing, Reader
from distill.scenes import IN, OUT, Box, Head, Point, Scene
from distill.splits import carve

WINDOW = 11
TRAIN_STRIDE = 6
_NAMES = ("frame", "xmin", "ymin", "xmax", "ymax", "gazex", "gazey")
_KERNEL = np.full(WINDOW, 1.0 / WINDOW)


def recognises(root: Path) -> bool:
    """Whether ``root`` holds ``annotations/{train,test}/<show>/<clip>/*.txt``."""
    return any(
        next((root / "annotations" / split).glob("*/*/*.txt"), None) is not None
        for split in ("train", "test")
        if (root / "annotations" / split).is_dir()
    )


def available(root: Path) -> tuple[str, ...]:
    """The splits whose annotations are in ``root``."""
    train, test = ((root / "annotations" / name).is_dir() for name in ("train", "test"))
    return (*(("train", "val") if train else ()), *(("test",) if test else ()))


def read(root: Path, split: str, options: Mapping[str, str], findings: Findings) -> Listing:
    """Read one split: ``train`` and ``val`` (shows carved from the training files), ``trainval`` (all) or ``test``."""
    folder = root / "annotations" / ("test" if split == "test" else "train")
    if not folder.is_dir():
        raise DataError(
            f"no {folder.relative_to(root)} in {root}; give the folder of VideoAttentionTarget with annotations/ and images/"
        )
    shows = _picture_folders(root / "images")
    clips: list[list[Scene]] = []
    files: list[Path] = []
    for show in sorted(path for path in folder.iterdir() if path.is_dir()):
        for clip in sorted(path for path in show.iterdir() if path.is_dir()):
            tracks = sorted(clip.glob("*.txt"))
            files += tracks
            clips.append(_clip(tracks, root, shows.get(_underscored(show.name), show.name), clip.name, findings))
    scenes = [scene for clip in clips for scene in clip]
    if split in ("train", "val"):
        train, val = carve(scenes)
        scenes = train if split == "train" else val
    if split in ("train", "trainval"):
        sampled = {scene.key for clip in clips for scene in clip[::TRAIN_STRIDE]}
        scenes = [scene for scene in scenes if scene.key in sampled]
    return Listing(tuple(scenes), tuple(files), split)


def _underscored(name: str) -> str:
    return name.replace(" ", "_")


def _picture_folders(images: Path) -> dict[str, str]:
    """A show's folder name under ``images``, by its name with underscores."""
    return {_underscored(path.name): path.name for path in images.iterdir()} if images.is_dir() else {}


def _clip(tracks: list[Path], root: Path, show: str, clip: str, findings: Findings) -> list[Scene]:
    """The clip's frames in order, each with every person that a track has there."""
    frames: dict[str, list[Head]] = {}
    for file in tracks:
        for frame, head in _track(file, findings):
            frames.setdefault(frame, []).append(head)
    group = _underscored(show)
    folder = f"{root / 'images' / show / clip}/"
    return [
        Scene(f"{group}/{clip}/{frame}", folder + frame, tuple(frames[frame]), None, True, True, group)
        for frame in sorted(frames)
    ]


def _track(file: Path, findings: Findings) -> list[tuple[str, Head]]:
    """One person's heads, frame by frame, with smoothed boxes."""
    names, boxes, gazes, lines = _parse(file, findings)
    if not names:
        return []
    half = WINDOW // 2
    padded = np.pad(np.array(boxes), ((half, half), (0, 0)), mode="edge")
    columns = [np.convolve(padded[:, column], _KERNEL, mode="valid").tolist() for column in range(4)]
    person, heads = file.stem, []
    for frame, given, box, (x, y), line in zip(names, boxes, zip(*columns, strict=True), gazes, lines, strict=True):
        if box[0] == box[2] or box[1] == box[3]:
            findings.add("head box without area", f"{_place(file)}:{line}: {frame}", "row dropped")
            continue
        if given[0] == given[2] or given[1] == given[3]:
            findings.add("box without area in a track", f"{_place(file)}:{line}: {frame}", "kept, the mean over its neighbours has one")
        if x < 0 and y < 0:
            heads.append((frame, Head(box, (), OUT, person)))
        else:
            heads.append((frame, Head(box, ((max(x, 0.0), max(y, 0.0)),), IN, person)))
    return heads


def _place(file: Path) -> str:
    """The file as findings name it: show/clip/track."""
    return "/".join(file.parts[-3:])


def _parse(file: Path, findings: Findings) -> tuple[list[str], list[Box], list[Point], list[int]]:
    names: list[str] = []
    boxes: list[Box] = []
    gazes: list[Point] = []
    numbers: list[int] = []
    seen: set[str] = set()
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream)
        try:
            for fields in lines:
                if not fields or not any(field.strip() for field in fields):
                    continue
                line = lines.line_num
                x0, y0, x1, y1, gx, gy = _values(fields, file, line)
                frame = fields[0].strip()
                if frame in seen:
                    findings.add("duplicate row", f"{_place(file)}:{line}: {frame}", "row dropped")
                    continue
                seen.add(frame)
                if x0 > x1 or y0 > y1:
                    findings.add("reversed box", f"{_place(file)}:{line}: {frame}", "corners put right")
                    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
                if (gx < 0) != (gy < 0):
                    findings.add("lone negative gaze coordinate", f"{_place(file)}:{line}: {gx:g}, {gy:g}", "moved to 0")
                names.append(frame)
                boxes.append((x0, y0, x1, y1))
                gazes.append((gx, gy))
                numbers.append(line)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}:{lines.line_num}: not comma separated text ({error}); replace the file by the published one"
            ) from None
    return names, boxes, gazes, numbers


def _values(fields: list[str], file: Path, line: int) -> tuple[float, ...]:
    if len(fields) < len(_NAMES):
        raise DataError(
            f"{file}:{line}: {len(fields)} columns where {len(_NAMES)} are expected: the line is cut short; "
            "replace the file by the published one, or delete the line"
        )
    try:
        values = tuple(map(float, fields[1:7]))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        for name, field in zip(_NAMES[1:], fields[1:7], strict=True):
            if not _is_finite(field):
                raise DataError(
                    f"{file}:{line}: {name} is {field!r}, not a finite number; correct or delete the line"
                ) from None
    return values


def _is_finite(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


READER = Reader(
    name="vat",
    title="VideoAttentionTarget",
    example="vat:/data/videoattentiontarget",
    splits=("train", "val", "trainval", "test"),
    options=(),
    recognises=recognises,
    available=available,
    read=read,
)
