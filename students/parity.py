"""Parity: by how much one gaze model's answers differ from another's on the same scenes, and how much of that is allowed.

The gate of every export. Answers are compared as users see them: probabilities (the sigmoid of logits), the heatmap's highest
cell, and on which side of one half the in/out probability falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from students.errors import ExportError
from teachers.contract import GazeOutput

GazeCall = Callable[[Tensor, Tensor, Tensor], GazeOutput]


@dataclass(frozen=True)
class SceneBatch:
    """Some scenes to compare on: ``images [B,3,H,W]`` RGB in [0,1], ``boxes [N,4]`` xyxy in [0,1], ``image_index [N]``.

    ``names [B]`` are the scenes' keys, for messages. Every scene has a head at least.
    """

    images: Tensor
    boxes: Tensor
    image_index: Tensor
    names: Sequence[str]


@dataclass(frozen=True)
class Tolerance:
    """What may differ: |Δprobability| of cells and of in/out, share of heads with an equal argmax, share of in/out flips."""

    probability: float = 1e-3
    argmax_equal: float = 0.99
    inout_flips: float = 0.0


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
    in cells, ``argmax_equal`` and ``inout_flips`` shares of heads in [0,1]. ``worst`` are the scenes that differ most, worst first.
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

    def failures(self, tolerance: Tolerance) -> list[str]:
        """What is beyond ``tolerance``, in words; empty if nothing is."""
        if not self.finite:
            return ["an answer is not finite"]
        found = []
        if not self.heatmap_probability <= tolerance.probability:
            found.append(f"heatmap |Δp| {self.heatmap_probability:.3g} > {tolerance.probability:g}")
        if self.inout_probability is not None and not self.inout_probability <= tolerance.probability:
            found.append(f"in/out |Δp| {self.inout_probability:.3g} > {tolerance.probability:g}")
        if not self.argmax_equal >= tolerance.argmax_equal:
            found.append(f"argmax equal on {self.argmax_equal:.2%} of heads < {tolerance.argmax_equal:.0%}")
        if self.inout_flips is not None and not self.inout_flips <= tolerance.inout_flips:
            found.append(f"in/out flips on {self.inout_flips:.2%} of heads > {tolerance.inout_flips:.0%}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data, without the scenes."""
        return {
            "scenes": self.scenes, "heads": self.heads, "heatmap_probability": self.heatmap_probability,
            "inout_probability": self.inout_probability, "argmax_equal": self.argmax_equal,
            "mean_argmax_shift": self.mean_argmax_shift, "max_argmax_shift": self.max_argmax_shift,
            "inout_flips": self.inout_flips,
        }


def _probability(logits: Tensor) -> np.ndarray:
    return torch.sigmoid(logits.detach().double().cpu()).numpy()


def _argmax_cells(heatmaps: np.ndarray) -> np.ndarray:
    """Row and column ``[N,2]`` of each map's highest cell, the first of equal ones."""
    count, _, width = heatmaps.shape
    best = heatmaps.reshape(count, -1).argmax(axis=1)
    return np.stack((best // width, best % width), axis=1)


def compare(reference: GazeCall, candidate: GazeCall, scenes: Iterable[SceneBatch], *, worst: int = 3) -> Parity:
    """Run both models on all ``scenes`` and measure; ``worst`` is how many scenes to name.

    Raises :class:`ExportError` when there is no head to compare on, when the reference itself is not finite, or when only one of
    the two has in/out answers.
    """
    probability: list[np.ndarray] = []
    shift: list[np.ndarray] = []
    inout: list[np.ndarray] = []
    flips: list[np.ndarray] = []
    ranked: list[SceneDifference] = []
    for batch in scenes:
        with torch.inference_mode():
            wanted = reference(batch.images, batch.boxes, batch.image_index)
            got = candidate(batch.images, batch.boxes, batch.image_index)
        p, s, i, f = _differences(wanted, got, batch)
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
    ranked.sort(key=lambda scene: (scene.finite, -scene.flipped, -scene.probability, -scene.argmax_shift))
    return Parity(
        scenes=len(ranked), heads=len(p), finite=all(scene.finite for scene in ranked),
        heatmap_probability=float(p.max()), inout_probability=float(i.max()) if len(i) else None,
        argmax_equal=float((s == 0).mean()), mean_argmax_shift=float(s.mean()), max_argmax_shift=float(s.max()),
        inout_flips=float(f.mean()) if len(f) else None, worst=tuple(ranked[:worst]),
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
