"""Line charts as inline SVG: no library, colours from the page's style sheet, so both schemes and print are served.

Every chart of a report shares one horizontal axis, the epochs of the run, and the vertical marks of the thaw events.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 232
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 26
Scale = Callable[[float], float]
_MOST_DOTS = 60
_MOST = 160  # points a line keeps: three pixels each on a wide screen


@dataclass(frozen=True)
class Series:
    """A line: ``x`` in epochs, ascending, and ``y`` of the same length. A ``step`` value holds until the next ``x``.

    ``dots`` marks each measurement, ``reference`` draws the line as something to compare with.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    step: bool = False
    reference: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x`` epochs, with a short label and an explanation; a ``planned`` one is still to come.

    A ``spike`` has an arrow head in place of a label.
    """

    x: float
    label: str
    detail: str
    planned: bool = False
    spike: bool = False


@dataclass(frozen=True)
class Chart:
    """A titled set of series with one unit. ``log`` asks for a logarithmic axis, used where every value is positive."""

    title: str
    note: str
    series: Sequence[Series]
    log: bool = False
    from_zero: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Drawn:
    """A series as it is drawn: at most a set number of points, each the mean of ``low``..``high``."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]

    @property
    def banded(self) -> bool:
        """Whether any point stands for values that differ."""
        return any(high > low for low, high in zip(self.low, self.high, strict=True))


def figure(chart: Chart, marks: Sequence[Mark], length: float, identity: str) -> str:
    """An HTML ``figure`` with the chart over [0, ``length``] epochs; ``identity`` is unique on the page."""
    drawn = [thin(s) for s in chart.series]
    values = [v for d in drawn for v in (*d.low, *d.high)]
    log = chart.log and bool(values) and min(values) > 0 and max(values) / min(values) > 8
    ticks = _log_ticks(min(values), max(values)) if log else _ticks(values, chart)
    low, high = ticks[0], ticks[-1]

    def px(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, x / length))

    def py(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [_grid(ticks, length, px, py), _marks(marks, px)]
    for number, (series, line) in enumerate(zip(chart.series, drawn, strict=True)):
        parts.append(_line(series, line, number, px, py))
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>')
    told = " ".join(_told(s, d) for s, d in zip(chart.series, drawn, strict=True))
    data = {
        "left": LEFT,
        "width": WIDTH,
        "span": WIDTH - LEFT - RIGHT,
        "length": length,
        "series": [
            {"x": [round(v, 4) for v in d.x], "y": [short(v) for v in d.y], "step": s.step}
            for s, d in zip(chart.series, drawn, strict=True)
        ],
    }
    keys = "".join(
        f'<span class="key s{i}{" ref" if s.reference else ""}"><i></i>{escape(s.name)} '
        f"<b>{short(d.y[-1]) if d.y else 'n/a'}</b></span>"
        for i, (s, d) in enumerate(zip(chart.series, drawn, strict=True))
    )
    return (
        f'<figure class="chart" data-chart="{escape(json.dumps(data, separators=(",", ":")))}">'
        f'<figcaption><strong>{escape(chart.title)}</strong><span class="at"></span>'
        f"<p>{escape(chart.note)}</p></figcaption>"
        f'<div class="keys">{keys}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{escape(chart.title)}</title><desc id="{identity}-d">{escape(told)}</desc>'
        f"{''.join(parts)}</svg></figure>"
    )


def thin(series: Series, most: int = _MOST) -> Drawn:
    """Average a long series over at most ``most`` equal spans of x, keeping each span's least and greatest value."""
    pairs = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    if len(pairs) <= most or series.step:
        xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
        return Drawn(xs, ys, ys, ys)
    first, last = pairs[0][0], pairs[-1][0]
    spans: dict[int, list[tuple[float, float]]] = {}
    for x, y in pairs:
        spans.setdefault(min(most - 1, int((x - first) / (last - first or 1.0) * most)), []).append((x, y))
    groups = [spans[i] for i in sorted(spans)]
    return Drawn(
        [sum(x for x, _ in g) / len(g) for g in groups],
        [sum(y for _, y in g) / len(g) for g in groups],
        [min(y for _, y in g) for g in groups],
        [max(y for _, y in g) for g in groups],
    )


def short(value: float) -> str:
    """A number in at most about six characters: 0.0613, 3.2e-5, 1240."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1000 and size < 1e6:
        return f"{value:.0f}"
    if size < 1e-3 or size >= 1e6:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.3g}"


def nice_step(span: float, number: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that covers ``span`` in at most ``number`` steps."""
    raw = span / number
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))


