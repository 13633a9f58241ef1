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

import numpy as np
from numpy.typing import ArrayLike

from distill.errors import MetricError
from distill.metrics.pixel_counts import pixel_counts, values_at
from distill.metrics.ranking import roc_aucs
from distill.metrics.resampling import check_size, finite_map, finite_maps

VAT_GRID = 64
VAT_SIGMA = 3


def gazefollow_auc(heatmap: ArrayLike, points: ArrayLike, width: int, height: int) -> float:
    """GazeFollow's AUC of one head, in [0,1]: the heatmap resized to the picture, positives the annotators' pixels.

    ``heatmap [h,w]`` (probabilities, see the module) is resized bilinearly to ``width`` × ``height`` pixels; the
    positive pixels are ``int(x·width), int(y·height)`` of ``points [A,2]`` in [0,1], clipped to the picture, each
    counted once; all others are negative. Equal to :func:`distill.metrics.roc_auc` of ``resize_bilinear(...)``, ties
    included, without making or sorting that map: see :mod:`distill.metrics.pixel_counts`.
    Source: ``gazefollow_auc`` in ``gazelle/utils.py`` of fkryan/gazelle; ``eval_on_gazefollow.py`` of ejcgt/attention-target-detection.

    Raises MetricError for a heatmap that is not finite, no point, a negative point (the mark of an out-of-frame head),
    and a picture with no negative pixel.
    """
    grid = finite_map(heatmap)
    check_size(width, height)
    x, y = _pixels(points, width, height)
    positives, pixels = len(x), width * height
    if positives == pixels:
        raise MetricError(f"AUC is undefined: all {pixels} pixels of a {width}×{height} picture are annotated")
    found, times = np.unique(values_at(grid, x, y, width, height), return_counts=True)
    below, equal = pixel_counts(grid, found, width, height)
    # Twice the pairs won: 2 for a pixel below, 1 for an equal one. Among themselves the positives account for positives²
    # of that: 2 for each pair, 1 for each with itself.
    doubled = int(times @ (2 * below + equal)) - positives**2
    return doubled / (2 * positives * (pixels - positives))


def gazefollow_auc_64(heatmaps: ArrayLike, points: Sequence[ArrayLike]) -> np.ndarray:
    """The variant on the heatmap's own grid: ``heatmaps [N,h,w]``, usually 64×64, ``points`` N × ``[A,2]`` → ``[N]``.

    Positives are the cells ``int(x·w), int(y·h)``, clipped; no resize, so the sigmoid changes nothing.
    Source: idiap/sharingan prints a form of this one as GazeFollow AUC (``GFTestAUC`` in its ``src/metrics.py``), with ``int(x·(w−1))`` for the cell.

    Raises MetricError as :func:`gazefollow_auc` does.
    """
    maps = finite_maps(heatmaps)
    if len(points) != len(maps):
        raise MetricError(f"{len(maps)} heatmaps for {len(points)} sets of points; give one set for each heatmap")
    height, width = maps.shape[1:]
    cells = [_pixels(annotation, width, height) for annotation in points]
    positive = np.zeros(maps.shape, dtype=bool)
    for index, (x, y) in enumerate(cells):
        positive[index, y, x] = True
    return roc_aucs(maps.reshape(len(maps), maps[:1].size), positive.reshape(len(maps), maps[:1].size))


def vat_auc(heatmap: ArrayLike, point: ArrayLike) -> float:
    """VideoAttentionTarget's AUC of one in-frame head, in [0,1], on its ``[64,64]`` heatmap.

    Positives are the box of ±3σ cells (σ = 3) around ``point [2]`` in [0,1]: columns ``int(64x − 9)`` to
    ``int(64x + 10)``, exclusive, cut to 0 and 63, rows alike. The cut at 63 is exclusive too, so the last row and
    column are never positive: so it is published, and so it stays.
    Source: ``vat_auc`` in ``gazelle/utils.py`` of fkryan/gazelle; ``eval_on_videoatttarget.py`` and ``utils/imutils.py`` of
    ejcgt/attention-target-detection.

    Raises MetricError for a heatmap that is not finite or not 64×64, and for a point outside the picture.
    """
    return float(vat_aucs(finite_map(heatmap)[None], np.asarray(point, dtype=np.float64).reshape(1, -1))[0])


def vat_aucs(heatmaps: ArrayLike, points: ArrayLike) -> np.ndarray:
    """:func:`vat_auc` of N in-frame heads at once: ``heatmaps [N,64,64]``, ``points [N,2]`` → ``[N]``."""
    maps, places = finite_maps(heatmaps), np.asarray(points, dtype=np.float64)
    if maps.shape[1:] != (VAT_GRID, VAT_GRID):
        raise MetricError(f"VideoAttentionTarget's AUC is defined on 64×64 cells, not {maps.shape[1:]}; resize it first")
    if places.shape != (len(maps), 2) or not ((places >= 0) & (places <= 1)).all():
        raise MetricError(f"{places.tolist()} is not one gaze point in [0,1] a head; leave out-of-frame heads out of this AUC")
    reach = 3 * VAT_SIGMA
    # Truncated towards zero, as int() does.
    first = np.maximum((places * VAT_GRID - reach).astype(np.int64), 0)
    end = np.minimum((places * VAT_GRID + reach + 1).astype(np.int64), VAT_GRID - 1)
    cells = np.arange(VAT_GRID)
    inside = (cells >= first[:, :, None]) & (cells < end[:, :, None])
    positive = inside[:, 1, :, None] & inside[:, 0, None, :]
    return roc_aucs(maps.reshape(len(maps), maps[:1].size), positive.reshape(len(maps), maps[:1].size))


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


