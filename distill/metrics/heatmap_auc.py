"""AUC of a gaze heatmap in the three forms that the field prints under one name.

Published code: ``gazefollow_auc`` and ``vat_auc`` in ``gazelle/utils.py`` of fkryan/gazelle, after
``eval_on_gazefollow.py``, ``eval_on_videoatttarget.py`` and ``utils/imutils.py`` of ejcgt/attention-target-detection.
The functions rank the map that they are given. Gaze-LLE gives *probabilities*, and a bilinear mean of probabilities is
not in the order of a bilinear mean of logits, so apply the sigmoid first, as the accumulator does.

Resampling is in double precision, where the published code uses single: of some 300,000 pixels a few that differ by
less than single precision's rounding may change places (an AUC difference of about 1e-6 each), and a flat map stays
exactly flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from distill.errors import MetricError
from distill.metrics.ranking import roc_auc

VAT_GRID = 64
VAT_SIGMA = 3
# Patches computed at once: their pixels stay in a core's own cache.
_CHUNK = 512


@dataclass(frozen=True)
class _Axis:
    """Linear resampling along one axis of n cells, in n + 1 spans between neighbouring cell centres.

    Output i is low + weight[i]·(high − low), with low and high the cells at either end of ``span[i]``; ``low`` and
    ``high`` ``[n+1]`` repeat the border cell in the first and the last span, which lie outside the centres.
    ``counts [n+1]`` outputs lie in a span; ``ladder [max count, n+1]`` holds their weights, then NaN.
    """

    low: np.ndarray
    high: np.ndarray
    span: np.ndarray
    weight: np.ndarray
    counts: np.ndarray
    ladder: np.ndarray


@lru_cache(maxsize=256)
def _axis(cells: int, outputs: int) -> _Axis:
    """torch's bilinear sampling with ``align_corners=False``: output i lies at (i + ½)·cells/outputs − ½ cells."""
    source = (np.arange(outputs) + 0.5) * (cells / outputs) - 0.5
    below = np.floor(source).astype(np.int64)
    span, weight = below + 1, source - below
    counts = np.bincount(span, minlength=cells + 1)
    ladder = np.full((int(counts.max()), cells + 1), np.nan)
    first = np.cumsum(counts) - counts
    ladder[np.arange(outputs) - first[span], span] = weight
    ends = np.arange(cells + 1)
    axis = _Axis(np.maximum(ends - 1, 0), np.minimum(ends, cells - 1), span, weight, counts, ladder)
    for array in vars(axis).values():
        array.setflags(write=False)
    return axis


def resize_bilinear(heatmap: ArrayLike, width: int, height: int) -> np.ndarray:
    """Bilinear resize of a heatmap ``[h,w]`` to ``[height,width]`` float64.

    The convention of ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``, no antialiasing. A span
    between equal cells stays exactly equal. Raises MetricError for a heatmap that is not finite or not ``[h,w]``.
    """
    grid = _finite_map(heatmap)
    _check_size(width, height)
    across, down = _axis(grid.shape[1], width), _axis(grid.shape[0], height)
    rows = _between(grid[:, across.low[across.span]], grid[:, across.high[across.span]], across.weight)
    return _between(rows[down.low[down.span]], rows[down.high[down.span]], down.weight[:, None])


def gazefollow_auc(heatmap: ArrayLike, points: ArrayLike, width: int, height: int) -> float:
    """GazeFollow's AUC of one head, in [0,1]: the heatmap resized to the picture, positives the annotators' pixels.

    ``heatmap [h,w]`` (probabilities, see the module) is resized bilinearly to ``width`` × ``height`` pixels; the
    positive pixels are ``int(x·width), int(y·height)`` of ``points [A,2]`` in [0,1], clipped to the picture, each
    counted once; all others are negative. Equal to :func:`distill.metrics.roc_auc` of ``resize_bilinear(...)``, ties
    included, without making or sorting that map: the pixels between four neighbouring cell centres lie between those
    cells' values, so only where a positive's value lies there too are they computed and compared.

    Raises MetricError for a heatmap that is not finite, no point, a negative point (the mark of an out-of-frame head),
    and a picture with no negative pixel.
    """
    grid = _finite_map(heatmap)
    _check_size(width, height)
    x, y = _pixels(points, width, height)
    positives, pixels = len(x), width * height
    if positives == pixels:
        raise MetricError(f"AUC is undefined: all {pixels} pixels of a {width}×{height} picture are annotated")

    across, down = _axis(grid.shape[1], width), _axis(grid.shape[0], height)
    upper, lower = grid[down.low], grid[down.high]
    corners = np.stack((upper[:, across.low], upper[:, across.high], lower[:, across.low], lower[:, across.high]))
    found = _patches(corners[:, down.span[y], across.span[x]], across.weight[None, x], down.weight[None, y])
    values, times = np.unique(found, return_counts=True)

    low, high = corners.min(axis=0), corners.max(axis=0)
    flat = low == high
    # Rounding may carry a pixel past its corners by a few units in the last place.
    slack = np.where(flat, 0.0, 8 * np.finfo(np.float64).eps * np.maximum(-low, high) + np.finfo(np.float64).tiny)
    low, high = low - slack, high + slack
    area = np.outer(down.counts, across.counts)
    bounds = values[:, None, None]
    mixed = ((low <= bounds) & (high >= bounds)).any(axis=0) & ~flat
    halves = (high < bounds).astype(np.uint8)  # twice the pairs won: 2 for a pixel below, 1 for an equal one
    halves += high <= bounds
    doubled = int(times @ (halves.reshape(len(values), -1) @ np.where(mixed, 0.0, area).ravel()))
    rows, columns = np.nonzero(mixed)
    for first in range(0, len(rows), _CHUNK):
        row, column = rows[first : first + _CHUNK], columns[first : first + _CHUNK]
        pixel = _patches(corners[:, row, column], across.ladder[:, column], down.ladder[:, row])
        for value, repeat in zip(values.tolist(), times.tolist(), strict=True):
            # NaN, beyond a patch's pixels, is neither below nor equal.
            doubled += repeat * int(np.count_nonzero(pixel < value) + np.count_nonzero(pixel <= value))
    # Among themselves the positives account for positives² of that: 2 for each pair, 1 for each with itself.
    return (doubled - positives**2) / (2 * positives * (pixels - positives))


