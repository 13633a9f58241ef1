"""Bilinear resampling of a heatmap to a picture's size: the whole map, or the pixels of chosen patches alone.

The convention is ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``, in double precision. A patch is
the rectangle of pixels whose centres lie between the same four cell centres; of h×w cells there are (h+1)×(w+1) patches,
those of the border included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from distill.errors import MetricError


@dataclass(frozen=True)
class Axis:
    """Linear resampling along one axis of n cells, in n + 1 spans between neighbouring cell centres.

    Output i is low + weight[i]·(high − low), with low and high the cells at either end of ``span[i]``; ``low`` and
    ``high`` ``[n+1]`` repeat the border cell in the first and the last span, which lie outside the centres.
    ``counts [n+1]`` outputs lie in a span; ``ladder [max count, n+1]`` holds their weights, then NaN, each ``step`` more than the one before.
    """

    low: np.ndarray
    high: np.ndarray
    span: np.ndarray
    weight: np.ndarray
    counts: np.ndarray
    ladder: np.ndarray
    step: float


@lru_cache(maxsize=256)
def axis(cells: int, outputs: int) -> Axis:
    """torch's bilinear sampling with ``align_corners=False``: output i lies at (i + ½)·cells/outputs − ½ cells."""
    source = (np.arange(outputs) + 0.5) * (cells / outputs) - 0.5
    below = np.floor(source).astype(np.int64)
    span, weight = below + 1, source - below
    counts = np.bincount(span, minlength=cells + 1)
    ladder = np.full((int(counts.max()), cells + 1), np.nan)
    first = np.cumsum(counts) - counts
    ladder[np.arange(outputs) - first[span], span] = weight
    ends = np.arange(cells + 1)
    found = Axis(np.maximum(ends - 1, 0), np.minimum(ends, cells - 1), span, weight, counts, ladder, cells / outputs)
    for array in (found.low, found.high, found.span, found.weight, found.counts, found.ladder):
        array.setflags(write=False)
    return found


def resize_bilinear(heatmap: ArrayLike, width: int, height: int) -> np.ndarray:
    """Bilinear resize of a heatmap ``[h,w]`` to ``[height,width]`` float64.

    The convention of ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``, no antialiasing. A span
    between equal cells stays exactly equal. Raises MetricError for a heatmap that is not finite or not ``[h,w]``.
    """
    grid = finite_map(heatmap)
    check_size(width, height)
    across, down = axis(grid.shape[1], width), axis(grid.shape[0], height)
    rows = between(grid[:, across.low[across.span]], grid[:, across.high[across.span]], across.weight)
    return between(rows[down.low[down.span]], rows[down.high[down.span]], down.weight[:, None])


def between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Linear interpolation that is exact between equal ends, unlike (1 − weight)·low + weight·high."""
    result = weight * (high - low)
    result += low
    return result


def patches(corners: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Pixels ``[R,C,K]`` between ``corners [4,K]`` at weights ``across [C,K]``, ``down [R,K]``: a full resize's own."""
    upper = between(corners[0], corners[1], across)
    lower = between(corners[2], corners[3], across)
    return between(upper, lower, down[:, None])


def finite_map(heatmap: ArrayLike) -> np.ndarray:
    grid = np.asarray(heatmap)
    if grid.ndim != 2:
        raise MetricError(f"a heatmap is [h,w], not {list(grid.shape)}; give one head at a time")
    return finite_maps(grid[None])[0]


def finite_maps(heatmaps: ArrayLike) -> np.ndarray:
    maps = np.asarray(heatmaps, dtype=np.float64)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise MetricError(f"heatmaps are [N,h,w], not {list(maps.shape)}")
    finite = np.isfinite(maps)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=(1, 2)))
        raise MetricError(
            f"heatmap {int(bad[0])} holds values that are not finite ({len(bad)} of {len(maps)} heatmaps do); "
            "the model that gave it is broken, nothing was scored"
        )
    return maps


def check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise MetricError(f"a picture of {width}×{height} pixels has no AUC; give its width and height")
