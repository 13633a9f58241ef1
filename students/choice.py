"""Which student is kept: the best by one metric, over validations and over raw and averaged weights, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from students.errors import TrainingError

Metrics = Mapping[str, float | None]
HIGHER = ("auc", "ap")  # metrics of which more is better; of all others less is


@dataclass
class Choice:
    """The best value so far of ``metric``, its step, and how many validations have passed without a better one."""

    metric: str
    patience: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0

    def better(self, value: float, than: float | None) -> bool:
        """Whether ``value`` is strictly better."""
        return than is None or (value > than if self.metric in HIGHER else value < than)

    def value(self, metrics: Metrics) -> float:
        """The metric of a validation; :class:`TrainingError` where it has none."""
        value = metrics.get(self.metric)
        if value is None:
            raise TrainingError(
                f"validation gives no {self.metric!r} to choose the best student by (it has "
                f"{', '.join(name for name, found in metrics.items() if found is not None)}); choose one with --best-metric"
            )
        return value

    def winner(self, candidates: Mapping[str, Metrics]) -> str:
        """The name of the best of several validated weights; on a tie the first."""
        names = list(candidates)
        found = names[0]
        for name in names[1:]:
            if self.better(self.value(candidates[name]), self.value(candidates[found])):
                found = name
        return found

    def judge(self, metrics: Metrics, step: int) -> bool:
        """Take in a validation's winner; True if it is the best so far."""
        value = self.value(metrics)
        if self.better(value, self.best):
            self.best, self.best_step, self.stale = value, step, 0
            return True
        self.stale += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.stale

    def state(self) -> dict[str, Any]:
        """Plain JSON for a checkpoint."""
        return {"best": self.best, "best_step": self.best_step, "stale": self.stale}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.best, self.best_step, self.stale = state["best"], state["best_step"], state["stale"]
