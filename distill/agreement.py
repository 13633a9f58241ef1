"""How well a student agrees with its teacher where nobody labelled anything: on scenes that are held out of the unlabelled data.

========================  ==============================================================================================
``kl_teacher``            KL(teacher‖student) of the spatial softmax at T=1, in nats, mean over heads
``l2_teacher``            distance between the two maps' argmax points in [0,1] of the picture's sides, mean over heads
========================  ==============================================================================================

Both are over all heads, on view 0 (the whole picture). They say how much of the teacher has arrived, not how right the teacher is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from distill.cached_teacher import resampled
from distill.evaluation import GazeFunction, answers
from distill.feeding import Pool, refuse_changed
from distill.metrics import predicted_point
from distill.pictures import read_bytes
from students.losses import heatmap_kl

AGREEMENT = ("kl_teacher", "l2_teacher")  # lower is better for both


class TeacherAgreement:
    """Compares students with the cached teacher on ``pools``; called with a model it gives the two numbers by name.

    Raises :class:`CacheError` for a picture that is not the one the cache was built from.
    """

    def __init__(self, pools: Sequence[Pool], *, workers: int = 2) -> None:
        self.pools, self.workers = pools, workers
        self._checked = False

    def __call__(self, model: GazeFunction, device: str = "cpu") -> dict[str, float]:
        divergences: list[float] = []
        distances: list[float] = []
        for pool in self.pools:
            cache = pool.cache
            assert cache is not None
            if not self._checked:
                for scene in pool.scenes:
                    refuse_changed(cache, scene, 0, read_bytes(scene.picture))
            for answer in answers(model, pool.scenes, workers=self.workers, device=device, exif=pool.exif):
                if not len(answer.scene.heads):
                    continue
                teacher = resampled(cache.read(answer.scene.key, 0).heatmap, answer.heatmap.shape[1:])
                divergences += heatmap_kl(torch.from_numpy(answer.heatmap), teacher, 1.0).tolist()
                apart = predicted_point(answer.heatmap) - predicted_point(teacher.numpy())
                distances += np.hypot(apart[:, 0], apart[:, 1]).tolist()
        self._checked = True
        return dict(zip(AGREEMENT, (float(np.mean(divergences)), float(np.mean(distances))), strict=True))
