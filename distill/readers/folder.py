"""A folder of pictures with a heads file: boxes only, no gaze. What is predicted on, or distilled from without labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from distill.errors import DataError
from distill.pictures import SUFFIXES
from distill.readers.findings import Findings
from distill.readers.heads_file import assign_heads, read_heads_file
from distill.readers.reader import Listing, Reader

HEADS_FILE = "heads.csv"


def list_pictures(folder: Path) -> list[Path]:
    """Every picture in ``folder`` and the folders below it, sorted by path; hidden ones are left out."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place, name) for name in sorted(files) if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return found


def recognises(root: Path) -> bool:
    """Whether ``root`` is a folder with a ``heads.csv``."""
    return (root / HEADS_FILE).is_file()


def available(root: Path) -> tuple[str, ...]:
    """A picture folder is one split."""
    return ("all",)


def read(root: Path, split: str, options: Mapping[str, str], findings: Findings) -> Listing:
    """Read all pictures that the heads file names; the file is ``heads.csv`` in the folder unless ``?heads=`` says else."""
    file = Path(options["heads"]).expanduser() if options.get("heads") else root / HEADS_FILE
    if not file.is_file():
        raise DataError(
            f"no heads file {file}; write one (image,person,xmin,ymin,xmax,ymax in pixels) and give it as "
            f"folder:{root}?heads=FILE"
        )
    pictures = list_pictures(root)
    if not pictures:
        raise DataError(f"no pictures in {root}; a picture ends in {', '.join(SUFFIXES)}")
    rows = read_heads_file(file, findings)
    scenes, strangers = assign_heads(rows, pictures, file, root=root)
    if strangers:
        name = strangers[0].image
        where = f"{file.name}:{strangers[0].line}: {name}"
        for _ in strangers:
            findings.add("head of a picture that was not given", where, "row ignored")
    have = {scene.picture for scene in scenes}
    for picture in pictures:
        if picture not in have:
            findings.add("picture without heads", str(picture.relative_to(root)), "left out")
    return Listing(tuple(scenes), (file,), "all")


READER = Reader(
    name="folder",
    title="a picture folder with a heads file",
    example="folder:/pictures?heads=/pictures/heads.csv",
    splits=("all", "train", "trainval"),
    options=("heads",),
    recognises=recognises,
    available=available,
    read=read,
)
