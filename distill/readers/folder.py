"""A folder of pictures with a heads file, CSV or COCO JSON: boxes only, no gaze. What is predicted on, or distilled from without labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from distill.errors import DataError
from distill.pictures import SUFFIXES
from distill.readers.coco_heads import is_coco
from distill.readers.findings import Findings
from distill.readers.heads_file import assign_heads, read_heads_file
from distill.readers.reader import Listing, Reader

HEADS_FILE = "heads.csv"
# What annotation tools call their COCO exports.
COCO_FILES = ("heads.json", "annotations.json", "instances_default.json", "_annotations.coco.json")


def list_pictures(folder: Path) -> list[Path]:
    """Every picture in ``folder`` and the folders below it, sorted by path; hidden ones are left out."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place, name) for name in sorted(files) if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return found


def heads_files(folder: Path) -> list[Path]:
    """The heads files that lie in ``folder`` under a known name: ``heads.csv`` first, then COCO files."""
    table = [folder / HEADS_FILE] if (folder / HEADS_FILE).is_file() else []
    return [*table, *(folder / name for name in COCO_FILES if is_coco(folder / name))]


def recognises(root: Path) -> bool:
    """Whether ``root`` is a folder with a heads file under a known name."""
    return bool(heads_files(root))


def available(root: Path) -> tuple[str, ...]:
    """A picture folder is one split."""
    return ("all",)


def read(root: Path, split: str, options: Mapping[str, str], findings: Findings) -> Listing:
    """Read all pictures that the heads file names: the file found in the folder unless ``?heads=`` says else.

    ``?category=`` names the heads' category of a COCO file.
    """
    file = Path(options["heads"]).expanduser() if options.get("heads") else next(iter(heads_files(root)), root / HEADS_FILE)
    if not file.is_file():
        raise DataError(
            f"no heads file {file}; write one (image,person,xmin,ymin,xmax,ymax in pixels) and give it with "
            f"--heads FILE, or as folder:{root}?heads=FILE"
        )
    pictures = list_pictures(root)
    if not pictures:
        raise DataError(f"no pictures in {root}; a picture ends in {', '.join(SUFFIXES)}")
    rows = read_heads_file(file, findings, options.get("category", ""))
    scenes, strangers = assign_heads(rows, pictures, file, root=root)
    if strangers:
        name = strangers[0].image
        where = f"{strangers[0].place}: {name}"
        for _ in strangers:
            findings.add("head of a picture that was not given", where, "row ignored")
    have = {scene.picture for scene in scenes}
    for picture in pictures:
        if picture not in have:
            findings.add("picture without heads", str(picture.relative_to(root)), "left out")
    return Listing(tuple(scenes), (file,), "all")


READER = Reader(
    name="folder",
    title="a picture folder with a heads file (CSV or COCO JSON)",
    example="folder:/pictures?heads=/pictures/heads.csv",
    splits=("all", "train", "trainval"),
    options=("heads", "category"),
    recognises=recognises,
    available=available,
    read=read,
)