def gazefollow_auc_64(heatmaps: ArrayLike, points: Sequence[ArrayLike]) -> np.ndarray:
    """The variant on the heatmap's own grid: ``heatmaps [N,h,w]``, usually 64×64, ``points`` N × ``[A,2]`` → ``[N]``.

    Positives are the cells ``int(x·w), int(y·h)``, clipped; no resize, so the sigmoid changes nothing. Sharingan prints
    a form of this one as GazeFollow AUC (``GFTestAUC`` in its ``src/metrics.py``), with ``int(x·(w−1))`` for the cell.

    Raises MetricError as :func:`gazefollow_auc` does.
    """
    maps = _finite_maps(heatmaps)
    if len(points) != len(maps):
        raise MetricError(f"{len(maps)} heatmaps for {len(points)} sets of points; give one set for each heatmap")
    height, width = maps.shape[1:]
    scores = np.empty(len(maps))
    for index, annotation in enumerate(points):
        x, y = _pixels(annotation, width, height)
        positive = np.zeros((height, width), dtype=bool)
        positive[y, x] = True
        scores[index] = roc_auc(maps[index], positive)
    return scores


def vat_auc(heatmap: ArrayLike, point: ArrayLike) -> float:
    """VideoAttentionTarget's AUC of one in-frame head, in [0,1], on its ``[64,64]`` heatmap.

    Positives are the box of ±3σ cells (σ = 3) around ``point [2]`` in [0,1]: columns ``int(64x − 9)`` to
    ``int(64x + 10)``, exclusive, cut to 0 and 63, rows alike. The cut at 63 is exclusive too, so the last row and
    column are never positive: so it is published, and so it stays.

    Raises MetricError for a heatmap that is not finite or not 64×64, and for a point outside the picture.
    """
    grid = _finite_map(heatmap)
    if grid.shape != (VAT_GRID, VAT_GRID):
        raise MetricError(f"VideoAttentionTarget's AUC is defined on 64×64 cells, not {grid.shape}; resize it first")
    place = np.asarray(point, dtype=np.float64).reshape(-1)
    if place.shape != (2,) or not ((place >= 0) & (place <= 1)).all():
        raise MetricError(f"{place.tolist()} is not one gaze point in [0,1]; leave out-of-frame heads out of this AUC")
    reach = 3 * VAT_SIGMA
    x, y = (place * VAT_GRID).tolist()
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(int(x + reach + 1), VAT_GRID - 1), min(int(y + reach + 1), VAT_GRID - 1)
    positive = np.zeros(grid.shape, dtype=bool)
    positive[top:bottom, left:right] = True
    return roc_auc(grid, positive)


def _between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Linear interpolation that is exact between equal ends, unlike (1 − weight)·low + weight·high."""
    result = weight * (high - low)
    result += low
    return result


def _patches(corners: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Pixels ``[R,C,K]`` between ``corners [4,K]`` at weights ``across [C,K]``, ``down [R,K]``: a full resize's own."""
    upper = _between(corners[0], corners[1], across)
    lower = _between(corners[2], corners[3], across)
    return _between(upper, lower, down[:, None])


def _pixels(points: ArrayLike, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pixels (columns, rows) of ``points [A,2]`` in a picture of ``width`` × ``height``."""
    places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if len(places) == 0:
        raise MetricError("a head without a gaze point has no AUC; leave it out")
    if not np.isfinite(places).all() or (places < 0).any():
        raise MetricError(
            f"gaze points must be in [0,1], not {places.tolist()}; negative ones mark an out-of-frame head"
        )
    x = np.minimum((places[:, 0] * width).astype(np.int64), width - 1)
    y = np.minimum((places[:, 1] * height).astype(np.int64), height - 1)
    flat = np.unique(y * width + x)
    return flat % width, flat // width


def _finite_map(heatmap: ArrayLike) -> np.ndarray:
    grid = np.asarray(heatmap)
    if grid.ndim != 2:
        raise MetricError(f"a heatmap is [h,w], not {list(grid.shape)}; give one head at a time")
    return _finite_maps(grid[None])[0]


def _finite_maps(heatmaps: ArrayLike) -> np.ndarray:
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


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise MetricError(f"a picture of {width}×{height} pixels has no AUC; give its width and height")
