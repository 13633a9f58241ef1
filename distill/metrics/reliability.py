"""Whether the in/out score can be read as a probability: bins, expected calibration error, Brier score.

Bins of equal width, as in Guo et al., *On Calibration of Modern Neural Networks* (ICML 2017); the error is the mean over heads of the
distance between a bin's mean score and its share of heads that are in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.metrics.accumulator import sigmoid
from distill.metrics.rows import HeadRows
from distill.scenes import IN

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Heads whose in/out probability is in [low, high), the last bin 1 included: how many, their mean score, the share that is in."""

    low: float
    high: float
    heads: int
    score: float | None
    share_in: float | None


@dataclass(frozen=True)
class Reliability:
    """``ece`` and ``brier`` (mean squared distance of the probability to 0 or 1), both in [0,1], over ``heads`` labelled heads."""

    heads: int
    ece: float
    brier: float
    bins: tuple[Bin, ...]


def reliability(rows: HeadRows, bins: int = BINS) -> Reliability | None:
    """The reliability of the in/out score over the labelled heads; None where a model has no in/out, or nothing is labelled."""
    if not rows.has_inout:
        return None
    labelled = rows.labelled
    score = sigmoid(rows.inout_logit[labelled])
    inside = (rows.inout[labelled] == IN).astype(np.float64)
    place = np.minimum((score * bins).astype(np.int64), bins - 1)
    heads = np.bincount(place, minlength=bins)
    scores = np.bincount(place, weights=score, minlength=bins)
    shares = np.bincount(place, weights=inside, minlength=bins)
    found = tuple(
        Bin(k / bins, (k + 1) / bins, int(n), float(scores[k] / n) if n else None, float(shares[k] / n) if n else None)
        for k, n in enumerate(heads)
    )
    return Reliability(
        int(labelled.sum()), float(np.abs(scores - shares).sum() / len(score)), float(np.mean((score - inside) ** 2)), found
    )
