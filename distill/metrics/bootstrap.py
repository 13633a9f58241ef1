"""Intervals and paired differences by resampling scenes (of video: clips).

Heads of one scene, and frames of one clip, resemble each other, so the unit that is drawn with replacement is the scene or clip,
with all of its heads: the cluster bootstrap (Davison & Hinkley, *Bootstrap Methods and their Application*, 1997, ch. 3.8). A resample
is a count for each cluster; a mean is then a quotient of two weighted sums, and average precision the usual sum with heads weighted by
their cluster's count, so no rows are copied. Intervals are percentile intervals. They say how much a number would move with other
scenes of the same kind; what another training run would give is not in them.

A paired difference weighs both models by the same counts, so what makes a scene hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from distill.errors import MetricError
from distill.metrics.rows import SCORES, HeadRows

RESAMPLES, SEED, LEVEL = 1000, 0, 0.95
METRICS = (*SCORES, "ap")
LOWER_IS_BETTER = frozenset({"avg_l2", "avg_l2_mean_of", "min_l2", "angle"})
_CELLS = 2_000_000  # weights held at once


@dataclass(frozen=True)
class Interval:
    """A percentile interval; ``clusters`` were drawn from."""

    low: float
    high: float
    clusters: int


@dataclass(frozen=True)
class Difference:
    """How much a model's metric exceeds another's, on the same heads.

    ``value`` with its interval ``low`` to ``high``. ``p`` is two-sided: twice the smaller share of resamples on either side of zero,
    (k + 1)/(R + 1), at most 1; a resample at zero counts on both. ``better`` is the share of resamples in which the first is better.
    """

    value: float
    low: float
    high: float
    p: float
    better: float
    clusters: int

    @property
    def real(self) -> bool:
        """Whether the interval leaves zero out and ``p`` is below 1 − ``LEVEL``; on the edge the two may differ by a resample."""
        return (self.low > 0 or self.high < 0) and self.p < 1 - LEVEL


def intervals(rows: HeadRows, *, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL) -> dict[str, Interval | None]:
    """Intervals of every metric of ``METRICS``; None where the metric is undefined or fewer than two clusters carry it."""
    return {
        name: _interval(values, clusters, level)
        for name, (_, values, clusters) in _resampled([rows], resamples, seed).items()
    }


def paired(
    rows: HeadRows, others: HeadRows, *, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> dict[str, Difference | None]:
    """``rows`` less ``others``, which are the same heads in the same order, scored for another model.

    Raises MetricError where the two are not of the same heads.
    """
    if rows.scene.tolist() != others.scene.tolist() or not np.array_equal(rows.inout, others.inout) or not np.array_equal(rows.scored, others.scored):
        raise MetricError(
            f"a paired difference is of the same heads: {len(rows)} heads and {len(others)}, or other scenes or labels; "
            "score both models in one call, on one data set and split"
        )
    found: dict[str, Difference | None] = {}
    for name, (value, values, clusters) in _resampled([rows, others], resamples, seed).items():
        bounds = _interval(values, clusters, level)
        if bounds is None:
            found[name] = None
            continue
        drawn = values[~np.isnan(values)]
        side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        better = (drawn < 0) if name in LOWER_IS_BETTER else (drawn > 0)
        found[name] = Difference(
            value, bounds.low, bounds.high, min(1.0, 2 * (side + 1) / (len(drawn) + 1)), float(better.mean()), clusters
        )
    return found


def _interval(values: np.ndarray, clusters: int, level: float) -> Interval | None:
    drawn = values[~np.isnan(values)]
    # A resample without an in-frame head, or of one class, has no value; where that is common the metric hangs by a few heads.
    if clusters < 2 or len(drawn) < 0.5 * len(values) or not len(drawn):
        return None
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), clusters)


def _resampled(models: list[HeadRows], resamples: int, seed: int) -> dict[str, tuple[float, np.ndarray, int]]:
    """For each metric its value, its value in each resample ``[R]`` (NaN where undefined), and the number of clusters that carry it.

    Of two models: the first less the second.
    """
    if resamples < 1:
        raise MetricError(f"{resamples} resamples make no interval; give 1000, or 0 at the command line for none")
    _, cluster = np.unique(models[0].scene.astype(str), return_inverse=True)
    count = int(cluster.max()) + 1 if len(cluster) else 0
    signs = (1.0, -1.0)[: len(models)]
    found: dict[str, tuple[float, np.ndarray, int]] = {}
    for name in METRICS:
        used = models[0].labelled if name == "ap" else models[0].scored
        measure = _precision if name == "ap" else _mean
        columns = [model.inout_logit[used] if name == "ap" else getattr(model, name)[used] for model in models]
        # With a column that is not there for all heads (no in/out, no boxes) the metric is undefined.
        if not used.any() or any(np.isnan(column).any() for column in columns):
            found[name] = (float("nan"), np.full(resamples, np.nan), 0)
            continue
        parts = [measure(column, models[0].inout[used], cluster[used], count) for column in columns]
        value = sum(sign * part(np.ones((1, count)))[0] for sign, part in zip(signs, parts, strict=True))
        drawn = [
            sum(sign * part(weights) for sign, part in zip(signs, parts, strict=True)) for weights in _weights(count, resamples, seed)
        ]
        found[name] = (float(value), np.concatenate(drawn), len(np.unique(cluster[used])))
    return found


def _weights(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, ``[r, clusters]`` float64, some resamples at a time; the same for every metric and model."""
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // max(clusters, 1))
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        drawn = generator.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _mean(column: np.ndarray, labels: np.ndarray, cluster: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Means of ``column [N]`` under cluster weights ``[r,count]``, as ``[r]``."""
    sums = np.bincount(cluster, weights=column, minlength=count)
    sizes = np.bincount(cluster, minlength=count).astype(np.float64)

    def measured(weights: np.ndarray) -> np.ndarray:
        heads = weights @ sizes
        return np.divide(weights @ sums, heads, out=np.full(len(weights), np.nan), where=heads > 0)

    return measured


def _precision(scores: np.ndarray, labels: np.ndarray, cluster: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Average precision of ``scores [N]`` under cluster weights ``[r,count]``, as ``[r]``: heads of equal score enter together."""
    order = np.argsort(-scores, kind="stable")
    ranked, positive, owner = scores[order], (labels[order] == 1).astype(np.float64), cluster[order]
    thresholds = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def measured(weights: np.ndarray) -> np.ndarray:
        results = np.empty(len(weights))
        # One resample's heads at a time stay in a core's cache; all at once would be gigabytes for video.
        for number, weight in enumerate(weights):
            heads = weight[owner]
            hits = np.cumsum(heads * positive)[thresholds]
            seen = np.cumsum(heads)[thresholds]
            total, everybody = hits[-1], seen[-1]
            if total == 0 or total == everybody:
                results[number] = np.nan
                continue
            precision = np.divide(hits, seen, out=np.zeros(len(seen)), where=seen > 0)
            results[number] = float(np.diff(hits, prepend=0.0) @ precision / total)
        return results

    return measured
