"""Head boxes in COCO JSON: ``images``, ``annotations`` with ``bbox`` as x, y, width, height in pixels, and ``categories``.

The heads are the annotations of one category, known by its name: ``head`` in any case, or the name that is given. A person is named by the
annotation's ``id``. Pixels are those of the size that ``images`` states; where a picture has another size, boxes are scaled with it.
Format: https://cocodataset.org/#format-data ("Object Detection").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import HeadsError
from distill.readers.fields import finite, straight_box
from distill.readers.findings import Findings
from distill.readers.head_row import HeadRow
from distill.readers.json_file import read_json

CATEGORY = "head"


def is_coco(file: Path) -> bool:
    """Whether ``file`` begins like a COCO annotation file."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(65536).lstrip(b"\xef\xbb\xbf \t\r\n")
    return start[:1] == b"{" and any(key in start for key in (b'"images"', b'"annotations"', b'"categories"'))


def read_coco_heads(file: Path, category: str, findings: Findings) -> list[HeadRow]:
    """Every head of the file in its order; ``category`` is the heads' category, ``head`` where it is empty.

    Crowd annotations, boxes without area and exact repetitions are dropped as findings. Raises :class:`HeadsError` that names the annotation for
    what cannot be read, and the categories that there are when none has the name.
    """
    content = read_json(file, "export it again", HeadsError)
    missing = [name for name in ("images", "annotations", "categories") if not isinstance(_entry(content, name), list)]
    if missing:
        raise HeadsError(f"{file}: no list {', '.join(missing)}; a COCO file holds images, annotations and categories")
    heads = _category(content["categories"], category, file)
    pictures: dict[Any, tuple[str, tuple[int, int] | None]] = {}
    for number, picture in enumerate(content["images"]):
        pictures[_read(picture, "id", file, f"image {number}")] = _picture(picture, file, f"image {number}")
    rows: dict[tuple[str, tuple[float, ...]], HeadRow] = {}
    others = 0
    for number, annotation in enumerate(content["annotations"]):
        where = f"annotation {number}"
        if _read(annotation, "category_id", file, where) not in heads:
            others += 1
            continue
        row = _row(annotation, pictures, file, where, findings)
        if row is None:
            continue
        if (row.image, row.box) in rows:
            findings.add("duplicate row", f"{row.place}: {row.image}", "row dropped")
            continue
        rows[row.image, row.box] = row
    if not rows and others:
        raise HeadsError(f"{file}: none of its {others} annotations is a {category or CATEGORY}; annotate heads, or name another category")
    return list(rows.values())


def _entry(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, Mapping) else None


def _read(entry: Any, name: str, file: Path, where: str) -> Any:
    value = _entry(entry, name)
    if value is None or isinstance(value, list | dict):
        raise HeadsError(f"{file}: {where}: {name} is {value!r}; export the file again")
    return value


def _category(categories: list[Any], name: str, file: Path) -> set[Any]:
    """The ids of the categories with the heads' name."""
    wanted = (name or CATEGORY).lower()
    named = [(str(_read(entry, "name", file, "a category")), _read(entry, "id", file, "a category")) for entry in categories]
    found = {number for label, number in named if label.strip().lower() == wanted}
    if not found:
        there = ", ".join(sorted(label for label, _ in named)) or "none"
        raise HeadsError(f"{file}: no category {name or CATEGORY!r} (there: {there}); say which one marks heads with ?category=NAME")
    return found


def _picture(picture: Any, file: Path, where: str) -> tuple[str, tuple[int, int] | None]:
    """A picture's path and the size that is stated for it."""
    name = str(_read(picture, "file_name", file, where)).replace("\\", "/")
    width, height = _entry(picture, "width"), _entry(picture, "height")
    if width is None and height is None:
        return name, None
    size = finite((width, height))
    if size is None or min(size) < 1:
        raise HeadsError(f"{file}: {where}: size {width!r} x {height!r} is not positive; correct it or leave it out")
    return name, (int(size[0]), int(size[1]))


def _row(annotation: Any, pictures: Mapping[Any, tuple[str, Any]], file: Path, where: str, findings: Findings) -> HeadRow | None:
    place = f"{file.name}: {where}"
    if _entry(annotation, "iscrowd"):
        findings.add("crowd instead of a head", place, "row dropped")
        return None
    image = _read(annotation, "image_id", file, where)
    if image not in pictures:
        raise HeadsError(f"{file}: {where}: image_id {image!r} is not among the images; export the file again")
    numbers = _entry(annotation, "bbox")
    values = finite(numbers) if isinstance(numbers, list) else None
    if values is None or len(values) != 4:
        raise HeadsError(f"{file}: {where}: bbox is {numbers!r}, not four finite numbers x, y, width, height; correct or delete it")
    x, y, width, height = values
    box = straight_box(x, y, x + width, y + height, lambda: place, findings)
    if box is None:
        return None
    name, size = pictures[image]
    return HeadRow(name, str(_entry(annotation, "id") if _entry(annotation, "id") is not None else ""), box, place, size)
