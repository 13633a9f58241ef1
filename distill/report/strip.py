"""A strip for each of many rows over the epochs of a run, of a stronger colour where the value is greater: what would be too many lines for a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

from distill.report.chart import Mark, nice_step, short

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 900, 150, 62, 22, 26
ROW = 17.0
COLUMNS = 120
SHADES = 8


@dataclass(frozen=True)
class Strips:
    """Values above 0 by row name, ascending in x (epochs); rows stand in the order of the mapping, the first on top."""

    title: str
    note: str
    rows: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Cells:
    """A row as it is drawn: for each of ``COLUMNS`` spans the geometric mean of what was measured in it, None where nothing was."""

    name: str
    values: tuple[float | None, ...]
    low: float
    high: float
    last: float


def cells(strips: Strips, length: float) -> list[Cells]:
    """Rows with at least one finite value above 0, as spans of [0, ``length``] epochs."""
    found = []
    for name, pairs in strips.rows.items():
        kept = [(x, y) for x, y in pairs if math.isfinite(y) and y > 0]
        if not kept:
            continue
        spans: list[list[float]] = [[] for _ in range(COLUMNS)]
        for x, y in kept:
            # A value stands for the time before it, up to and with its own.
            spans[min(COLUMNS - 1, max(0, math.ceil(x / length * COLUMNS - 1e-9) - 1))].append(math.log(y))
        values = tuple(math.exp(sum(span) / len(span)) if span else None for span in spans)
        heights = [y for _, y in kept]
        found.append(Cells(name, values, min(heights), max(heights), heights[-1]))
    gaps = sorted(after - before for row in found for before, after in pairwise(_measured(row.values)))
    usual = max((gap for gap in gaps if gap <= 2 * gaps[len(gaps) // 2]), default=1)
    return [replace(row, values=_carried(row.values, usual)) for row in found]


def _measured(values: Sequence[float | None]) -> list[int]:
    return [index for index, value in enumerate(values) if value is not None]


def _carried(values: Sequence[float | None], usual: int) -> tuple[float | None, ...]:
    """Where steps are as far apart as ``usual`` spans, each value holds back to the one before it: a gap is a closed stage, no lack of ink."""
    result = list(values)
    for index in _measured(values):
        for back in range(index - 1, max(-1, index - usual), -1):
            if values[back] is not None:
                break
            result[back] = values[index]
    return tuple(result)


def strip_figure(strips: Strips, marks: Sequence[Mark], length: float, identity: str) -> str:
    """An HTML ``figure``; an empty text where no row has a value. ``identity`` is unique on the page."""
    rows = cells(strips, length)
    if not rows:
        return ""
    drawn = [value for row in rows for value in row.values if value is not None]
    low, high = min(drawn), max(drawn)
    span = math.log(high / low) if high > low else 1.0
    height = TOP + ROW * len(rows) + BOTTOM
    across = (WIDTH - LEFT - RIGHT) / COLUMNS
    paths: list[list[str]] = [[] for _ in range(SHADES)]
    words = []
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        for column, value in enumerate(row.values):
            if value is not None:
                shade = min(SHADES - 1, int(SHADES * math.log(value / low) / span)) if high > low else SHADES - 1
                paths[shade].append(f"M{LEFT + across * column:.1f} {y:.1f}h{across + 0.15:.2f}v{ROW - 1.5:.1f}h-{across + 0.15:.2f}z")
        words.append(
            f'<text class="row" x="{LEFT - 8}" y="{y + ROW - 5:.1f}" text-anchor="end">{escape(shortened(row.name))}<title>{escape(row.name)}</title></text>'
            f'<text class="tick" x="{WIDTH - RIGHT + 8}" y="{y + ROW - 5:.1f}">{short(row.last)}</text>'
        )
    inked = "".join(f'<path class="shade" fill-opacity="{_opacity(shade)}" d="{"".join(path)}"/>' for shade, path in enumerate(paths) if path)
    told = " ".join(f"{row.name}: between {short(row.low)} and {short(row.high)}, {short(row.last)} at the end." for row in rows)
    keys = "".join(f'<i style="opacity:{_opacity(shade)}"></i>' for shade in range(SHADES))
    return (
        f'<figure class="strips"><figcaption><strong>{escape(strips.title)}</strong><p>{escape(strips.note)}</p></figcaption>'
        f'<div class="scale"><b>{short(low)}</b><span>{keys}</span><b>{short(high)}</b></div>'
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{escape(strips.title)}</title><desc id="{identity}-d">{escape(told)}</desc>'
        f"{inked}{''.join(words)}{_frame(length, height)}{_marks(marks, length, height)}</svg></figure>"
    )


def _opacity(shade: int) -> float:
    return round(0.10 + 0.90 * (shade / (SHADES - 1)) ** 1.15, 3)


def shortened(name: str, most: int = 22) -> str:
    """The end of a long name, which tells the stages of a backbone apart."""
    return name if len(name) <= most else "…" + name[-(most - 1) :]


def _x(epoch: float, length: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, epoch / length))


def _frame(length: float, height: float) -> str:
    floor = height - BOTTOM + 3
    step = max(1.0, nice_step(length, 12)) if length > 1 else 1.0
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor:g}" y2="{floor:g}"/>']
    for number in range(int(length / step + 1e-9) + 1):
        x = _x(number * step, length)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor:g}" y2="{floor + 4:g}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 16:g}" text-anchor="middle">{number * step:g}</text>')
    parts.append(f'<text class="tick" x="{LEFT - 8}" y="{floor + 16:g}" text-anchor="end">epoch</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT + 8}" y="{TOP - 8}">last</text>')
    return "".join(parts)


def _marks(marks: Sequence[Mark], length: float, height: float) -> str:
    parts = []
    for mark in marks:
        x, kind = _x(mark.x, length), "spike" if mark.spike else "thaw planned" if mark.planned else "thaw"
        head = f'<path class="spike" d="M{x - 4:.1f} {TOP - 12}h8l-4 7z"/>' if mark.spike else ""
        parts.append(
            f'<g><title>{escape(mark.detail)}</title><line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 5}" y2="{height - BOTTOM:g}"/>{head}</g>'
        )
    return "".join(parts)
