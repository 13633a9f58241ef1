"""The work of a build: which shards are computed, and by which process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teachers.cache.codecs import codec_named
from teachers.cache.format import Manifest, Span, plain
from teachers.cache.keys import KeyIndex, key_digests
from teachers.cache.reader import CacheReader
from teachers.contract import Teacher, ViewSource
from teachers.errors import CacheError


@dataclass(frozen=True)
class Work:
    """What a build is to do: ``shards`` to compute, ascending; ``replaced`` are those of them that are on disk, ``skipped`` counts
    the scenes that the shards on disk skipped."""

    manifest: Manifest
    shards: np.ndarray
    replaced: frozenset[int] = frozenset()
    skipped: int = 0

    def spans(self) -> Iterator[Span]:
        return (self.manifest.span(int(shard)) for shard in self.shards)

    def to_check(self, reader: CacheReader, part: tuple[int, int]) -> np.ndarray:
        """The shards on disk of part ``part`` (index, count) that are not computed again: their pictures are to be compared."""
        index, count = part
        there = np.setdiff1d(np.arange(reader.manifest.shards, dtype=np.int32), reader.missing_shards())
        return np.setdiff1d(there[there % count == index], self.shards)


def wanted_manifest(teacher: Teacher, source: ViewSource, codec: str, command: str = "") -> Manifest:
    """The manifest that a cache of ``teacher`` and ``source`` begins with: its identity, and no segments."""
    height, width = teacher.heatmap_size
    return Manifest(
        plain(teacher.fingerprint),
        plain(source.identity),
        codec_named(codec).name,
        (int(height), int(width)),
        bool(teacher.has_inout),
        (),
        command or source.mend,
    )


def scene_numbers(manifest: Manifest, source: ViewSource) -> np.ndarray:
    """For each scene of the cache, its number in the source ``[scenes]`` int32, or -1; keys that are not distinct are refused."""
    key_digests(source.keys)
    return KeyIndex(manifest.key_bytes()).numbers_of(source.keys)


def process_part(part: tuple[int, int]) -> tuple[int, int]:
    """``part`` divided further among the processes of one launch (RANK and WORLD_SIZE, as torchrun and accelerate set them)."""
    index, count = part
    if not 0 <= index < count:
        raise CacheError(
            f"--part {index}/{count} does not exist; parts of {count} are 0/{count} to {count - 1}/{count}"
        )
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    # A rank outside of its launch would be given no shard at all, and say that nothing is missing.
    if not all(value.isdecimal() for value in told) or not int(told[0]) < int(told[1]):
        raise CacheError(
            f"the environment says RANK={told[0]} and WORLD_SIZE={told[1]}, which no launcher sets; unset both, or start the processes with "
            "torchrun or accelerate"
        )
    rank, world = map(int, told)
    return index + count * rank, count * world


def choose_work(
    path: Path,
    manifest: Manifest,
    reader: CacheReader | None,
    numbers: np.ndarray,
    source: ViewSource,
    *,
    views: int,
    size: tuple[int, int],
    part: tuple[int, int] = (0, 1),
    rebuild: Sequence[int] = (),
    retry_skipped: bool = False,
) -> Work:
    """The shards that part ``part`` (index, count) computes.

    Usually those that are missing, of the scenes and the ``views`` that are asked for; ``retry_skipped`` adds the shards on disk with a
    skipped scene that can be read now, at ``size``. ``rebuild`` names shards, and then no others are computed. ``reader`` is None for
    a cache that does not exist yet.
    """
    index, count = part
    if rebuild:
        if reader is None:
            raise no_cache_to_mend(path, rebuild)
        if unknown := [shard for shard in rebuild if not 0 <= shard < manifest.shards]:
            raise CacheError(f"--rebuild {unknown[0]}: cache {path} has no such shard; they are numbered from 0 to {manifest.shards - 1}")
        mine = [shard for shard in sorted(set(rebuild)) if shard % count == index]
        for shard in mine:
            if not has_scenes(manifest.span(shard), numbers, source, path):
                raise CacheError(f"--rebuild {shard}: the data set has none of that shard's scenes; check --data and --split")
        missing = set(reader.missing_shards())
        return Work(manifest, np.array(mine, dtype=np.int32), frozenset(mine) - missing)
    wanted = np.ones(manifest.shards, dtype=bool)
    skipped, again = 0, set()
    if reader is not None:
        for opened in reader.present_shards():
            shard = opened.span.shard
            wanted[shard] = False
            skipped += int(opened.skipped.sum())
            if retry_skipped and shard % count == index and opened.skipped.any():
                places = opened.span.scene_start + np.flatnonzero(opened.skipped)
                if any(readable(source, int(number), size) for number in numbers[places] if number >= 0):
                    again.add(shard)
    for span in manifest.spans():
        here = span.shard in again or (wanted[span.shard] and span.view_start < views)
        wanted[span.shard] = here and span.shard % count == index and has_scenes(span, numbers, source, path)
    return Work(manifest, np.flatnonzero(wanted).astype(np.int32), frozenset(again), skipped)


def no_cache_to_mend(path: Path, rebuild: Sequence[int]) -> CacheError:
    """The error for shards that are to be computed again of a cache that is not there; a new one would hold those shards alone."""
    return CacheError(f"--rebuild {rebuild[0]}: {path} is no cache yet; check --out, or leave --rebuild out to begin one there")


def readable(source: ViewSource, number: int, size: tuple[int, int]) -> bool:
    """Whether a scene's picture can be loaded."""
    try:
        source.load(number, [0], size)
    except Exception as error:
        if not getattr(error, "mendable", False):
            raise
        return False
    return True


def has_scenes(span: Span, numbers: np.ndarray, source: ViewSource, path: Path) -> bool:
    """Whether the source has a shard's scenes: all of them or none, since a shard is computed whole."""
    there = numbers[span.scene_start : span.scene_stop] >= 0
    if there.all() or not there.any():
        return bool(there.all())
    raise CacheError(
        f"shard {span.shard} of cache {path} needs {int((~there).sum())} scenes that this data set does not have; finish the cache with "
        "the data set that it was begun with, or give another --out"
    )
