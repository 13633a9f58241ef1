"""The same table for parts of a split: by head size, target distance, number of people, in or out of the frame.

The limits are fixed, so that the slices of two data sets or two papers can be compared. Sizes and distances are in [0,1] of the picture:
the head box's height in the picture's, and from the box's centre to the mean annotation in sides of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from distill.metrics.rows import GazeMetrics, HeadRows
from distill.scenes import IN, OUT

HEAD_SIZES = (0.1, 0.2, 0.3)
DISTANCES = (0.15, 0.3, 0.45)
PEOPLE = (2, 3, 5)


@dataclass(frozen=True)
class Slice:
    """A part of a split: ``by`` what it was cut, its ``name``, its metrics, and how often in/out was right at probability ½ (or None)."""

    by: str
    name: str
    metrics: GazeMetrics
    inout_right: float | None


def slices(rows: HeadRows) -> list[Slice]:
    """All slices that hold at least one head; heads of which a quantity is not known are in none of its slices."""
    return [
        Slice(by, name, rows.take(which).metrics(), inout_right(rows.take(which)))
        for by, name, which in _cuts(rows)
        if which.any()
    ]


def inout_right(rows: HeadRows) -> float | None:
    """Share of the labelled heads whose in/out probability is on the right side of ½ (½ itself says out); None without in/out."""
    if not rows.has_inout:
        return None
    labelled = rows.labelled
    return float(np.mean((rows.inout_logit[labelled] > 0) == (rows.inout[labelled] == IN)))


def _cuts(rows: HeadRows) -> Iterator[tuple[str, str, np.ndarray]]:
    for name, which in _between(rows.head_size, HEAD_SIZES):
        yield "head height", name, which
    for name, which in _between(rows.distance, DISTANCES):
        yield "distance", name, which
    people = np.where(rows.people > 0, rows.people.astype(np.float64), np.nan)
    for name, which in _between(people, PEOPLE, whole=True):
        yield "people", name, which
    yield "gaze", "in", rows.inout == IN
    yield "gaze", "out", rows.inout == OUT


def _between(values: np.ndarray, limits: tuple[float, ...], *, whole: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Names and masks (``whole`` numbers by their last) of [0, l0), [l0, l1), ..., [ln, ∞); NaN is in none."""
    edges = (-np.inf, *limits, np.inf)
    for low, high in pairwise(edges):
        if np.isinf(high):
            name = f"≥ {low:g}"
        elif whole:
            name = f"{high - 1:g}" if np.isinf(low) or high - low == 1 else f"{low:g}–{high - 1:g}"
        else:
            name = f"< {high:g}" if np.isinf(low) else f"{low:g}–{high:g}"
        yield name, (values >= low) & (values < high)
