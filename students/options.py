"""What the trainer is told beyond model, plan and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainOptions:
    """How to train, keep and watch.

    ``accumulate`` splits each step's batch into that many parts; ``grad_clip_norm`` 0 switches clipping off; ``best_metric`` is
    a key of what ``validate`` returns, lower is better unless it is ``auc`` or ``ap``; ``patience`` ends the run after so many
    validations without a better one (0: never); ``ema_decay`` 0 switches the average of the weights off; ``checkpoint_steps`` 0
    writes checkpoints at the end of epochs only; ``limit_steps`` ends the run early (a smoke run). ``spike_factor``,
    ``spike_window`` and ``on_spike`` are those of :class:`students.watch.Watch`.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    grad_clip_norm: float = 1.0
    accumulate: int = 1
    grad_checkpointing: bool = False
    compile: bool = False
    ema_decay: float = 0.0
    best_metric: str = "avg_l2"
    patience: int = 0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    validate_every: int = 1
    log_every: int = 1
    limit_steps: int | None = None
    spike_factor: float = 2.0
    spike_window: int = 20
    on_spike: Literal["warn", "hold"] = "warn"
    seed: int = 0
