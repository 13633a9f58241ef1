"""The student as an OpenVINO model: converted from the ONNX graph of its precision, run by OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from students.errors import ExportError


def write_openvino(graph: Path, path: Path) -> None:
    """Convert the ONNX file ``graph`` to ``path`` (``.xml``, weights in the ``.bin`` beside it), in the numbers that it has.

    OpenVINO's own float16 halves every weight, those of the first convolutions among them, which moved the highest cell of a trained
    student by .31 cells in the mean; a graph whose weights :func:`students.onnx_precision.to_float16` halved keeps its cells.
    """
    import openvino

    # Read, not converted: convert_model computes the casts of float16 weights and would store float32 again.
    openvino.save_model(openvino.Core().read_model(str(graph)), str(path), compress_to_fp16=False)


class OpenVinoGaze:
    """A model at ``path``, compiled for the CPU. ``threads`` None: as many as OpenVINO likes."""

    def __init__(self, path: Path, *, pixels: str, threads: int | None = None) -> None:
        import openvino

        self.pixels = pixels
        # Processors with bfloat16 would be given it unasked.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise ExportError(f"OpenVINO {openvino.__version__} cannot open {path} ({reason}); export to onnx, which it reads as well") from None

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        answers = self._model([pictures, boxes, image_index])
        found = [np.array(answers[output]) for output in self._model.outputs]
        return found[0], found[1] if len(found) > 1 else None
