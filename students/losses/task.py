"""Losses against the annotations. The target itself (a Gaussian on the gaze point) is drawn by whoever makes the batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
