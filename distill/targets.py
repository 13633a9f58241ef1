"""Target heatmaps: a Gaussian on the gaze point, as the field draws it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.loss_options import SIGMA


def gaussian_target(points: Sequence[tuple[float, float]], size: tuple[int, int], sigma: float = SIGMA) -> np.ndarray:
    """Target ``[h,w]`` float32 in [0,1] for the gaze points (xy in [0,1]) of one head's annotators; zeros without any.

    A Gaussian of height 1 on the cell that holds the point, cut off beyond the ±3σ box; several annotators give the mean,
    scaled to height 1. Source: Chong et al. 2020 (ejcgt/attention-target-detection, ``draw_labelmap``), which Gaze-LLE keeps.
    """
    height, width = size
    total = np.zeros(size, dtype=np.float32)
    for x, y in points:
        column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
        across = _bell(width, column, sigma * width)
        down = _bell(height, row, sigma * height)
        total += down[:, None] * across[None, :]
    peak = total.max()
    return total / peak if peak > 0 else total


def _bell(length: int, centre: int, sigma: float) -> np.ndarray:
    offset = np.arange(length, dtype=np.float32) - centre
    bell = np.exp(-(offset**2) / (2.0 * sigma**2))
    bell[np.abs(offset) > np.floor(3.0 * sigma)] = 0.0
    return bell.astype(np.float32)
