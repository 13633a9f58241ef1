"""The teacher as a run hears it: one cache or several, the views that the run replays, the scenes that have answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import ConfigurationError
from distill.readers.opening import place_of
from distill.scenes import Scene, SceneSet
from distill.source import SceneSource
from distill.views import ViewPolicy
from students.errors import RunError
from teachers.cache.command import words_of
from teachers.cache.ensemble import CacheEnsemble, Space, open_caches, split_spec
from teachers.cache.format import Manifest
from teachers.cache.reader import CachedView, CacheReader
from teachers.cache.remedies import build_command


@dataclass(frozen=True)
class CachedTeacher:
    """Caches for a set of scenes, checked against it (feeding's ``CachedAnswers``).

    ``views`` is how many of the cache's views the run replays: a cache that grows later does not change the run. ``scenes``
    are those that the cache has answers for; ``notes`` say what is left out or not there.
    """

    reader: CacheReader | CacheEnsemble
    views: int
    policy: ViewPolicy
    scenes: tuple[Scene, ...]
    notes: tuple[str, ...]

    def read(self, key: str, view: int) -> CachedView:
        return self.reader.read(key, view)

    def picture_digest(self, key: str, view: int) -> bytes:
        return self.reader.picture_digest(key, view)

    def lineage(self) -> dict[str, Any]:
        """What a run records: the caches' identity, the teacher, how many views and scenes decide the order."""
        shared = {"views": self.views, "scenes": len(self.scenes)}
        if isinstance(self.reader, CacheReader):
            manifest = self.reader.manifest
            return {"cache": manifest.identity_digest(), "teacher": dict(manifest.teacher), **shared}
        members: list[dict[str, Any]] = [
            {"cache": reader.manifest.identity_digest(), "teacher": dict(reader.manifest.teacher), "weight": weight}
            for reader, weight in zip(self.reader.readers, self.reader.weights, strict=True)
        ]
        name = "ensemble of " + ", ".join(str(member["teacher"].get("name")) for member in members)
        digests = "+".join(str(member["cache"]) for member in members)
        return {"cache": digests, "teacher": {"name": name, "space": self.reader.space, "members": members}, **shared}


def resampled(maps: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Logits ``[N,h,w]`` as float32 on a grid of ``size`` (height, width): as they are, or resampled bilinearly."""
    there = torch.from_numpy(np.asarray(maps, dtype=np.float32))
    if there.shape[1:] == size:
        return there
    if not len(there):
        return there.new_zeros((0, *size))
    return F.interpolate(there[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def specs_of(cache: str) -> list[str]:
    """``A:0.6,B:0.4`` as the caches that it names; a cache whose own path has a comma is one, given alone."""
    if any(Path(path).expanduser().is_dir() for path in (cache, cache.rpartition(":")[0]) if "," in path):
        return [cache]
    return [part.strip() for part in cache.split(",") if part.strip()]


def data_of_cache(cache: str) -> str:
    """The data set that a cache was built from, where a run names none."""
    first = next(iter(specs_of(cache)), "")
    if not first:
        raise ConfigurationError("no data set is given: set data in [data], or --data PATH")
    return recorded_data(first, "--data")[0]


def recorded_data(cache: str, option: str, instead: str = "") -> tuple[str, str]:
    """(data set, split) that a cache was built from, as it records them; ``instead`` is where the data set is now.

    :class:`ConfigurationError`, which names ``option`` as the remedy, where it is not recorded or no longer there.
    """
    path = split_spec(cache)[0]
    words = words_of(Manifest.load(Path(path)).command)
    built = dict(pairwise(words))
    spec, split = instead or built.get("--data", ""), built.get("--split", "trainval")
    if not spec:
        raise ConfigurationError(f"cache {path} does not record what it was built from; say where its pictures are with {option}")
    if not place_of(spec).exists():
        here = "" if instead else f" (cache {path} was built from it)"
        raise ConfigurationError(f"{place_of(spec)} does not exist{here}; say where its pictures are now with {option} SPEC, such as folder:DIR?heads=FILE")
    return spec, split


def open_cached_teacher(
    cache: str, scenes: SceneSet, heatmap_size: tuple[int, int], views: int = 0, space: Space = "logit", *, option: str = "--views"
) -> CachedTeacher:
    """The cached teacher for these scenes; ``views`` 0 takes all that are there, and ``option`` is what sets it otherwise.

    Several caches average in ``space``.

    Refuses a cache of another data set, changed annotations, more views than it has, and scenes that it lacks. Scenes that
    were skipped when it was built are left out, with a note.
    """
    reader = open_caches(specs_of(cache), space)
    members: tuple[CacheReader, ...] = (reader,) if isinstance(reader, CacheReader) else tuple(reader.readers)
    views_there: Any = reader.source_identity.get("views")
    try:
        policy = ViewPolicy(**views_there)
    except TypeError as error:
        raise RunError(f"cache {cache} names no view policy that this version knows ({error}); build it again") from None
    source = SceneSource(scenes, policy)
    reader.check(source_identity=source.identity, mend=source.mend)
    reader.check_annotations(source)
    views = views or reader.views
    coverage = reader.covers(source.keys, views)
    if coverage.missing:
        # The one of several that lacks them is named: its own command adds them.
        lacking = next((each for each in members if each.covers(source.keys, views).missing), members[0])
        # The last of two --views counts.
        command = build_command(lacking.path, lacking.manifest) + (f" --views {views}" if views > lacking.views else "")
        raise RunError(
            f"cache {cache} lacks {views} views of {len(coverage.missing)} of {len(source.keys)} training scenes (first: "
            f"{coverage.missing[0]}); run `{command}` again to add them, or ask for fewer with {option}"
        )
    skipped = set(coverage.skipped)
    kept = tuple(scene for scene in scenes.scenes if scene.key not in skipped)
    return CachedTeacher(reader, views, policy, kept, tuple(_notes(cache, reader, members, len(skipped), heatmap_size)))


def _notes(
    cache: str, reader: CacheReader | CacheEnsemble, members: tuple[CacheReader, ...], skipped: int, size: tuple[int, int]
) -> list[str]:
    notes = []
    if isinstance(reader, CacheEnsemble):
        parts = ", ".join(f"{member.path} ({weight:.3g})" for member, weight in zip(members, reader.weights, strict=True))
        notes.append(f"the teacher is the average of caches {parts} in {'log-odds' if reader.space == 'logit' else 'probability'}")
    if skipped:
        notes.append(
            f"{skipped} scenes were skipped when cache {cache} was built and are not trained on; `distill cache info` lists them, and "
            "`distill cache build ... --retry-skipped` computes them once their pictures are mended"
        )
    for member in members:
        if member.heatmap_size != size:
            there, here = ("×".join(map(str, s)) for s in (member.heatmap_size, size))
            notes.append(f"maps of cache {member.path} ({there}) are resampled bilinearly, as logits, to the student's {here}")
    if not reader.has_inout:
        notes.append(f"the teacher of cache {cache} has no in/out head: in/out is learned from labels alone")
    return notes
