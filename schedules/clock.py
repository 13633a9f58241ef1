"""The thaw clock: how much of the unfreezing schedule has passed, and how many blocks that opens.

With w(e) the distillation weight at the first step of epoch e, κ the coupling, n blocks, n0 = `finetune_layers`, H =
`initial_freeze_epochs` and I = `unfreeze_interval`:

    τ(e) = Σ_{i<e} 1 / (1 + κ·w(i))
    open(e) = min(n, n0)                                while τ(e) < H - ε
            = min(n, n0 + floor((τ(e) - H)/I + ε) + 1)  after

At κ·w = 0 this is the plain progressive schedule of Gaze-LLE fine-tuning: hold, then one block every I epochs.
"""

import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

from schedules.config import MOST_EPOCHS, PlanConfig

EPSILON = 1e-9  # so that sums such as 13 · (1 / 1.3) reach a boundary of 10
NEVER = 10**9  # an opening this many epochs away is none: weights near 1e9 would otherwise give figures of no use


@dataclass(frozen=True)
class ThawClock:
    """Thaw time and open blocks for every epoch of a run, and beyond it, with the weight held at its last value."""

    config: PlanConfig
    blocks: int
    holds: tuple[int, ...] = ()
    """Epochs in which the next thaw was held: what has not opened by the end of such an epoch opens I later, each time."""

    @cached_property
    def _increments(self) -> tuple[float, ...]:
        config, curve = self.config, self.config.weight_curve
        weights = (curve.at(epoch, config.horizon, config.steps_per_epoch) for epoch in range(config.horizon + 1))
        return tuple(1 / (1 + config.thaw_coupling * weight) for weight in weights)

    @cached_property
    def _times(self) -> tuple[float, ...]:
        return tuple(itertools.accumulate(self._increments[:-1], initial=0.0))

    @cached_property
    def hold(self) -> float:
        """H in thaw time."""
        return self.config.epochs_of(self.config.initial_freeze_epochs)

    @cached_property
    def interval(self) -> float:
        """I in thaw time."""
        return self.config.epochs_of(self.config.unfreeze_interval)

    def time(self, epoch: int) -> float:
        """τ(epoch): thaw time at the first step of an epoch."""
        last = len(self._times) - 1
        if epoch <= last:
            return self._times[epoch]
        return self._times[last] + (epoch - last) * self._increments[-1]

    def open_blocks(self, epoch: int) -> int:
        """Blocks that the clock wants open during an epoch; what `holds` came too late for stays open (`opening_epochs`)."""
        config = self.config
        if not config.finetune:
            return 0
        if config.finetune_layers <= 0:
            return self.blocks
        if config.disable_progressive_unfreeze:
            return min(self.blocks, config.finetune_layers)
        passed = self.time(epoch) - self.hold - self.interval * sum(held < epoch for held in self.holds)
        if passed < -EPSILON:
            return min(self.blocks, config.finetune_layers)
        more = passed / self.interval  # infinite where the interval is next to nothing
        return self.blocks if more >= self.blocks else min(self.blocks, config.finetune_layers + math.floor(more + EPSILON) + 1)

    @cached_property
    def opening_epochs(self) -> tuple[int | None, ...]:
        """The epoch at which each stage opens, in opening order (the stem last); None for never."""
        found: list[int | None] = []
        for stage in range(self.blocks):
            within = self._opening_within(stage)
            found.append(self._opening_beyond(stage) if within is None else within)
        stem = (found[-1] if found else None) if self.config.finetune else None
        return (*found, stem)

    def _opening_within(self, stage: int) -> int | None:
        """The first epoch of the run, or of what it was planned for, at which more than `stage` blocks are open."""
        # Between two holds the clock only goes forward, so the epoch is found by halving; a hold sets it back once.
        last = max(self.config.epochs, self.config.horizon)
        begins = sorted({0, *(held + 1 for held in self.holds if held < last), last + 1})
        for begin, end in itertools.pairwise(begins):
            if self.open_blocks(end - 1) > stage:
                return begin + bisect_left(range(begin, end), True, key=lambda epoch: self.open_blocks(epoch) > stage)
        return None

    def _opening_beyond(self, stage: int) -> int | None:
        if not self.config.progressive:
            return None
        last = len(self._times) - 1
        target = self.hold + (stage - self.config.finetune_layers + len(self.holds)) * self.interval
        increment = self._increments[-1]
        if target - self._times[last] >= NEVER * increment:  # the increment may be 0, the target infinite
            return None
        ahead = (target - self._times[last]) / increment
        # One epoch to either side of the estimate, then the definition decides.
        epoch = last + max(math.floor(ahead) - 1, 0)
        while self.open_blocks(epoch) <= stage:
            epoch += 1
        return epoch

    @property
    def final_epoch(self) -> int | None:
        """The epoch at which the last stage opens, possibly beyond the run; None for never."""
        return self.opening_epochs[-1]


def needed_epochs(config: PlanConfig, blocks: int) -> int | None:
    """A number of epochs with which the last stage opens within the run, the rest of the configuration unchanged.

    One epoch fewer would not do. None if 64 times the run, or as many as a plan may have, would not do either (a hold of 100%).
    """

    def enough(epochs: int) -> bool:
        final = ThawClock(replace(config, epochs=epochs), blocks).final_epoch
        return final is not None and final < epochs

    low, high = config.epochs, config.epochs
    most = min(64 * config.epochs, MOST_EPOCHS)
    while not enough(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    if high == config.epochs:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
