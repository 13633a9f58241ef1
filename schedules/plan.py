"""The compiled plan: for any step, the distillation weight, the temperature, the open stages and the learning rates.

A plan is a pure function of the configuration, the holds that the run asked for and the step: a resumed run needs no
other schedule state. Stages are counted in opening order: 0 is the last block (with what follows it), `blocks - 1` the
first block, `blocks` the stem, which opens with the first block.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from schedules.advice import plan_messages, plan_warnings
from schedules.clock import ThawClock
from schedules.config import DurationSpec, PlanConfig
from schedules.curves import Curve
from schedules.durations import Duration
from schedules.errors import PlanError
from schedules.rates import head_rate, stage_rates

__all__ = ["EpochPlan", "Plan", "PlanConfig", "PlanPoint", "compile_plan", "solve_thaw_by"]


@dataclass(frozen=True)
class PlanPoint:
    """What is in force at one optimizer step."""

    step: int
    epoch: int
    distill_weight: float
    temperature: float
    open_blocks: int
    """Counted blocks that are open, from the last backwards."""
    stem_open: bool
    lr_head: float
    lr_stages: tuple[float, ...]
    """One rate a stage in opening order, the stem last (`blocks + 1` values); 0.0 for a closed stage."""


@dataclass(frozen=True)
class EpochPlan:
    """One line of the plan's table; weight, temperature and rates are those of the epoch's first step."""

    epoch: int
    thaw_time: float
    distill_weight: float
    temperature: float
    open_blocks: int
    stem_open: bool
    lr_head: float
    lr_blocks: tuple[float, ...]
    """One rate a block in opening order; 0.0 for a closed block."""
    lr_stem: float


@dataclass(frozen=True)
class Plan:
    """A schedule compiled for a backbone of `blocks` blocks."""

    config: PlanConfig
    blocks: int
    holds: tuple[int, ...] = ()
    """Epochs in which the next thaw was held by one interval; the only part of a plan that a run adds to."""

    @cached_property
    def clock(self) -> ThawClock:
        """Thaw time and open blocks per epoch."""
        return ThawClock(self.config, self.blocks, self.holds)

    def at(self, step: int) -> PlanPoint:
        """What is in force at a step (0 is the first); beyond the run, values and rates stay as they ended."""
        if step < 0:
            raise ValueError(f"a step is not negative, got {step}")
        config, opening = self.config, self.clock.opening_epochs
        epoch, real = step // config.steps_per_epoch, step / config.steps_per_epoch
        return PlanPoint(
            step=step,
            epoch=epoch,
            distill_weight=self._weight.at(real, config.horizon, config.steps_per_epoch),
            temperature=self._temperature.at(real, config.horizon, config.steps_per_epoch),
            open_blocks=sum(first is not None and first <= epoch for first in opening[:-1]),
            stem_open=opening[-1] is not None and opening[-1] <= epoch,
            lr_head=head_rate(config, step),
            lr_stages=stage_rates(config, step, opening),
        )

    @cached_property
    def _weight(self) -> Curve:
        return self.config.weight_curve

    @cached_property
    def _temperature(self) -> Curve:
        return self.config.temperature_curve

    @cached_property
    def epochs_table(self) -> list[EpochPlan]:
        """One line an epoch."""
        return [self._line(epoch) for epoch in range(self.config.epochs)]

    def _line(self, epoch: int) -> EpochPlan:
        point = self.at(epoch * self.config.steps_per_epoch)
        return EpochPlan(
            epoch=epoch,
            thaw_time=self.clock.time(epoch),
            distill_weight=point.distill_weight,
            temperature=point.temperature,
            open_blocks=point.open_blocks,
            stem_open=point.stem_open,
            lr_head=point.lr_head,
            lr_blocks=point.lr_stages[:-1],
            lr_stem=point.lr_stages[-1],
        )

    @property
    def final_unfreeze_epoch(self) -> int | None:
        """The epoch at which the last stage opens, None for never; it may lie beyond the run (see `warnings`)."""
        return self.clock.final_epoch

    @cached_property
    def thaw_events(self) -> list[tuple[int, list[int]]]:
        """Within the run, (epoch, stages that open at its first step), stages as indices in opening order.

        What is open from the start is the event of epoch 0.
        """
        events: dict[int, list[int]] = {}
        for stage, first in enumerate(self.clock.opening_epochs):
            if first is not None and first < self.config.epochs:
                events.setdefault(first, []).append(stage)
        return sorted(events.items())

    @cached_property
    def messages(self) -> list[str]:
        """What the schedule will do, one sentence each."""
        return plan_messages(self.clock)

    @cached_property
    def warnings(self) -> list[str]:
        """Where it will not do what was asked for, and the remedy."""
        return plan_warnings(self.clock)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        return {
            "blocks": self.blocks,
            "epochs": [{**vars(line), "lr_blocks": list(line.lr_blocks)} for line in self.epochs_table],
            "final_unfreeze_epoch": self.final_unfreeze_epoch,
            "thaw_events": [{"epoch": epoch, "stages": stages} for epoch, stages in self.thaw_events],
            "messages": list(self.messages),
            "warnings": list(self.warnings),
            "config": self.config.to_dict(),
            **({"holds": list(self.holds)} if self.holds else {}),
        }


def compile_plan(config: PlanConfig, blocks: int) -> Plan:
    """Compile a schedule for a backbone of `blocks` blocks. Raises PlanError if fine-tuning has nothing to open."""
    if blocks < 0:
        raise PlanError(f"the number of blocks must not be negative, got {blocks}")
    if config.finetune and blocks == 0:
        raise PlanError(
            "--finetune is given for a backbone that yields no stages (0 blocks); choose another student or leave "
            "--finetune out"
        )
    return Plan(config, blocks)


def solve_thaw_by(config: PlanConfig, blocks: int, by: DurationSpec) -> PlanConfig:
    """The configuration with the longest `unfreeze_interval` such that every stage is open at `by` of the run.

    `by` is a time of the run (`"80%"`, `36`), not thaw time; stages open at an epoch's first step, the last epoch's at
    the latest. Raises PlanError where no interval can do that.
    """
    deadline = Duration.parse(by)
    shown = deadline.describe()
    if not config.finetune:
        raise PlanError(f"cannot thaw by {shown}: nothing is being unfrozen; add --finetune")
    if blocks < 1:
        raise PlanError(f"cannot thaw by {shown}: the backbone yields no stages ({blocks} blocks)")
    if config.finetune_layers <= 0 or config.finetune_layers >= blocks:
        return config
    if config.disable_progressive_unfreeze:
        raise PlanError(
            f"cannot thaw by {shown}: --disable-progressive-unfreeze keeps {config.finetune_layers} of {blocks} "
            "blocks open; leave it out"
        )
    last = min(math.floor(deadline.in_epochs(config.horizon, config.steps_per_epoch) + 1e-9), config.epochs - 1)
    clock = ThawClock(config, blocks)
    passed, more = clock.time(last) - clock.hold, blocks - config.finetune_layers - 1
    if passed < -1e-9 or (more > 0 and passed <= 1e-9):
        raise PlanError(
            f"cannot thaw by {shown}: at epoch {last} only {clock.time(last):.4g} epochs of thaw time have passed and "
            f"the initial hold takes {clock.hold:.4g}; lower --initial-freeze-epochs, --distill-weight or "
            "--thaw-coupling, or raise --epochs"
        )
    if more == 0:
        return config
    exact = passed / more
    # Four decimals, rounded down, read well on a command line; the exact value serves where that would be too coarse.
    for interval in (math.floor(exact * 1e4 + 1e-6) / 1e4, exact):
        if interval > exact * 0.99:
            solved = replace(config, unfreeze_interval=interval)
            final = ThawClock(solved, blocks).final_epoch
            if final is not None and final <= last:
                return solved
    raise AssertionError(f"interval {exact} does not open {blocks} blocks by epoch {last}")
