"""Export: the student as a file to deploy, with a JSON beside it that says how to use it, kept only if it agrees with the student.

The graph is traced from the very model that was trained. Number of pictures and number of heads are dynamic, and resizing and
normalisation are inside: raw pictures go in. The file and its JSON are written under temporary names, run in their own
runtime on raw pictures and compared with the student (:mod:`students.parity`), and renamed only when the comparison holds.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
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
from students.export_timing import BareOnnx, compared_with_float32
from students.lean_graph import make_lean, translations
from students.onnx_precision import PARTS, to_float16, to_int8
from students.onnx_runtime import OnnxGaze, description_path, export_entries
from students.parity import TOLERANCES, Parity, SceneBatch, Scorer, Tolerance, compare
from students.raw_pictures import Runtime, answer, prepend_resize
from students.reparametrise import has_branches, reparametrised
from students.wanted import Wanted
from teachers.model import GazeModel

OPSET = 18
PREDICTOR = "gaze_predictor.py"
PLAIN_LITERT = "plain.tflite"


@dataclass(frozen=True)
class Exported:
    """A file that passed the gate: where it is, what its JSON says, and by what it differs from the student (None where this machine has
    no runtime for it, which the JSON says under ``gate``)."""

    path: Path
    description: Mapping[str, Any]
    parity: Parity | None


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
    converter: str | None = None,
    begin: Callable[[], None] | None = None,
) -> Exported:
    """Write ``model`` to ``path`` and its description to the JSON beside it, if the two agree on ``scenes``.

    ``scenes`` and ``calibration`` (int8 only: training views) are gone through more than once. ``scorer`` makes what measures AUC and
    avg L2; int8 is judged by them. ``name`` and ``weights_digest`` say what was exported; ``facts`` are further entries of
    the JSON (``metrics``, ``lineage``, ...); ``converter`` is the Python that has LiteRT's. ``begin()`` is called when nothing is left that
    can be refused beforehand. What was at ``path`` before stays until the new file has passed. A Core ML package is compared on macOS
    only; elsewhere its structure is checked and the JSON says so under ``gate``.
    Raises :class:`ExportError` when the file differs from the student by more than ``tolerance`` (by default the precision's own; the
    scenes that differ most are named), and ``ImportError`` where an exporter or a runtime is not installed.
    """
    wanted = wanted or Wanted()
    usual = TOLERANCES[wanted.precision]
    tolerance = tolerance or usual
    refuse_strangers(path, wanted.format)
    if wanted.format == "litert":
        from students.litert_runtime import converter_python

        converter = converter_python(converter)  # before minutes are spent
    first = next(iter(scenes), None)
    if first is None or len(first.boxes) == 0:
        raise ExportError("there is no scene to compare the exported file on; give scenes with heads")
    # A copy: the caller's model keeps its device, precision and training mode.
    student = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    if begin is not None:
        begin()
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
    try:
        fresh = workshop / "file" / path.name
        fresh.parent.mkdir()
        # Branches of training become one convolution; the file is compared with the student that has them.
        merged = reparametrised(student) if has_branches(student) else student
        core = workshop / "core.onnx"
        if wanted.format in ("onnx", "openvino"):
            trace(merged, core)
        refused: list[str] = []
        parity, runtime = None, None
        parts = parts_of(wanted)
        for part in parts:
            _write(merged, core, fresh, wanted, calibration, part, converter)
            description = describe(
                student, fresh, name=name, weights_digest=weights_digest, kind=wanted.format, precision=wanted.precision, pixels=wanted.pixels,
                people=wanted.people,
            )
            write_json(description_path(fresh), description)
            if not can_run(wanted):
                break
            runtime = open_runtime(fresh, wanted, threads=torch.get_num_threads())
            parity, failures = _gate(student, runtime, scenes, first, tolerance, scorer)
            if not failures:
                break
            refused.append(f"{f'{wanted.precision} in {part}: ' if part else ''}{', '.join(failures)}")
        else:
            assert parity is not None
            most = "; ".join(scene.describe() for scene in parity.named(tolerance))
            raise ExportError(
                f"{path.name} is withheld, it does not answer as its student does in {RUNTIMES[wanted.format]}: {'; '.join(refused)}; scenes "
                f"that differ most: {most}; try another precision, or allow more by --tolerance NAME=VALUE, which is recorded"
            )
        description |= {
            "parity": None if parity is None else parity.to_json(), "tolerance": asdict(tolerance),
            "tolerance_changed": {key: value for key, value in asdict(tolerance).items() if value != getattr(usual, key)},
            **({f"{wanted.precision}_part": part, f"{wanted.precision}_refused": refused} if part else {}),
            **(facts or {}),
        }
        if runtime is None or parity is None:
            from students.coreml_runtime import NOT_RUN

            description |= {"gate": NOT_RUN, "timing": None, "remarks": []}
        else:
            plain = _plain(workshop, merged, core, wanted)
            description |= compared_with_float32(student, runtime, plain, first, wanted, description["bytes"])
        write_json(description_path(fresh), description)
        if wanted.format == "onnx":
            shutil.copyfile(Path(__file__).with_name(PREDICTOR), path.parent / PREDICTOR)
        # The file first: should the second rename not happen, its old JSON is told from it by the digest.
        for entry in export_entries(fresh):
            _put(entry, path.parent / entry.name, workshop)
        os.replace(description_path(fresh), description_path(path))
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return Exported(path, description, parity)


RUNTIMES: Mapping[str, str] = {"onnx": "ONNX Runtime", "torch": "torch", "openvino": "OpenVINO", "litert": "LiteRT", "coreml": "Core ML"}


def _put(entry: Path, target: Path, workshop: Path) -> None:
    """``entry`` in the place of ``target``; a folder cannot be renamed over another, so the old one steps aside first."""
    if target.is_dir():
        os.replace(target, workshop / f"old {target.name}")
    os.replace(entry, target)


def can_run(wanted: Wanted) -> bool:
    """Whether this machine has a runtime for the format at all, whatever is installed."""
    if wanted.format == "coreml":
        from students.coreml_runtime import can_predict

        return can_predict()
    return True


def parts_of(wanted: Wanted) -> tuple[str, ...]:
    """What the precision is tried for, in this order; "" where there is nothing to choose."""
    if wanted.format == "openvino" and wanted.precision == "float16":
        return ("weights",)  # its plugins choose the arithmetic by themselves
    if wanted.format in ("onnx", "openvino") and wanted.precision in PARTS:
        return PARTS[wanted.precision]
    return ("",)


def open_runtime(path: Path, wanted: Wanted, *, threads: int | None = None) -> Runtime:
    """The file at ``path`` in the runtime that it is for."""
    if wanted.format == "torch":
        from students.torch_program import TorchProgram

        return TorchProgram(path)
    if wanted.format == "openvino":
        from students.openvino_runtime import OpenVinoGaze

        return OpenVinoGaze(path, pixels=wanted.pixels, threads=threads)
    if wanted.format == "litert":
        from students.litert_runtime import LiteRtGaze

        return LiteRtGaze(path, people=wanted.people or 1, threads=threads)
    if wanted.format == "coreml":
        from students.coreml_runtime import CoreMlGaze

        return CoreMlGaze(path, people=wanted.people or 1)
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

    # Metrics, shares and means say nothing of one picture asked in several ways: values have to be near, and finite.
    few = Tolerance(tolerance.probability, None, None, None, None, None)
    parity = compare(wanted, got, _extremes(first))
    if failures := parity.failures(few):
        return parity, failures
    parity = compare(wanted, got, scenes, scorer=scorer)
    return parity, parity.failures(tolerance)


def _write(
    student: GazeModel, core: Path, path: Path, wanted: Wanted, calibration: Iterable[SceneBatch], part: str, converter: str | None = None
) -> None:
    """One attempt at the file wanted, from the traced graph ``core`` or, where a format does not begin with ONNX, from ``student``."""
    if wanted.format == "litert":
        from students.litert_runtime import write_litert

        write_litert(
            student, path, people=wanted.people or 1, precision=wanted.precision, python=converter or "",
            plain=core.with_name(PLAIN_LITERT),
        )
        return
    if wanted.format == "coreml":
        from students.coreml_runtime import check_structure, write_coreml

        write_coreml(student, path, people=wanted.people or 1, half=wanted.precision == "float16")
        check_structure(student, path, people=wanted.people or 1)
        return
    if wanted.format == "torch":
        from students.torch_program import write_program

        write_program(student, path)
        return
    changed = core
    if wanted.precision == "float16":
        changed = core.with_name("float16.onnx")
        to_float16(core, changed, part)
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

        write_openvino(graph, path)


def _plain(workshop: Path, student: GazeModel, core: Path, wanted: Wanted) -> tuple[Path, Runtime] | None:
    """The float32 file that one of another precision is compared with in size and speed; None where it is float32 itself."""
    if wanted.precision == "float32" or wanted.format == "coreml":
        return None
    if wanted.format == "litert":
        path = workshop / PLAIN_LITERT
        return path, open_runtime(path, Wanted("litert", people=wanted.people), threads=torch.get_num_threads())
    path = workshop / "plain.onnx"
    _write(student, core, path, Wanted(pixels=wanted.pixels), (), "")
    return path, BareOnnx(path, wanted.pixels)


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
            dynamic_shapes=({0: pictures}, {0: heads}, {0: heads}), custom_translation_table=translations(),
        )
    if program is None:
        raise ExportError("the exporter returned no graph; update torch and onnxscript")
    make_lean(program.model)
    program.save(path, external_data=False)


def _extremes(batch: SceneBatch) -> list[SceneBatch]:
    """One picture with one head, and three pictures of one size with five heads of which the second has none: not what was traced."""
    picture, flipped = batch.pictures[0], np.ascontiguousarray(batch.pictures[0][:, ::-1])
    three = torch.stack((batch.images[0], batch.images[0].flip(-1), batch.images[0]))
    five = batch.boxes[torch.arange(5) % len(batch.boxes)]
    return [
        SceneBatch(batch.images[:1], batch.boxes[:1], torch.zeros(1, dtype=torch.int64), batch.names[:1], [picture]),
        SceneBatch(three, five, torch.tensor([0, 2, 2, 0, 2]), [batch.names[0]] * 3, [picture, flipped, picture]),
    ]
