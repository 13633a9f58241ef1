"""Long plans: openings found by halving are those of a walk through every epoch, work does not grow where it need not, and there is a limit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from distill.cli import main
from schedules.clock import ThawClock, needed_epochs
from schedules.config import MOST_EPOCHS, PlanConfig
from schedules.durations import Duration
from schedules.errors import PlanError
from schedules.plan import compile_plan


def made(epochs: int, **values: Any) -> PlanConfig:
    return PlanConfig(epochs=epochs, steps_per_epoch=4, **{"finetune": True, **values})


def walked(clock: ThawClock, last: int) -> list[int | None]:
    """The first epoch up to `last` at which each block is open, by asking at every one."""
    most, found = 0, []
    for epoch in range(last + 1):
        most = max(most, clock.open_blocks(epoch))
        found += [epoch] * (most - len(found))
    return [*found, *[None] * (clock.blocks - len(found))]


@pytest.mark.parametrize("holds", [(), (4,), (4, 4), (1, 7, 9), (0, 19), (25,)])
def test_openings_are_those_of_a_walk_through_every_epoch(holds: tuple[int, ...]) -> None:
    weights = ("0", "0.3", "linear 2 -> 0", "stairs 0: 0, 50%: 3", "warmup 5 epochs 1")
    for blocks, first, hold, interval, weight in itertools.product((1, 4, 9), (1, 3), (0, 2.5, 6), (0.4, 1, 2), weights):
        settings = {"finetune_layers": first, "initial_freeze_epochs": hold, "unfreeze_interval": interval, "distill_weight": weight}
        clock = ThawClock(made(20, **settings), blocks, holds)
        expected = walked(clock, 20)
        found = [None if epoch is None or epoch > 20 else epoch for epoch in clock.opening_epochs[:-1]]
        assert found == expected, (settings, blocks)


def test_openings_of_a_long_run_are_not_looked_for_at_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = ThawClock.open_blocks, []

    def open_blocks(self: ThawClock, epoch: int) -> int:
        asked.append(epoch)
        return plain(self, epoch)

    monkeypatch.setattr(ThawClock, "open_blocks", open_blocks)
    clock = ThawClock(made(MOST_EPOCHS, unfreeze_interval=5000), 12)
    assert clock.opening_epochs == (0, 0, *range(10, 50_000, 5000), 45_010)
    assert len(asked) <= 12 * 20


def test_durations_are_read_once_and_not_at_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, read = Duration.parse.__func__, []  # type: ignore[attr-defined]
    monkeypatch.setattr(Duration, "parse", classmethod(lambda cls, value: read.append(value) or plain(cls, value)))
    counts = []
    for epochs in (10, 2000):
        config = made(epochs, warmup="2%", thaw_warmup="3 steps")
        read.clear()
        assert len(compile_plan(config, 12).epochs_table) == epochs
        counts.append(len(read))
    assert counts[0] == counts[1] > 0


def test_beyond_the_limit_a_plan_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert made(MOST_EPOCHS).epochs == MOST_EPOCHS
    for name in ("epochs", "planned_epochs"):
        with pytest.raises(PlanError, match=f"{name} is {MOST_EPOCHS + 1}, and a plan has at most {MOST_EPOCHS} epochs; lower --"):
            made(**{"epochs": 9, name: MOST_EPOCHS + 1})
    assert PlanConfig(epochs=9, steps_per_epoch=MOST_EPOCHS + 1).steps_per_epoch > MOST_EPOCHS
    assert main(["plan", "--blocks", "12", "--epochs", "200000", "--finetune"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "epochs is 200000, and a plan has at most 100000 epochs; lower --epochs" in said


def test_no_more_epochs_are_asked_for_than_a_plan_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedules.clock.MOST_EPOCHS", 2000)
    assert needed_epochs(made(1000, initial_freeze_epochs=1960, unfreeze_interval=3, distill_weight=0), 12) == 1960 + 9 * 3 + 1
    assert needed_epochs(made(1000, initial_freeze_epochs=2000), 12) is None
