"""The heads file: a CSV ``image,person,xmin,ymin,xmax,ymax`` in pixels that says where heads are in given pictures, or COCO JSON.

The first line names the columns, in any order; more columns are allowed and not read. ``image`` is a path: absolute,
relative to the heads file or to a picture folder, or the bare name of a given picture. ``person`` may be empty and is
then the head's number within its picture. Boxes count the pixels of the picture held upright, as every viewer shows it.

Boxes in [0,1] of the picture's sides have columns ``xmin_norm,ymin_norm,xmax_norm,ymax_norm`` instead. The unit is never
guessed from the values; a file of pixels whose every value lies in [0,1] is refused, as it can hardly be meant (in a
picture of one pixel, the only one where it can, both units say the same).

A file that ends in ``.json`` is read by :mod:`distill.readers.coco_heads`.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from distill.errors import HeadsError
from distill.readers.coco_heads import read_coco_heads
from distill.readers.findings import Findings
from distill.readers.head_row import COLUMNS, HeadRow
from distill.scenes import Box, Head, Scene

NORMALISED = (*COLUMNS[:2], *(f"{name}_norm" for name in COLUMNS[2:]))


def read_heads_file(file: Path, findings: Findings, category: str = "") -> list[HeadRow]:
    """All rows in the file's order. Reversed boxes are put right and exact repetitions dropped, as findings.

    ``category`` names the heads' category of a COCO file. Raises :class:`HeadsError` that names the line for a missing column, a field that
    is no finite number, a box without area, or one in [0,1] whose values are not.
    """
    if not file.is_file():
        raise HeadsError(f"heads file {file} does not exist; check the path, or write one with {','.join(COLUMNS)}")
    if file.suffix.lower() == ".json":
        return read_coco_heads(file, category, findings)
    if category:
        raise HeadsError(f"category {category!r} is given, but {file} is a CSV and has no categories; leave it out")
    lines = csv.reader(io.StringIO(_text(file), newline=""), skipinitialspace=True)
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        columns = _columns(header, file)
        where = [header.index(name) for name in columns]
        rows: dict[tuple[str, str, Box], HeadRow] = {}
        for fields in lines:
            if not any(field.strip() for field in fields):
                continue
            row = _row(fields, where, columns, file, lines.line_num, findings)
            if (row.image, row.person, row.box) in rows:
                findings.add("duplicate row", f"{row.place}: {row.image}", "row dropped")
                continue
            rows[row.image, row.person, row.box] = row
    except csv.Error as error:
        raise HeadsError(f"{file}:{lines.line_num}: not comma separated text ({error}); save it as CSV") from None
    if rows and columns is COLUMNS and all(0.0 <= value <= 1.0 for row in rows.values() for value in row.box):
        raise HeadsError(
            f"{file}: every box lies in [0,1], where {','.join(COLUMNS[2:])} are pixels; if these are fractions of the picture's sides, or "
            f"its sides are one pixel, name the columns {','.join(NORMALISED[2:])}"
        )
    return list(rows.values())


def _text(file: Path) -> str:
    """The file's text; :class:`HeadsError` names the line that is not UTF-8."""
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Positions count from behind a byte order mark, whose decoder has taken it off.
        line = error.object[: error.start].count(b"\n") + 1
        bad = error.object[error.start : error.start + 1].hex()
        raise HeadsError(f"{file}:{line}: byte 0x{bad} is not UTF-8; save the file as CSV in UTF-8 (Excel: \"CSV UTF-8\")") from None


def _columns(header: list[str], file: Path) -> tuple[str, ...]:
    """The columns to read: the boxes' in pixels or in [0,1], whichever are there."""
    some = [columns for columns in (COLUMNS, NORMALISED) if any(name in header for name in columns[2:])]
    if len(some) == 2:
        raise HeadsError(f"{file}:1: boxes in pixels and in [0,1] stand side by side; leave one kind of columns out")
    columns = some[0] if some else COLUMNS
    missing = [name for name in columns if name not in header]
    if missing:
        raise HeadsError(f"{file}:1: no column {', '.join(missing)}; the first line must be {','.join(columns)}")
    return columns


