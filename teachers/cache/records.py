"""What reading a cache gives back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class CachedView(NamedTuple):
    """What a teacher said of one view: ``heatmap [N,h,w]`` float32 logits, ``inout [N]`` float32 logits or None, ``boxes [N,4]``
    float32 xyxy in [0,1] of the view, ``geometry`` (left, top, right, bottom, flip) float64."""

    heatmap: np.ndarray
    inout: np.ndarray | None
    boxes: np.ndarray
    geometry: np.ndarray


class CachedRows(NamedTuple):
    """What a teacher said of ``M`` views, with ``R`` rows together: ``heatmap [R,h,w]`` float32 logits, ``inout [R]`` float32 logits
    or None, ``boxes [R,4]`` float32, ``geometry [M,5]`` float64; view ``m`` has the rows ``offsets[m]:offsets[m+1]`` (``[M+1]`` int64)."""

    heatmap: np.ndarray
    inout: np.ndarray | None
    boxes: np.ndarray
    geometry: np.ndarray
    offsets: np.ndarray


class Coverage(NamedTuple):
    """Which of the scenes asked for a cache does not have, and which it has as skipped."""

    missing: list[str]
    skipped: list[str]


class Skipped(NamedTuple):
    """A scene that could not be read when the cache was built."""

    key: str
    reason: str
    shard: int


class SceneDigests(NamedTuple):
    """16 bytes each: of the picture's file (zeros for a skipped scene), of the boxes, of the gaze points."""

    picture: bytes
    boxes: bytes
    points: bytes
