"""Task and distillation losses, by name.

    total = bce_weight·heatmap + softmax_weight·spatial + λ·inout + w·(kd_heatmap + λ·kd_inout)

Every term is a sum over heads divided by a count that the caller gives, so that a mean over *all* heads of a step stays
one when the heads are spread over processes and micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from students.batch import Batch
from teachers.contract import GazeOutput


@dataclass(frozen=True)
class LossWeights:
    """λ of both in/out terms, and what the two task terms on the heatmap weigh; a term of weight 0 is not computed."""

    inout: float = 1.0
    bce: float = 1.0
    softmax: float = 0.0


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
    """One step's terms (scalars). ``total`` carries the gradient; the others are before weighting, detached."""

    total: Tensor
    heatmap: Tensor
    spatial: Tensor
    inout: Tensor
    kd_heatmap: Tensor
    kd_inout: Tensor


def heatmap_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy on heatmap logits, mean over cells: ``[N,h,w]`` twice to ``[N]``. Source: Gaze-LLE, section 3.3."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2))


def spatial_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the spatial softmax against the target normalised to mass 1: ``[N,h,w]`` twice to ``[N]``.

    The form that heatmap regression uses where a map is read as one distribution over places (as in DSNT's
    regularisers, arXiv 1801.07372); it reaches a sharp peak in far fewer steps than the mean over 4096 cells.
    """
    mass = target.flatten(1)
    mass = mass / mass.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return -(mass * F.log_softmax(logits.flatten(1), dim=1)).sum(dim=1)


def heatmap_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher‖student) of the spatial softmax at temperature T, summed over cells: ``[N,h,w]`` twice to ``[N]``.

    Source: Hinton et al., arXiv 1503.02531, section 2, with the cells of the map as classes.
    """
    log_teacher = F.log_softmax(teacher.flatten(1) / temperature, dim=1)
    log_student = F.log_softmax(student.flatten(1) / temperature, dim=1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)


def inout_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher‖student) of the two-way in/out distribution at temperature T: ``[N]`` twice to ``[N]``."""
    soft = torch.sigmoid(teacher / temperature)
    cross = F.binary_cross_entropy_with_logits(student / temperature, soft, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher / temperature, soft, reduction="none")
    return temperature**2 * (cross - own)


def gaze_losses(
    output: GazeOutput, batch: Batch, counts: HeadCounts, weights: LossWeights, *, distill_weight: float, temperature: float
) -> Losses:
    """All terms of one micro-batch.

    ``counts`` are those of the whole step (all processes, all micro-batches): the terms of the parts then add up to the
    terms of the step. Heads labelled out take no part in ``kd_heatmap``: a teacher's map means nothing for them.
    """
    heatmap, inout = output.heatmap.float(), None if output.inout is None else output.inout.float()
    zero = heatmap.sum() * 0.0

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
    kd_heatmap, kd_inout = zero, zero
    if distill_weight and batch.teacher_heatmap is not None:
        kept = batch.inout != 0
        # Blanked before the divergence: what is not finite in it would reach the gradient even where the sum leaves it out.
        divergence = heatmap_kl(heatmap, batch.teacher_heatmap.masked_fill(~kept[:, None, None], 0.0), temperature)
        kd_heatmap = mean(divergence, kept, counts.distilled)
        if inout is not None and batch.teacher_inout is not None and weights.inout:
            kd_inout = inout_kl(inout, batch.teacher_inout, temperature).sum() / counts.heads.clamp_min(1)
    total = (
        weights.bce * bce
        + weights.softmax * spatial
        + weights.inout * task_inout
        + distill_weight * (kd_heatmap + weights.inout * kd_inout)
    )
    return Losses(total, *(term.detach() for term in (bce, spatial, task_inout, kd_heatmap, kd_inout)))


def mass_near_peak(teacher: Tensor, temperature: float, sigma_cells: float = 3.0) -> Tensor:
    """Share of the softened teacher map's mass within 3σ of its own peak, mean over heads: ``[N,h,w]`` to a scalar.

    When a rising temperature flattens the target, this number says so: at T=4 it can fall from 0.97 to 0.18.
    """
    if len(teacher) == 0:
        return torch.ones((), device=teacher.device)
    height, width = teacher.shape[-2:]
    mass = torch.softmax(teacher.flatten(1) / temperature, dim=1).view_as(teacher)
    peak = teacher.flatten(1).argmax(dim=1)
    row = torch.arange(height, device=teacher.device)[None, :, None] - (peak // width)[:, None, None]
    column = torch.arange(width, device=teacher.device)[None, None, :] - (peak % width)[:, None, None]
    near = row**2 + column**2 <= (3.0 * sigma_cells * width / 64.0) ** 2
    return (mass * near).sum(dim=(1, 2)).mean()
