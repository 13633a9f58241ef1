"""Durations in epochs, steps or percent of the run: `3`, `"3 epochs"`, `"500 steps"`, `"20%"`.

The idea of one parser for every unit is big_vision's (`utils.py:steps`).
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from schedules.errors import PlanError

Unit = Literal["epochs", "percent", "steps"]

_TEXT = re.compile(r"^\s*([+-]?[0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)\s*$", re.IGNORECASE)
_UNITS: dict[str, Unit] = {
    "": "epochs",
    "epoch": "epochs",
    "epochs": "epochs",
    "step": "steps",
    "steps": "steps",
    "%": "percent",
    "percent": "percent",
}
_FORMS = "give epochs, steps or percent of the run: 3, 2.5, '3 epochs', '500 steps', '20%'"


@dataclass(frozen=True)
class Duration:
    """An amount of training, `amount >= 0` in `unit`."""

    amount: float
    unit: Unit = "epochs"

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount) or self.amount < 0:
            raise PlanError(f"a duration must be finite and not negative, got {self.amount:g} {self.unit}; {_FORMS}")

    @classmethod
    def parse(cls, value: "Duration | float | str") -> "Duration":
        """Read a number (epochs), `"N epochs"`, `"N steps"`, `"N%"` or a Duration; else raise PlanError."""
        if isinstance(value, Duration):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise PlanError(f"{value!r} is not a duration; {_FORMS}")
        if isinstance(value, int | float):
            return cls(float(value))
        match = _TEXT.match(value)
        if match is None or match[2].lower() not in _UNITS:
            raise PlanError(f"{value!r} is not a duration; {_FORMS}")
        try:
            amount = float(match[1])
        except ValueError:
            raise PlanError(f"{value!r} is not a duration; {_FORMS}") from None
        return cls(amount, _UNITS[match[2].lower()])

    def in_epochs(self, epochs: int, steps_per_epoch: int) -> float:
        """Real-valued epochs in a run of `epochs` epochs of `steps_per_epoch` steps."""
        if self.unit == "percent":
            return self.amount * epochs / 100
        if self.unit == "steps":
            return self.amount / steps_per_epoch
        return self.amount

    def describe(self) -> str:
        """Text that `parse` reads back to an equal value."""
        number = repr(self.amount).removesuffix(".0")
        return f"{number}%" if self.unit == "percent" else f"{number} {self.unit}"
