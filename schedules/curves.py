"""Curves over a run: the distillation weight and the temperature as functions of the (real-valued) epoch.

A curve is written as a number, as text, or as a table of a TOML file:

    0.3                                        constant
    linear 1.0 -> 0.1                          a straight line over the whole run
    cosine 1.0 -> 0.0                          half a cosine over the whole run
    linear 1.0 -> 0.1 from 20% until 80%       held before and after; "from" and "until" may each be left out
    warmup 2 epochs 0.5                        from 0 to 0.5 in a line over two epochs, then 0.5
    warmup 5% cosine 1.0 -> 0.0                the warm-up multiplies any curve by min(1, epoch / duration)
    piecewise 0: 1.0, 50%: 0.3, 30 epochs: 0   lines between points, held before the first and after the last
    stairs 0: 1.0, 50%: 0.3, 30 epochs: 0      each value is held until the next point

    {shape = "constant", value = 0.3}
    {shape = "linear", start = 1.0, end = 0.1, from = "20%", until = "80%"}    "cosine" likewise
    {shape = "warmup", over = "2 epochs", curve = 0.5}                         `curve` in any of these forms
    {shape = "piecewise", points = [[0, 1.0], ["50%", 0.3]]}                   "stairs" likewise

Times are durations (see `durations.py`). The end value of a ramp is reached at the end of the run, that is at epoch
`epochs`; after the run every curve stays at its value there, so a prolonged run sees no jump.
"""

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from schedules.durations import Duration
from schedules.errors import PlanError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_RAMP = re.compile(
    rf"^(linear|cosine)\s+({_NUMBER})\s*(?:->|→)\s*({_NUMBER})(?:\s+from\s+(.+?))?(?:\s+until\s+(.+))?$",
    re.IGNORECASE,
)
_WARMUP = re.compile(rf"^warmup\s+({_NUMBER}\s*(?:%|percent\b|epochs?\b|steps?\b)?)\s+(\S.*)$", re.IGNORECASE)
_POINTS = re.compile(r"^(piecewise|stairs)\s+(.+)$", re.IGNORECASE)
_FORMS = (
    "write a number, 'linear 1.0 -> 0.1', 'cosine 1.0 -> 0.0 from 20% until 80%', 'warmup 2 epochs 0.5', 'piecewise "
    "0: 1.0, 50%: 0.3, 30 epochs: 0' or 'stairs 0: 1.0, 50%: 0.3'"
)


class Curve(ABC):
    """A value for every real-valued epoch of a run."""

    def at(self, epoch: float, epochs: int, steps_per_epoch: int) -> float:
        """Value at `epoch` (0 is the first step) of a run of `epochs` epochs; after the run, the value at its end."""
        return self._value(min(max(epoch, 0.0), float(epochs)), epochs, steps_per_epoch)

    @abstractmethod
    def _value(self, epoch: float, epochs: int, steps_per_epoch: int) -> float: ...

    @abstractmethod
    def levels(self) -> tuple[float, ...]:
        """Values between which the curve moves: it never leaves [min(levels), max(levels)]."""

    @abstractmethod
    def describe(self) -> str:
        """Text that `parse_curve` reads back to an equal curve."""

    def check(self, epochs: int, steps_per_epoch: int) -> None:
        """Raise PlanError if the curve's times do not rise in a run of this length."""
        return


_START, _END = Duration(0.0), Duration(100.0, "percent")

CurveSpec: TypeAlias = float | str | Mapping[str, Any] | Curve


@dataclass(frozen=True)
class Constant(Curve):
    """The same value throughout."""

    value: float

    def _value(self, epoch: float, epochs: int, steps_per_epoch: int) -> float:
        return self.value

    def levels(self) -> tuple[float, ...]:
        return (self.value,)

    def describe(self) -> str:
        return _text(self.value)


@dataclass(frozen=True)
class Ramp(Curve):
    """From `start` to `end` between two times, as a line or as half a cosine; held outside them."""

    shape: Literal["linear", "cosine"]
    start: float
    end: float
    begin: Duration = _START
    until: Duration = _END

    def _value(self, epoch: float, epochs: int, steps_per_epoch: int) -> float:
        begin = self.begin.in_epochs(epochs, steps_per_epoch)
        until = self.until.in_epochs(epochs, steps_per_epoch)
        if epoch <= begin:
            return self.start
        if epoch >= until:
            return self.end
        passed = (epoch - begin) / (until - begin)
        if self.shape == "cosine":
            passed = 0.5 * (1 - math.cos(math.pi * passed))
        return self.start + (self.end - self.start) * passed

    def levels(self) -> tuple[float, ...]:
        return (self.start, self.end)

    def describe(self) -> str:
        text = f"{self.shape} {_text(self.start)} -> {_text(self.end)}"
        if self.begin.amount:
            text += f" from {self.begin.describe()}"
        if self.until != _END:
            text += f" until {self.until.describe()}"
        return text

    def check(self, epochs: int, steps_per_epoch: int) -> None:
        begin, until = (time.in_epochs(epochs, steps_per_epoch) for time in (self.begin, self.until))
        if begin >= until:
            raise PlanError(
                f"curve '{self.describe()}' begins at epoch {begin:g} and ends at epoch {until:g} of this run of "
                f"{epochs} epochs; its end must come after its beginning"
            )


