"""Learning rates as pure functions of the step: warm-up, cosine, a stage's own warm-up, layer-wise decay."""

import math
from collections.abc import Sequence

from schedules.config import PlanConfig


def decay_factor(config: PlanConfig, step: int) -> float:
    """What is left of the peak rate at a step, 1 at the first; after the planned epochs it stays at `final_lr_ratio`.

    The cosine is that of SGDR (Loshchilov and Hutter, 2017, equation 5) without restarts.
    """
    if config.lr_schedule == "constant":
        return 1.0
    passed = min(1.0, step / (config.horizon * config.steps_per_epoch))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * passed))


def warmup_factor(steps: float, steps_since: int) -> float:
    """Linear warm-up over `steps`, `steps_since` steps after its beginning; the first step has a share above 0, so none is lost."""
    return min(1.0, (steps_since + 1) / steps) if steps > 0 else 1.0


def head_rate(config: PlanConfig, step: int) -> float:
    """Learning rate of the head."""
    return config.lr * decay_factor(config, step) * warmup_factor(config.warmup_steps, step)


def stage_rates(config: PlanConfig, step: int, opening_epochs: Sequence[int | None]) -> tuple[float, ...]:
    """Learning rate of every stage, in opening order; 0.0 for one that is closed. `opening_epochs` has the epoch at which each opens."""
    decay, begun = decay_factor(config, step), warmup_factor(config.warmup_steps, step)
    rates = []
    for stage, epoch in enumerate(opening_epochs):
        since = -1 if epoch is None else step - epoch * config.steps_per_epoch
        warm = min(begun, warmup_factor(config.thaw_warmup_steps, since)) if since >= 0 else 0.0
        rates.append(config.backbone_rate * config.layer_decay**stage * decay * warm)
    return tuple(rates)