def _ticks(values: Sequence[float], chart: Chart) -> list[float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if chart.from_zero or (low >= 0 and low < 0.3 * high):
        low = min(0.0, low)
    if high - low < 1e-12 * max(1.0, abs(high)):
        high = low + (abs(low) or 1.0)
    step = nice_step(high - low, 4)
    if chart.whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    fine = (1.0, 2.0, 5.0) if last - first <= 2 else (1.0,)
    ticks = [m * 10.0**power for power in range(first, last + 1) for m in fine]
    inner = [t for t in ticks if low < t < high]
    below, above = [t for t in ticks if t <= low], [t for t in ticks if t >= high]
    return [below[-1] if below else low, *inner, above[0] if above else high]


def _grid(ticks: Sequence[float], length: float, px: Scale, py: Scale) -> str:
    floor = HEIGHT - BOTTOM
    parts = []
    stride = max(1, math.ceil(len(ticks) / 6))
    for number, tick in enumerate(ticks):
        y = py(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if number % stride == 0 or number == len(ticks) - 1:
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    step = max(1.0, nice_step(length, 6)) if length > 1 else 1.0
    for i in range(int(length / step + 1e-9) + 1):
        x = px(i * step)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        if x < WIDTH - RIGHT - 46:  # the axis' name stands there
            parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{i * step:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{floor + 16}" text-anchor="end">epochs</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    return "".join(parts)


def _marks(marks: Sequence[Mark], px: Scale) -> str:
    parts, taken = [], -math.inf
    for mark in marks:
        x = px(mark.x)
        if mark.spike:
            parts.append(
                f'<g><title>{escape(mark.detail)}</title><line class="spike" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 2}" y2="{HEIGHT - BOTTOM}"/>'
                f'<path class="spike" d="M{x - 4:.1f} {TOP - 8}h8l-4 7z"/></g>'
            )
            continue
        kind = "thaw planned" if mark.planned else "thaw"
        wide = 5.4 * len(mark.label)
        left = min(max(x - wide / 2, LEFT - 4), WIDTH - wide)
        label = ""
        if left > taken:
            label = f'<text class="{kind}" x="{left:.1f}" y="{TOP - 10}">{escape(mark.label)}</text>'
            taken = left + wide + 4
        parts.append(
            f'<g><title>{escape(mark.detail)}</title><line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" '
            f'y2="{HEIGHT - BOTTOM}"/>{label}</g>'
        )
    return "".join(parts)


def _line(series: Series, drawn: Drawn, number: int, px: Scale, py: Scale) -> str:
    if not drawn.x:
        return ""
    hue = f"s{number}" + (" ref" if series.reference else "")
    out = []
    if drawn.banded:
        up = [f"{px(x):.1f},{py(v):.1f}" for x, v in zip(drawn.x, drawn.high, strict=True)]
        down = [f"{px(x):.1f},{py(v):.1f}" for x, v in zip(drawn.x, drawn.low, strict=True)]
        out.append(f'<polygon class="band {hue}" points="{" ".join(up + down[::-1])}"/>')
    points = list(zip(drawn.x, drawn.y, strict=True))
    path = f"M{px(points[0][0]):.1f} {py(points[0][1]):.1f}"
    for x, y in points[1:]:
        path += f"H{px(x):.1f}V{py(y):.1f}" if series.step else f"L{px(x):.1f} {py(y):.1f}"
    out.append(f'<path class="line {hue}" d="{path}"/>')
    if series.dots and len(points) <= _MOST_DOTS:
        out += [f'<circle class="dot {hue}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.4"/>' for x, y in points]
    return "".join(out)


def _told(series: Series, drawn: Drawn) -> str:
    """The line in words, for those who hear the page."""
    if not drawn.y:
        return f"{series.name}: no values."
    return (
        f"{series.name}: {short(drawn.y[0])} at epoch {drawn.x[0]:.3g}, "
        f"{short(drawn.y[-1])} at epoch {drawn.x[-1]:.3g}, "
        f"between {short(min(drawn.low))} and {short(max(drawn.high))}."
    )
