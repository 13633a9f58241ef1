"""ChildPlay: one CSV per clip with a header, coordinates in pixels.

``annotations/{train,val,test}/<videoid>_<start>-<end>.csv`` with the columns ``clip, frame, person_id, bbox_x, bbox_y, bbox_width,
bbox_height, gaze_class, gaze_x, gaze_y, is_child``, one row per person and frame; ``frame`` counts from 1. A frame's picture is
``images/<clip>/<videoid>_<start + frame - 1>.jpg``; clips taken from 60 Hz videos end in ``-downsampled`` and number their pictures alike.

``inside_visible`` is in the frame, ``outside_frame`` out of it. Rows of the other four classes carry no gaze target and are dropped, as
are ``inside_visible`` rows whose gaze is -1. The splits are the data set's own; nothing is carved. ``trainval`` is train and val.
Source: Tafasca et al., ICCV 2023, and the loader of idiap/sharingan.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DataError
from distill.readers.fields import finite, is_finite, straight_box
from distill.readers.findings import Findings
from distill.readers.reader import Listing, Reader
from distill.scenes import IN, OUT, Head, Point, Scene

COLUMNS = (
    "clip", "frame", "person_id", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "gaze_class", "gaze_x", "gaze_y",
)
LABELS = {"inside_visible": IN, "outside_frame": OUT}
EXCLUDED = ("gaze_shift", "inside_occluded", "inside_uncertain", "eyes_closed")
SPLITS = ("train", "val", "test")
_NUMBERS = ("frame", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "gaze_x", "gaze_y")
_CLIP = re.compile(r"(?P<video>.+)_(?P<start>\d+)-(?P<end>\d+)(-downsampled?)?")


@dataclass(frozen=True, slots=True)
class _Clip:
    """A clip by its name: the video it was cut from, and the video's frame that is its first."""

    name: str
    video: str
    start: int


def _files(root: Path, split: str) -> list[Path]:
    return sorted((root / "annotations" / split).glob("*.csv"))


def recognises(root: Path) -> bool:
    """Whether ``root`` holds ``annotations/{train,val,test}/*.csv`` with ChildPlay's header."""
    first = next((file for split in SPLITS for file in _files(root, split)[:1]), None)
    if first is None:
        return False
    with first.open("rb") as stream:
        return b"gaze_class" in stream.readline(512)


def available(root: Path) -> tuple[str, ...]:
    """The splits whose annotations are in ``root``."""
    return tuple(split for split in SPLITS if _files(root, split))


def read(root: Path, split: str, options: Mapping[str, str], findings: Findings) -> Listing:
    """Read one split: the data set's own ``train``, ``val`` or ``test``; ``trainval`` is the first two."""
    files = [file for part in (("train", "val") if split == "trainval" else (split,)) for file in _files(root, part)]
    if not files:
        there = ", ".join(available(root))
        has = f" (it has {there})" if there else ""
        raise DataError(
            f"no annotations/{'train' if split == 'trainval' else split}/*.csv in {root}{has}; give the folder of ChildPlay with "
            "annotations/ and images/"
        )
    scenes: list[Scene] = []
    for file in files:
        scenes += _read_clip(file, root, findings)
    return Listing(tuple(scenes), tuple(files), split)


def _read_clip(file: Path, root: Path, findings: Findings) -> list[Scene]:
    """The clip's frames in order, each with the people who have a label there."""
    match = _CLIP.fullmatch(file.stem)
    if match is None:
        raise DataError(f"{file}: a clip is named VIDEO_START-END.csv; give the file its published name")
    clip = _Clip(file.stem, match["video"], int(match["start"]))
    frames: dict[int, dict[str, Head]] = {}
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream)
        try:
            where = _columns(next(lines, []), file)
            for fields in lines:
                if any(field.strip() for field in fields):
                    _row(fields, where, clip, file, lines.line_num, frames, findings)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}:{lines.line_num}: not comma separated text ({error}); replace the file by the published one"
            ) from None
    folder = f"{root}/images/"
    scenes = []
    for frame in sorted(frames):
        key = f"{clip.name}/{clip.video}_{clip.start + frame - 1}.jpg"
        heads = tuple(frames[frame].values())
        scenes.append(Scene(key, folder + key, heads, None, box_pixels=True, point_pixels=True, group=clip.video))
    return scenes


def _columns(header: list[str], file: Path) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(f"{file}:1: no column {', '.join(missing)}; the header must be {','.join(COLUMNS)},is_child, as published")
    return {name: names.index(name) for name in COLUMNS}


def _row(
    fields: list[str], where: Mapping[str, int], clip: _Clip, file: Path, line: int, frames: dict[int, dict[str, Head]], findings: Findings
) -> None:
    """One row, added to ``frames``, or dropped with a finding."""
    if len(fields) <= max(where.values()):
        raise DataError(
            f"{file}:{line}: {len(fields)} columns where {max(where.values()) + 1} are expected: the line is cut short; replace the file "
            "by the published one, or delete the line"
        )
    stated = fields[where["clip"]].strip()
    if stated != clip.name:
        raise DataError(f"{file}:{line}: clip is {stated!r} in the file of {clip.name!r}; give the file its own clip's name")
    kind = fields[where["gaze_class"]].strip()
    if kind in EXCLUDED:
        findings.add(f"no gaze target ({kind})", f"{file.name}:{line}", "row dropped")
        return
    if kind not in LABELS:
        known = ", ".join((*LABELS, *EXCLUDED))
        raise DataError(f"{file}:{line}: gaze_class is {kind!r}, not one of {known}; correct or delete the line")
    values = finite([fields[where[name]] for name in _NUMBERS])
    if values is None:
        name = next(name for name in _NUMBERS if not is_finite(fields[where[name]]))
        raise DataError(f"{file}:{line}: {name} is {fields[where[name]]!r}, not a finite number; correct or delete the line")
    number, x, y, width, height, gaze_x, gaze_y = values
    frame = int(number)
    if frame != number or frame < 1:
        raise DataError(f"{file}:{line}: frame is {fields[where['frame']]!r}, not a number from 1; correct or delete the line")
    box = straight_box(x, y, x + width, y + height, lambda: f"{file.name}:{line}", findings)
    if box is None:
        return
    points: tuple[Point, ...] = ()
    if LABELS[kind] == IN:
        if gaze_x == -1 or gaze_y == -1:
            findings.add("in frame without a gaze point", f"{file.name}:{line}: gaze {gaze_x:g}, {gaze_y:g}", "row dropped")
            return
        if gaze_x < 0 or gaze_y < 0:
            findings.add("gaze point outside the picture", f"{file.name}:{line}: gaze {gaze_x:g}, {gaze_y:g}", "moved to the border")
        points = ((max(gaze_x, 0.0), max(gaze_y, 0.0)),)
    person = fields[where["person_id"]].strip()
    people = frames.setdefault(frame, {})
    if person in people:
        findings.add("duplicate row", f"{file.name}:{line}: frame {frame}, person {person}", "row dropped")
        return
    people[person] = Head(box, points, LABELS[kind], person)


READER = Reader(
    name="childplay",
    title="ChildPlay",
    example="childplay:/data/ChildPlay",
    splits=("train", "val", "trainval", "test"),
    options=(),
    recognises=recognises,
    available=available,
    read=read,
)
