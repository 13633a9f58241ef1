"""Gaze metrics by the field's published protocols: NumPy only, exact under ties, each tested against brute force.

========================  ==============================================================================================
``heatmap_auc``           GazeFollow AUC at the picture's size and on the heatmap's grid, VideoAttentionTarget AUC
``distances``             predicted point, the two average L2 distances, min L2, angular error
``ranking``               ROC-AUC, average precision, prevalence
``accumulator``           one row a head from logits, and the table made of the rows
========================  ==============================================================================================

Bad input (a heatmap that is not finite, a shape that does not fit) raises :class:`distill.errors.MetricError`; it never
becomes a score. What is undefined (AP of one class, AUC without an in-frame head) is ``None`` in a table.
"""

from distill.metrics.accumulator import MetricAccumulator, Protocol, sigmoid
from distill.metrics.distances import (
    PointErrors,
    angular_error,
    avg_l2,
    avg_l2_mean_of,
    min_l2,
    point_errors,
    predicted_point,
)
from distill.metrics.heatmap_auc import gazefollow_auc, gazefollow_auc_64, vat_auc, vat_aucs
from distill.metrics.ranking import average_precision, prevalence, roc_auc, roc_aucs
from distill.metrics.resampling import resize_bilinear
from distill.metrics.rows import GazeMetrics, HeadRows, HeadTruth

__all__ = [
    "GazeMetrics",
    "HeadRows",
    "HeadTruth",
    "MetricAccumulator",
    "PointErrors",
    "Protocol",
    "angular_error",
    "average_precision",
    "avg_l2",
    "avg_l2_mean_of",
    "gazefollow_auc",
    "gazefollow_auc_64",
    "min_l2",
    "point_errors",
    "predicted_point",
    "prevalence",
    "resize_bilinear",
    "roc_auc",
    "roc_aucs",
    "sigmoid",
    "vat_auc",
    "vat_aucs",
]
