"""Export: the student as a file to deploy, with a JSON beside it that says how to use it, kept only if it agrees with the student.

The graph is traced from the very model that was trained. Number of pictures and number of heads are dynamic, and resizing and
normalisation are inside: raw pictures go in. The file and its JSON are written under temporary names, run in their own
runtime on raw pictures and compared with the student (:mod:`students.parity`), and renamed only when the comparison holds.
"""

from __future__ import annotations

import copy
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

import numpy as np
import torch
from torch import Tensor, nn

from students.errors import ExportError
from students.export_description import describe, refuse_strangers, write_json
from students.onnx_precision import INT8_PARTS, PRECISIONS, to_float16, to_int8
from students.onnx_runtime import SUFFIXES, OnnxGaze, description_path, export_files
from students.parity import TOLERANCES, Parity, SceneBatch, Scorer, Tolerance, compare
from students.raw_pictures import Runtime, answer, prepend_resize
from students.reparametrise import has_branches, reparametrised
from teachers.model import GazeModel

OPSET = 18
PREDICTOR = "gaze_predictor.py"


@dataclass(frozen=True)
class Exported:
    """A file that passed the gate: where it is, what its JSON says, and by what it differs from the student."""

    path: Path
    description: Mapping[str, Any]
    parity: Parity


@dataclass(frozen=True)
class Wanted:
    """What kind of file: ``format`` one of onnx, torch, openvino; ``precision`` one of float32, float16, int8; ``pixels`` "uint8" for
    raw pictures with the resizing inside, "float32" for pictures that the caller resizes (where a runtime has no such operator)."""

    format: str = "onnx"
    precision: str = "float32"
    pixels: str = "uint8"

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise ExportError(f"format {self.format!r} is not known; there are {', '.join(SUFFIXES)}")
        if self.precision not in PRECISIONS:
            raise ExportError(f"precision {self.precision!r} is not known; there are {', '.join(PRECISIONS)}")
        if self.pixels not in ("uint8", "float32"):
            raise ExportError(f"pixels {self.pixels!r} are not known; there are uint8 (raw pictures) and float32 (resized ones)")
        if self.format == "torch" and (self.precision, self.pixels) != ("float32", "uint8"):
            raise ExportError("a torch program is written as float32 with raw pictures only; use --format onnx for another precision")


class Graph(nn.Module):
    """The model with plain tensors as outputs: an absent in/out answer is no output, rather than an empty one."""

    def __init__(self, model: GazeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, ...]:
        output = self.model(images, boxes, image_index)
        return (output.heatmap,) if output.inout is None else (output.heatmap, output.inout)


def export_student(
    model: GazeModel,
    path: Path,
    scenes: Iterable[SceneBatch],
    *,
    name: str,
    weights_digest: str,
    wanted: Wanted | None = None,
    calibration: Iterable[SceneBatch] = (),
    scorer: Callable[[], Scorer] | None = None,
    facts: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
) -> Exported:
    """Write ``model`` to ``path`` and its description to the JSON beside it, if the two agree on ``scenes``.

    ``scenes`` and ``calibration`` (int8 only: training views) are gone through more than once. ``scorer`` makes what measures AUC and
    avg L2; int8 is judged by them. ``name`` and ``weights_digest`` say what was exported; ``facts`` are further entries of
    the JSON (``metrics``, ``lineage``, ...). What was at ``path`` before stays until the new file has passed.

    Raises :class:`ExportError` when the file differs from the student by more than ``tolerance`` (by default the precision's own; the
    scenes that differ most are named), and ``ImportError`` where an exporter or a runtime is not installed.
    """
    wanted = wanted or Wanted()
    usual = TOLERANCES[wanted.precision]
    tolerance = tolerance or usual
    refuse_strangers(path, wanted.format)
    first = next(iter(scenes), None)
    if first is None or len(first.boxes) == 0:
        raise ExportError("there is no scene to compare the exported file on; give scenes with heads")
    # A copy: the caller's model keeps its device, precision and training mode.
    student = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    try:
        fresh = workshop / "file" / path.name
        fresh.parent.mkdir()
        core = workshop / "core.onnx"
        if wanted.format != "torch":
            # Branches of training become one convolution; the file is compared with the student that has them.
            trace(reparametrised(student) if has_branches(student) else student, core)
        refused: list[str] = []
        parts = INT8_PARTS if wanted.precision == "int8" else ("",)
        for part in parts:
            _write(student, core, fresh, wanted, calibration, part)
            description = describe(
                student, fresh, name=name, weights_digest=weights_digest, kind=wanted.format, precision=wanted.precision, pixels=wanted.pixels
            )
            write_json(description_path(fresh), description)
            runtime = open_runtime(fresh, wanted, threads=torch.get_num_threads())
            parity, failures = _gate(student, runtime, scenes, first, tolerance, scorer)
            if not failures:
                break
            refused.append(f"{f'int8 in {part}: ' if part else ''}{', '.join(failures)}")
        else:
            most = "; ".join(scene.describe() for scene in parity.worst)
            raise ExportError(
                f"{path.name} is withheld, it does not answer as its student does in {RUNTIMES[wanted.format]}: {'; '.join(refused)}; scenes "
                f"that differ most: {most}; try another precision, or allow more by --tolerance NAME=VALUE, which is recorded"
            )
        description |= {
            "parity": parity.to_json(), "tolerance": asdict(tolerance),
            "tolerance_changed": {key: value for key, value in asdict(tolerance).items() if value != getattr(usual, key)},
            **({"int8_part": part, "int8_refused": refused} if part else {}),
            **_compared_with_float32(student, core, runtime, workshop, first, wanted, description["bytes"]),
            **(facts or {}),
        }
        write_json(description_path(fresh), description)
        if wanted.format == "onnx":
            shutil.copyfile(Path(__file__).with_name(PREDICTOR), path.parent / PREDICTOR)
        # The file first: should the second rename not happen, its old JSON is told from it by the digest.
        for file in export_files(fresh):
            os.replace(file, path.parent / file.name)
        os.replace(description_path(fresh), description_path(path))
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return Exported(path, description, parity)


