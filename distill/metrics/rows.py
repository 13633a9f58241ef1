"""One row a head, and the table made of the rows. A row holds a head's scores, not its heatmap, so that intervals, slices and paired
differences are taken later from the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distill.metrics.ranking import average_precision, prevalence
from distill.scenes import UNKNOWN

# Columns that are NaN for a head that is not scored; the table of a split holds their means.
SCORES = ("auc", "avg_l2", "avg_l2_mean_of", "min_l2", "angle")


@dataclass(frozen=True)
class HeadTruth:
    """What is known of one head.

    ``points [A,2]`` in [0,1] of the picture (empty for an out-of-frame head), ``inout`` 1, 0 or -1 (in, out, unknown),
    the picture's own ``width`` and ``height`` in pixels, and the ``scene`` (for video the clip) that rows are grouped by.
    ``box`` xyxy in [0,1] is the head's, if known, and ``people`` how many heads the picture has (0: not known).
    """

    points: ArrayLike
    inout: int
    width: int
    height: int
    scene: str = ""
    box: tuple[float, float, float, float] | None = None
    people: int = 0


@dataclass(frozen=True)
class GazeMetrics:
    """The means over a split. ``auc`` in [0,1], distances in [0,1] of the picture's sides, ``None`` where undefined.

    ``avg_l2`` is to the mean annotation, as the field prints; ``avg_l2_mean_of`` is the mean of the distances. ``ap``
    is the average precision of in/out and ``ap_prevalence`` the share of in among the labelled heads. ``heads`` counts
    all heads, ``heads_in`` those that AUC and distances are over: labelled in, with a gaze point. ``angle`` is the angular error in
    degrees, seen from the head's centre in [0,1] coordinates; None where a head's box is not known.
    """

    auc: float | None
    avg_l2: float | None
    avg_l2_mean_of: float | None
    min_l2: float | None
    ap: float | None
    ap_prevalence: float | None
    heads: int
    heads_in: int
    angle: float | None = None


@dataclass(frozen=True)
class HeadRows:
    """One row a head, in the order added; columns ``[N]``, ``predicted [N,2]`` xy in [0,1).

    NaN marks what a head does not have: AUC and distances of heads that are not labelled in, or have no gaze point,
    ``inout_logit`` of a model without in/out, ``angle`` (degrees), ``head_size`` (the box's height in [0,1] of the picture's) and
    ``distance`` (from the box's centre to the mean annotation, in [0,1] of the sides) without a box. ``people`` is 0 where it is
    not known; ``constant`` marks a heatmap whose cells are all equal.
    """

    scene: np.ndarray
    predicted: np.ndarray
    auc: np.ndarray
    avg_l2: np.ndarray
    avg_l2_mean_of: np.ndarray
    min_l2: np.ndarray
    inout: np.ndarray
    inout_logit: np.ndarray
    angle: np.ndarray
    head_size: np.ndarray
    distance: np.ndarray
    people: np.ndarray
    constant: np.ndarray

    @classmethod
    def empty(cls) -> HeadRows:
        """No heads."""
        kinds: dict[str, Any] = {"scene": object, "inout": np.int8, "people": np.int64, "constant": bool}
        columns = {field.name: np.empty(0, dtype=kinds.get(field.name, np.float64)) for field in fields(cls)}
        return cls(**{**columns, "predicted": np.empty((0, 2))})

    @classmethod
    def joined(cls, parts: list[HeadRows]) -> HeadRows:
        """The rows of all parts, one after another."""
        if not parts:
            return cls.empty()
        return cls(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def __len__(self) -> int:
        return len(self.auc)

    @property
    def scored(self) -> np.ndarray:
        """Which heads ``[N]`` have an AUC and distances."""
        return ~np.isnan(self.auc)

    @property
    def labelled(self) -> np.ndarray:
        """Which heads ``[N]`` are labelled in or out."""
        return self.inout != UNKNOWN

    @property
    def has_inout(self) -> bool:
        """Whether there are labelled heads and the model says in or out of them."""
        return bool(self.labelled.any()) and not np.isnan(self.inout_logit[self.labelled]).any()

    def take(self, which: np.ndarray) -> HeadRows:
        """The rows of a mask or of indices, which may repeat."""
        return HeadRows(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def metrics(self) -> GazeMetrics:
        """The table of these rows: every head weighs the same."""
        scored, labelled = self.scored, self.labelled
        means = {name: _mean(getattr(self, name)[scored]) for name in SCORES}
        return GazeMetrics(
            **means,
            ap=average_precision(self.inout_logit[labelled], self.inout[labelled]) if self.has_inout else None,
            ap_prevalence=prevalence(self.inout[labelled]),
            heads=len(self),
            heads_in=int(scored.sum()),
        )


def _mean(column: np.ndarray) -> float | None:
    return float(column.mean()) if column.size and not np.isnan(column).any() else None
