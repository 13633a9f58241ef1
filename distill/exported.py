"""An exported file as evaluation and prediction use it: what takes raw pictures is given raw pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np

from distill.evaluation import SceneAnswer
from distill.pictures import load_picture
from distill.scenes import Scene
from distill.source import refuse_outside
from distill.views import IDENTITY
from students.onnx_runtime import OnnxGaze


class ExportedFile(OnnxGaze):
    """The ONNX file at ``path``, answering for scenes by itself: from the pictures as they were decoded, as the file's gate did."""

    def scene_answers(
        self, scenes: Sequence[Scene], *, batch_size: int, workers: int, device: str, exif: bool
    ) -> Iterator[SceneAnswer]:
        """One answer a scene, in order; pictures are decoded ahead. A picture is a call: their sizes differ."""
        with ThreadPoolExecutor(workers, thread_name_prefix="exported") as pool:
            upcoming = iter(scenes)
            waiting: deque[Future[tuple[Scene, np.ndarray]]] = deque()
            try:
                waiting.extend(pool.submit(_opened, scene, exif) for scene in islice(upcoming, 2 * batch_size))
                while waiting:
                    flat, picture = waiting.popleft().result()
                    waiting.extend(pool.submit(_opened, scene, exif) for scene in islice(upcoming, 1))
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


def _opened(scene: Scene, exif: bool) -> tuple[Scene, np.ndarray]:
    picture = load_picture(scene.picture, exif=exif)
    flat = scene.normalised(picture.shape[1], picture.shape[0])
    refuse_outside(scene, flat)
    return flat, picture
