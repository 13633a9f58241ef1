"""Several caches of one data set and view policy, read as one teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from teachers.cache.format import canonical, differences
from teachers.cache.reader import CacheReader
from teachers.cache.records import CachedRows, CachedView, Coverage
from teachers.cache.shards import maps_to_hold
from teachers.contract import ViewSource
from teachers.errors import CacheError

Space = Literal["logit", "probability"]


def log_sigmoid(logits: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -logits)


def average(maps: Sequence[np.ndarray], weights: Sequence[float], space: Space) -> np.ndarray:
    """Weighted mean of logits of one shape, in log-odds or, cell by cell, in probability; float32 logits again.

    In probability: ``log Σ w σ(x) - log Σ w σ(-x)``, which neither overflows nor rounds to 0 or 1.
    """
    if space == "logit":
        return np.asarray(sum(w * m.astype(np.float64) for w, m in zip(weights, maps, strict=True))).astype(np.float32)
    logs = np.log(np.asarray(weights, dtype=np.float64))
    inside = np.logaddexp.reduce([w + log_sigmoid(m.astype(np.float64)) for w, m in zip(logs, maps, strict=True)])
    outside = np.logaddexp.reduce([w + log_sigmoid(-m.astype(np.float64)) for w, m in zip(logs, maps, strict=True)])
    return np.asarray(inside - outside).astype(np.float32)


class CacheEnsemble:
    """Caches with weights (made to sum to 1), with the reading interface of :class:`CacheReader`.

    Maps of another size than the largest are resampled to it bilinearly, as logits. The in/out logit is the mean over the members
    that have one. Codecs may differ. Raises :class:`CacheError` if the members are not of one data set and view policy.
    """

    def __init__(self, members: Sequence[tuple[CacheReader, float]], space: Space = "logit") -> None:
        if not members or not all(_weighs(weight) for _, weight in members):
            raise CacheError(f"an ensemble needs caches with finite weights above 0, not {[weight for _, weight in members]}")
        if space not in ("logit", "probability"):
            raise CacheError(f"caches average in 'logit' or 'probability', not {space!r}")
        total = sum(weight for _, weight in members)
        self.readers = [reader for reader, _ in members]
        self.weights = [weight / total for _, weight in members]
        self.space: Space = space
        first = self.readers[0]
        for other in self.readers[1:]:
            if canonical(first.source_identity) != canonical(other.source_identity):
                raise CacheError(
                    f"caches {first.path} and {other.path} cannot be averaged: "
                    f"{differences(first.source_identity, other.source_identity, ('first', 'second'))}; "
                    "build both of one data set, split, number of views and seed"
                )

    @property
    def views(self) -> int:
        return min(reader.views for reader in self.readers)

    @property
    def scenes(self) -> int:
        return min(reader.scenes for reader in self.readers)

    @property
    def has_inout(self) -> bool:
        """Whether any member has in/out logits."""
        return any(reader.has_inout for reader in self.readers)

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """(height, width) of the largest member's maps."""
        return max((reader.heatmap_size for reader in self.readers), key=lambda size: (size[0] * size[1], size))

    @property
    def source_identity(self) -> Mapping[str, Any]:
        return self.readers[0].source_identity

    @property
    def resampled(self) -> list[tuple[Path, tuple[int, int]]]:
        """(cache, its own size) of the members whose maps are resampled; a run states them."""
        return [
            (reader.path, reader.heatmap_size) for reader in self.readers if reader.heatmap_size != self.heatmap_size
        ]

    def describe(self) -> dict[str, Any]:
        """What a run records: the space, and each member with its weight."""
        members = [
            {**reader.describe(), "weight": weight} for reader, weight in zip(self.readers, self.weights, strict=True)
        ]
        return {"space": self.space, "members": members}

    def position(self, key: str) -> int | None:
        """A scene's place in the first member's order; None if any member lacks it."""
        places = [reader.position(key) for reader in self.readers]
        return None if None in places else places[0]

    def covers(self, keys: Iterable[str], views: int | None = None) -> Coverage:
        """Scenes that some member misses, and those that some member skipped, in the order given."""
        keys = list(keys)
        covers = [reader.covers(keys, views) for reader in self.readers]
        missing = {key for cover in covers for key in cover.missing}
        skipped = {key for cover in covers for key in cover.skipped} - missing
        return Coverage([key for key in keys if key in missing], [key for key in keys if key in skipped])

    def check(
        self,
        teacher_fingerprint: Mapping[str, Any] | None = None,
        source_identity: Mapping[str, Any] | None = None,
        *,
        mend: str = "distill cache build",
    ) -> None:
        """As :meth:`CacheReader.check` for every member."""
        for reader in self.readers:
            reader.check(teacher_fingerprint, source_identity, mend=mend)

    def check_annotations(self, source: ViewSource) -> None:
        """As :meth:`CacheReader.check_annotations` for every member."""
        for reader in self.readers:
            reader.check_annotations(source)

    def picture_digest(self, key: str, view: int) -> bytes:
        """As :meth:`CacheReader.picture_digest`; :class:`CacheError` if the members were built from different pictures."""
        first = self.readers[0].picture_digest(key, view)
        for reader in self.readers[1:]:
            other = reader.picture_digest(key, view)
            if other != first:
                raise CacheError(
                    f"the picture of scene {key!r} is not the same in caches {self.readers[0].path} ({first.hex()}) and {reader.path} "
                    f"({other.hex()}); build the one of the old picture again with `distill cache build --out OTHER_PATH`"
                )
        return first

    def read(self, key: str, view: int) -> CachedView:
        """The weighted mean of the members' rows; :class:`CacheError` if they hold other boxes or another geometry."""
        parts = [reader.read(key, view) for reader in self.readers]
        self._agree(parts, f"view {view} of scene {key!r} is")
        heatmap, inout = self._mean([part.heatmap for part in parts], [part.inout for part in parts])
        return CachedView(heatmap, inout, parts[0].boxes, parts[0].geometry)

    def read_many(self, items: Sequence[tuple[str, int]]) -> CachedRows:
        """The weighted mean of the members' rows of many (scene key, view) pairs; :class:`CacheError` as :meth:`read`."""
        parts = [reader.read_many(items) for reader in self.readers]
        self._agree(parts, f"the views {items[0]} to {items[-1]} are" if items else "nothing is")
        heatmap, inout = self._mean([part.heatmap for part in parts], [part.inout for part in parts])
        return CachedRows(heatmap, inout, parts[0].boxes, parts[0].geometry, parts[0].offsets)

    def _agree(self, parts: Sequence[CachedView | CachedRows], what: str) -> None:
        first = parts[0]
        for reader, part in zip(self.readers[1:], parts[1:], strict=True):
            if not (np.array_equal(first.geometry, part.geometry) and np.array_equal(first.boxes, part.boxes)):
                raise CacheError(
                    f"{what} not the same in caches {self.readers[0].path} and {reader.path}: their annotations differ; "
                    "build one of them again"
                )

    def _mean(self, maps: list[np.ndarray], voices: list[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray | None]:
        """Heatmaps ``[R,h,w]`` of the largest member's size, and in/out ``[R]`` of the members that have it."""
        heatmap = average([_resampled(part, self.heatmap_size) for part in maps], self.weights, self.space)
        heard = [(part, weight) for part, weight in zip(voices, self.weights, strict=True) if part is not None]
        if not heard:
            return heatmap, None
        total = sum(weight for _, weight in heard)
        return heatmap, average([part for part, _ in heard], [weight / total for _, weight in heard], self.space)


def _weighs(weight: float) -> bool:
    # A NaN is not above 0, and an infinite weight would make the others none.
    return weight > 0.0 and math.isfinite(weight)


def _resampled(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps ``[N,h,w]`` resampled bilinearly (cell centres, edges held) to ``size``."""
    if maps.shape[1:] == size or not len(maps):
        return maps if maps.shape[1:] == size else np.zeros((0, *size), np.float32)
    import torch.nn.functional as F
    from torch import from_numpy

    return F.interpolate(from_numpy(maps)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()


def split_spec(spec: str) -> tuple[str, float]:
    """``PATH:WEIGHT``, or ``PATH`` for a weight of 1; :class:`CacheError` for a weight that is no finite number above 0."""
    # A shell expands the first of A,~/B alone.
    spec = str(Path(spec).expanduser()) if spec.startswith("~") else spec
    path, colon, text = spec.rpartition(":")
    if not colon or Path(spec).exists():
        return spec, 1.0
    try:
        weight = float(text)
    except ValueError:
        raise CacheError(f"--cache {spec}: weight {text!r} is no number; write PATH:WEIGHT, such as caches/a:0.6") from None
    if not _weighs(weight):
        raise CacheError(f"--cache {spec}: weight {text} is not a finite number above 0; write PATH:WEIGHT, such as caches/a:0.6")
    return path, weight


def open_caches(specs: Sequence[str], space: Space = "logit") -> CacheReader | CacheEnsemble:
    """Open caches, each given as ``PATH`` or ``PATH:WEIGHT`` (without a weight: 1).

    ``distill train --cache A:0.6,B:0.4`` is ``["A:0.6", "B:0.4"]`` here. One cache is a :class:`CacheReader`, several are a
    :class:`CacheEnsemble`, which averages in ``space``. Raises :class:`CacheError`.
    """
    members = []
    maps = maps_to_hold(max(len(specs), 1))
    for spec in specs:
        path, weight = split_spec(spec)
        members.append((CacheReader(path, open_shards=maps), weight))
    if not members:
        raise CacheError("no cache was given; build one with `distill cache build` and pass it with --cache")
    return members[0][0] if len(members) == 1 else CacheEnsemble(members, space)
