"""What the rows without a model score on a data set: centre, fixed bias, head-position prior, saliency.

Printed by ``distill data check`` so that every later number has something to be compared with. See
:mod:`distill.baselines` for what each row is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distill.baselines import FixedBias, HeadPrior, centre_map, saliency_map
from distill.console import Bar, progress
from distill.errors import PictureError
from distill.metrics import GazeMetrics, HeadTruth, MetricAccumulator, Protocol, point_errors
from distill.pictures import load_picture, picture_size
from distill.scenes import IN, Head, Scene, SceneSet
from distill.splits import fraction

Sizes = dict[Path, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """One row: its name, and its metrics or the reason why it has none."""

    name: str
    metrics: GazeMetrics | None
    reason: str = ""


@dataclass(frozen=True)
class Baselines:
    """All rows, scored on ``heads`` of the ``of`` in-frame heads of ``split`` by ``protocol``.

    ``prior_heads`` counts the training heads that the fixed bias and the head-position prior are taken from.
    """

    split: str
    protocol: str
    heads: int
    of: int
    prior_heads: int
    rows: tuple[BaselineRow, ...]


@dataclass(frozen=True)
class _Heads:
    """In-frame heads: centres ``[N,2]``, mean gaze points ``[N,2]`` in [0,1], and the truths that metrics take."""

    centres: np.ndarray
    gazes: np.ndarray
    truths: list[HeadTruth]

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> _Heads:
        centres, gazes, truths = [], [], []
        for scene in scenes:
            assert scene.size is not None
            for head in scene.heads:
                x0, y0, x1, y1 = head.box
                centres.append(((x0 + x1) / 2, (y0 + y1) / 2))
                gazes.append(np.mean(head.points, axis=0))
                truths.append(HeadTruth(np.array(head.points), IN, *scene.size, scene=scene.key))
        return cls(np.array(centres).reshape(-1, 2), np.array(gazes).reshape(-1, 2), truths)

    def __len__(self) -> int:
        return len(self.truths)


def score_baselines(
    evaluated: SceneSet, training: SceneSet | None, sizes: Sizes, checked: Sequence[str], limit: int
) -> Baselines | None:
    """Score the rows on the in-frame heads of ``evaluated``; None where it has none whose picture opens.

    ``sizes`` are the pictures' sizes as far as known; of the splits named in ``checked`` every picture was opened, and one
    without a size is broken and left out. More than ``limit`` heads are thinned, whole scenes at a time and by the digest of
    their keys. The head-position prior's distances are those of the mean point itself; every other row's are those of
    its map's highest cell.
    """
    protocol: Protocol = "vat" if evaluated.reader in ("vat", "childplay") else "gazefollow"
    of = sum(_is_scored(head) for scene in evaluated.scenes for head in scene.heads)
    scenes = list(_usable(_thinned(evaluated.scenes, limit), sizes, evaluated.split in checked))
    heads = _Heads.of(scenes)
    if not len(heads):
        return None
    known = _Heads.of(list(_usable(training.scenes, sizes, training.split in checked)) if training else [])
    with progress("Scoring baselines", total=(4 if len(known) else 2) * len(heads), unit="heads") as bar:
        rows = [_score("centre", centre_map(len(heads)), heads, protocol, bar)]
        if len(known):
            prior = HeadPrior.fit(known.centres, known.gazes)
            points = prior.predict_points(heads.centres)
            rows.append(_score("fixed bias", FixedBias.fit(known.gazes).predict(len(heads)), heads, protocol, bar))
            rows.append(_score("head-position prior", prior.predict(heads.centres), heads, protocol, bar, points))
        else:
            reason = "no in-frame head in the training split" if training else "no training split apart from the scored one"
            rows += [BaselineRow(name, None, reason) for name in ("fixed bias", "head-position prior")]
        rows.append(_saliency(scenes, protocol, bar))
    return Baselines(evaluated.split, protocol, len(heads), of, len(known), tuple(rows))


def _is_scored(head: Head) -> bool:
    return head.inout == IN and len(head.points) > 0


def _thinned(scenes: Sequence[Scene], limit: int) -> list[Scene]:
    """Scenes with in-frame heads, about ``limit`` such heads; which ones depends on their keys alone."""
    counted = [(scene, sum(map(_is_scored, scene.heads))) for scene in scenes]
    counted = [(scene, count) for scene, count in counted if count]
    if sum(count for _, count in counted) <= limit:
        return [scene for scene, _ in counted]
    # Not the digest of the key itself: validation scenes are those whose digests are small.
    counted.sort(key=lambda pair: fraction(f"baselines\0{pair[0].key}"))
    taken: list[Scene] = []
    total = 0
    for scene, count in counted:
        if total + count > limit and taken:
            break
        taken.append(scene)
        total += count
    return sorted(taken, key=lambda scene: scene.key)


def _usable(scenes: Sequence[Scene], sizes: Sizes, checked: bool) -> Iterator[Scene]:
    """The scenes in [0,1] whose pictures can be opened, with in-frame heads only."""
    for scene in scenes:
        heads = tuple(filter(_is_scored, scene.heads))
        if not heads:
            continue
        size = sizes.get(scene.picture)
        if size is None and not checked:
            try:
                size = sizes[scene.picture] = scene.size or picture_size(scene.picture)
            except PictureError:
                # The check of the pictures names it; a row without a model has no use for it.
                continue
        if size is not None:
            yield replace(scene, heads=heads).normalised(*size)


def _score(
    name: str, maps: np.ndarray, heads: _Heads, protocol: Protocol, bar: Bar, points: np.ndarray | None = None
) -> BaselineRow:
    accumulator = MetricAccumulator(protocol)
    for start in range(0, len(heads), 64):
        truths = heads.truths[start : start + 64]
        accumulator.add(maps[start : start + 64], None, truths)
        bar.update(len(truths))
    metrics = accumulator.result()
    if points is not None:
        errors = point_errors(points, [truth.points for truth in heads.truths])
        metrics = replace(
            metrics,
            avg_l2=float(errors.avg_l2.mean()),
            avg_l2_mean_of=float(errors.avg_l2_mean_of.mean()),
            min_l2=float(errors.min_l2.mean()),
        )
    return BaselineRow(name, metrics)


def _saliency(scenes: Sequence[Scene], protocol: Protocol, bar: Bar) -> BaselineRow:
    accumulator = MetricAccumulator(protocol)
    for scene in scenes:
        heads = _Heads.of([scene])
        bar.update(len(heads))
        try:
            picture = load_picture(scene.picture)
        except PictureError:
            # Reached without a check of the pictures, which would have named it.
            continue
        accumulator.add(np.repeat(saliency_map(picture)[None], len(heads), axis=0), None, heads.truths)
    metrics = accumulator.result()
    return BaselineRow("saliency", metrics) if metrics.heads_in else BaselineRow("saliency", None, "no picture opens")
