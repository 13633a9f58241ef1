"""The thaw clock against a transcription of its definition in exact fractions, over a grid that distillation dilates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from distill.plan_table import text_picture
from schedules.clock import ThawClock
from schedules.config import PlanConfig
from schedules.plan import compile_plan

EPSILON = Fraction(1, 10**9)


def transcribed(n: int, n0: int, hold: Fraction, interval: Fraction, kappa: Fraction, weight: Callable[[int], Fraction], epochs: int) -> list[int]:
    """open(e) for every epoch, as it is written down."""
    opened, time = [], Fraction(0)
    for epoch in range(epochs):
        if n0 <= 0:
            opened.append(n)
        elif time < hold - EPSILON:
            opened.append(min(n, n0))
        else:
            opened.append(min(n, n0 + math.floor((time - hold) / interval + EPSILON) + 1))
        time += 1 / (1 + kappa * weight(epoch))
    return opened


def made(epochs: int, **values: Any) -> PlanConfig:
    return PlanConfig(epochs=epochs, steps_per_epoch=8, **{"finetune": True, **values})


# As text for the configuration, and in exact numbers.
WEIGHTS: dict[str, Callable[[int, int], Fraction]] = {
    "0": lambda epoch, epochs: Fraction(0),
    "0.3": lambda epoch, epochs: Fraction(3, 10),
    "1": lambda epoch, epochs: Fraction(1),
    "linear 2 -> 0": lambda epoch, epochs: 2 - 2 * Fraction(epoch, epochs),
    "stairs 0: 0.5, 50%: 0": lambda epoch, epochs: Fraction(1, 2) if 2 * epoch < epochs else Fraction(0),
    "warmup 4 epochs 1": lambda epoch, epochs: min(Fraction(1), Fraction(epoch, 4)),
}


@pytest.mark.parametrize("spec", WEIGHTS)
@pytest.mark.parametrize("kappa", ["0", "0.5", "1", "3"])
def test_grid_against_the_definition(spec: str, kappa: str) -> None:
    seen = set()
    for n, n0, hold, interval, epochs in itertools.product((1, 5, 12), (0, 1, 2, 4), ("0", "2.5", "10"), ("0.5", "1", "3"), (1, 7, 30)):
        config = made(
            epochs, finetune_layers=n0, initial_freeze_epochs=float(hold), unfreeze_interval=float(interval), thaw_coupling=float(kappa),
            distill_weight=spec,
        )
        clock = ThawClock(config, n)
        found = [clock.open_blocks(epoch) for epoch in range(epochs)]
        expected = transcribed(n, n0, Fraction(hold), Fraction(interval), Fraction(kappa), lambda e, epochs=epochs: WEIGHTS[spec](e, epochs), epochs)
        assert found == expected, (n, n0, hold, interval, epochs)
        seen.add(tuple(found))
    assert len(seen) > 30, "a grid of equal schedules shows nothing"


def test_stages_open_at_an_epochs_first_step_only() -> None:
    plan = compile_plan(made(9, finetune_layers=1, initial_freeze_epochs="19 steps", unfreeze_interval="11 steps", distill_weight="linear 1 -> 0"), 5)
    points = [plan.at(step) for step in range(9 * 8)]
    by_epoch = {epoch: {(point.open_blocks, point.stem_open) for point in points if point.epoch == epoch} for epoch in range(9)}
    assert all(len(states) == 1 for states in by_epoch.values())
    assert [state for epoch in range(9) for state in by_epoch[epoch]] == [(line.open_blocks, line.stem_open) for line in plan.epochs_table]
    # Rates follow: zero for what is closed, above zero for what is open, at every step.
    for point in points:
        assert [rate > 0 for rate in point.lr_stages] == [stage < point.open_blocks for stage in range(5)] + [point.stem_open]


@pytest.mark.parametrize("weight", ["cosine 2 -> 0", "linear 1 -> 0", "piecewise 0: 3, 50%: 0.2, 100%: 0"])
def test_a_weight_that_decays_speeds_the_thaw_up(weight: str) -> None:
    plan = compile_plan(made(200, finetune_layers=1, initial_freeze_epochs=8, unfreeze_interval=8, distill_weight=weight), 12)
    starts = [epoch for epoch, _ in plan.thaw_events]
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    # To whole epochs, so a wait may be longer than the one before by the one epoch that rounding gave it.
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(waits))
    assert waits[0] > 1.2 * waits[-1] >= 8


def test_no_weight_is_as_no_coupling() -> None:
    values: dict[str, Any] = {"finetune_layers": 2, "initial_freeze_epochs": "20%", "unfreeze_interval": "16 steps"}
    without = compile_plan(made(30, **values, distill_weight=0.0, thaw_coupling=5.0), 12)
    uncoupled = compile_plan(made(30, **values, distill_weight=4.0, thaw_coupling=0.0), 12)
    assert without.thaw_events == uncoupled.thaw_events
    assert [line.thaw_time for line in without.epochs_table] == [float(epoch) for epoch in range(30)]


def test_a_hold_and_an_interval_of_parts_of_the_run() -> None:
    # 25 % of 16 epochs are 4, 12 steps of 8 are 1.5: held while e < 4, then at 4, 5.5 -> 6, 7, 8.5 -> 9.
    plan = compile_plan(made(16, finetune_layers=1, initial_freeze_epochs="25%", unfreeze_interval="12 steps"), 5)
    assert plan.thaw_events == [(0, [0]), (4, [1]), (6, [2]), (7, [3]), (9, [4, 5])]


@pytest.mark.parametrize(("values", "opened", "final"), [
    ({"unfreeze_interval": 1e-320}, [1, 1, 2] + [4] * 17, 3),
    ({"distill_weight": 1e308}, [1] * 20, None),
    ({"distill_weight": 1e308, "thaw_coupling": 1e308}, [1] * 20, None),
    ({"initial_freeze_epochs": 1e308, "unfreeze_interval": 1e308}, [1] * 20, None),
    ({"distill_temp_end": 1e308, "lr": 1e308}, [1] * 2 + [2] * 3 + [3] * 3 + [4] * 12, 8),
])  # fmt: skip
def test_numbers_near_the_ends_of_what_there_is_are_planned_and_drawn(values: dict[str, float], opened: list[int], final: int | None) -> None:
    plan = compile_plan(made(20, finetune_layers=1, **{"initial_freeze_epochs": 2, **values}), blocks=4)
    assert [line.open_blocks for line in plan.epochs_table] == opened and plan.to_json()["final_unfreeze_epoch"] == final
    assert len(text_picture(plan)) == 8
