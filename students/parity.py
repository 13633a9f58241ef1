"""Parity: by how much one gaze model's answers differ from another's on the same scenes, and how much of that is allowed.

The gate of every export. Answers are compared as users see them: probabilities (the sigmoid of logits), the heatmap's highest
cell, and on which side of one half the in/out probability falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from students.errors import ExportError
from teachers.contract import GazeOutput

# Cells this near in value (relative, of float32 logits) are the same place. Where a map is resized bilinearly to more cells, its outermost
# rows and columns are repeated, so a peak at the edge of the picture is two cells of one value, and rounding decides between them.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class SceneBatch:
    """Some scenes to compare on: ``images [B,3,H,W]`` RGB in [0,1], ``boxes [N,4]`` xyxy in [0,1], ``image_index [N]``.

    ``names [B]`` are the scenes' keys, for messages. ``pictures [B]`` are the same scenes as they were decoded, uint8 RGB ``[h,w,3]``
    of any size each: what an exported file gets to see; ``images`` are these as training resizes them. ``labels [B]`` are handed to
    the scorers and not looked at here. Every scene has a head at least.
    """

    images: Tensor
    boxes: Tensor
    image_index: Tensor
    names: Sequence[str]
    pictures: Sequence[np.ndarray] = ()
    labels: Sequence[Any] = ()


GazeCall = Callable[[SceneBatch], GazeOutput]


class Scorer(Protocol):
    """What turns answers into the metrics of the field, passed in from above: ``auc`` and ``avg_l2``, None where undefined."""

    def add(self, batch: SceneBatch, heatmap: np.ndarray, inout: np.ndarray | None) -> None: ...

    def result(self) -> Mapping[str, float | None]: ...


@dataclass(frozen=True)
class Tolerance:
    """What may differ; None: not asked.

    ``probability``: |Δprobability| of cells and of in/out; ``argmax_equal``: share of heads with the same highest cell, at least;
    ``mean_shift``: of that cell, in cells; ``auc_loss`` and ``avg_l2_gain``: by how much the metrics may be worse on the gate's scenes;
    ``inout_flips``: share of heads whose in/out answer flips.
    """

    probability: float | None = 1e-3
    argmax_equal: float | None = 0.99
    mean_shift: float | None = None
    auc_loss: float | None = None
    avg_l2_gain: float | None = None
    inout_flips: float | None = 0.0


# What a file of each precision may differ by.
TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(),
    "float16": Tolerance(probability=1e-2, argmax_equal=None, mean_shift=0.25, inout_flips=0.01),
    "int8": Tolerance(probability=None, argmax_equal=None, auc_loss=0.005, avg_l2_gain=0.005, inout_flips=0.02),
}


@dataclass(frozen=True)
class SceneDifference:
    """One scene's largest differences over its heads: probability, argmax in cells, whether an in/out answer flipped."""

    name: str
    probability: float
    argmax_shift: float
    flipped: bool
    finite: bool = True

    def describe(self) -> str:
        if not self.finite:
            return f"{self.name} (values that are not finite)"
        flipped = ", in/out flipped" if self.flipped else ""
        return f"{self.name} (|Δp| {self.probability:.2g}, argmax {self.argmax_shift:.1f} cells{flipped})"


