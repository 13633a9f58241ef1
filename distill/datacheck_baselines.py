"""What the rows without a model score on a data set: random, centre, fixed bias, head-position prior, saliency, one human.

Printed by ``distill data check`` so that every later number has something to be compared with. See
:mod:`distill.baselines` for what each row is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from distill.baselines import (
    GRID,
    FixedBias,
    HeadPrior,
    centre_map,
    gaussian_maps,
    one_human,
    random_errors,
    saliency_map,
)
from distill.console import Bar, progress
from distill.errors import PictureError
from distill.metrics import (
    GazeMetrics,
    HeadRows,
    HeadTruth,
    MetricAccumulator,
    PointErrors,
    Protocol,
    angular_error,
    point_errors,
)
from distill.metrics.bootstrap import RESAMPLES, SEED, Interval, intervals
from distill.pictures import load_picture, picture_size
from distill.scenes import IN, Head, Scene, SceneSet
from distill.splits import fraction

ROWS = ("random", "centre", "fixed bias", "head-position prior", "saliency", "one human")
PICTURELESS = ("random", "centre", "fixed bias", "one human")
Sizes = dict[Path, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """One row: its name, its metrics with their intervals, or the ``reason`` why it has none; of a row from another split, which one.

    ``metrics.heads`` may be fewer than the table's: one human needs two annotators, saliency a picture that opens.
    """

    name: str
    metrics: GazeMetrics | None
    reason: str = ""
    intervals: dict[str, Interval | None] = field(default_factory=dict)


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
                cluster = scene.key.rpartition("/")[0] if scene.group else scene.key
                truths.append(HeadTruth(np.array(head.points), IN, *scene.size, scene=cluster, box=head.box, people=len(scene.heads)))
        return cls(np.array(centres).reshape(-1, 2), np.array(gazes).reshape(-1, 2), truths)

    def __len__(self) -> int:
        return len(self.truths)


def score_baselines(
    evaluated: SceneSet,
    training: SceneSet | None,
    sizes: Sizes,
    checked: Sequence[str],
    limit: int,
    *,
    protocol: Protocol | None = None,
    only: Sequence[str] = ROWS,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Baselines | None:
    """Score the rows on the in-frame heads of ``evaluated``; None where it has none whose picture opens.

    ``sizes`` are the pictures' sizes as far as known; of the splits named in ``checked`` every picture was opened, and one
    without a size is broken and left out. More than ``limit`` heads are thinned, whole scenes at a time and by the digest of
    their keys. ``only`` names the rows wanted, ``protocol`` the AUC (by default the data set's own), and ``resamples`` of the scenes
    make the intervals (0: none), drawn by ``seed``.

    The distances of random, head-position prior and one human are those of the points themselves (expected, mean, the annotation); every
    other row's are those of its map's highest cell. One human's distances are the mean over a head's annotators of each one's to the
    others; its AUC is of a Gaussian on one annotator's point, chosen by the digest of the scene's key, against the others' points.
    """
    protocol = protocol or ("vat" if evaluated.reader in ("vat", "childplay") else "gazefollow")
    of = sum(_is_scored(head) for scene in evaluated.scenes for head in scene.heads)
    scenes = list(_usable(_thinned(evaluated.scenes, limit), sizes, evaluated.split in checked))
    heads = _Heads.of(scenes)
    if not len(heads):
        return None
    known = _Heads.of(list(_usable(training.scenes, sizes, training.split in checked)) if training else [])
    points = [np.asarray(truth.points) for truth in heads.truths]

    def prior(bar: Bar) -> HeadRows | str:
        fitted = HeadPrior.fit(known.centres, known.gazes)
        exact = fitted.predict_points(heads.centres)
        rows = _with_errors(_score(fitted.predict(heads.centres), heads, protocol, bar), point_errors(exact, points))
        return replace(rows, angle=angular_error(exact, heads.gazes, heads.centres))

    makers: dict[str, Callable[[Bar], HeadRows | str]] = {
        "random": lambda bar: _random(heads, points, bar),
        "centre": lambda bar: _score(centre_map(len(heads)), heads, protocol, bar),
        "fixed bias": lambda bar: _score(FixedBias.fit(known.gazes).predict(len(heads)), heads, protocol, bar),
        "head-position prior": prior,
        "saliency": lambda bar: _saliency(scenes, protocol, bar),
        "one human": lambda bar: _human(heads, points, protocol, bar),
    }
    if not len(known):
        reason = "no in-frame head in the training split" if training else "no training split apart from the scored one"
        makers |= {name: lambda bar: reason for name in ("fixed bias", "head-position prior")}
    rows = []
    with progress("Scoring baselines", total=len(only) * len(heads), unit="heads") as bar:
        for number, name in enumerate(only, start=1):
            found = makers[name](bar)
            bar.update(number * len(heads) - bar.done)
            if isinstance(found, str):
                rows.append(BaselineRow(name, None, found))
            else:
                rows.append(BaselineRow(name, found.metrics(), "", intervals(found, resamples=resamples, seed=seed) if resamples else {}))
    return Baselines(evaluated.split, protocol, len(heads), of, len(known), tuple(rows))


def score_without_pictures(evaluated: SceneSet, training: SceneSet | None, limit: int, *, only: Sequence[str] = ROWS) -> Baselines | None:
    """The rows that gaze points alone are enough for, where no picture opens; None where points are in pixels of pictures of unknown size.

    AUC is on the maps' own grid (``gazefollow64``), as the pictures' sizes are not known. There is no angle: head boxes are in pixels.
    """
    named = [name for name in only if name in PICTURELESS]
    if not named or any(scene.point_pixels and scene.size is None for data in (evaluated, training) if data for scene in data.scenes):
        return None
    bare = [None if data is None else replace(data, scenes=tuple(map(_bare, data.scenes))) for data in (evaluated, training)]
    assert bare[0] is not None
    found = score_baselines(bare[0], bare[1], {}, (), limit, protocol="gazefollow64", only=named)
    if found is None:
        return None
    rows = {
        row.name: replace(row, metrics=row.metrics and replace(row.metrics, angle=None), intervals={**row.intervals, "angle": None}) for row in found.rows
    }
    return replace(found, rows=tuple(rows.get(name, BaselineRow(name, None, "no picture opens")) for name in only))


def _bare(scene: Scene) -> Scene:
    """The scene with points in [0,1], as of a picture of the maps' own size, and boxes that mean nothing."""
    width, height = scene.size if scene.size and scene.point_pixels else (1, 1)
    heads = (
        replace(head, box=(0.0, 0.0, 1.0, 1.0), points=tuple((x / width, y / height) for x, y in head.points)) for head in scene.heads
    )
    return replace(scene, heads=tuple(heads), size=(GRID, GRID), box_pixels=False, point_pixels=False)


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


def _score(maps: np.ndarray, heads: _Heads, protocol: Protocol, bar: Bar) -> HeadRows:
    accumulator = MetricAccumulator(protocol)
    for start in range(0, len(heads), 64):
        truths = heads.truths[start : start + 64]
        accumulator.add(maps[start : start + 64], None, truths)
        bar.update(len(truths))
    return accumulator.rows()


def _with_errors(rows: HeadRows, errors: PointErrors) -> HeadRows:
    """The rows with the distances of exact points; their angle would be that of the cells, so it is left out."""
    return replace(
        rows, avg_l2=errors.avg_l2, avg_l2_mean_of=errors.avg_l2_mean_of, min_l2=errors.min_l2, angle=np.full(len(rows), np.nan)
    )


def _random(heads: _Heads, points: Sequence[np.ndarray], bar: Bar) -> HeadRows:
    errors = random_errors(points)
    none = np.full(len(heads), np.nan)
    scenes = np.array([truth.scene for truth in heads.truths], dtype=object)
    rows = HeadRows(
        scenes, np.full((len(heads), 2), np.nan), np.full(len(heads), 0.5), none, none, none,
        inout=np.full(len(heads), IN, dtype=np.int8), inout_logit=none, angle=none, head_size=none, distance=none,
        people=np.zeros(len(heads), dtype=np.int64), constant=np.zeros(len(heads), dtype=bool),
    )
    return _with_errors(rows, errors)


def _human(heads: _Heads, points: Sequence[np.ndarray], protocol: Protocol, bar: Bar) -> HeadRows | str:
    several = [number for number, looks in enumerate(points) if len(looks) > 1]
    if protocol == "vat" or not several:
        return "one annotator a head" if not several else "VideoAttentionTarget's AUC is of one annotator"
    judged = [one_human(points[number]) for number in several]
    errors = PointErrors(*(np.array([getattr(each, f.name).mean() for each in judged]) for f in fields(PointErrors)))
    shown, truths = [], []
    for number in several:
        truth, looks = heads.truths[number], points[number]
        left = int(fraction(f"human\0{truth.scene}") * len(looks))
        shown.append(looks[left])
        truths.append(replace(truth, points=np.delete(looks, left, axis=0)))
    return _with_errors(_score(gaussian_maps(shown), replace(heads, truths=truths), protocol, bar), errors)


def _saliency(scenes: Sequence[Scene], protocol: Protocol, bar: Bar) -> HeadRows | str:
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
    rows = accumulator.rows()
    return rows if len(rows) else "no picture opens"
