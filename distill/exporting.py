"""From a run to an exported file: which student, which kind of file, and what is recorded beside it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import ConfigurationError, MissingExtraError
from distill.workshop import refuse_unwritable

if TYPE_CHECKING:
    from students.export import Exported
    from students.parity import Tolerance
    from students.wanted import Wanted

# What each format needs beyond torch: (extra, modules).
NEEDS: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "onnx": (("export", ("onnx", "onnxscript", "onnxruntime")),),
    "torch": (),
    "openvino": (("export", ("onnx", "onnxscript", "onnxruntime")), ("openvino", ("openvino",))),
    "litert": (("litert", ("ai_edge_litert.interpreter",)),),
    "coreml": (("coreml", ("coremltools",)),),
}


def require_extra(extra: str, *modules: str) -> None:
    """Raise :class:`MissingExtraError` with the command that mends it if one of ``modules`` cannot be imported."""
    before = logging.root.manager.disable
    for module in modules:
        try:
            logging.disable(logging.WARNING)  # coremltools lists on import what only another system has
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f"{module} is needed and cannot be imported ({error}); run `pip install 'gaze-distill[{extra}]'`"
            ) from None
        finally:
            logging.disable(before)


def student_directory(path: Path) -> Path:
    """The stored student of the run, or of the directory, at ``path``; :class:`ConfigurationError` says what it lacks."""
    for directory in (path / "student", path):
        if (directory / "model.json").is_file():
            return directory
    if (path / "config.json").is_file():
        raise ConfigurationError(
            f"run {path} has no student yet, one is kept at its first validation; go on with `distill train --resume {path}`"
        )
    what = "does not exist" if not path.exists() else "holds neither a run nor a stored model"
    raise ConfigurationError(f"{path} {what}; give the directory of a run, such as runs/demo")


def default_name(wanted: Wanted) -> str:
    """The name of a file of this kind: each kind has its own, so that they lie side by side with a JSON each."""
    from students.onnx_runtime import SUFFIXES
    from students.wanted import PIXELS

    parts = ["student"]
    parts += [wanted.format] if wanted.format != "onnx" else []
    parts += [wanted.precision] if wanted.precision != "float32" else []
    parts += ["resized"] if wanted.pixels != PIXELS[wanted.format][0] else []
    return "-".join(parts) + SUFFIXES[wanted.format]


def tolerance_of(precision: str, changes: Mapping[str, float]) -> Tolerance:
    """The precision's own tolerance with ``changes`` by name; :class:`ConfigurationError` for a name that does not exist."""
    from students.parity import TOLERANCES, Tolerance

    names = [field.name for field in fields(Tolerance)]
    for name, value in changes.items():
        if name not in names:
            raise ConfigurationError(f"--tolerance {name} is unknown; there are {', '.join(names)}")
        if not 0.0 <= value < float("inf"):
            raise ConfigurationError(f"--tolerance {name}={value} is no tolerance; give a number from 0 on")
    return replace(TOLERANCES[precision], **changes)


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    wanted: Wanted | None = None,
    scenes: int = 64,
    data: str | None = None,
    split: str | None = None,
    tolerance: Mapping[str, float] | None = None,
    advance: Callable[[int], None] | None = None,
    begin: Callable[[int], None] | None = None,
    converter: str | None = None,
) -> Exported:
    """Export the student of ``run``, by default as ``exports/student.onnx`` in the run's directory.

    ``begin(n)`` is called with the number of scenes before the graph is traced, and only if nothing is refused before then; ``advance(n)``
    when n of them were compared;
    ``converter`` is the Python that has LiteRT's converter.
    Raises :class:`MissingExtraError`, :class:`ConfigurationError`, :class:`DataError` and
    :class:`students.errors.ExportError`; what was exported before then stays as it is.
    """
    from students.export import export_student
    from students.wanted import Wanted

    wanted = wanted or Wanted()
    for extra, modules in NEEDS[wanted.format]:
        require_extra(extra, *modules)
    from distill.gate_scenes import GateScenes, GateScorer, gate_of
    from teachers.weights import load_model

    allowed = tolerance_of(wanted.precision, tolerance or {})
    stored = student_directory(run)
    path = out or run / "exports" / default_name(wanted)
    refuse_unwritable(path.parent)
    model, description = load_model(stored)
    gate = gate_of(run, scenes, data=data, split=split)
    facts = description.get("facts", {})
    recorded: dict[str, Any] = {
        "run": facts.get("run"),
        "metrics": facts.get("validation"),
        "selection": facts.get("selection"),
        "lineage": {**facts.get("lineage", {}), "weights": description["weights_digest"]},
        "gate": gate.facts(),
    }
    if wanted.precision == "int8":
        recorded["calibration"] = {"views": len(gate.calibration), "split": gate.calibration[0].split, "policy": gate.policy.describe()}
    return export_student(
        model, path,
        GateScenes(gate.shown, model.input_size, policy=gate.policy, exif=gate.exif, advance=advance),
        name=description["name"], weights_digest=description["weights_digest"], wanted=wanted,
        calibration=GateScenes(gate.calibration, model.input_size, policy=gate.policy, exif=gate.exif),
        scorer=lambda: GateScorer(gate.protocol), facts=recorded, tolerance=allowed,
        converter=converter, begin=None if begin is None else lambda: begin(len(gate.shown)),
    )
