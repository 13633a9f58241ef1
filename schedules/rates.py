"""Learning rates as pure functions of the step: warm-up, cosine, a stage's own warm-up, layer-wise decay."""

import math

from schedules.config import DurationSpec, PlanConfig


def decay_factor(config: PlanConfig, step: int) -> float:
    """What is left of the peak rate at a step, 1 at the first; after the planned epochs it stays at `final_lr_ratio`.

    The cosine is that of SGDR (Loshchilov and Hutter, 2017, equation 5) without restarts.
    """
    if config.lr_schedule == "constant":
        return 1.0
    passed = min(1.0, step / (config.horizon * config.steps_per_epoch))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * passed))


def warmup_factor(config: PlanConfig, duration: DurationSpec, steps_since: int) -> float:
    """Linear warm-up, `steps_since` steps after its beginning; the first step has a share above 0, so none is lost."""
    steps = config.epochs_of(duration) * config.steps_per_epoch
    return min(1.0, (steps_since + 1) / steps) if steps > 0 else 1.0


def head_rate(config: PlanConfig, step: int) -> float:
    """Learning rate of the head."""
    return config.lr * decay_factor(config, step) * warmup_factor(config, config.warmup, step)


def stage_rate(config: PlanConfig, step: int, stage: int, opening_epoch: int | None) -> float:
    """Learning rate of a stage, counted in opening order from 0; 0.0 while it is closed."""
    if opening_epoch is None or step < opening_epoch * config.steps_per_epoch:
        return 0.0
    since = step - opening_epoch * config.steps_per_epoch
    warm = min(warmup_factor(config, config.warmup, step), warmup_factor(config, config.thaw_warmup, since))
    return config.backbone_rate * config.layer_decay**stage * decay_factor(config, step) * warm
