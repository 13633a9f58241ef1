"""Task and distillation losses, by name: each term in a function with its source, and one step's terms put together."""

from students.loss_weights import DISTILL_LOSSES, LossWeights
from students.losses.distillation import (
    heatmap_correlation,
    heatmap_kl,
    heatmap_mse,
    heatmap_soft_bce,
    inout_kl,
    mass_near_peak,
    teacher_reliability,
)
from students.losses.step import HeadCounts, Losses, gaze_losses, loss_record
from students.losses.task import heatmap_bce, spatial_cross_entropy

__all__ = [
    "DISTILL_LOSSES", "LossWeights", "HeadCounts", "Losses", "gaze_losses", "loss_record", "heatmap_bce", "spatial_cross_entropy",
    "heatmap_kl", "heatmap_soft_bce", "heatmap_mse", "heatmap_correlation", "inout_kl", "teacher_reliability", "mass_near_peak",
]