RUNTIMES: Mapping[str, str] = {"onnx": "ONNX Runtime", "torch": "torch", "openvino": "OpenVINO"}


def open_runtime(path: Path, wanted: Wanted, *, threads: int | None = None) -> Runtime:
    """The file at ``path`` in the runtime that it is for."""
    if wanted.format == "torch":
        from students.torch_program import TorchProgram

        return TorchProgram(path)
    if wanted.format == "openvino":
        from students.openvino_runtime import OpenVinoGaze

        return OpenVinoGaze(path, pixels=wanted.pixels, threads=threads)
    return OnnxGaze(path, threads=threads)


def _gate(
    student: GazeModel, runtime: Runtime, scenes: Iterable[SceneBatch], first: SceneBatch, tolerance: Tolerance,
    scorer: Callable[[], Scorer] | None,
) -> tuple[Parity, list[str]]:
    """Numbers of pictures and heads that were not traced, then all scenes; what is beyond ``tolerance`` in either."""

    def wanted(batch: SceneBatch) -> Any:
        return student(batch.images, batch.boxes, batch.image_index)

    def got(batch: SceneBatch) -> Any:
        return answer(runtime, batch)

    # Metrics and shares mean nothing on a few scenes: values have to be near, and finite.
    few = Tolerance(tolerance.probability, None, tolerance.mean_shift, None, None, None)
    parity = compare(wanted, got, _extremes(first))
    if failures := parity.failures(few):
        return parity, failures
    parity = compare(wanted, got, scenes, scorer=scorer)
    return parity, parity.failures(tolerance)


def _write(student: GazeModel, core: Path, path: Path, wanted: Wanted, calibration: Iterable[SceneBatch], part: str) -> None:
    """One attempt at the file wanted, from the traced graph ``core``."""
    if wanted.format == "torch":
        from students.torch_program import write_program

        write_program(student, path)
        return
    changed = core
    if wanted.precision == "float16" and wanted.format == "onnx":
        changed = core.with_name("float16.onnx")
        to_float16(core, changed)
    elif wanted.precision == "int8":
        feeds = [
            {"images": batch.images.numpy(), "boxes": batch.boxes.numpy(), "image_index": batch.image_index.numpy().astype(np.int64)}
            for batch in calibration
        ]
        if not feeds:
            raise ExportError("int8 needs views to calibrate on, and there are none; give a run whose training data are there")
        changed = core.with_name("int8.onnx")
        to_int8(core, changed, feeds, part)
    graph = path if wanted.format == "onnx" else core.with_name("whole.onnx")
    if wanted.pixels == "uint8":
        prepend_resize(changed, graph, student.input_size, products=wanted.format == "openvino")
    else:
        shutil.copyfile(changed, graph)
    if wanted.format == "openvino":
        from students.openvino_runtime import write_openvino

        write_openvino(graph, path, half=wanted.precision == "float16")


