"""Losses against the teacher's logits, one number a head, so that a mean over heads can be taken over any division of them.

The heatmap terms differ in what they compare: ``kl`` and ``dist`` read a map as one distribution over places (spatial softmax),
``bce`` and ``mse`` each cell by itself (sigmoid), as means over cells; those two are thousands of times smaller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to both variances of maps scaled to mean 1, where a uniform map has variance 0 and a peak of σ = 3 cells of 64 about 35.
_CORRELATION_EPS = 1e-6


def heatmap_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher‖student) of the spatial softmax at temperature T, summed over cells: ``[N,h,w]`` twice to ``[N]``.

    Source: Hinton et al., arXiv 1503.02531, section 2, with the cells of the map as classes.
    """
    log_teacher = F.log_softmax(teacher.flatten(1) / temperature, dim=1)
    log_student = F.log_softmax(student.flatten(1) / temperature, dim=1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)


def heatmap_soft_bce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times the BCE per cell of σ(student/T) against the target σ(teacher/T), mean over cells: ``[N,h,w]`` twice to ``[N]``.

    The soft targets of Hinton et al., arXiv 1503.02531, section 2, for classes that do not exclude each other. A
    cross-entropy, not a divergence: where both agree it is the teacher's own entropy.
    """
    soft = torch.sigmoid(teacher / temperature)
    cells = F.binary_cross_entropy_with_logits(student / temperature, soft, reduction="none")
    return temperature**2 * cells.mean(dim=(1, 2))


def heatmap_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the two probabilities, mean over cells; no temperature: ``[N,h,w]`` twice to ``[N]``.

    Source: Zhang et al., Fast Human Pose Estimation, arXiv 1811.05419, whose small network follows a large one's confidence maps
    in this norm.
    """
    return (torch.sigmoid(student) - torch.sigmoid(teacher)).square().mean(dim=(1, 2))


def heatmap_correlation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·(1 − ρ), ρ Pearson's correlation over cells of the two spatial softmaxes at T: ``[N,h,w]`` twice to ``[N]``.

    Source: Huang et al., DIST, arXiv 2205.10536, the inter-class relation, with the cells of a map as classes. Its
    intra-class relation correlates one class over the pictures of a batch; it is left out: a cell is no class (the same cell
    shows other things in another picture), and it would depend on how the heads are spread over processes.
    The factor T² is the authors' code's; as a correlation hardly depends on T, the gradient grows with it, unlike that of the KL.
    A constant map correlates with nothing: ρ = 0, and a constant teacher gives no gradient.
    """
    cells = student.flatten(1).shape[1]
    # Scaled to mean 1, so that one small constant serves maps of every size.
    mine = torch.softmax(student.flatten(1) / temperature, dim=1) * cells - 1.0
    theirs = torch.softmax(teacher.flatten(1) / temperature, dim=1) * cells - 1.0
    spread = (mine.square().mean(dim=1) + _CORRELATION_EPS) * (theirs.square().mean(dim=1) + _CORRELATION_EPS)
    return temperature**2 * (1.0 - (mine * theirs).mean(dim=1) / spread.sqrt())


def inout_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher‖student) of the two-way in/out distribution at temperature T: ``[N]`` twice to ``[N]``."""
    soft = torch.sigmoid(teacher / temperature)
    cross = F.binary_cross_entropy_with_logits(student / temperature, soft, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher / temperature, soft, reduction="none")
    return temperature**2 * (cross - own)


def teacher_reliability(teacher: Tensor, target: Tensor, annotated: Tensor, sigma: float) -> Tensor:
    """How far each teacher map is to be believed: exp(−d²/2σ²), 1 for heads that are not ``annotated``; ``[N]`` in [0,1].

    ``d`` is the distance, in [0,1] of the map's sides, between the highest cells of ``teacher`` and ``target [N,h,w]`` (with
    several annotators: where most of them agree), ``sigma`` in the same unit. The idea of believing a
    regression teacher only where it is near the truth is the teacher bound of Chen et al. 2017 (NIPS, *Learning Efficient Object
    Detection Models with Knowledge Distillation*), here as a smooth weight.
    """
    height, width = teacher.shape[-2:]
    theirs, true = teacher.flatten(1).argmax(dim=1), target.flatten(1).argmax(dim=1)
    down = (theirs // width - true // width).float() / height
    across = (theirs % width - true % width).float() / width
    believed = torch.exp(-(down**2 + across**2) / (2.0 * sigma**2))
    return torch.where(annotated, believed, torch.ones_like(believed))


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
