"""An exported file as evaluation and prediction use it: what takes raw pictures is given raw pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from distill.errors import ConfigurationError
from distill.evaluation import SceneAnswer
from distill.exporting import require_extra
from distill.scenes import Scene
from distill.source import opened
from distill.views import IDENTITY
from students.onnx_runtime import SUFFIXES, ExportedGaze, OnnxGaze

# What opens a format, as (extra, module), where that is safe and has a runtime on this side.
RUNS: Mapping[str, tuple[str, str]] = {
    "onnx": ("export", "onnxruntime"), "openvino": ("openvino", "openvino"), "litert": ("litert", "ai_edge_litert.interpreter"),
    "coreml": ("coreml", "coremltools"),
}


class SceneAnswers(ExportedGaze):
    """An exported file that answers for scenes by itself: from the pictures as they were decoded, as the file's gate did."""

    def scene_answers(
        self, scenes: Sequence[Scene], *, batch_size: int, workers: int, device: str, exif: bool
    ) -> Iterator[SceneAnswer]:
        """One answer a scene, in order; pictures are decoded ahead. A picture is a call: their sizes differ."""
        with ThreadPoolExecutor(workers, thread_name_prefix="exported") as pool:
            upcoming = iter(scenes)
            waiting: deque[Future[tuple[np.ndarray, Scene]]] = deque()
            try:
                waiting.extend(pool.submit(opened, scene, exif=exif) for scene in islice(upcoming, 2 * batch_size))
                while waiting:
                    picture, flat = waiting.popleft().result()
                    waiting.extend(pool.submit(opened, scene, exif=exif) for scene in islice(upcoming, 1))
                    yield self._answer(flat, picture)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, scene: Scene, picture: np.ndarray) -> SceneAnswer:
        boxes = scene.boxes().astype(np.float32)
        if not len(boxes):
            return SceneAnswer(scene, np.zeros((0, *self.heatmap_size), np.float32), None)
        given = picture[None] if self.pixels == "uint8" else IDENTITY.picture(picture, self.input_size)[None].numpy()
        heatmap, inout = self.run(given, boxes, np.zeros(len(boxes), np.int64))
        return SceneAnswer(scene, heatmap, inout)


class ExportedFile(SceneAnswers, OnnxGaze):
    """The ONNX file at ``path``."""


class OtherFile(SceneAnswers):
    """An exported file of another format, in the runtime that it is for."""

    def __init__(self, path: Path) -> None:
        from students.export import open_runtime
        from students.wanted import Wanted

        super().__init__(path)
        held = self.description
        self._runtime = open_runtime(path, Wanted(held["format"], held["precision"], held["pixels"], held.get("people")))

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self._runtime.run(pictures, boxes, image_index)


def is_exported(spec: str) -> bool:
    """Whether ``spec`` is named as the files of ``distill export`` are."""
    return not spec.startswith(("onnx:", "timm:")) and Path(spec).suffix in SUFFIXES.values()


def open_exported(path: Path, device: str = "auto") -> SceneAnswers:
    """The exported file at ``path``, of any format that has a runtime here.

    Raises :class:`ConfigurationError` for a ``torch.export`` program, which torch may unpickle and is therefore opened for nobody, and for a
    device other than the CPU; :class:`MissingExtraError` where the runtime is absent; :class:`students.errors.ExportError` for a damaged file.
    """
    format_ = next(name for name, suffix in SUFFIXES.items() if suffix == path.suffix)
    if format_ not in RUNS:
        raise ConfigurationError(
            f"{path} is a {format_} program, and torch may run what is pickled in one; give the run, or an export of another format, such as "
            "`distill export RUN --format onnx`"
        )
    require_extra(RUNS[format_][0], RUNS[format_][1])
    if device not in ("auto", "cpu"):
        raise ConfigurationError(f"an exported file runs on the CPU, not on {device}; leave --device out, or give the run")
    return ExportedFile(path) if format_ == "onnx" else OtherFile(path)
