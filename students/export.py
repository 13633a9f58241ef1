"""Export: the student as one ONNX graph, with a JSON beside it that says how to use it, kept only if it agrees with the student.

The graph is traced from the very model that was trained. Number of pictures and number of heads are dynamic, normalisation
is inside, resizing is the caller's: the JSON describes it to the letter. The file and its JSON are written under temporary
names, compared with the student in ONNX Runtime (:mod:`students.parity`), and renamed only when the comparison holds.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from students.errors import ExportError
from students.onnx_runtime import OnnxGaze, description_path, file_digest
from students.parity import Parity, SceneBatch, Tolerance, compare
from teachers.model import GazeModel

OPSET = 18
SCHEMA = 1

RESIZE = (
    "Squash the whole picture to the input size, aspect ratio not kept, by separable bilinear interpolation with antialiasing: a "
    "triangle filter over half-pixel centres whose support is max(1, scale) source pixels on either side, scale = source size / "
    "target size for each axis, weights normalised to sum 1 at the borders. In floating point on values in [0,1], nothing rounded "
    "in between. This is torch.nn.functional.interpolate(x, size, mode='bilinear', align_corners=False, antialias=True), and "
    "Pillow's resize with BILINEAR on mode 'F' channels; on 8-bit pictures Pillow rounds, which moves values by up to 1/255."
)


@dataclass(frozen=True)
class Exported:
    """A file that passed the gate: where it is, what its JSON says, and by what it differs from the student."""

    path: Path
    description: Mapping[str, Any]
    parity: Parity


class _Graph(nn.Module):
    """The model with plain tensors as outputs: an absent in/out answer is no output, rather than an empty one."""

    def __init__(self, model: GazeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, ...]:
        output = self.model(images, boxes, image_index)
        return (output.heatmap,) if output.inout is None else (output.heatmap, output.inout)


def export_onnx(
    model: GazeModel,
    path: Path,
    scenes: Iterable[SceneBatch],
    *,
    name: str,
    weights_digest: str,
    facts: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
) -> Exported:
    """Write ``model`` to ``path`` (``.onnx``) and its description to the JSON beside it, if the two agree on ``scenes``.

    ``name`` and ``weights_digest`` say what was exported; ``facts`` are further entries of the JSON (``metrics``, ``lineage``,
    ...). What was at ``path`` before stays until the new file has passed.

    Raises :class:`ExportError` when the file differs from the student by more than ``tolerance`` (the scenes that differ most are
    named), and ``ImportError`` where ONNX, its exporter or its runtime is not installed.
    """
    tolerance = tolerance or Tolerance()
    beside = description_path(path)
    _refuse_strangers(path, beside)
    scenes = iter(scenes)
    first = next(scenes, None)
    if first is None or len(first.boxes) == 0:
        raise ExportError("there is no scene to compare the exported file on; give scenes with heads")
    # A copy: the caller's model keeps its device, precision and training mode.
    student = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    try:
        fresh = workshop / path.name
        trace(student, fresh)
        description = describe(student, fresh, name=name, weights_digest=weights_digest)
        _write_json(description_path(fresh), description)
        onnx = OnnxGaze(fresh, threads=torch.get_num_threads())
        for parity in (compare(student, onnx, _extremes(first)), compare(student, onnx, itertools.chain((first,), scenes))):
            failures = parity.failures(tolerance)
            if not failures:
                continue
            most = "; ".join(scene.describe() for scene in parity.worst)
            raise ExportError(
                f"{path.name} is withheld, it does not answer as its student does in ONNX Runtime: {', '.join(failures)}; scenes that "
                f"differ most: {most}; try another version of torch or onnxruntime"
            )
        description |= {
            "parity": parity.to_json(), "tolerance": asdict(tolerance), "timing": _timing(student, onnx, first), **(facts or {}),
        }
        _write_json(description_path(fresh), description)
        # The file first: should the second rename not happen, its old JSON is told from it by the digest.
        os.replace(fresh, path)
        os.replace(description_path(fresh), beside)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return Exported(path, description, parity)


def trace(student: GazeModel, path: Path) -> None:
    """Write ``student`` (on the CPU, in eval mode) as one ONNX file, weights inside, pictures and heads dynamic."""
    height, width = student.input_size
    # Sizes above one that differ: the tracer takes a size of one, and equal sizes, for constants.
    images = torch.zeros(2, 3, height, width)
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.4], [0.5, 0.2, 0.8, 0.6], [0.2, 0.5, 0.4, 0.8]])
    image_index = torch.tensor([0, 0, 1])
    pictures, heads = torch.export.Dim("images"), torch.export.Dim("heads")
    with warnings.catch_warnings():
        # Two inputs share the axis "heads" on purpose; the exporter remarks on that at every export.
        warnings.filterwarnings("ignore", message=".*axis name.*", category=UserWarning)
        program = torch.onnx.export(
            _Graph(student).eval(), (images, boxes, image_index), dynamo=True, verbose=False, opset_version=OPSET,
            input_names=["images", "boxes", "image_index"], output_names=["heatmap", "inout"][: 1 + student.has_inout],
            dynamic_shapes=({0: pictures}, {0: heads}, {0: heads}),
        )
    if program is None:
        raise ExportError("the exporter returned no graph; update torch and onnxscript")
    program.save(path, external_data=False)


def describe(student: GazeModel, path: Path, *, name: str, weights_digest: str) -> dict[str, Any]:
    """What the JSON beside the file at ``path`` says of it: inputs, outputs, preprocessing, digests."""
    height, width = student.input_size
    rows, columns = student.heatmap_size
    outputs = [
        {
            "name": "heatmap", "shape": ["heads", rows, columns], "type": "float32",
            "meaning": "logits; the sigmoid is each cell's probability. Rows are y, columns x. The gaze point is the highest cell: "
            "x = column / columns, y = row / rows of the picture, as benchmarks count; add half a cell to draw at its centre",
        },
        {
            "name": "inout", "shape": ["heads"], "type": "float32",
            "meaning": "logit; the sigmoid is the probability that the gaze target is within the picture",
        },
    ]
    return {
        "schema": SCHEMA, "format": "onnx", "precision": "fp32", "opset": OPSET, "file": path.name, "digest": file_digest(path),
        "bytes": path.stat().st_size, "name": name, "weights_digest": weights_digest, "config": student.config.to_json(),
        "input_size": [height, width], "heatmap_size": [rows, columns], "has_inout": student.has_inout,
        "inputs": [
            {
                "name": "images", "shape": ["images", 3, height, width], "type": "float32",
                "meaning": "pictures in RGB, values in [0,1], resized as `preprocessing` says, not normalised; any number",
            },
            {
                "name": "boxes", "shape": ["heads", 4], "type": "float32",
                "meaning": "head boxes xmin, ymin, xmax, ymax in [0,1] of their picture; any number from one on",
            },
            {"name": "image_index", "shape": ["heads"], "type": "int64", "meaning": "which picture, from 0, each head is in"},
        ],
        "outputs": outputs[: 1 + student.has_inout],
        "preprocessing": {
            "colour": "RGB", "range": [0.0, 1.0], "layout": "images, channels, rows, columns", "size": [height, width],
            "keep_aspect_ratio": False, "resize": "bilinear, antialiased, in floating point", "resize_exactly": RESIZE,
            "normalisation": "inside the graph", "mean": list(student.config.mean), "std": list(student.config.std),
        },
    }


def interleaved_ms(calls: Mapping[str, Callable[[], Any]], *, runs: int = 15, warm_up: int = 2) -> dict[str, float]:
    """Median milliseconds of each of ``calls``, run in turn so that whatever else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + runs):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= warm_up:
                times[name].append(1000.0 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def _timing(student: GazeModel, onnx: OnnxGaze, batch: SceneBatch) -> dict[str, Any]:
    """One picture with one head, in both, with the same number of threads."""
    scene = batch.images[:1], batch.boxes[:1], torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        ms = interleaved_ms({"torch_ms": lambda: student(*scene), "onnxruntime_ms": lambda: onnx(*scene)})
    return {**ms, "threads": torch.get_num_threads(), "images": 1, "heads": 1}


def _extremes(batch: SceneBatch) -> list[SceneBatch]:
    """One picture with one head, and three pictures with five heads of which the second has none: sizes that were not traced."""
    one = batch.images[:1], batch.boxes[:1]
    three = batch.images[torch.arange(3) % len(batch.images)]
    five = batch.boxes[torch.arange(5) % len(batch.boxes)]
    names = [batch.names[number % len(batch.names)] for number in range(3)]
    return [
        SceneBatch(*one, torch.zeros(1, dtype=torch.int64), batch.names[:1]),
        SceneBatch(three, five, torch.tensor([0, 2, 2, 0, 2]), names),
    ]


def _refuse_strangers(path: Path, beside: Path) -> None:
    if path.suffix != ".onnx":
        raise ExportError(f"{path} does not end in .onnx; give a file name that does")
    if not beside.exists():
        return
    try:
        held = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        held = None
    # A stored model's description has the name model.json: an export beside it must not take its place.
    if not isinstance(held, dict) or held.get("format") != "onnx":
        raise ExportError(f"{beside} is there and describes no exported file; give the export another name")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
