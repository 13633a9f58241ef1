"""Comparing models on one set of scenes: the table, the timing and the gallery behind `distill eval`, the demo and the report."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.cases import pick_cases
from distill.console import progress
from distill.datacheck_baselines import BaselineRow, score_baselines
from distill.evaluation import Evaluation, GazeFunction, SceneAnswer, answers, evaluate, protocol_of
from distill.metrics import HeadRows, predicted_point, sigmoid
from distill.metrics.bootstrap import RESAMPLES, SEED
from distill.overlay import Person, Style, overlay
from distill.picture_sizes import SizeMemory
from distill.pictures import load_picture
from distill.report.facts import ModelRow
from distill.report.gallery import GalleryItem
from distill.scenes import IN, Scene, SceneSet
from distill.scorecard import model_digest
from distill.views import IDENTITY

TIMED_SCENES = 20  # pictures that the milliseconds are a median over: enough for two digits, done in seconds


@dataclass(frozen=True)
class Contender:
    """A model to be compared: what it is called, its part in the comparison, and how large it is."""

    name: str
    role: str
    model: GazeFunction
    parameters: int | None = None
    megabytes: float | None = None
    digest: str = ""


@dataclass(frozen=True)
class Comparison:
    """The table's ``rows``, and what is behind them: the ``evaluations`` of the contenders in their order, and the ``baselines``."""

    rows: list[ModelRow]
    evaluations: list[Evaluation]
    baselines: tuple[BaselineRow, ...]


def contender(spec: str, role: str, model: GazeFunction, name: str) -> Contender:
    """A :class:`Contender` for what :func:`distill.predicting.load_gaze` gave, with its size read from model and disk."""
    inner = getattr(model, "model", None)
    parameters = sum(p.numel() for p in inner.parameters()) if isinstance(inner, torch.nn.Module) else None
    return Contender(name, role, model, parameters, _megabytes(spec), model_digest(spec, model))


def _megabytes(spec: str) -> float | None:
    from teachers.catalogue import DEMO, store

    path = Path(spec.removeprefix("onnx:").partition("?adapter=")[0])
    candidates = [path] if path.is_file() and path.suffix != ".npz" else []  # stored predictions are no weights
    for folder in (path / "student", path, *([DEMO] if spec == "demo" else []), store() / spec):
        candidates.append(folder / "model.safetensors")
    return next((file.stat().st_size / 1e6 for file in candidates if file.is_file()), None)


def milliseconds(model: GazeFunction, scenes: Sequence[Scene], device: str = "cpu", *, exif: bool = False) -> float | None:
    """Median milliseconds of one call for one picture with its heads, None where no picture has a head; decoding and resizing are
    not in it. ``exif`` turns pictures upright."""
    if getattr(model, "stored", False):
        return None  # predictions from a file: reading them is not the model's time
    prepared = []
    for scene in scenes[:TIMED_SCENES]:
        picture = load_picture(scene.picture, exif=exif)
        flat = scene.normalised(picture.shape[1], picture.shape[0])
        image = IDENTITY.picture(picture, model.input_size)[None]
        boxes = torch.from_numpy(flat.boxes().astype(np.float32))
        if len(boxes):
            prepared.append((image.to(device), boxes.to(device), torch.zeros(len(boxes), dtype=torch.int64, device=device)))
    times = []
    with torch.inference_mode():
        for image, boxes, index in [*(2 * prepared)[:2], *prepared]:
            began = time.perf_counter()
            float(model(image, boxes, index).heatmap.sum())  # reading a number waits for a GPU
            times.append(time.perf_counter() - began)
    return 1000.0 * statistics.median(times[2:]) if prepared else None