@dataclass(frozen=True)
class Parity:
    """Differences over all scenes.

    ``heatmap_probability`` and ``inout_probability`` are the largest |Δprobability| (the latter None without in/out), shifts are
    in cells, ``argmax_equal`` and ``inout_flips`` shares of heads in [0,1]. ``worst`` are the scenes that differ most in probability
    (flips of in/out before all), worst first, ``moved`` those whose highest cell is farthest away;
    ``reference_metrics`` and ``metrics`` are both models' scores on the scenes, None where nothing scored them.
    """

    scenes: int
    heads: int
    finite: bool
    heatmap_probability: float
    inout_probability: float | None
    argmax_equal: float
    mean_argmax_shift: float
    max_argmax_shift: float
    inout_flips: float | None
    worst: tuple[SceneDifference, ...]
    moved: tuple[SceneDifference, ...] = ()
    reference_metrics: Mapping[str, float | None] | None = None
    metrics: Mapping[str, float | None] | None = None

    def change(self, metric: str) -> float | None:
        """By how much ``metric`` differs from the student's on the same scenes; None where either is undefined or not scored."""
        ours, theirs = (each.get(metric) if each else None for each in (self.metrics, self.reference_metrics))
        return None if ours is None or theirs is None else ours - theirs

    def failures(self, tolerance: Tolerance) -> list[str]:
        """What is beyond ``tolerance``, in words; empty if nothing is. A metric that is asked for and undefined is a failure."""
        if not self.finite:
            return ["an answer is not finite"]
        loss = self.change("auc")
        most = (
            ("heatmap |Δp|", self.heatmap_probability, tolerance.probability, "{:.3g}", True),
            ("in/out |Δp|", self.inout_probability, tolerance.probability, "{:.3g}", False),
            ("mean argmax shift in cells", self.mean_argmax_shift, tolerance.mean_shift, "{:.3g}", True),
            ("loss of AUC", None if loss is None else -loss, tolerance.auc_loss, "{:.4f}", True),
            ("gain of avg L2", self.change("avg_l2"), tolerance.avg_l2_gain, "{:.4f}", True),
            ("in/out flips, share of heads,", self.inout_flips, tolerance.inout_flips, "{:.2%}", False),
        )
        found = []
        for what, value, allowed, form, needed in most:
            if allowed is None or (value is None and not needed):
                continue
            if value is None:
                found.append(f"{what} is not to be had: no gaze point in the scenes (give scenes with annotations by --data)")
            elif not value <= allowed:
                found.append(f"{what} {form.format(value)} > {allowed:g}")
        if tolerance.argmax_equal is not None and not self.argmax_equal >= tolerance.argmax_equal:
            found.append(f"argmax equal on {self.argmax_equal:.2%} of heads < {tolerance.argmax_equal:.0%}")
        return found

    def named(self, tolerance: Tolerance) -> tuple[SceneDifference, ...]:
        """The scenes to name where this is refused: those that differ most in what is beyond ``tolerance``."""
        inner = replace(tolerance, argmax_equal=None, mean_shift=None, auc_loss=None, avg_l2_gain=None)
        return self.worst if self.failures(inner) or not self.moved else self.moved

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data, without the scenes."""
        return {
            "scenes": self.scenes, "heads": self.heads, "heatmap_probability": self.heatmap_probability,
            "inout_probability": self.inout_probability, "argmax_equal": self.argmax_equal,
            "mean_argmax_shift": self.mean_argmax_shift, "max_argmax_shift": self.max_argmax_shift,
            "inout_flips": self.inout_flips, "auc_change": self.change("auc"), "avg_l2_change": self.change("avg_l2"),
            "reference_metrics": None if self.reference_metrics is None else dict(self.reference_metrics),
            "metrics": None if self.metrics is None else dict(self.metrics),
        }


def _probability(logits: Tensor) -> np.ndarray:
    return torch.sigmoid(logits.detach().double().cpu()).numpy()


def _argmax_cells(heatmaps: np.ndarray) -> np.ndarray:
    """Row and column ``[N,2]`` of each map's highest cell, the first of those that are equal but for :data:`ROUNDING`."""
    count, _, width = heatmaps.shape
    flat = heatmaps.reshape(count, -1)
    highest = flat.max(axis=1, keepdims=True)
    best = (flat >= highest - ROUNDING * np.maximum(1.0, np.abs(highest))).argmax(axis=1)
    return np.stack((best // width, best % width), axis=1)


def compare(
    reference: GazeCall, candidate: GazeCall, scenes: Iterable[SceneBatch], *, worst: int = 3, scorer: Callable[[], Scorer] | None = None
) -> Parity:
    """Run both models on all ``scenes`` and measure; ``worst`` is how many scenes to name, ``scorer`` makes one scorer for each model.

    Raises :class:`ExportError` when there is no head to compare on, when the reference itself is not finite, or when only one of
    the two has in/out answers.
    """
    probability: list[np.ndarray] = []
    shift: list[np.ndarray] = []
    inout: list[np.ndarray] = []
    flips: list[np.ndarray] = []
    ranked: list[SceneDifference] = []
    scorers = None if scorer is None else (scorer(), scorer())
    for batch in scenes:
        with torch.inference_mode():
            wanted, got = reference(batch), candidate(batch)
        p, s, i, f = _differences(wanted, got, batch)
        if scorers is not None and all(np.isfinite(p)) and all(np.isfinite(i)):
            for each, answer in zip(scorers, (wanted, got), strict=True):
                each.add(batch, answer.heatmap.float().cpu().numpy(), None if answer.inout is None else answer.inout.float().cpu().numpy())
        index = batch.image_index.cpu().numpy()
        for number, name in enumerate(batch.names):
            mine = index == number
            if mine.any():
                # np.max, unlike max, lets what is not finite through. Without in/out, i and f have no rows.
                largest = float(np.max([*p[mine], *(i[mine] if len(i) else ())]))
                flipped = bool(len(f) and f[mine].any())
                ranked.append(SceneDifference(name, largest, float(s[mine].max()), flipped, bool(np.isfinite(largest))))
        probability.append(p)
        shift.append(s)
        inout.append(i)
        flips.append(f)
    if not ranked:
        raise ExportError("there is no head to compare the exported file on; give scenes with heads")
    p, s, i, f = (np.concatenate(parts) for parts in (probability, shift, inout, flips))
    moved = sorted(ranked, key=lambda scene: (-scene.argmax_shift, -scene.probability))
    ranked.sort(key=lambda scene: (scene.finite, -scene.flipped, -scene.probability, -scene.argmax_shift))
    return Parity(
        scenes=len(ranked), heads=len(p), finite=all(scene.finite for scene in ranked),
        heatmap_probability=float(p.max()), inout_probability=float(i.max()) if len(i) else None,
        argmax_equal=float((s == 0).mean()), mean_argmax_shift=float(s.mean()), max_argmax_shift=float(s.max()),
        inout_flips=float(f.mean()) if len(f) else None, worst=tuple(ranked[:worst]), moved=tuple(moved[:worst]),
        reference_metrics=None if scorers is None else scorers[0].result(), metrics=None if scorers is None else scorers[1].result(),
    )


def _differences(
    wanted: GazeOutput, got: GazeOutput, batch: SceneBatch
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per head ``[N]``: |Δp| of the heatmap, argmax shift in cells, |Δp| of in/out, in/out flip (the last two may be empty)."""
    if wanted.heatmap.shape != got.heatmap.shape or (wanted.inout is None) != (got.inout is None):
        raise ExportError(
            f"the two models do not answer alike: heatmap {list(got.heatmap.shape)} for {list(wanted.heatmap.shape)}, in/out "
            f"{'absent' if got.inout is None else 'present'}; export the student again"
        )
    finite = torch.isfinite(wanted.heatmap).flatten(1).all(1)
    if wanted.inout is not None:
        finite &= torch.isfinite(wanted.inout)
    if not finite.all():
        name = batch.names[int(batch.image_index[int((~finite).nonzero()[0, 0])])]
        raise ExportError(f"the student itself answers with values that are not finite on scene {name}; train it again")
    maps, other = _probability(wanted.heatmap), _probability(got.heatmap)
    difference = np.abs(maps - other).reshape(len(maps), -1).max(axis=1)
    # The argmax is taken of the logits: high probabilities are equal where their logits are not.
    cells = _argmax_cells(wanted.heatmap.detach().cpu().numpy()) - _argmax_cells(got.heatmap.detach().cpu().numpy())
    shift = np.hypot(cells[:, 0], cells[:, 1])
    if wanted.inout is None or got.inout is None:
        return difference, shift, np.empty(0), np.empty(0, dtype=bool)
    first, second = _probability(wanted.inout), _probability(got.inout)
    return difference, shift, np.abs(first - second), (first >= 0.5) != (second >= 0.5)
