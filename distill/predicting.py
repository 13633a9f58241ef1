"""Prediction: any gaze model on a user's own pictures, with head boxes from a CSV file.

What is written to the output folder, all of it only when every picture has been answered:

``answers.jsonl``
    one line a person, in the order of the heads file: ``image`` and ``person`` as the heads file has them, ``box`` xyxy in pixels
    within the picture, ``point`` xy in pixels, ``point_normalised`` xy in [0,1), ``inout`` the probability that the target is in
    the picture (null where the model does not say), ``peak`` the probability of the heatmap's highest cell, ``model``.
    Points are the highest cell's index over the grid's size, as the metrics count; drawings add half a cell, its centre.
``heatmaps.npz``, if asked for
    ``heatmap [N,h,w]`` float32 logits, ``inout [N]`` float32 logits (no such entry where the model has no in/out), ``image [N]`` and
    ``person [N]`` text, N in the order of the heads file.
``*_gaze.png``
    one a picture, with everybody in it.

Pixels are those of the picture held upright, as its EXIF orientation says.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import ConfigurationError, HeadsError, PictureError
from distill.exporting import require_extra
from distill.metrics import sigmoid
from distill.pictures import load_picture, picture_size
from distill.readers.findings import Findings
from distill.readers.folder import HEADS_FILE, heads_files, list_pictures
from distill.readers.heads_file import HeadRow, assign_heads, read_heads_file
from distill.scenes import Box, Finding, Head, Scene
from distill.selection import mark

if TYPE_CHECKING:
    from distill.evaluation import GazeFunction, SceneAnswer

ANSWERS, HEATMAPS = "answers.jsonl", "heatmaps.npz"


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


@dataclass(frozen=True)
class Prediction:
    """What was written: the lines of ``answers.jsonl`` and the paths of all files (``heatmaps`` is None if not asked for)."""

    people: tuple[dict[str, Any], ...]
    answers: Path
    heatmaps: Path | None
    overlays: tuple[Path, ...]


def load_gaze(spec: str, device: str = "auto") -> tuple[GazeFunction, str]:
    """The model that ``spec`` names, ready to call, and its name.

    A run's directory (its best student), a stored model's directory, an exported ``.onnx`` file, stored predictions (``.npz``), or a teacher's
    name, ``onnx:FILE`` or ``onnx:FILE?adapter=NAME`` for a model of another project among them. A student that was chosen on test carries
    it in its name. Raises :class:`teachers.errors.UnknownModelError` with the nearest names, :class:`teachers.errors.WeightsError`,
    :class:`teachers.errors.BlackBoxError` and :class:`students.errors.ExportError` for files that are damaged.
    """
    from teachers.onnx_teacher import PREFIX

    if spec.endswith(".npz"):
        from distill.predictions import StoredPredictions

        stored = StoredPredictions(Path(spec))
        return stored, f"{stored.name} ({Path(spec).name})" if stored.name else Path(spec).name
    if spec.endswith(".onnx") and not spec.startswith(PREFIX):
        require_extra("export", "onnxruntime")
        from distill.exported import ExportedFile

        if device not in ("auto", "cpu"):
            raise ConfigurationError(f"an exported file runs on the CPU, not on {device}; leave --device out, or give the run")
        exported = ExportedFile(Path(spec))
        return exported, Path(spec).name + mark(exported.description)
    from distill.fetching import download_progress
    from teachers.catalogue import load_teacher
    from teachers.errors import UnknownModelError
    from teachers.published import CATALOGUE
    from teachers.weights import read_description

    if spec.startswith(PREFIX):
        black_box = load_teacher(spec, device=device)
        return black_box, black_box.name
    path = Path(spec)
    if (path / "config.json").is_file() and not (path / "student" / "model.json").is_file():
        raise ConfigurationError(
            f"run {spec} has no student yet, one is kept at its first validation; go on with `distill train --resume {spec}`"
        )
    known = spec == "demo" or spec in CATALOGUE or spec.startswith(("timm:", "onnx:"))
    if not known and not any((path / part / "model.json").is_file() for part in ("", "student")):
        runs = sorted(str(file.parent.parent) for file in Path("runs").glob("*/student/model.json"))
        raise UnknownModelError.of(
            "model", spec, ["demo", *CATALOGUE, *runs],
            "give a run's directory, an exported .onnx file, predictions.npz, or a teacher that `distill teachers list` knows",
        )
    with download_progress() as report:
        teacher = load_teacher(spec, device=device, report=report)
    if known:
        return teacher, teacher.name
    facts = read_description(path / "student" if (path / "student" / "model.json").is_file() else path)["facts"]
    return teacher, path.resolve().name + mark(facts)


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


def predict(
    model: GazeFunction,
    name: str,
    subjects: Subjects,
    out: Path,
    *,
    heatmaps: bool = False,
    overlays: bool = True,
    advance: Callable[[int], None] | None = None,
) -> Prediction:
    """Answer for everybody in ``subjects`` and write what the module's docstring describes to ``out``.

    ``advance(1)`` is called for each picture done. Files from an earlier call in ``out`` are replaced when all is answered; its
    heatmaps are removed when none are asked for, as they would not belong to the new answers. Raises :class:`PictureError` for a
    picture that cannot be decoded and :class:`~distill.errors.MetricError` for a model whose answers are not finite.
    """
    from distill.evaluation import answers

    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".predict.", dir=out))
    done = False
    try:
        lines: list[dict[str, Any]] = [{} for _ in subjects.rows]
        maps: dict[int, np.ndarray] = {}
        inout: dict[int, float] = {}
        drawings = overlay_names(subjects.scenes, out) if overlays else []
        given = answers(model, subjects.scenes, batch_size=8, exif=True)
        for number, answer in enumerate(given):
            places = subjects.places[number]
            for line, place in zip(_lines(answer, subjects, places, name), places, strict=True):
                lines[place] = line
            if heatmaps:
                maps |= zip(places, answer.heatmap, strict=True)
                if answer.inout is not None:
                    inout |= zip(places, answer.inout, strict=True)
            if overlays:
                _draw(answer, workshop / drawings[number])
            if advance is not None:
                advance(1)
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        (workshop / ANSWERS).write_text(text, encoding="utf-8")
        if heatmaps:
            _save_heatmaps(workshop / HEATMAPS, subjects, lines, maps, inout)
        for file in (*drawings, *([HEATMAPS] if heatmaps else []), ANSWERS):
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(workshop / file, out / file)
        if not heatmaps:
            (out / HEATMAPS).unlink(missing_ok=True)
        done = True
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
        if new and not done and not any(out.iterdir()):
            out.rmdir()
    return Prediction(
        tuple(lines), out / ANSWERS, out / HEATMAPS if heatmaps else None, tuple(out / drawing for drawing in drawings)
    )


def _lines(answer: SceneAnswer, subjects: Subjects, places: Sequence[int], model: str) -> Iterator[dict[str, Any]]:
    from distill.errors import MetricError
    from distill.metrics import predicted_point

    assert answer.scene.size is not None
    width, height = answer.scene.size
    try:
        points = predicted_point(answer.heatmap)
    except MetricError as error:
        raise MetricError(f"{answer.scene.key}: {error}") from None
    for number, (head, place) in enumerate(zip(answer.scene.heads, places, strict=True)):
        x0, y0, x1, y1 = head.box
        x, y = (float(value) for value in points[number])
        inout = None if answer.inout is None else float(sigmoid(answer.inout[number]))
        if inout is not None and not np.isfinite(inout):
            raise MetricError(f"{answer.scene.key}: in/out of person {head.person} is not finite; the model that gave it is broken")
        yield {
            "image": subjects.rows[place].image,
            "person": head.person,
            "box": [round(value, 3) for value in (x0 * width, y0 * height, x1 * width, y1 * height)],
            "point": [round(x * width, 3), round(y * height, 3)],
            "point_normalised": [x, y],
            "inout": inout,
            "peak": float(sigmoid(answer.heatmap[number].max())),
            "model": model,
        }


def _save_heatmaps(
    path: Path,
    subjects: Subjects,
    lines: Sequence[dict[str, Any]],
    maps: Mapping[int, np.ndarray],
    inout: Mapping[int, float],
) -> None:
    numbers = range(len(subjects.rows))
    arrays: dict[str, np.ndarray] = {
        "heatmap": np.stack([maps[number] for number in numbers]).astype(np.float32),
        "image": np.array([row.image for row in subjects.rows]),
        "person": np.array([line["person"] for line in lines]),
    }
    if inout:
        arrays["inout"] = np.array([inout[number] for number in numbers], dtype=np.float32)
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def overlay_names(scenes: Sequence[Scene], out: Path) -> list[str]:
    """A PNG name for each scene, relative to ``out``: as the pictures lie below their common folder, and never a picture given.

    ``a.jpg`` gives ``a_gaze.png``; where ``a.png`` is there as well, they are ``a_jpg_gaze.png`` and ``a_png_gaze.png``.
    """
    pictures = [scene.picture.resolve() for scene in scenes]
    common = Path(os.path.commonpath([picture.parent for picture in pictures])) if pictures else Path()
    stems = [picture.relative_to(common).with_suffix("") for picture in pictures]
    count = Counter(stems)
    names = []
    for picture, stem in zip(pictures, stems, strict=True):
        suffix = f"_{picture.suffix.lstrip('.')}" if count[stem] > 1 else ""
        names.append(f"{stem.as_posix()}{suffix}_gaze.png")
    given = set(pictures)
    for name in names:
        if (out / name).resolve() in given:
            raise ConfigurationError(f"{out / name} is a picture given and an overlay to be written; choose another --out")
    return names


def _draw(answer: SceneAnswer, path: Path) -> None:
    from distill.metrics import predicted_point
    from distill.overlay import Person, overlay

    picture = load_picture(answer.scene.picture, exif=True)
    _, rows, columns = answer.heatmap.shape
    centres = predicted_point(answer.heatmap) + np.array([0.5 / columns, 0.5 / rows])
    people = [
        Person(
            box=head.box, heatmap=sigmoid(answer.heatmap[number]), point=(float(centres[number, 0]), float(centres[number, 1])),
            inout=None if answer.inout is None else float(sigmoid(answer.inout[number])), name=head.person,
        )
        for number, head in enumerate(answer.scene.heads)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    overlay(picture, people).save(path, compress_level=4)
