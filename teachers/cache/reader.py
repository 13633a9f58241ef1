"""Reading a cache: checked once, memory-mapped, one row in microseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from teachers.cache.codecs import codec_named
from teachers.cache.format import MANIFEST, SHARDS, Manifest, canonical, differences
from teachers.cache.keys import KeyIndex
from teachers.cache.records import CachedRows, CachedView, Coverage, SceneDigests, Skipped
from teachers.cache.remedies import build_command, missing_remedy, other_command, rebuild_remedy, retry_remedy
from teachers.cache.shards import OpenShard, ShardTable, maps_to_hold
from teachers.contract import ViewSource
from teachers.errors import CacheError


class CacheReader:
    """A cache, open for reading: ``scenes`` scenes, each with ``views`` views, numbered from 0.

    Opening reads ``cache.json`` alone. A shard is mapped when it is first needed; its digest is checked at a process's first
    read of it. At most ``open_shards`` maps are held (default: :func:`maps_to_hold`). Any number of threads may read at once. The
    reader may be forked or pickled: each process opens its own shards and checks them itself. Memory: 20 bytes a scene, 9 a
    shard, and some 3 KB (with :meth:`read_many` also 28 bytes a row) for each map that is held.
    """

    def __init__(self, path: Path | str, *, open_shards: int | None = None) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self.views, self.scenes = self.manifest.views, self.manifest.scenes
        self._codec = codec_named(self.manifest.codec)
        self._keys = KeyIndex(self.manifest.key_bytes())
        self._table = ShardTable(self.path, self.manifest, maps_to_hold() if open_shards is None else open_shards)

    @property
    def has_inout(self) -> bool:
        return self.manifest.has_inout

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """(height, width) of the maps, in cells."""
        return self.manifest.heatmap_size

    @property
    def source_identity(self) -> Mapping[str, Any]:
        return self.manifest.source

    def describe(self) -> dict[str, Any]:
        """What a run records of the cache that it was trained from: path, identity digest, teacher, scenes, views, codec."""
        return {
            "path": str(self.path),
            "identity": self.manifest.identity_digest(),
            "teacher": dict(self.manifest.teacher),
            "source": dict(self.manifest.source),
            "scenes": self.scenes,
            "views": self.views,
            "codec": self.manifest.codec,
        }

    # -- what is there ------------------------------------------------------------------------------------------------

    def position(self, key: str) -> int | None:
        """A scene's place in the cache's order, or None."""
        return self._keys.place(key)

    def numbers_of(self, keys: Iterable[str]) -> np.ndarray:
        """For each scene of the cache, its number in ``keys`` ``[scenes]`` int32, or -1."""
        return self._keys.numbers_of(keys)

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that the manifest speaks of and that are not on disk (yet)."""
        return np.flatnonzero(~self._table.present()).tolist()

    def covers(self, keys: Iterable[str], views: int | None = None) -> Coverage:
        """Which of ``keys`` are missing (unknown, or in a shard that is not built yet) or skipped, in the order given.

        ``views`` is how many views, from view 0 on, are asked for (default: all); a cache that is just growing beyond them serves.
        """
        state = np.zeros(self.scenes, dtype=np.uint8)
        present = self._table.present()
        if views is not None and views > self.views:
            state |= 1
        for span in self.manifest.spans():
            if views is not None and span.view_start >= views:
                continue
            part = state[span.scene_start : span.scene_stop]
            if present[span.shard]:
                part |= self._table.get(span.shard, payload=False).skipped << 1
            else:
                part |= 1
        missing, skipped = [], []
        for key in keys:
            position = self.position(key)
            if position is None or state[position] & 1:
                missing.append(key)
            elif state[position]:
                skipped.append(key)
        return Coverage(missing, skipped)

    def present_shards(self) -> Iterator[OpenShard]:
        """Every shard on disk, by number, its small tensors checked."""
        for shard in np.flatnonzero(self._table.present()):
            yield self._table.get(int(shard), payload=False)

    def skipped(self) -> Iterator[Skipped]:
        """The scenes that were skipped, with the reason, over all shards on disk."""
        for opened in self.present_shards():
            yield from self.skipped_scenes_in(opened.span.shard)

    def skipped_scenes_in(self, shard: int) -> Iterator[Skipped]:
        """The scenes that a shard skipped, with the reason."""
        for _, key, reason in json.loads(self._table.get(shard, payload=False).reasons):
            yield Skipped(key, reason, shard)

    def rows(self) -> int:
        """Rows (view, head) over all shards on disk."""
        return sum(int(opened.offsets[-1]) for opened in self.present_shards())

    def rows_in(self, shard: int) -> int:
        """Rows (view, head) of a shard."""
        return int(self._table.get(shard, payload=False).offsets[-1])

    def size(self) -> int:
        """Bytes on disk of manifest and shards."""
        directory = self.path / SHARDS
        sizes = [file.stat().st_size for file in directory.glob("[0-9]*.safetensors")] if directory.is_dir() else []
        return sum(sizes) + (self.path / MANIFEST).stat().st_size

    def picture_digest(self, key: str, view: int) -> bytes:
        """The 16-byte digest of the picture's file that view ``view`` of a scene was built from; :class:`CacheError` as :meth:`read`."""
        opened, index, _ = self._find(key, view, payload=False)
        return opened.digests[index, 0].tobytes()

    def picture_in(self, shard: int, position: int) -> bytes:
        """The picture's digest that a shard holds of the scene at ``position``; zeros if it skipped that."""
        opened = self._table.get(shard, payload=False)
        return opened.digests[position - opened.span.scene_start, 0].tobytes()

    def pictures_in(self, shard: int) -> np.ndarray:
        """The pictures' digests of a shard's scenes ``[S,16]`` uint8; zeros for one that it skipped."""
        return self._table.get(shard, payload=False).digests[:, 0]

    def skipped_in(self, shard: int) -> np.ndarray:
        """Which scenes of a shard were skipped ``[S]`` bool."""
        return self._table.get(shard, payload=False).skipped.astype(bool)

    def digests(self, position: int, view: int = 0) -> SceneDigests:
        """The digests that were recorded for the scene at ``position`` when its shard for ``view`` was built."""
        shard, index, _ = self.manifest.locate(position, view)
        three = self._table.get(shard, payload=False).digests[index]
        return SceneDigests(three[0].tobytes(), three[1].tobytes(), three[2].tobytes())

    # -- refusals -----------------------------------------------------------------------------------------------------

    def check(
        self,
        teacher_fingerprint: Mapping[str, Any] | None = None,
        source_identity: Mapping[str, Any] | None = None,
        *,
        mend: str = "distill cache build",
    ) -> None:
        """Refuse (:class:`CacheError`, with both values) a cache of another teacher or of other data.

        ``mend`` is the command line that would build the cache that is wanted (a :attr:`ViewSource.mend`).
        """
        pairs = (
            ("teacher", self.manifest.teacher, teacher_fingerprint, f"{mend} --teacher THAT_TEACHER --out OTHER_PATH"),
            ("data or views", self.manifest.source, source_identity, other_command(mend, self.manifest)),
        )
        for what, there, wanted, command in pairs:
            if wanted is not None and canonical(there) != canonical(wanted):
                raise CacheError(
                    f"cache {self.path} was built of another {what}: {differences(there, wanted, ('cache', 'this run'))}; "
                    f"run `{command}` for a cache that fits, or ask for what this one holds"
                )

    def check_annotations(self, source: ViewSource) -> None:
        """Refuse a cache if a scene's boxes or gaze points are not those it was built with; pictures are not opened.

        The :class:`CacheError` names the scene, both digests and the command. Scenes unknown to the cache are passed over.
        """
        wanted = self.numbers_of(source.keys)
        stale: list[int] = []
        first = ""
        for opened in self.present_shards():
            span = opened.span
            for index in np.flatnonzero(wanted[span.scene_start : span.scene_stop] >= 0):
                number = int(wanted[span.scene_start + index])
                changed = _changed(opened.digests[index], source.annotation_digests(number))
                if changed is not None:
                    stale.append(span.shard)
                    first = first or f"the {changed[0]} of scene {source.keys[number]!r} have changed: cache {self.path} was built with {changed[1]}"
                    break
        if stale:
            raise CacheError(f"{first}; {rebuild_remedy(self.path, self.manifest, stale)}")

    def holds(self, key: str, view: int) -> bool:
        """Whether the row can be read: its shard is on disk and did not skip the scene."""
        position = self.position(key)
        if position is None or not 0 <= view < self.views:
            return False
        shard, index, _ = self.manifest.locate(position, view)
        return Path(self._table.file(shard)).exists() and not self._table.get(shard, payload=False).skipped[index]

    def check_shards(self) -> Iterator[tuple[int, CacheError | None]]:
        """Check every shard's digests, missing ones included; yields (shard, what is wrong or None)."""
        for shard in range(self.manifest.shards):
            try:
                self._table.get(shard)
                yield shard, None
            except CacheError as error:
                yield shard, error

    def remedy(self, shards: Sequence[int]) -> str:
        """What to run about shards that are missing or damaged."""
        there = self._table.present()[list(shards)]
        return rebuild_remedy(self.path, self.manifest, shards) if there.any() else missing_remedy(self.path, self.manifest)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def read(self, key: str, view: int) -> CachedView:
        """The rows of one view of a scene, decoded.

        Raises :class:`CacheError` for a scene or view that the cache does not have, a skipped scene, and a shard that is missing or
        damaged.
        """
        opened, index, column = self._find(key, view)
        row = index * opened.span.views + column
        start, stop = int(opened.offsets[row]), int(opened.offsets[row + 1])
        return CachedView(
            self._codec.decode(opened.tensors, start, stop),
            None if opened.inout is None else opened.inout[start:stop].copy(),
            opened.boxes[start:stop].copy(),
            opened.geometry[index, column].copy(),
        )

    def read_many(self, items: Sequence[tuple[str, int]], *, out: np.ndarray | None = None) -> CachedRows:
        """The rows of many (scene key, view) pairs, decoded, in the order given; a pair may come twice.

        ``out`` ``[>=R,h,w]`` float32 is decoded into where it is given (a tensor's ``.numpy()`` is one); otherwise the maps are new.
        Raises :class:`CacheError` as :meth:`read` does, and for an ``out`` that is too small.
        """
        if not items:
            none = np.zeros(0, np.float32)
            return CachedRows(
                np.zeros((0, *self.heatmap_size), np.float32), none if self.has_inout else None, none.reshape(0, 4), np.zeros((0, 5)),
                np.zeros(1, np.int64),
            )
        keys, views = zip(*items, strict=True)
        places, numbers = self._keys.places(keys), np.array(views, dtype=np.int64)
        if min(views) < 0 or max(views) >= self.views or places.min() < 0:
            self._refuse(items, places)
        shards, index, column = (array.tolist() for array in self.manifest.locate_many(places, numbers))
        stored, beside, geometry, offsets, total = [], [], [], [0], 0
        for rows, scene, view in zip(self._table.several(shards), index, column, strict=True):
            heatmaps, others, starts, drawn, count = rows
            row = scene * count + view
            start, stop = starts[row], starts[row + 1]
            total += stop - start
            offsets.append(total)
            stored.append(heatmaps[start:stop])
            beside.append(others[start:stop])
            geometry.append(drawn[row : row + 1])
        # A skipped scene has no rows; most views that have none are of scenes without heads.
        for item, (start, stop) in enumerate(pairwise(offsets)):
            if start == stop and self._table.get(shards[item]).skipped[index[item]]:
                raise self._skipped_error(keys[item])
        if out is None:
            out = np.empty((total, *self.heatmap_size), np.float32)
        elif out.dtype != np.float32 or out.shape[1:] != self.heatmap_size or len(out) < total:
            raise CacheError(f"{total} maps of {self.heatmap_size} do not fit into an array {out.shape} of {out.dtype}; give float32 of that size")
        maps, rest = out[:total], np.concatenate(beside)
        np.concatenate(stored, out=maps)
        self._codec.restore(maps, list(rest[:, 5 if self.has_inout else 4 :].T))
        inout = rest[:, 4].copy() if self.has_inout else None
        return CachedRows(maps, inout, rest[:, :4].copy(), np.concatenate(geometry), np.array(offsets))

    def _find(self, key: str, view: int, payload: bool = True) -> tuple[OpenShard, int, int]:
        """(open shard, scene within it, view within it) of a view that the cache has and did not skip."""
        position = self.position(key)
        if position is None or not 0 <= view < self.views:
            raise self._absent_error(key, view, position)
        shard, index, column = self.manifest.locate(position, view)
        opened = self._table.get(shard, payload)
        if opened.skipped[index]:
            raise self._skipped_error(key)
        return opened, index, column

    def _absent_error(self, key: str, view: int, position: int | None) -> CacheError:
        command = build_command(self.path, self.manifest)
        if position is None:
            return CacheError(f"scene {key!r} is not in cache {self.path}; run `{command}` to add it")
        return CacheError(
            f"cache {self.path} has {self.views} views, view {view} was asked for; run `{command} --views {view + 1}` to add views"
        )

    def _refuse(self, items: Sequence[tuple[str, int]], places: np.ndarray) -> NoReturn:
        """Raise for the first pair that the cache does not have."""
        for (key, view), place in zip(items, places.tolist(), strict=True):
            if place < 0 or not 0 <= view < self.views:
                raise self._absent_error(key, view, None if place < 0 else place)
        raise AssertionError("every pair is there")

    def _skipped_error(self, key: str) -> CacheError:
        return CacheError(
            f"scene {key!r} was skipped when cache {self.path} was built; leave it out, or mend its picture and "
            f"{retry_remedy(self.path, self.manifest)}"
        )

    def shard_tensors(self, shard: int) -> Mapping[str, np.ndarray]:
        """A shard's tensors as the format defines them, memory-mapped and checked; for tools that look at the whole."""
        return self._table.get(shard).tensors

    def error_bound(self, key: str, view: int, logits: np.ndarray) -> np.ndarray:
        """The codec's largest |cached - live| ``[N]`` for the rows of a view whose live logits ``[N,h,w]`` are given."""
        position = self.position(key)
        if position is None:
            raise CacheError(f"scene {key!r} is not in cache {self.path}")
        shard, index, column = self.manifest.locate(position, view)
        opened = self._table.get(shard)
        row = index * opened.span.views + column
        return self._codec.bound(opened.tensors, int(opened.offsets[row]), int(opened.offsets[row + 1]), logits)

    def replaced(self, shard: int) -> None:
        """Note that a shard's file was replaced: what is next read of it is read, and checked, anew."""
        self._table.drop(shard)


def _changed(stored: np.ndarray, now: tuple[bytes, bytes]) -> tuple[str, str] | None:
    """What of a scene's annotations is not as stored ``[3,16]``, with both digests; None if nothing is."""
    for what, row, digest in (("boxes", 1, now[0]), ("gaze points", 2, now[1])):
        if stored[row].tobytes() != digest:
            return what, f"{stored[row].tobytes().hex()}, now {digest.hex()}"
    return None
