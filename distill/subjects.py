"""Whom to predict: a user's pictures and folders, and the heads file that says where the heads are in them.

Everything is checked here before any model runs: that pictures can be opened, that every row has a picture, and every box an area within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.errors import ConfigurationError, HeadsError, PictureError
from distill.pictures import load_picture, picture_size
from distill.readers.findings import Findings
from distill.readers.folder import HEADS_FILE, heads_files, list_pictures
from distill.readers.heads_file import HeadRow, assign_heads, read_heads_file
from distill.scenes import Box, Finding, Head, Scene


@dataclass(frozen=True)
class Subjects:
    """Whom to predict: scenes with boxes in pixels, and the heads file's rows behind them.

    ``rows`` are in the file's order; ``places[s][k]`` is the row of head k in scene s. ``ignored`` counts rows of pictures that were not
    given, ``without`` the pictures given that have no row, ``unreadable`` those left out on request, with the reason.
    """

    scenes: tuple[Scene, ...]
    rows: tuple[HeadRow, ...]
    places: tuple[tuple[int, ...], ...]
    ignored: int
    without: tuple[Path, ...]
    unreadable: tuple[str, ...]
    findings: tuple[Finding, ...]


def given_pictures(paths: Sequence[Path], out: Path | None = None) -> tuple[list[Path], Path | None]:
    """All pictures that ``paths`` (files and folders) stand for, each once, and the folder if it is the only path.

    What lies in ``out``, where that is a folder inside one of them, is an earlier call's and left out. Raises
    :class:`PictureError` for a path that does not exist and for a folder without pictures.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = list_pictures(path)
            if out is not None and out.resolve() != path.resolve():
                inside = [picture for picture in inside if out.resolve() not in picture.resolve().parents]
            if not inside:
                raise PictureError(f"no pictures in folder {path}; give a folder of JPEG or PNG files, or the files themselves")
        elif path.is_file():
            inside = [path]
        else:
            raise PictureError(f"picture {path} does not exist; check the path")
        for picture in inside:
            found.setdefault(picture.resolve(), picture)
    root = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    return list(found.values()), root


def heads_file_beside(paths: Sequence[Path]) -> bool:
    """Whether a heads file lies in the folders given, or beside the pictures given."""
    return any(heads_files(path if path.is_dir() else path.parent) for path in paths)


def find_heads_file(heads: Path | None, paths: Sequence[Path]) -> Path:
    """``heads``, or without it the ``heads.csv`` (else a COCO file) in the folder given, or beside the pictures given."""
    if heads is not None:
        return heads
    folders = list(dict.fromkeys(path if path.is_dir() else path.parent for path in paths))
    files = [file for folder in folders for file in heads_files(folder)[:1]]
    if len(files) != 1:
        raise ConfigurationError(
            f"{len(files)} files {HEADS_FILE} lie beside the pictures; give one with --heads (image,person,xmin,ymin,xmax,ymax in pixels)"
        )
    return files[0]


def gather(pictures: Sequence[Path], heads_file: Path, *, root: Path | None = None, skip_unreadable: bool = False) -> Subjects:
    """Bring pictures and heads file together and check every box against its picture's size, before any model runs.

    A box over the picture's edge is clamped, as a finding. ``skip_unreadable`` decodes every picture once and leaves out those
    that cannot be. Raises :class:`HeadsError` for a row whose picture is not on the disk, a box without area within its
    picture, and when nobody is left; :class:`PictureError` for a picture that cannot be opened.
    """
    findings = Findings()
    everything = read_heads_file(heads_file, findings)
    # A head keeps no line number: the row's own number travels in its place.
    marked = [replace(row, person=str(number)) for number, row in enumerate(everything)]
    scenes, strangers = assign_heads(marked, pictures, heads_file, root=root)
    have = {scene.picture for scene in scenes}
    without = tuple(picture for picture in pictures if picture not in have)
    unreadable: list[str] = []
    kept: list[Scene] = []
    for scene in scenes:
        try:
            width, height = _upright_size(scene.picture, decode=skip_unreadable)
        except PictureError as error:
            if not skip_unreadable:
                raise
            unreadable.append(str(error))
            continue
        scene = _in_own_pixels(scene, width, height)
        given = scene.heads if scene.box_pixels else tuple(_in_pixels(head, width, height) for head in scene.heads)
        heads = tuple(_within(head, everything[int(head.person)], width, height, heads_file, findings) for head in given)
        kept.append(replace(scene, heads=heads, box_pixels=True))
    used = sorted(int(head.person) for scene in kept for head in scene.heads)
    if not used:
        why = f"all of its {len(everything)} rows are for other pictures" if strangers else "it has no row that can be used"
        raise HeadsError(f"{heads_file} says nothing of the pictures given: {why}; add a line a head, or give its pictures")
    order = {number: place for place, number in enumerate(used)}
    return Subjects(
        scenes=tuple(_named(scene, everything) for scene in kept),
        rows=tuple(everything[number] for number in used),
        places=tuple(tuple(order[int(head.person)] for head in scene.heads) for scene in kept),
        ignored=len(strangers), without=without, unreadable=tuple(unreadable), findings=findings.result(),
    )


def _named(scene: Scene, rows: Sequence[HeadRow]) -> Scene:
    """The scene with the people's own names: as the heads file has them, or their number within the picture."""
    heads = (
        replace(head, person=rows[int(head.person)].person or str(number)) for number, head in enumerate(scene.heads)
    )
    return replace(scene, heads=tuple(heads))


def _upright_size(path: Path, *, decode: bool) -> tuple[int, int]:
    """(width, height) of the picture held upright; from its header, or by decoding all of it."""
    if decode:
        height, width = load_picture(path, exif=True).shape[:2]
        return width, height
    try:
        return picture_size(path, exif=True)
    except PictureError as error:
        raise PictureError(f"{error}, or use --on-error skip") from None


def _in_own_pixels(scene: Scene, width: int, height: int) -> Scene:
    """The scene with its boxes in the picture's own pixels, where the heads file counts in those of another size."""
    if scene.size in (None, (width, height)):
        return scene
    assert scene.size is not None
    scene.normalised(width, height)  # refuses a picture that was turned since
    across, down = width / scene.size[0], height / scene.size[1]
    heads = []
    for head in scene.heads:
        x0, y0, x1, y1 = head.box
        heads.append(replace(head, box=(x0 * across, y0 * down, x1 * across, y1 * down)))
    return replace(scene, heads=tuple(heads), size=(width, height))


def _in_pixels(head: Head, width: int, height: int) -> Head:
    """A head whose box is in [0,1] with the box in pixels: answers say it in pixels, whatever the heads file said."""
    x0, y0, x1, y1 = head.box
    return replace(head, box=(x0 * width, y0 * height, x1 * width, y1 * height))


def _within(head: Head, row: HeadRow, width: int, height: int, file: Path, findings: Findings) -> Head:
    x0, y0, x1, y1 = head.box
    box: Box = (min(max(x0, 0.0), width), min(max(y0, 0.0), height), min(max(x1, 0.0), width), min(max(y1, 0.0), height))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise HeadsError(
            f"{file.parent / row.place}: the box {x0:g}, {y0:g}, {x1:g}, {y1:g} lies outside {row.image}, which is {width} x {height} pixels; "
            "correct or delete the line"
        )
    if box != head.box:
        findings.add("box over the edge", f"{row.place}: {row.image} is {width} x {height} pixels", "clamped")
    return replace(head, box=box)