@dataclass(frozen=True)
class Warmup(Curve):
    """Another curve, multiplied by min(1, epoch / over)."""

    over: Duration
    curve: Curve

    def _value(self, epoch: float, epochs: int, steps_per_epoch: int) -> float:
        over = self.over.in_epochs(epochs, steps_per_epoch)
        share = min(1.0, epoch / over) if over > 0 else 1.0
        return share * self.curve.at(epoch, epochs, steps_per_epoch)

    def levels(self) -> tuple[float, ...]:
        return (0.0, *self.curve.levels())

    def describe(self) -> str:
        return f"warmup {self.over.describe()} {self.curve.describe()}"

    def check(self, epochs: int, steps_per_epoch: int) -> None:
        self.curve.check(epochs, steps_per_epoch)


@dataclass(frozen=True)
class Points(Curve):
    """Values at given times: lines between them (`piecewise`) or each held until the next (`stairs`)."""

    shape: Literal["piecewise", "stairs"]
    points: tuple[tuple[Duration, float], ...]

    def _value(self, epoch: float, epochs: int, steps_per_epoch: int) -> float:
        knots = [(time.in_epochs(epochs, steps_per_epoch), value) for time, value in self.points]
        if epoch < knots[0][0]:
            return knots[0][1]
        for (left, value), (right, following) in itertools.pairwise(knots):
            if left <= epoch < right:
                if self.shape == "stairs":
                    return value
                return value + (following - value) * (epoch - left) / (right - left)
        return knots[-1][1]

    def levels(self) -> tuple[float, ...]:
        return tuple(value for _, value in self.points)

    def describe(self) -> str:
        return f"{self.shape} " + ", ".join(f"{time.describe()}: {_text(value)}" for time, value in self.points)

    def check(self, epochs: int, steps_per_epoch: int) -> None:
        times = [time.in_epochs(epochs, steps_per_epoch) for time, _ in self.points]
        for earlier, later in itertools.pairwise(times):
            if earlier >= later:
                raise PlanError(
                    f"curve '{self.describe()}' goes from epoch {earlier:g} to epoch {later:g} in this run of "
                    f"{epochs} epochs; write its points in rising order"
                )


def parse_curve(value: CurveSpec) -> Curve:
    """Read a curve from a number, text, table or Curve (the grammar is this module's docstring). Raises PlanError."""
    if isinstance(value, Curve):
        return value
    if isinstance(value, Mapping):
        return _parse_table(value)
    if isinstance(value, str):
        return _parse_text(value)
    return Constant(_number(value))


def _parse_text(text: str) -> Curve:
    text = text.strip()
    if match := _RAMP.match(text):
        shape, start, end, begin, until = match.groups()
        return _ramp(shape.lower(), start, end, begin, until)
    if match := _WARMUP.match(text):
        return Warmup(Duration.parse(match[1]), parse_curve(match[2]))
    if match := _POINTS.match(text):
        pairs = [entry.split(":") for entry in match[2].split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise PlanError(f"curve {text!r} needs 'time: value' between its commas; {_FORMS}")
        return _points(match[1].lower(), pairs)
    if re.fullmatch(_NUMBER, text, re.IGNORECASE):
        return Constant(_number(text))
    raise PlanError(f"{text!r} is not a curve; {_FORMS}")


def _parse_table(table: Mapping[str, Any]) -> Curve:
    shape = table.get("shape")
    allowed: dict[str, tuple[set[str], set[str]]] = {
        "constant": ({"value"}, set()),
        "linear": ({"start", "end"}, {"from", "until"}),
        "cosine": ({"start", "end"}, {"from", "until"}),
        "warmup": ({"over", "curve"}, set()),
        "piecewise": ({"points"}, set()),
        "stairs": ({"points"}, set()),
    }
    if not isinstance(shape, str) or shape not in allowed:
        raise PlanError(f"a curve's shape must be one of {', '.join(allowed)}, got {shape!r}")
    required, optional = allowed[shape]
    given = set(table) - {"shape"}
    if missing := sorted(required - given):
        raise PlanError(f"a curve of shape {shape!r} needs {', '.join(missing)}; got {dict(table)}")
    if unknown := sorted(given - required - optional):
        raise PlanError(
            f"a curve of shape {shape!r} has no {', '.join(unknown)}; it takes {sorted(required | optional)}"
        )
    if shape == "constant":
        return Constant(_number(table["value"]))
    if shape == "warmup":
        return Warmup(Duration.parse(table["over"]), parse_curve(table["curve"]))
    if shape in ("linear", "cosine"):
        return _ramp(shape, table["start"], table["end"], table.get("from"), table.get("until"))
    points = table["points"]
    if not isinstance(points, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in points):
        raise PlanError(f'points must be a list of [time, value], such as [[0, 1.0], ["50%", 0.3]], got {points!r}')
    return _points(shape, points)


def _ramp(shape: str, start: Any, end: Any, begin: Any, until: Any) -> Ramp:
    return Ramp(
        "cosine" if shape == "cosine" else "linear",
        _number(start),
        _number(end),
        _START if begin is None else Duration.parse(begin),
        _END if until is None else Duration.parse(until),
    )


def _points(shape: str, pairs: Any) -> Points:
    points = tuple((Duration.parse(time), _number(value)) for time, value in pairs)
    if not points:
        raise PlanError(f"a curve of shape {shape!r} needs at least one point; {_FORMS}")
    return Points("stairs" if shape == "stairs" else "piecewise", points)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PlanError(f"{value!r} is not a curve; {_FORMS}")
    try:
        number = float(value)
    except ValueError:
        raise PlanError(f"{value!r} is not a number in a curve; {_FORMS}") from None
    if not math.isfinite(number):
        raise PlanError(f"{value!r} in a curve is not finite; {_FORMS}")
    return number


def _text(value: float) -> str:
    return repr(value)
