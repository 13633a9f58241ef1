"""All terms of one step, put together.

    total = bce·heatmap + softmax·spatial + λ·inout + w·(kd_heatmap + λ'·kd_inout)
    kd_heatmap = Σ_k a_k·kd_k,  k in kl, bce, mse, dist

Every term is a sum over heads divided by a count that the caller gives, so that a mean over *all* heads of a step stays
one when the heads are spread over processes and micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from students.batch import Batch
from students.loss_weights import LossWeights
from students.losses.distillation import (
    heatmap_correlation,
    heatmap_kl,
    heatmap_mse,
    heatmap_soft_bce,
    inout_kl,
    teacher_reliability,
)
from students.losses.task import heatmap_bce, spatial_cross_entropy
from teachers.contract import GazeOutput


class HeadCounts(NamedTuple):
    """How many heads each mean is over: labelled in the frame, not labelled out, labelled in or out, all of them."""

    target: Tensor
    distilled: Tensor
    inout: Tensor
    heads: Tensor

    @classmethod
    def of(cls, batch: Batch) -> HeadCounts:
        return cls(
            batch.has_target.sum(),
            (batch.inout != 0).sum(),
            (batch.inout >= 0).sum(),
            torch.tensor(len(batch.inout), device=batch.inout.device),
        )


class Losses(NamedTuple):
    """One step's terms (scalars). ``total`` carries the gradient; the others are before weighting, detached.

    ``kd_heatmap`` is the weighted sum of the four terms behind ``kd_inout``, before the plan's weight; ``reliability`` is the
    mean over the distilled heads of how far the teacher was believed.
    """

    total: Tensor
    heatmap: Tensor
    spatial: Tensor
    inout: Tensor
    kd_heatmap: Tensor
    kd_inout: Tensor
    kd_kl: Tensor
    kd_bce: Tensor
    kd_mse: Tensor
    kd_dist: Tensor
    reliability: Tensor


def gaze_losses(
    output: GazeOutput, batch: Batch, counts: HeadCounts, weights: LossWeights, *, distill_weight: float, temperature: float
) -> Losses:
    """All terms of one micro-batch.

    ``counts`` are those of the whole step (all processes, all micro-batches): the terms of the parts then add up to the
    terms of the step. Heads labelled out take no part in ``kd_heatmap``: a teacher's map means nothing for them. A head
    whose teacher is believed less adds less and is counted in full: its voice is not given to the other heads.
    """
    heatmap, inout = output.heatmap.float(), None if output.inout is None else output.inout.float()
    zero = heatmap.new_zeros(())

    def mean(values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
        return torch.where(mask, values, torch.zeros_like(values)).sum() / count.clamp_min(1)

    bce = mean(heatmap_bce(heatmap, batch.target), batch.has_target, counts.target) if weights.bce else zero
    spatial = (
        mean(spatial_cross_entropy(heatmap, batch.target), batch.has_target, counts.target) if weights.softmax else zero
    )
    task_inout = zero
    if inout is not None and weights.inout:
        labelled = batch.inout >= 0
        cross = F.binary_cross_entropy_with_logits(inout, batch.inout.clamp_min(0.0), reduction="none")
        task_inout = mean(cross, labelled, counts.inout)
    shares = weights.distillation
    kinds = dict.fromkeys(shares, zero)
    kd_heatmap, kd_inout, reliability = zero, zero, zero
    if distill_weight and batch.teacher_heatmap is not None:
        kept = batch.inout != 0
        # Blanked before the divergence: what is not finite in it would reach the gradient even where the sum leaves it out.
        taught = batch.teacher_heatmap.masked_fill(~kept[:, None, None], 0.0)
        believed = None
        if weights.reliability:
            believed = teacher_reliability(taught, batch.target, batch.has_target, weights.reliability)
            reliability = mean(believed, kept, counts.distilled)
        for name, share in shares.items():
            if share:
                values = _divergence(name, heatmap, taught, temperature)
                kinds[name] = mean(values if believed is None else values * believed, kept, counts.distilled)
                kd_heatmap = kd_heatmap + share * kinds[name]
    if distill_weight and inout is not None and batch.teacher_inout is not None and weights.inout_distillation:
        kd_inout = inout_kl(inout, batch.teacher_inout, temperature).sum() / counts.heads.clamp_min(1)
    total = (
        heatmap.sum() * 0.0  # so that it has a gradient whatever is switched off
        + weights.bce * bce
        + weights.softmax * spatial
        + weights.inout * task_inout
        + distill_weight * (kd_heatmap + weights.inout_distillation * kd_inout)
    )
    terms = (bce, spatial, task_inout, kd_heatmap, kd_inout, *kinds.values(), reliability)
    return Losses(total, *(term.detach() for term in terms))


def _divergence(name: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if name == "mse":
        return heatmap_mse(student, teacher)
    return {"kl": heatmap_kl, "bce": heatmap_soft_bce, "dist": heatmap_correlation}[name](student, teacher, temperature)


def loss_record(summed: Sequence[float], weights: LossWeights, distill_weight: float) -> dict[str, float]:
    """A step's terms by name, for the log: before weighting, and as ``weighted_NAME`` what each adds to ``loss``.

    ``summed`` are the values of :class:`Losses` over all processes and micro-batches. The kinds of heatmap distillation are
    listed where they are in use, ``reliability`` likewise.
    """
    terms = dict(zip(Losses._fields, summed, strict=True))
    loss, reliability = terms.pop("total"), terms.pop("reliability")
    factors = {
        "heatmap": weights.bce, "spatial": weights.softmax, "inout": weights.inout, "kd_heatmap": distill_weight,
        "kd_inout": distill_weight * weights.inout_distillation,
    } | {f"kd_{name}": distill_weight * share for name, share in weights.distillation.items() if share}
    record = {"loss": loss} | {name: terms[name] for name in factors}
    record |= {f"weighted_{name}": factor * terms[name] for name, factor in factors.items()}
    return record | ({"reliability": reliability} if weights.reliability else {})
