"""The fields of one annotation line: numbers that are finite, boxes with their corners in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from distill.readers.findings import Findings
from distill.scenes import Box


def is_finite(field: object) -> bool:
    """Whether ``field`` (text or a number) is a finite number."""
    try:
        return math.isfinite(float(field))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def finite(fields: Sequence[object]) -> tuple[float, ...] | None:
    """All ``fields`` as numbers, or None when one is none or is not finite."""
    try:
        values = tuple(map(float, fields))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    # One sum is cheaper than a check of each, over a hundred thousand lines: it is finite only if all of them are, and of huge ones not even then.
    return values if math.isfinite(sum(values)) or all(map(math.isfinite, values)) else None


def straight_box(x0: float, y0: float, x1: float, y1: float, place: Callable[[], str], findings: Findings) -> Box | None:
    """The box with reversed corners put right; None (dropped) where it has no area. ``place()`` says where it stands."""
    if x0 > x1 or y0 > y1:
        findings.add("reversed box", f"{place()}: {x0:g}, {y0:g}, {x1:g}, {y1:g}", "corners put right")
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    if x0 == x1 or y0 == y1:
        findings.add("head box without area", f"{place()}: {x0:g}, {y0:g}, {x1:g}, {y1:g}", "row dropped")
        return None
    return x0, y0, x1, y1
