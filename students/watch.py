"""The watch: the loss before and after each thaw, and the spike that may hold the next one.

The guide's section 5 asks to track the training loss around each scheduled unfreeze step. What is watched is the total loss of
each step, the same in every process; all of it is plain data that a checkpoint keeps, so a resumed run decides as an undisturbed
one would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any


@dataclass
class ThawWatch:
    """One thaw under watch: the mean loss before it, the distillation weight then, the losses since."""

    epoch: int
    before: float
    weight: float
    losses: list[float] = field(default_factory=list)
    spiked: bool = False

    def summary(self) -> dict[str, Any]:
        """What is logged when the window is over: mean loss before and after, and their ratio."""
        after = fmean(self.losses)
        return {
            "thaw_epoch": self.epoch, "before": self.before, "after": after, "steps": len(self.losses),
            "ratio": after / self.before if self.before else None,
        }


class Watch:
    """Compares the ``window`` steps after a thaw with the ``window`` steps before it.

    A spike is a step of that window whose loss is above ``factor`` times the mean before; it is told once a thaw. Where the plan
    raised the distillation weight in the meantime, from w to w', w'/w times as much is allowed: the loss cannot grow by more
    through the weight alone. (From w = 0 there is no such bound, and nothing is judged.) ``holds`` are the epochs in which
    the next thaw was held, for :class:`schedules.plan.Plan`.
    """

    def __init__(self, factor: float, window: int) -> None:
        self.factor, self.window = factor, window
        self.recent: list[float] = []
        self.thaw: ThawWatch | None = None
        self.holds: tuple[int, ...] = ()

    def opened(self, epoch: int, weight: float) -> float | None:
        """A thaw begins, the last step's distillation weight being ``weight``; returns the mean loss before it, if any."""
        self.thaw = ThawWatch(epoch, fmean(self.recent), weight) if self.recent else None
        return None if self.thaw is None else self.thaw.before

    def step(self, loss: float, weight: float) -> bool:
        """Take in a step's loss; True if it is the first spike after a thaw."""
        self.recent = [*self.recent, loss][-self.window :]
        thaw = self.thaw
        if thaw is None:
            return False
        thaw.losses.append(loss)
        if thaw.spiked or (weight > 0 and thaw.weight == 0):
            return False
        allowed = self.factor * thaw.before * (max(1.0, weight / thaw.weight) if thaw.weight else 1.0)
        thaw.spiked = loss > allowed
        return thaw.spiked

    def finished(self, *, ending: bool = False) -> dict[str, Any] | None:
        """The summary of a watched thaw once its window is over, or once the run or another thaw ends it."""
        if self.thaw is None or not self.thaw.losses or not (ending or len(self.thaw.losses) >= self.window):
            return None
        summary, self.thaw = self.thaw.summary(), None
        return summary

    def state(self) -> dict[str, Any]:
        """Plain JSON for a checkpoint."""
        return {"recent": self.recent, "thaw": None if self.thaw is None else asdict(self.thaw), "holds": list(self.holds)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.recent, self.holds = list(state["recent"])[-self.window :], tuple(state["holds"])
        self.thaw = None if state["thaw"] is None else ThawWatch(**state["thaw"])
