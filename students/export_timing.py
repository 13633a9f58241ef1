"""How fast an exported file is: against the student in torch, and against the float32 file of its kind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from students.parity import SceneBatch
from students.raw_pictures import Runtime
from students.wanted import Wanted
from teachers.model import GazeModel


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


def compared_with_float32(
    student: GazeModel, runtime: Runtime, plain: tuple[Path, Runtime] | None, first: SceneBatch, wanted: Wanted, size: int
) -> dict[str, Any]:
    """``timing`` and ``remarks`` of the JSON: milliseconds of one picture of the input size with one head (as many as a call has, where
    that is fixed), in torch, in this file, and in the float32 file ``plain`` if this is another."""
    heads = wanted.people or 1
    scene = first.images[:1], first.boxes[:1].repeat(heads, 1), torch.zeros(heads, dtype=torch.int64)
    own = one_picture(student.input_size, wanted.pixels, heads)

    def in_torch() -> None:
        with torch.inference_mode():
            student(*scene)

    calls: dict[str, Callable[[], Any]] = {"torch_ms": in_torch, "file_ms": lambda: runtime.run(*own)}
    note: dict[str, Any] = {}
    if plain is not None:
        path, other = plain
        calls["float32_ms"] = lambda: other.run(*own)
        note["float32_bytes"] = path.stat().st_size
    ms = {key: statistics.median(values) for key, values in interleaved_ms(calls).items()}
    timing = {**ms, "threads": torch.get_num_threads(), "images": 1, "heads": heads, **note}
    remarks = []
    if note and size >= note["float32_bytes"]:
        remarks.append(f"not smaller than float32: {size / 1e6:.2f} MB against {note['float32_bytes'] / 1e6:.2f} MB")
    if note and ms["file_ms"] >= ms["float32_ms"]:
        remarks.append(f"not faster than float32 here: {ms['file_ms']:.1f} ms against {ms['float32_ms']:.1f} ms")
    return {"timing": timing, "remarks": remarks}


class BareOnnx:
    """An ONNX file without a description beside it, in ONNX Runtime."""

    def __init__(self, path: Path, pixels: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.pixels = pixels
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        names = [each.name for each in self._session.get_inputs()]
        heatmap, *inout = self._session.run(None, dict(zip(names, (pictures, boxes, image_index), strict=True)))
        return heatmap, inout[0] if inout else None
