"""What a measurement of the cache comes to: median, spread, and how it stands to its bar."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured thing. ``ratio`` is against the other side of the comparison in the same run, ``bar`` what is promised of it (of
    ``ratio`` where there is one, else of ``median``), ``least`` whether the bar is a least or a most; ``count`` measurements were made."""

    name: str
    unit: str
    median: float
    quartiles: tuple[float, float]
    count: int
    ratio: float | None = None
    bar: float | None = None
    least: bool = False
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the bar is kept; None where there is none."""
        if self.bar is None:
            return None
        value = self.median if self.ratio is None else self.ratio
        return value >= self.bar if self.least else value <= self.bar

    def facts(self) -> dict[str, object]:
        """Plain data for --json."""
        return {
            "name": self.name, "unit": self.unit, "median": self.median, "quartiles": list(self.quartiles), "count": self.count,
            "ratio": self.ratio, "bar": self.bar, "bar_is": None if self.bar is None else ("least" if self.least else "most"),
            "ok": self.ok, "note": self.note,
        }

    def row(self) -> list[str]:
        """Cells of the printed table."""
        low, high = self.quartiles
        spread = "" if self.count < 2 else f"{low:.4g} to {high:.4g}"
        bar = "" if self.bar is None else f"{'>=' if self.least else '<='} {self.bar:.4g}"
        verdict = {None: "", True: "kept", False: "MISSED"}[self.ok]
        return [self.name, f"{self.median:.4g} {self.unit}", spread, "" if self.ratio is None else f"{self.ratio:.4g}", bar, verdict, self.note]


COLUMNS = ["what", "median", "quartiles", "ratio", "bar", "verdict", "note"]


def figure(
    name: str, unit: str, values: Sequence[float], *, ratio: float | None = None, bar: float | None = None, least: bool = False, note: str = ""
) -> Figure:
    """A :class:`Figure` of measured ``values`` (at least one)."""
    if len(values) == 1:
        return Figure(name, unit, values[0], (values[0], values[0]), 1, ratio, bar, least, note)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(name, unit, middle, (low, high), len(values), ratio, bar, least, note)