def trace(student: GazeModel, path: Path) -> None:
    """Write ``student`` (on the CPU, in eval mode) as one ONNX file, weights inside, pictures and heads dynamic, images resized."""
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
            Graph(student).eval(), (images, boxes, image_index), dynamo=True, verbose=False, opset_version=OPSET,
            input_names=["images", "boxes", "image_index"], output_names=["heatmap", "inout"][: 1 + student.has_inout],
            dynamic_shapes=({0: pictures}, {0: heads}, {0: heads}),
        )
    if program is None:
        raise ExportError("the exporter returned no graph; update torch and onnxscript")
    program.save(path, external_data=False)


def interleaved_ms(calls: Mapping[str, Callable[[], Any]], *, runs: int = 15, warm_up: int = 2) -> dict[str, list[float]]:
    """Milliseconds of every run of each of ``calls``, in turn so that whatever else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + runs):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= warm_up:
                times[name].append(1000.0 * (time.perf_counter() - began))
    return times


def one_picture(student_size: tuple[int, int], pixels: str, heads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noise picture of the student's own size with ``heads`` heads, as a file wants it: speed does not depend on what is seen."""
    height, width = student_size
    picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    given = picture if pixels == "uint8" else np.ascontiguousarray(picture.transpose(0, 3, 1, 2), np.float32) / np.float32(255.0)
    left = np.linspace(0.05, 0.75, heads, dtype=np.float32)
    boxes = np.stack((left, np.full_like(left, 0.2), left + 0.15, np.full_like(left, 0.5)), axis=1)
    return given, boxes, np.zeros(heads, np.int64)


def _compared_with_float32(
    student: GazeModel, core: Path, runtime: Runtime, workshop: Path, first: SceneBatch, wanted: Wanted, size: int
) -> dict[str, Any]:
    """Milliseconds of one picture of the input size with one head, in torch, in this file, and in float32 ONNX if it is another."""
    scene = first.images[:1], first.boxes[:1], torch.zeros(1, dtype=torch.int64)
    own = one_picture(student.input_size, wanted.pixels)

    def in_torch() -> None:
        with torch.inference_mode():
            student(*scene)

    calls: dict[str, Callable[[], Any]] = {"torch_ms": in_torch, "file_ms": lambda: runtime.run(*own)}
    note: dict[str, Any] = {}
    if wanted.precision != "float32":
        plain = workshop / "plain.onnx"
        _write(student, core, plain, Wanted(pixels=wanted.pixels), (), "")
        session = _bare_session(plain)
        names = [each.name for each in session.get_inputs()]
        calls["float32_ms"] = lambda: session.run(None, dict(zip(names, own, strict=True)))
        note["float32_bytes"] = plain.stat().st_size
    ms = {key: statistics.median(values) for key, values in interleaved_ms(calls).items()}
    timing = {**ms, "threads": torch.get_num_threads(), "images": 1, "heads": 1, **note}
    remarks = []
    if note and size >= note["float32_bytes"]:
        remarks.append(f"not smaller than float32: {size / 1e6:.2f} MB against {note['float32_bytes'] / 1e6:.2f} MB")
    if note and ms["file_ms"] >= ms["float32_ms"]:
        remarks.append(f"not faster than float32 here: {ms['file_ms']:.1f} ms against {ms['float32_ms']:.1f} ms")
    return {"timing": timing, "remarks": remarks}


def _bare_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _extremes(batch: SceneBatch) -> list[SceneBatch]:
    """One picture with one head, and three pictures of one size with five heads of which the second has none: not what was traced."""
    picture, flipped = batch.pictures[0], np.ascontiguousarray(batch.pictures[0][:, ::-1])
    three = torch.stack((batch.images[0], batch.images[0].flip(-1), batch.images[0]))
    five = batch.boxes[torch.arange(5) % len(batch.boxes)]
    return [
        SceneBatch(batch.images[:1], batch.boxes[:1], torch.zeros(1, dtype=torch.int64), batch.names[:1], [picture]),
        SceneBatch(three, five, torch.tensor([0, 2, 2, 0, 2]), [batch.names[0]] * 3, [picture, flipped, picture]),
    ]
