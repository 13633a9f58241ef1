"""Ranking metrics of scores against binary labels: ROC-AUC, average precision and the prevalence beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from distill.errors import MetricError

_ROWS = 64  # ranked at once: of 64×64 cells some arrays of two megabytes, which stay in a core's cache


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve of ``scores [P]`` against ``labels [P]`` in {0,1}, in [0,1].

    The rank statistic of Mann and Whitney, exact under ties: the share of (positive, negative) pairs in the right
    order, a tie counting one half. Equal to scikit-learn's ``roc_auc_score``.

    Raises MetricError for scores that are not finite, shapes that differ, and when one of the classes is empty.
    """
    values, positive = _checked(scores, labels)
    found = values[positive]
    others = np.sort(values[~positive])
    if found.size == 0 or others.size == 0:
        raise MetricError(
            f"ROC-AUC needs both classes: {found.size} positive and {others.size} negative; leave such a map out"
        )
    below = int(np.searchsorted(others, found, side="left").sum(dtype=np.int64))
    not_above = int(np.searchsorted(others, found, side="right").sum(dtype=np.int64))
    return (below + not_above) / (2 * found.size * others.size)


def roc_aucs(scores: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """:func:`roc_auc` of each row, ``[N]``, of ``scores [N,P]`` against ``labels [N,P]`` in {0,1}: all rows at once, bit for bit the same.

    Counted in whole numbers, ties included. Raises MetricError as :func:`roc_auc` does.
    """
    values, marks = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2:
        raise MetricError(f"scores are [N,P], not {list(values.shape)}")
    _checked(values, marks)
    steps = range(0, len(values), _ROWS)
    return np.concatenate([np.empty(0), *(_row_aucs(values[first : first + _ROWS], marks[first : first + _ROWS] == 1, first) for first in steps)])


def _row_aucs(values: np.ndarray, positive: np.ndarray, before: int) -> np.ndarray:
    """The rows' AUC; ``before`` rows were there already, for a message's count."""
    row = np.nonzero(positive)[0]
    found = np.bincount(row, minlength=len(values))
    others = values.shape[1] - found
    if (bad := np.flatnonzero((found == 0) | (others == 0))).size:
        first = bad[0]
        raise MetricError(
            f"ROC-AUC needs both classes: row {before + first} has {found[first]} positive and {others[first]} negative; leave such a map out"
        )
    order = np.argsort(values, axis=1)
    ranked, marked = np.take_along_axis(values, order, 1), np.take_along_axis(positive, order, 1)
    # Where a run of equal scores begins, of all rows one after another; every row begins one.
    begins = np.ones(ranked.shape, dtype=bool)
    begins[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    edges = np.append(np.flatnonzero(begins), ranked.size)
    run = np.searchsorted(edges, np.flatnonzero(marked), side="right")
    # As many scores of the row are below a positive as come before its run, and not above it as come before the next.
    pairs = np.bincount(row, edges[run - 1] + edges[run], len(values)) - 2 * ranked.shape[1] * np.arange(len(values)) * found
    # Twice the pairs won, 2 for a score below and 1 for an equal one; among themselves the positives account for found² of that.
    return (pairs - found**2) / (2 * found * others)


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Average precision of ``scores [N]`` against ``labels [N]`` in {0,1}: Σ (R_n − R_{n−1}) P_n over distinct scores.

    The step-wise sum of scikit-learn's ``average_precision_score`` (heads of equal score enter together, nothing is
    interpolated), which VideoAttentionTarget's evaluation uses for in/out (source: ``eval_on_videoatttarget.py`` of
    ejcgt/attention-target-detection). ``None`` when only one class, or no head, is
    there: then AP is a constant, as on GazeFollow's test split, where every head is in.

    Raises MetricError for scores that are not finite and shapes that differ.
    """
    values, positive = _checked(scores, labels)
    total = int(positive.sum())
    if total == 0 or total == positive.size:
        return None
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    # The last head of every run of equal scores is a threshold.
    thresholds = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true_positives = np.cumsum(positive[order])[thresholds]
    precision = true_positives / (thresholds + 1)
    return float(np.sum(np.diff(true_positives, prepend=0) * precision) / total)


def prevalence(labels: ArrayLike) -> float | None:
    """Share of ones among ``labels [N]``: the AP of a score that knows nothing. ``None`` without labels."""
    positive = np.asarray(labels)
    return float(np.mean(positive == 1)) if positive.size else None


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    marks = np.asarray(labels).reshape(-1)
    if values.shape != marks.shape:
        raise MetricError(f"{values.size} scores for {marks.size} labels; give one score for each label")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise MetricError(f"score {bad} is {values[bad]}, not a finite number; the model that gave it is broken")
    if not np.isin(marks, (0, 1)).all():
        raise MetricError("labels must be 0 or 1; leave unknown heads (-1) out")
    return values, marks == 1