def machine() -> str:
    """The machine in a phrase, as tables state it."""
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def compare(
    contenders: Sequence[Contender],
    scenes: SceneSet,
    *,
    training: SceneSet | None,
    device: str = "cpu",
    limit: int = 0,
    protocol: str = "",
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Rows for the baselines (where ``training`` scenes are given for the head-position prior) and every contender.

    ``protocol`` is the AUC's, by default that of the data set's own tables; ``resamples`` make the baselines' intervals (0: none), drawn by ``seed``.
    """
    protocol, exif = protocol or protocol_of(scenes.reader), scenes.reader == "folder"
    chosen = scenes.scenes[:limit] if limit else scenes.scenes
    rows: list[ModelRow] = []
    scored: tuple[BaselineRow, ...] = ()
    if training is not None:
        with SizeMemory(scenes.root) as sizes:
            baselines = score_baselines(
                replace(scenes, scenes=chosen), training, sizes, (), 10**9,
                protocol=protocol, only=("centre", "head-position prior"), resamples=resamples, seed=seed,  # type: ignore[arg-type]
            )
        scored = tuple(row for row in baselines.rows if row.metrics is not None) if baselines else ()
        rows += [ModelRow(row.name, "baseline", **_scores(row.metrics)) for row in scored]
    results = []
    for entry in contenders:
        with progress(f"Evaluating {entry.name}", total=len(chosen), unit="pictures") as bar:
            result = evaluate(entry.model, chosen, protocol=protocol, device=device, exif=exif, advance=bar.update)
        results.append(result)
        rows.append(
            ModelRow(
                entry.name, entry.role, entry.parameters, entry.megabytes, milliseconds(entry.model, chosen, device, exif=exif),
                **_scores(result.metrics),
            )
        )
    return Comparison(rows, results, scored)


def _scores(metrics: Any) -> dict[str, Any]:
    return {name: getattr(metrics, name) for name in ("auc", "avg_l2", "min_l2", "ap")}


def shown(value: float | None, pattern: str = "{:.3f}") -> str:
    """A number for a table, or n/a."""
    return "n/a" if value is None else pattern.format(value)


def table_rows(rows: Sequence[ModelRow]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the comparison, as the console prints it."""
    columns = ["model", "role", "parameters", "MB", "ms/image", "AUC ↑", "avg L2 ↓", "min L2 ↓", "AP ↑"]
    cells = [
        [
            row.name, row.role, "-" if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
            "-" if row.megabytes is None else f"{row.megabytes:.1f}", "-" if row.ms is None else f"{row.ms:.1f}",
            shown(row.auc), shown(row.avg_l2), shown(row.min_l2), shown(row.ap),
        ]
        for row in rows
    ]
    return columns, cells


def gallery(
    scenes: Sequence[Scene],
    student: GazeFunction,
    teacher: GazeFunction | None,
    count: int,
    device: str = "cpu",
    *,
    rows: HeadRows | None = None,
    exif: bool = False,
) -> list[GalleryItem]:
    """The best, the median and the worst cases of ``student``, a third each: truth, teacher and student side by side.

    ``rows`` are those of the student's evaluation on ``scenes``; without them it answers for all scenes once more. ``exif`` turns pictures
    upright, as is right for those of the reader ``folder``.
    """
    if rows is None:
        rows = evaluate(student, scenes, protocol="gazefollow64", device=device, exif=exif).rows
    every = _scene_errors(rows, scenes)
    with_gaze = np.flatnonzero(~np.isnan(every)).tolist()
    picked = [(kind, with_gaze[place]) for kind, place in pick_cases([every[number] for number in with_gaze], count)]
    shown_scenes = [scenes[number] for _, number in picked]
    mine = list(answers(student, shown_scenes, device=device, exif=exif))
    theirs = list(answers(teacher, shown_scenes, device=device, exif=exif)) if teacher is not None else []
    items = []
    for place, (kind, number) in enumerate(picked):
        answer = mine[place]
        picture = load_picture(answer.scene.picture, exif=exif)
        items.append(
            GalleryItem(
                f"{kind}: {answer.scene.key}",
                truth=draw(picture, answer, model=False, truth=True),
                teacher=draw(picture, theirs[place], truth=True) if theirs else None,
                student=draw(picture, answer, truth=True),
                teacher_error=_error(theirs[place]) if theirs else None,
                student_error=float(every[number]),
            )
        )
    return items


def _scene_errors(rows: HeadRows, scenes: Sequence[Scene]) -> np.ndarray:
    """Mean distance ``[S]`` of each scene's heads in the frame to their mean annotation, NaN where it has none; ``rows`` are in their order."""
    owner = np.repeat(np.arange(len(scenes)), [len(scene.heads) for scene in scenes])
    sums, counts = (np.bincount(owner[rows.scored], weights, len(scenes)) for weights in (rows.avg_l2[rows.scored], None))
    return np.divide(sums, counts, out=np.full(len(scenes), np.nan), where=counts > 0)


def _error(answer: SceneAnswer) -> float:
    """Mean distance of the heads in the frame to their mean annotation, in [0,1] of the picture's sides."""
    points = predicted_point(answer.heatmap)
    distances = [
        float(np.hypot(*(points[number] - np.mean(head.points, axis=0))))
        for number, head in enumerate(answer.scene.heads)
        if head.inout == IN and head.points
    ]
    return float(np.mean(distances)) if distances else float("nan")


def draw(picture: np.ndarray, answer: SceneAnswer, *, model: bool = True, truth: bool = False) -> Any:
    """One picture with everyone's answer on it (``model``), or with the annotation alone."""
    people = []
    cell = 0.5 / np.array(answer.heatmap.shape[:0:-1])
    points = predicted_point(answer.heatmap) + cell  # drawn in the middle of the cell; the metrics take its corner
    for number, head in enumerate(answer.scene.heads):
        inout = None if answer.inout is None else float(sigmoid(answer.inout[number]))
        if model:
            people.append(
                Person(head.box, sigmoid(answer.heatmap[number]), tuple(points[number]), inout, truth=head.points if truth and head.inout == IN else None)
            )
        else:
            mean = tuple(np.mean(head.points, axis=0)) if head.inout == IN and head.points else None
            people.append(Person(head.box, None, mean, {IN: 1.0, 0: 0.0}.get(head.inout)))
    return overlay(_enlarged(picture), people, style=Style(scale=1.6))


def _enlarged(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    height, width = picture.shape[:2]
    factor = 720 / width
    return np.asarray(Image.fromarray(picture).resize((720, max(1, round(height * factor))), Image.Resampling.BICUBIC))
