"""What is not finite in a step, and on which scenes: it is refused before the optimizer's step, in all processes together."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
