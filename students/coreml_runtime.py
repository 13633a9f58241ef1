"""The student as a Core ML package (``.mlpackage``, a folder): converted anywhere, run by macOS alone.

``coremltools`` 9 states torch 2.7 as the newest it was tried with and pins none; what it converts here is a ``torch.export`` program. On
another system than macOS nothing can predict with the package: its structure is checked, and its JSON says that no gate saw it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from students.errors import ExportError
from students.fixed_people import fixed_program, in_calls, split_answers
from teachers.model import GazeModel

NOT_RUN = "not run: Core ML predicts on macOS only"


def can_predict() -> bool:
    """Whether this machine runs Core ML."""
    return sys.platform == "darwin"


def write_coreml(student: GazeModel, path: Path, *, people: int, half: bool) -> None:
    """Convert ``student`` to the package ``path`` for ``people`` heads a call; ``half``: weights and arithmetic in float16."""
    with _quiet():
        import coremltools

        program = fixed_program(student, people, channels_last=False).run_decompositions({})
        for node in program.graph.nodes:
            # Of truth values the two are the same, and the converter knows only the latter.
            if node.target is torch.ops.aten.__and__.Tensor:
                node.target = torch.ops.aten.logical_and.default
        names = ["heatmap", "inout"][: 1 + student.has_inout]
        try:
            package = coremltools.convert(
                program, convert_to="mlprogram", minimum_deployment_target=coremltools.target.iOS16, skip_model_load=not can_predict(),
                outputs=[coremltools.TensorType(name=name, dtype=np.float32) for name in names],
                compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
            )
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"coremltools {coremltools.__version__} cannot convert this student with torch {torch.__version__} ({reason}); "
                "try an environment with an older torch, or export to onnx"
            ) from None
        package.save(str(path))


def check_structure(student: GazeModel, path: Path, *, people: int) -> None:
    """Read the package at ``path`` back and compare its inputs and outputs with what its JSON promises; :class:`ExportError` if they differ."""
    with _quiet():
        import coremltools

        held = coremltools.utils.load_spec(str(path))
    height, width = student.input_size
    expected = {"images": [1, 3, height, width], "boxes": [people, 4], "heatmap": [people, *student.heatmap_size]}
    if student.has_inout:
        expected["inout"] = [people]
    found = {each.name: list(each.type.multiArrayType.shape) for each in (*held.description.input, *held.description.output)}
    if held.WhichOneof("Type") != "mlProgram" or found != expected:
        raise ExportError(f"{path.name} is withheld: as a {held.WhichOneof('Type')} it has {found}, not {expected}; update coremltools")


class CoreMlGaze:
    """A package at ``path`` for ``people`` heads a call, run by Core ML on whatever it chooses; on macOS alone."""

    pixels = "float32"

    def __init__(self, path: Path, *, people: int) -> None:
        if not can_predict():
            raise ExportError(f"{path} cannot be run: Core ML predicts on macOS only; copy it there, or use --format onnx")
        with _quiet():
            import coremltools

            self._model: Any = coremltools.models.MLModel(str(path))
        self.people = people

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return in_calls(
            lambda picture, asked: split_answers(self._model.predict({"images": picture, "boxes": asked})), self.people, pictures, boxes, image_index
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library warns of versions, of its absent half on other systems, and draws progress bars on the error stream."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
