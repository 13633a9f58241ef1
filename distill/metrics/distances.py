"""Distances between a predicted gaze point and the annotations, in [0,1] of the picture's width and height.

Published code: ``gazefollow_l2`` and ``vat_l2`` in ``gazelle/utils.py`` of fkryan/gazelle. Two averages go by the name
"Avg L2": Chong et al., Gaze-LLE and their successors print the distance *to the mean* annotation (:func:`avg_l2`),
the table of Recasens et al. (2015) the *mean of* the distances (:func:`avg_l2_mean_of`), which is never smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from distill.errors import MetricError


@dataclass(frozen=True)
class PointErrors:
    """Distances ``[N]`` of N predicted points: to the mean annotation, the mean over annotators, to the nearest."""

    avg_l2: np.ndarray
    avg_l2_mean_of: np.ndarray
    min_l2: np.ndarray


def predicted_point(heatmaps: ArrayLike) -> np.ndarray:
    """Predicted points ``[N,2]``, xy in [0,1), of ``heatmaps [N,h,w]``: the highest cell's index over the grid's size.

    No half-cell offset is added, as published; of equal cells the first in row-major order counts. Logits and
    probabilities give the same point. Source: ``argmax_pts`` in ``utils/evaluation.py`` of ejcgt/attention-target-detection.
    Raises MetricError for heatmaps that are not finite or not ``[N,h,w]``.
    """
    maps = np.asarray(heatmaps)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise MetricError(f"heatmaps are [N,h,w], not {list(maps.shape)}")
    if not np.isfinite(maps).all():
        bad = int(np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))[0])
        raise MetricError(f"heatmap {bad} holds values that are not finite; the model that gave it is broken")
    count, height, width = maps.shape
    best = maps.reshape(count, height * width).argmax(axis=1)
    return np.stack(((best % width) / width, (best // width) / height), axis=1)


def point_errors(predicted: ArrayLike, points: Sequence[ArrayLike]) -> PointErrors:
    """All three distances of ``predicted [N,2]`` to N × ``[A,2]`` annotations; for exact points as for cells.

    Raises MetricError for a head without annotation and for points that are not finite.
    """
    places = _places(predicted)
    flat, starts, counts = _flattened(points, len(places))
    if len(places) == 0:
        return PointErrors(np.empty(0), np.empty(0), np.empty(0))
    mean = np.add.reduceat(flat, starts) / counts[:, None]
    distance = np.hypot(*(flat - np.repeat(places, counts, axis=0)).T)
    return PointErrors(
        avg_l2=np.hypot(*(mean - places).T),
        avg_l2_mean_of=np.add.reduceat(distance, starts) / counts,
        min_l2=np.minimum.reduceat(distance, starts),
    )


def avg_l2(predicted: ArrayLike, points: Sequence[ArrayLike]) -> np.ndarray:
    """Distance ``[N]`` of ``predicted [N,2]`` to the mean of each head's annotations: what the field prints.

    Source: ``gazefollow_l2`` in ``gazelle/utils.py`` of fkryan/gazelle, its first value; Chong et al., ``eval_on_gazefollow.py``.
    """
    return point_errors(predicted, points).avg_l2


def avg_l2_mean_of(predicted: ArrayLike, points: Sequence[ArrayLike]) -> np.ndarray:
    """Mean ``[N]`` over each head's annotators of the distance to ``predicted [N,2]``: the 2015 table.

    Source: Recasens, Khosla, Vondrick, Torralba, *Where are they looking?* (2015), table 1, "Dist."; ``sum_avg_dist`` in idiap/sharingan.
    """
    return point_errors(predicted, points).avg_l2_mean_of


def min_l2(predicted: ArrayLike, points: Sequence[ArrayLike]) -> np.ndarray:
    """Distance ``[N]`` of ``predicted [N,2]`` to the nearest annotation of each head.

    Source: Recasens et al. (2015), "Min Dist."; ``gazefollow_l2`` in ``gazelle/utils.py`` of fkryan/gazelle, its second value.
    """
    return point_errors(predicted, points).min_l2


def angular_error(predicted: ArrayLike, gaze: ArrayLike, centre: ArrayLike) -> np.ndarray:
    """Angle ``[N]`` in degrees, [0,180], at ``centre [N,2]`` (eye or head) from ``predicted`` to ``gaze``, ``[N,2]``.

    In the plane of the coordinates given: in [0,1] coordinates, as published (``code/cal_min_dis.py`` of
    svip-lab/GazeFollowing), a picture's aspect ratio bends the angle; give pixels for the angle that one sees. A
    direction of no length is taken as at 90°, as there.

    Raises MetricError for shapes that differ and points that are not finite.
    """
    eye = _places(centre)
    first, second = _places(predicted), _places(gaze)
    if not first.shape == second.shape == eye.shape:
        raise MetricError(f"{len(first)} predictions, {len(second)} gaze points and {len(eye)} centres; give N of each")
    first, second = first - eye, second - eye
    cross = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    dot = (first * second).sum(axis=1)
    # arctan2 keeps small angles exact where arccos of a rounded cosine does not.
    angle = np.degrees(np.arctan2(np.abs(cross), dot))
    still = ~first.any(axis=1) | ~second.any(axis=1)
    return np.where(still, 90.0, angle)


def _places(points: ArrayLike) -> np.ndarray:
    places = np.asarray(points, dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 2:
        raise MetricError(f"points are [N,2], not {list(places.shape)}")
    if not np.isfinite(places).all():
        bad = int(np.flatnonzero(~np.isfinite(places).all(axis=1))[0])
        raise MetricError(f"point {bad} is {places[bad].tolist()}, not finite")
    return places


def _flattened(points: Sequence[ArrayLike], heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All annotations ``[ΣA,2]``, where each head's begin ``[N]``, and how many each head has ``[N]``."""
    if len(points) != heads:
        raise MetricError(f"{heads} predicted points for {len(points)} heads; give one for each head")
    annotations = [np.asarray(entry, dtype=np.float64).reshape(-1, 2) for entry in points]
    counts = np.array([len(entry) for entry in annotations], dtype=np.int64)
    if (counts == 0).any():
        raise MetricError(f"head {int(np.flatnonzero(counts == 0)[0])} has no gaze point; leave such heads out")
    flat = _places(np.concatenate(annotations) if annotations else np.empty((0, 2)))
    return flat, np.cumsum(counts) - counts, counts
