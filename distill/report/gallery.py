"""The gallery of a run: the same heads as the annotators, the teacher and the student see them, kept as pictures.

Format. ``RUN/gallery/gallery.json`` is ``{"version": 1, "items": [...]}``; an item is ``{"caption": str, "truth":
file|null, "teacher": file|null, "student": file|null, "teacher_error": number|null, "student_error": number|null}``. A
file is the bare name of a JPEG in the same folder; an error is the distance from the predicted point to the mean
annotation, in [0,1] of the picture's sides. The folder is replaced as a whole: a gallery never mixes two evaluations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from distill.report.errors import ReportError
from distill.report.records import number, read_object

FOLDER, INDEX, VERSION = "gallery", "gallery.json", 1
ROLES = ("truth", "teacher", "student")
_QUALITY = 92


@dataclass(frozen=True)
class GalleryItem:
    """One head, drawn up to three times, with the errors in [0,1] of the picture's sides where there are any.

    Three stand side by side, about 360 pixels wide each: draw on a picture of about twice that, with
    ``Style(scale=1.6)``, so that labels can be read.
    """

    caption: str
    truth: Image.Image | None = None
    teacher: Image.Image | None = None
    student: Image.Image | None = None
    teacher_error: float | None = None
    student_error: float | None = None


def save_gallery(run_dir: Path, items: Sequence[GalleryItem]) -> Path:
    """Write ``items`` to ``run_dir/gallery`` in place of what was there, and return that folder.

    Until every picture is on disk the former gallery stays as it was.
    """
    folder = run_dir / FOLDER
    fresh, former = folder.with_name(f"{FOLDER}.new"), folder.with_name(f"{FOLDER}.old")
    for rest in (fresh, former):
        if rest.exists():
            shutil.rmtree(rest)
    fresh.mkdir(parents=True)
    try:
        rows = []
        for place, item in enumerate(items):
            row: dict[str, str | float | None] = {"caption": item.caption}
            for role in ROLES:
                picture: Image.Image | None = getattr(item, role)
                name = None if picture is None else f"{place:03d}-{role}.jpg"
                if picture is not None and name is not None:
                    picture.convert("RGB").save(fresh / name, quality=_QUALITY, optimize=True)
                row[role] = name
            rows.append(row | {"teacher_error": item.teacher_error, "student_error": item.student_error})
        text = json.dumps({"version": VERSION, "items": rows}, indent=1, allow_nan=False, ensure_ascii=False)
        (fresh / INDEX).write_text(text + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(former)
    fresh.rename(folder)
    if former.exists():
        shutil.rmtree(former)
    return folder


def load_gallery(run_dir: Path, *, limit: int | None = None) -> tuple[GalleryItem, ...]:
    """Read the first ``limit`` items of a run's gallery; empty where none was written.

    Raises :class:`ReportError` for an index of another version, a name that leaves the folder and a picture that is
    missing or cut short.
    """
    folder = run_dir / FOLDER
    index = folder / INDEX
    if not index.is_file():
        return ()
    content = read_object(index)
    rows = content.get("items")
    if content.get("version") != VERSION or not isinstance(rows, list):
        raise ReportError(
            f"{index} is a gallery of version {content.get('version')!r}, this is version {VERSION}; "
            f"run `distill eval {run_dir}` to draw it again"
        )
    return tuple(_item(index, row) for row in rows[:limit])


def _item(index: Path, row: object) -> GalleryItem:
    if not isinstance(row, dict):
        raise ReportError(f"{index}: an item is an object, got {row!r}; remove the folder and evaluate the run again")
    pictures = {role: _open(index, row[role]) for role in ROLES if row.get(role) is not None}
    return GalleryItem(
        caption=str(row.get("caption", "")),
        **pictures,
        teacher_error=number(row, "teacher_error"),
        student_error=number(row, "student_error"),
    )


def _open(index: Path, name: object) -> Image.Image:
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise ReportError(f"{index} names {name!r}, which is not a file of its folder; evaluate the run again")
    path = index.parent / name
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise ReportError(f"{index} names {name}, which is not there; evaluate the run again") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ReportError(f"{path} cannot be decoded ({error}); evaluate the run again") from error