def _row(fields: list[str], where: list[int], columns: tuple[str, ...], file: Path, line: int, findings: Findings) -> HeadRow:
    if len(fields) <= max(where):
        raise HeadsError(
            f"{file}:{line}: {len(fields)} columns where {max(where) + 1} are expected; complete or delete the line"
        )
    image, person = fields[where[0]].strip(), fields[where[1]].strip()
    if not image:
        raise HeadsError(f"{file}:{line}: the image is not named; complete or delete the line")
    values = []
    pixels = columns is COLUMNS
    unit = "in pixels" if pixels else "in [0,1]"
    for name, index in zip(columns[2:], where[2:], strict=True):
        try:
            value = float(fields[index])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise HeadsError(
                f"{file}:{line}: {name} is {fields[index]!r}, not a finite number; give the box's corners {unit}"
            )
        # A detector's box may go over the edge, and is clamped to the picture; a pixel is no fraction.
        if not pixels and not -1.0 <= value <= 2.0:
            raise HeadsError(
                f"{file}:{line}: {name} is {value:g}, not in [0,1]; give fractions of the picture's sides, or pixels as {','.join(COLUMNS[2:])}"
            )
        values.append(value)
    x0, y0, x1, y1 = values
    if x0 > x1 or y0 > y1:
        findings.add("reversed box", f"{file.name}:{line}: {x0:g}, {y0:g}, {x1:g}, {y1:g}", "corners put right")
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if x0 == x1 or y0 == y1:
        raise HeadsError(f"{file}:{line}: the box {x0:g}, {y0:g}, {x1:g}, {y1:g} has no area; correct or delete the line")
    return HeadRow(image.replace("\\", "/"), person, (x0, y0, x1, y1), f"{file.name}:{line}", pixels=pixels)


def assign_heads(
    rows: Sequence[HeadRow], pictures: Sequence[Path], file: Path, *, root: Path | None = None
) -> tuple[list[Scene], list[HeadRow]]:
    """Give every row to its picture: (scenes in the pictures' order, rows whose picture exists but was not given).

    A scene's key is the picture's path relative to ``root``, or as given. Pictures without a row yield no scene. Raises
    :class:`HeadsError` for a row whose picture is neither given nor on the disk, and for a bare name that fits several.
    """
    # A link is a picture of its own under its own name; what it leads to counts for a row that names it another way.
    given = {picture.resolve(): picture for picture in pictures} | {Path(os.path.abspath(picture)): picture for picture in pictures}
    first = list(dict.fromkeys((file.parent, *([root] if root else []))))
    others = [folder for folder in dict.fromkeys(picture.parent for picture in pictures) if folder not in first]
    heads: dict[Path, list[Head]] = defaultdict(list)
    sizes: dict[Path, tuple[int, int] | None] = {}
    strangers: list[HeadRow] = []
    chosen: dict[str, Path | None] = {}
    for row in rows:
        if row.image not in chosen:
            chosen[row.image] = _picture(row, given, first, others, file)
        picture = chosen[row.image]
        if picture is None:
            strangers.append(row)
        else:
            found = heads[picture]
            sizes[picture] = row.size
            found.append(Head(row.box, person=row.person or str(len(found))))
    scenes = []
    pixels = all(row.pixels for row in rows)  # a file has one unit
    for picture in pictures:
        if picture in heads:
            key = picture.relative_to(root) if root else picture
            found = heads.pop(picture)
            scenes.append(Scene(key.as_posix(), str(picture), tuple(found), sizes[picture], box_pixels=pixels, point_pixels=True))
    return scenes, strangers


def _can_be_named(name: str) -> bool:
    """Whether a file can have the name: JSON may hold signs that no file system takes."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _picture(
    row: HeadRow, given: dict[Path, Path], first: Sequence[Path], others: Sequence[Path], file: Path
) -> Path | None:
    """The given picture that the row means; None where it means one on the disk that was not given."""
    if not _can_be_named(row.image):
        raise HeadsError(f"{file.parent / row.place}: picture {row.image!r} has a sign in its name that no file's can have; correct it or delete the line")
    for folder in first:
        place = folder / row.image
        picture = given.get(Path(os.path.abspath(place))) or given.get(place.resolve())
        if picture is not None:
            return picture
    places = [folder / row.image for folder in others]
    fitting = [given[place] for place in dict.fromkeys(place.resolve() for place in places) if place in given]
    if len(fitting) > 1:
        raise HeadsError(
            f"{file.parent / row.place}: {row.image} fits {len(fitting)} pictures, e.g. {fitting[0]} and {fitting[1]}; "
            "write its path in the heads file"
        )
    if fitting:
        return fitting[0]
    if any((folder / row.image).is_file() for folder in (*first, *others)):
        return None
    looked = ", ".join(str(folder) for folder in (*first, *others)[:3])
    raise HeadsError(
        f"{file.parent / row.place}: picture {row.image} is neither given nor on the disk (looked in {looked}); "
        "correct the name or delete the line"
    )
