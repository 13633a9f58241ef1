"""GazeFollow, extended release: the published annotation files, or their preprocessed JSON.

Published form: comma separated without a header, some copies with a byte order mark. The training file has 17 columns
(``path, idx, body x4, eye x2, gaze x2, head xmin ymin xmax ymax, inout, source, meta``); the test file has 16, the same
without ``inout``, one row per annotator. Body, eye and gaze are normalised, the head box is in pixels. Training rows
become one scene per path; test rows one head per (path, eye_x, box) that keeps every annotator's point, all in frame.

Preprocessed form: the JSON of Gaze-LLE (fkryan/gazelle, data_prep), read in ``distill.readers.gazefollow_json``.
Protocol: https://github.com/ejcgt/attention-target-detection (``gazefollow`` loader), https://arxiv.org/abs/2412.09586.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from distill.errors import DataError
from distill.readers.findings import Findings
from distill.readers.gazefollow_json import is_preprocessed, read_preprocessed
from distill.readers.reader import Listing, Reader
from distill.scenes import IN, OUT, Head, Point, Scene
from distill.splits import carve

TRAIN_FILE, TEST_FILE = "train_annotations_release.txt", "test_annotations_release.txt"
TRAIN_COLUMNS, TEST_COLUMNS = 17, 16
_EYE_X, _GAZE, _BOX, _INOUT = 6, slice(8, 10), slice(10, 14), 14
_NAMES = (
    "path idx body_x body_y body_w body_h eye_x eye_y gaze_x gaze_y head_xmin head_ymin head_xmax head_ymax inout"
).split()

Row = tuple[str, list[str]]


def recognises(root: Path) -> bool:
    """Whether ``root`` holds GazeFollow's annotation files in either form."""
    if (root / TRAIN_FILE).is_file() or (root / TEST_FILE).is_file():
        return True
    return any(is_preprocessed(root / f"{name}_preprocessed.json") for name in ("train", "test"))


def available(root: Path) -> tuple[str, ...]:
    """The splits whose annotation files are in ``root``, in either form."""
    train = any((root / name).is_file() for name in (TRAIN_FILE, "train_preprocessed.json"))
    test = any((root / name).is_file() for name in (TEST_FILE, "test_preprocessed.json"))
    return (*(("train", "val") if train else ()), *(("test",) if test else ()))


def read(root: Path, split: str, options: Mapping[str, str], findings: Findings) -> Listing:
    """Read one split: ``train`` and ``val`` (carved from the training file), ``trainval`` (all of it) or ``test``."""
    test = split == "test"
    published = root / (TEST_FILE if test else TRAIN_FILE)
    prepared = root / ("test_preprocessed.json" if test else "train_preprocessed.json")
    if published.is_file():
        file = published
        scenes = _test_scenes(file, root, findings) if test else _train_scenes(file, root, findings)
    elif prepared.is_file():
        file = prepared
        scenes = read_preprocessed(file, root, findings)
    else:
        raise DataError(_missing(root, published, prepared))
    if split in ("train", "val"):
        train, val = carve(scenes)
        scenes = train if split == "train" else val
    return Listing(tuple(scenes), (file,), split)


def _missing(root: Path, published: Path, prepared: Path) -> str:
    there = [name for name in (TRAIN_FILE, TEST_FILE) if (root / name).is_file()]
    has = f" (it has {there[0]}, so another split can be read)" if there else ""
    return f"no {published.name} and no {prepared.name} in {root}{has}; give the folder that holds the annotations"


def _rows(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line that is not blank; too few fields is an error that names the line."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream)
        try:
            for fields in lines:
                if len(fields) < columns:
                    if not any(field.strip() for field in fields):
                        continue
                    raise DataError(_short(file, lines.line_num, len(fields), columns))
                yield lines.line_num, fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}:{lines.line_num}: not comma separated text ({error}); replace the file by the published one"
            ) from None


def _short(file: Path, line: int, count: int, columns: int) -> str:
    if count == TEST_COLUMNS and columns == TRAIN_COLUMNS:
        why = "the in/out column is missing, as in a test file; use the training file of the extended release"
    else:
        why = "the line is cut short; replace the file by the published one, or delete the line"
    return f"{file}:{line}: {count} columns where {columns} are expected: {why}"


def _numbers(fields: list[str], where: slice, file: Path, line: int) -> tuple[float, ...]:
    try:
        values = tuple(map(float, fields[where]))
    except ValueError:
        values = (math.nan,)
    # One sum is cheaper than four checks, over a hundred thousand rows; it is finite only if all of them are.
    if math.isfinite(sum(values)):
        return values
    for index in range(where.start, where.stop):
        if not _is_finite(fields[index]):
            raise DataError(
                f"{file}:{line}: {_NAMES[index]} is {fields[index]!r}, not a finite number; correct or delete the line"
            )
    return values


