"""Why a step is refused: what is not finite, and on which scenes, before the optimizer's step and in all processes together; or memory that is short."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from students.batch import Batch
from students.losses import Losses

Refusal = tuple[str, tuple[str, ...]]  # what is not finite, and the scenes on which it was found
MOST_NAMED = 8  # scenes of one process


def not_finite(terms: Losses, batch: Batch) -> list[Refusal]:
    """Nothing, or the terms of a batch that are not finite and its scenes; the total is looked at, so a term of weight 0 is none."""
    total = float(terms.total.detach())
    if math.isfinite(total):
        return []
    bad = [name for name, value in terms._asdict().items() if name != "total" and not math.isfinite(float(value))]
    return [(f"{' and '.join(bad) or 'total loss'} is {total}", batch.scenes)]


def told_refusals(refusals: Sequence[Refusal], step: int) -> str:
    """One phrase: each thing that was found once, with the scenes of every process that found it."""
    named: dict[str, list[str]] = {}
    for what, scenes in refusals:
        named.setdefault(what, []).extend([*scenes[:MOST_NAMED], *(["…"] if len(scenes) > MOST_NAMED else [])])
    return "; ".join(f"{what} at step {step} on scenes {', '.join(scenes)}" for what, scenes in named.items())


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory is short: a GPU's has a kind of its own, the CPU's allocator gives a RuntimeError with its name."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
