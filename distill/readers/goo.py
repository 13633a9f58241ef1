"""GOO-Real: people in a shop who look at objects on shelves. A JSON list of records, or the published pickle of one.

Files ``oneshotrealhumansNew`` (train), ``valrealhumansNew`` and ``testrealhumansNew``, each ``.json`` or ``.pickle``, beside the picture folder
``finalrealdatasetImgsV3``. A pickle is read without running any of it (:mod:`distill.readers.restricted_pickle`).

A record has ``filename`` (with backslashes), ``width``, ``height``, ``ann.bboxes`` (the last one is the head's), ``gaze_item``, ``gaze_cx``,
``gaze_cy``, ``hx``, ``hy``. Boxes and points are in 640 × 480 whatever the picture's size is (1920 × 1080): they are divided by 640 and 480
here. There is no in/out label; everybody looks at something in the picture. The splits are the data set's own; ``trainval`` is train and val.
Source: Tomas et al., "GOO: A Dataset for Gaze Object Prediction in Retail Environments", CVPR workshops 2021, and upeee/GOO-GAZE2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.readers.fields import finite, straight_box
from distill.readers.findings import Findings
from distill.readers.json_file import read_json
from distill.readers.reader import Listing, Reader
from distill.readers.restricted_pickle import load_restricted
from distill.scenes import IN, Head, Scene

FRAME = (640.0, 480.0)  # what all coordinates are in
STEMS = {"train": "oneshotrealhumansNew", "val": "valrealhumansNew", "test": "testrealhumansNew"}
SUFFIXES = (".json", ".pickle", ".pkl")
PICTURES = ("finalrealdatasetImgsV3", "finalrealdatasetImgsV2")
_FAR = 1.05  # beyond this share of the frame a coordinate is in other units, not an annotator's slip
_REMEDY = "get the published file again, or write the JSON again with the script that made it"


def _file(root: Path, split: str) -> Path | None:
    # JSON first: what has been converted needs no pickle.
    return next((file for suffix in SUFFIXES if (file := root / f"{STEMS[split]}{suffix}").is_file()), None)


def recognises(root: Path) -> bool:
    """Whether ``root`` holds one of GOO-Real's annotation files."""
    return any(_file(root, split) for split in STEMS)


def available(root: Path) -> tuple[str, ...]:
    """The splits whose annotation files are in ``root``."""
    return tuple(split for split in STEMS if _file(root, split))


def read(root: Path, split: str, options: Mapping[str, str], findings: Findings) -> Listing:
    """Read one split: the data set's own ``train``, ``val`` or ``test``; ``trainval`` is the first two."""
    parts = [part for part in (("train", "val") if split == "trainval" else (split,)) if _file(root, part)]
    if not parts:
        stem = STEMS["train" if split == "trainval" else split]
        there = f" (it has {', '.join(available(root))})" if available(root) else ""
        raise DataError(f"no {stem}.pickle and no {stem}.json in {root}{there}; give the folder that holds GOO-Real's annotations")
    folder = next((name for name in PICTURES if (root / name).is_dir()), PICTURES[0])
    files: list[Path] = []
    scenes: dict[str, Scene] = {}
    for part in parts:
        file = _file(root, part)
        assert file is not None
        files.append(file)
        for number, record in enumerate(_records(file)):
            try:
                _add(record, f"{file.name}: record {number}", root / folder, scenes, findings)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise DataError(f"{file}: record {number}: {cause}; {_REMEDY}") from None
    return Listing(tuple(scenes.values()), tuple(files), split)


def _records(file: Path) -> list[Any]:
    if file.suffix == ".json":
        content = read_json(file, _REMEDY)
    else:
        content = load_restricted(file)
    if not isinstance(content, list):
        raise DataError(f"{file}: holds a {type(content).__name__} where a list of records is expected; {_REMEDY}")
    return content


def _add(record: Any, place: str, pictures: Path, scenes: dict[str, Scene], findings: Findings) -> None:
    """The record's person, in the scene of its picture; dropped with a finding where there is no head box.

    Raises whatever a damaged record gives rise to, :class:`ValueError` among it.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"holds a {type(record).__name__} where a record with filename, ann and gaze_cx is expected")
    key = str(record["filename"]).replace("\\", "/").lstrip("/")
    if not key:
        raise ValueError("filename is empty")
    place = f"{place}: {key}"
    boxes, gaze = record["ann"]["bboxes"], (record["gaze_cx"], record["gaze_cy"])
    if not len(boxes):
        findings.add("record without a head box", place, "record dropped")
        return
    corners, point = finite([*boxes[-1]]), finite(gaze)
    if corners is None or len(corners) != 4:
        raise ValueError(f"head box {[*boxes[-1]]!r} is not made of four finite numbers")
    if point is None:
        raise ValueError(f"gaze {gaze!r} is not made of finite numbers")
    _refuse_other_units((*corners, *point))
    box = straight_box(*corners, lambda: place, findings)
    if box is None:
        return
    _compare_head(record, box, place, findings)
    if point[0] < 0 and point[1] < 0:
        # The other data sets' mark of a person without a target; moved to the border it would be one that nobody annotated.
        findings.add("in frame without a gaze point", f"{place}: gaze {point[0]:g}, {point[1]:g}", "record dropped")
        return
    x, y = point[0] / FRAME[0], point[1] / FRAME[1]
    if not (0 <= x <= 1 and 0 <= y <= 1):
        findings.add("gaze point outside the picture", f"{place}: {point[0]:g}, {point[1]:g} in 640 x 480", "moved to the border")
        x, y = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
    unit = (box[0] / FRAME[0], box[1] / FRAME[1], box[2] / FRAME[0], box[3] / FRAME[1])
    heads = scenes[key].heads if key in scenes else ()
    if any(head.box == unit and head.points == ((x, y),) for head in heads):
        findings.add("duplicate record", place, "record dropped")
        return
    scenes[key] = Scene(key, f"{pictures}/{key}", (*heads, Head(unit, ((x, y),), IN, str(len(heads)))))


def _refuse_other_units(values: tuple[float, ...]) -> None:
    """Coordinates far beyond 640 × 480 are of a file that was converted to the pictures' own pixels: all of it would be wrong."""
    for number, value in enumerate(values):
        limit = FRAME[number % 2]
        if value > _FAR * limit:
            raise ValueError(
                f"coordinate {value:g} is beyond {limit:g}, and GOO-Real's coordinates are in 640 x 480; this file seems to be in its "
                "pictures' own pixels"
            )


def _compare_head(record: Mapping[str, Any], box: tuple[float, float, float, float], place: str, findings: Findings) -> None:
    """Where the record names the head's point, the box that is taken for the head's is expected to hold it."""
    head = finite((record.get("hx"), record.get("hy")))
    if head is not None and not (box[0] - 1 <= head[0] <= box[2] + 1 and box[1] - 1 <= head[1] <= box[3] + 1):
        findings.add("head point outside the head box", f"{place}: {head[0]:g}, {head[1]:g}", "kept; the box counts")


READER = Reader(
    name="goo",
    title="GOO-Real",
    example="goo:/data/gooreal",
    splits=("train", "val", "trainval", "test"),
    options=(),
    recognises=recognises,
    available=available,
    read=read,
)