def _is_finite(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def _box(fields: list[str], file: Path, line: int, findings: Findings) -> tuple[float, float, float, float] | None:
    """The head box in pixels with reversed corners put right; None (dropped) where it has no area."""
    x0, y0, x1, y1 = _numbers(fields, _BOX, file, line)
    if x0 > x1 or y0 > y1:
        findings.add("reversed box", f"{file.name}:{line}: {_text(x0, y0, x1, y1)}", "corners put right")
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if x0 == x1 or y0 == y1:
        findings.add("head box without area", f"{file.name}:{line}: {_text(x0, y0, x1, y1)}", "row dropped")
        return None
    return x0, y0, x1, y1


def _point(fields: list[str], file: Path, line: int, findings: Findings) -> Point | None:
    """The gaze point, moved into [0,1] where it lies a little outside; None (dropped) where there is none."""
    x, y = _numbers(fields, _GAZE, file, line)
    if 0 <= x <= 1 and 0 <= y <= 1:
        return x, y
    if x <= -1 or y <= -1 or (x < 0 and y < 0):
        findings.add("in frame without a gaze point", f"{file.name}:{line}: gaze {_text(x, y)}", "row dropped")
        return None
    findings.add("gaze point outside the picture", f"{file.name}:{line}: gaze {_text(x, y)}", "moved to the border")
    return min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)


def _text(*values: float) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _scenes(heads: dict[str, list[Head]], root: Path) -> list[Scene]:
    above = f"{root}/"
    return [Scene(key, above + key, tuple(found), box_pixels=True) for key, found in heads.items() if found]


def _train_scenes(file: Path, root: Path, findings: Findings) -> list[Scene]:
    heads: dict[str, list[Head]] = {}
    for line, fields in _rows(file, TRAIN_COLUMNS):
        label = fields[_INOUT].strip()
        if label not in _LABELS:
            raise DataError(
                f"{file}:{line}: inout is {fields[_INOUT]!r}, not 1 (in), 0 (out) or -1 (invalid); correct or delete the line"
            )
        inout = _LABELS[label]
        if inout < 0:
            findings.add("marked invalid (inout -1)", f"{file.name}:{line}: {fields[0]}", "row dropped")
            continue
        box = _box(fields, file, line, findings)
        if box is None:
            continue
        points: tuple[Point, ...] = ()
        if inout == IN:
            point = _point(fields, file, line, findings)
            if point is None:
                continue
            points = (point,)
        key = fields[0].replace("\\", "/")
        found = heads.setdefault(key, [])
        if found and any(head.box == box and head.inout == inout and head.points == points for head in found):
            findings.add("duplicate row", f"{file.name}:{line}: {key}", "row dropped")
            continue
        found.append(Head(box, points, inout, str(len(found))))
    return _scenes(heads, root)


_LABELS = {"1": IN, "1.0": IN, "0": OUT, "0.0": OUT, "-1": -1, "-1.0": -1}


def _test_scenes(file: Path, root: Path, findings: Findings) -> list[Scene]:
    grouped: dict[str, dict[tuple[float, ...], list[Point]]] = {}
    for line, fields in _rows(file, TEST_COLUMNS):
        box = _box(fields, file, line, findings)
        if box is None:
            continue
        point = _point(fields, file, line, findings)
        if point is None:
            continue
        (eye_x,) = _numbers(fields, slice(_EYE_X, _EYE_X + 1), file, line)
        annotated = grouped.setdefault(fields[0].replace("\\", "/"), {})
        points = annotated.get((eye_x, *box))
        if points is None:
            if any(other[0] == eye_x for other in annotated):
                findings.add(
                    "one eye, several boxes", f"{file.name}:{line}: {fields[0]} eye_x {eye_x:g}", "kept as separate heads"
                )
            annotated[(eye_x, *box)] = [point]
        else:
            points.append(point)
    heads = {
        key: [
            Head((name[1], name[2], name[3], name[4]), tuple(points), IN, str(person))
            for person, (name, points) in enumerate(annotated.items())
        ]
        for key, annotated in grouped.items()
    }
    return _scenes(heads, root)


READER = Reader(
    name="gazefollow",
    title="GazeFollow, extended release (as published, or preprocessed JSON)",
    example="gazefollow:/data/gazefollow_extended",
    splits=("train", "val", "trainval", "test"),
    options=(),
    recognises=recognises,
    available=available,
    read=read,
)
