"""Prediction: any gaze model on a user's own pictures.

What is written to the output folder, all of it only when every picture has been answered:

``answers.jsonl``
    one line a person, in the order of the heads file: ``image`` and ``person`` as that file has them, ``box`` xyxy in pixels
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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import ConfigurationError
from distill.metrics import sigmoid
from distill.pictures import load_picture
from distill.scenes import Scene
from distill.selection import mark
from distill.workshop import workshop

if TYPE_CHECKING:
    from distill.evaluation import GazeFunction, SceneAnswer
    from distill.subjects import Subjects

ANSWERS, HEATMAPS = "answers.jsonl", "heatmaps.npz"


@dataclass(frozen=True)
class Prediction:
    """What was written: the lines of ``answers.jsonl`` and the paths of all files (``heatmaps`` is None if not asked for)."""

    people: tuple[dict[str, Any], ...]
    answers: Path
    heatmaps: Path | None
    overlays: tuple[Path, ...]


def load_gaze(spec: str, device: str = "auto") -> tuple[GazeFunction, str]:
    """The model that ``spec`` names, ready to call, and its name.

    A run's directory (its best student), a stored model's directory, an exported file (``.onnx``, ``.xml``, ``.tflite``, ``.mlpackage``), stored
    predictions (``.npz``), or a teacher's name, ``onnx:FILE`` or ``onnx:FILE?adapter=NAME`` for a model of another project among them. A student
    that was chosen on test carries it in its name. Raises :class:`teachers.errors.UnknownModelError` with the nearest names,
    :class:`teachers.errors.WeightsError`, :class:`teachers.errors.BlackBoxError` and :class:`students.errors.ExportError` for files that are damaged.
    """
    from distill.exported import is_exported, open_exported
    from teachers.onnx_teacher import PREFIX

    if spec.endswith(".npz"):
        from distill.predictions import StoredPredictions

        stored = StoredPredictions(Path(spec))
        return stored, f"{stored.name} ({Path(spec).name})" if stored.name else Path(spec).name
    if is_exported(spec):
        exported = open_exported(Path(spec), device)
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
            "give a run's directory, an exported file, predictions.npz, or a teacher that `distill teachers list` knows",
        )
    with download_progress() as report:
        teacher = load_teacher(spec, device=device, report=report)
    if known:
        return teacher, teacher.name
    facts = read_description(path / "student" if (path / "student" / "model.json").is_file() else path)["facts"]
    return teacher, path.resolve().name + mark(facts)


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
    picture that cannot be decoded, :class:`ConfigurationError` for a folder that cannot be written to and :class:`~distill.errors.MetricError` for
    a model whose answers are not finite.
    """
    from distill.evaluation import answers

    with workshop(out) as bench:
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
                _draw(answer, bench / drawings[number])
            if advance is not None:
                advance(1)
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        (bench / ANSWERS).write_text(text, encoding="utf-8")
        if heatmaps:
            _save_heatmaps(bench / HEATMAPS, subjects, lines, maps, inout)
        for file in (*drawings, *([HEATMAPS] if heatmaps else []), ANSWERS):
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(bench / file, out / file)
        if not heatmaps:
            (out / HEATMAPS).unlink(missing_ok=True)
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
