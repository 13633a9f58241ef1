"""What each loss term weighs: plain numbers by name, known before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

DISTILL_LOSSES = ("kl", "bce", "mse", "dist")  # how a student's heatmap may follow its teacher's


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of :func:`students.losses.gaze_losses`, all at least 0; a term of weight 0 is not computed.

    The distillation terms' weights say how they share the plan's distillation weight w, which multiplies them all.
    """

    inout: float = 1.0
    """λ: in/out against the labels, and against the teacher unless ``kd_inout`` says otherwise."""
    bce: float = 1.0
    """Heatmap BCE against the target."""
    softmax: float = 0.0
    """Spatial cross-entropy against the target."""
    kl: float = 1.0
    """KL(T)·T² of the spatial softmax against the teacher's."""
    soft_bce: float = 0.0
    """BCE per cell against the teacher's probability."""
    mse: float = 0.0
    """Squared difference per cell of the two probabilities."""
    dist: float = 0.0
    """1 − correlation of the two maps (DIST)."""
    kd_inout: float | None = None
    """In/out against the teacher; None for ``inout``."""
    reliability: float = 0.0
    """σ, as a share of the map, of the Gaussian by which a teacher is believed less the further its peak lies from the annotation; 0: always believed."""

    @property
    def distillation(self) -> dict[str, float]:
        """The heatmap's distillation terms by the names of ``DISTILL_LOSSES``."""
        return dict(zip(DISTILL_LOSSES, (self.kl, self.soft_bce, self.mse, self.dist), strict=True))

    @property
    def inout_distillation(self) -> float:
        """What in/out against the teacher weighs."""
        return self.inout if self.kd_inout is None else self.kd_inout
