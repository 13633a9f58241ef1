"""From logits, batch by batch, to one row a head and the table of a whole split. Heatmaps are not kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from distill.errors import MetricError
from distill.metrics.distances import angular_error, point_errors, predicted_point
from distill.metrics.heatmap_auc import VAT_GRID, gazefollow_auc, gazefollow_auc_64, vat_aucs
from distill.metrics.resampling import resize_bilinear
from distill.metrics.rows import SCORES, GazeMetrics, HeadRows, HeadTruth
from distill.scenes import IN, OUT, UNKNOWN

Protocol = Literal["gazefollow", "gazefollow64", "vat"]


class MetricAccumulator:
    """Scores heads batch by batch.

    ``protocol`` says which AUC: ``gazefollow`` at the picture's own size, ``gazefollow64`` on the heatmap's grid,
    ``vat`` on 64×64 cells with a box around the point (a heatmap of another size is resized bilinearly to it, as
    probabilities). The distances are the same in all three: over heads that are labelled in and have a gaze point;
    in/out AP is over heads labelled in or out.
    """

    def __init__(self, protocol: Protocol = "gazefollow") -> None:
        if protocol not in get_args(Protocol):
            raise MetricError(f"unknown metric protocol {protocol!r}; choose one of {', '.join(get_args(Protocol))}")
        self.protocol: Protocol = protocol
        self._parts: list[HeadRows] = []
        self._with_inout: bool | None = None

    def add(self, heatmaps: ArrayLike, inout: ArrayLike | None, heads: Sequence[HeadTruth]) -> None:
        """Score ``heatmaps [N,h,w]`` logits and ``inout [N]`` logits (or None) against N heads; all of them or none.

        Raises MetricError, naming the scene, for logits that are not finite and for counts that differ.
        """
        logits = np.asarray(heatmaps)
        if logits.ndim != 3 or len(logits) != len(heads):
            raise MetricError(f"heatmaps {list(logits.shape)} for {len(heads)} heads; give [N,h,w] logits for N heads")
        if not heads:
            return
        if self._with_inout not in (None, inout is not None):
            raise MetricError("in/out logits came with some batches and not with others; give them always or never")
        self._refuse_infinite(logits.reshape(len(heads), -1), heads, "heatmap")
        if inout is None:
            scores = np.full(len(heads), np.nan)
        else:
            scores = np.asarray(inout, dtype=np.float64).reshape(-1)
            if len(scores) != len(heads):
                raise MetricError(f"{len(scores)} in/out logits for {len(heads)} heads; give one for each head")
            self._refuse_infinite(scores[:, None], heads, "in/out")
        labels = np.array([head.inout for head in heads], dtype=np.int8)
        if not np.isin(labels, (IN, OUT, UNKNOWN)).all():
            raise MetricError(f"in/out labels must be 1, 0 or -1 (unknown), not {sorted(set(labels.tolist()))}")

        predicted = predicted_point(logits)
        points = [np.asarray(head.points, dtype=np.float64).reshape(-1, 2) for head in heads]
        scored = np.array([k for k, head in enumerate(heads) if head.inout == IN and len(points[k])], dtype=np.int64)
        errors = point_errors(predicted[scored], [points[k] for k in scored])
        columns = {name: np.full(len(heads), np.nan) for name in SCORES}
        columns["avg_l2"][scored] = errors.avg_l2
        columns["avg_l2_mean_of"][scored] = errors.avg_l2_mean_of
        columns["min_l2"][scored] = errors.min_l2
        columns["auc"][scored] = self._aucs(logits[scored], [points[k] for k in scored], [heads[k] for k in scored])

        boxes = np.array([head.box or (np.nan,) * 4 for head in heads], dtype=np.float64)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        distance = np.full(len(heads), np.nan)
        seen = np.array([k for k in scored if heads[k].box is not None], dtype=np.int64)
        if len(seen):
            gaze = np.array([points[k].mean(axis=0) for k in seen])
            distance[seen] = np.hypot(*(gaze - centres[seen]).T)
            columns["angle"][seen] = angular_error(predicted[seen], gaze, centres[seen])
        flat = logits.reshape(len(heads), -1)
        rows = HeadRows(
            np.array([head.scene for head in heads], dtype=object), predicted, inout=labels, inout_logit=scores,
            head_size=boxes[:, 3] - boxes[:, 1], distance=distance, people=np.array([head.people for head in heads], dtype=np.int64),
            constant=flat.max(axis=1) == flat.min(axis=1), **columns,
        )
        self._parts.append(rows)
        self._with_inout = inout is not None

    def rows(self) -> HeadRows:
        """All rows so far."""
        return HeadRows.joined(self._parts)

    def result(self) -> GazeMetrics:
        """The table of all heads so far."""
        return self.rows().metrics()

    def _aucs(self, logits: np.ndarray, points: Sequence[np.ndarray], heads: Sequence[HeadTruth]) -> np.ndarray:
        """The AUC ``[N]`` of N heads that are in the frame; raises MetricError that names the scene."""
        try:
            return self._ranked(logits, points, heads)
        except MetricError:
            for number, head in enumerate(heads):
                try:
                    self._ranked(logits[number : number + 1], points[number : number + 1], [head])
                except MetricError as error:
                    raise MetricError(f"{head.scene or 'a head'}: {error}") from error
            raise

    def _ranked(self, logits: np.ndarray, points: Sequence[np.ndarray], heads: Sequence[HeadTruth]) -> np.ndarray:
        if not heads:
            return np.empty(0)
        if self.protocol == "gazefollow64":
            # The order of the logits is the same, and has none of the sigmoid's rounding ties.
            return gazefollow_auc_64(logits, points)
        if self.protocol == "vat":
            most = max(len(looks) for looks in points)
            if most > 1:
                raise MetricError(f"VideoAttentionTarget's AUC is of one annotator a head, not {most}; use the protocol gazefollow or gazefollow64")
            if logits.shape[1:] != (VAT_GRID, VAT_GRID):
                logits = np.stack([resize_bilinear(heatmap, VAT_GRID, VAT_GRID) for heatmap in sigmoid(logits)])
            return vat_aucs(logits, np.concatenate(points))
        maps = sigmoid(logits)  # every picture has its own size: head by head, all pixels of one at once
        return np.array([gazefollow_auc(heatmap, looks, head.width, head.height) for heatmap, looks, head in zip(maps, points, heads, strict=True)])

    @staticmethod
    def _refuse_infinite(values: np.ndarray, heads: Sequence[HeadTruth], what: str) -> None:
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            where = heads[bad[0]].scene or f"head {int(bad[0])}"
            raise MetricError(
                f"{where}: {what} logits are not finite ({len(bad)} of {len(heads)} heads of the batch); "
                "the model that gave them is broken, nothing was scored"
            )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 of logits of any shape, without overflow; 0.5·(1 + tanh(x/2)) would lose the small ones, this form keeps them."""
    values = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)
