"""Reading a cache: checked once, memory-mapped, one row in microseconds."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from teachers.cache.codecs import codec_named
from teachers.cache.container import ShardFile, digests, tensor_digest
from teachers.cache.format import (
    KEY_BYTES,
    MANIFEST,
    SHARDS,
    Manifest,
    Span,
    canonical,
    differences,
    key_digest,
    shard_name,
)
from teachers.cache.records import CachedView, Coverage, SceneDigests, Skipped
from teachers.cache.writer import shard_metadata
from teachers.contract import ViewSource
from teachers.errors import CacheError

MAPS = 2048  # shards that are held mapped at most


class _OpenShard:
    """A mapped shard with what a row needs at hand."""

    __slots__ = ("boxes", "digests", "geometry", "inout", "offsets", "payload", "reasons", "skipped", "span", "tensors")

    def __init__(self, file: ShardFile, span: Span) -> None:
        self.tensors, self.span = file.tensors, span
        self.payload, self.reasons = file.metadata["payload"], file.metadata["reasons"]
        self.offsets, self.boxes, self.geometry = (file.tensors[name] for name in ("offsets", "boxes", "geometry"))
        self.inout, self.skipped, self.digests = (
            file.tensors.get("inout"),
            file.tensors["skipped"],
            file.tensors["digests"],
        )


def maps_to_hold(readers: int = 1) -> int:
    """How many maps each of ``readers`` readers may hold: together a quarter of the files that a process may have open.

    A map keeps its file open, and beyond some thousands there is nothing to gain: mapping a shard again takes 0.1 ms.
    """
    try:
        import resource
    except ImportError:
        # Windows knows no such limit.
        return MAPS // readers
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = MAPS if soft == resource.RLIM_INFINITY else min(soft // 4, MAPS)
    return max(allowed // readers, 1)


class _Table:
    """A process's open shards, and what was checked of each shard: 1 its index, 2 its payload as well (a byte a shard)."""

    __slots__ = ("checked", "lock", "open", "process")

    def __init__(self, process: int, shards: int) -> None:
        self.process, self.lock = process, threading.RLock()
        self.open: OrderedDict[int, _OpenShard] = OrderedDict()
        self.checked = bytearray(shards)


class CacheReader:
    """A cache, open for reading: ``scenes`` scenes, each with ``views`` views, numbered from 0.

    Opening reads ``cache.json`` alone. A shard is mapped when it is first needed; its digest is checked at a process's first
    read of it. At most ``open_shards`` maps are held (default: :func:`maps_to_hold`). Any number of threads may read at once. The
    reader may be forked or pickled: each process opens its own shards and checks them itself. Memory: 20 bytes a scene, and
    the open shards' tables.
    """

    def __init__(self, path: Path | str, *, open_shards: int | None = None) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self.views, self.scenes = self.manifest.views, self.manifest.scenes
        self._codec = codec_named(self.manifest.codec)
        self._limit = maps_to_hold() if open_shards is None else open_shards
        self._shards = f"{self.path / SHARDS}{os.sep}"
        digests_in_order = np.frombuffer(self.manifest.key_bytes(), dtype=">u8").astype(np.uint64)
        self._order = np.argsort(digests_in_order, kind="stable").astype(np.uint32)
        self._sorted = digests_in_order[self._order]
        self._forget()

    def _forget(self) -> _Table:
        # Set at once, lock and all: threads of a forked process may meet here, and the lock may have been forked while held.
        table = self._table = _Table(os.getpid(), self.manifest.shards)
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

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
        value = np.uint64(int.from_bytes(key_digest(key), "big"))
        index = int(self._sorted.searchsorted(value))
        if index == len(self._sorted) or self._sorted[index] != value:
            return None
        return int(self._order[index])

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that the manifest speaks of and that are not on disk (yet)."""
        directory = self.path / SHARDS
        there = set(os.listdir(directory)) if directory.is_dir() else set()
        return [shard for shard in range(self.manifest.shards) if shard_name(shard) not in there]

    def covers(self, keys: Iterable[str], views: int | None = None) -> Coverage:
        """Which of ``keys`` are missing (unknown, or in a shard that is not built yet) or skipped, in the order given.

        ``views`` is how many views, from view 0 on, are asked for (default: all); a cache that is just growing beyond them serves.
        """
        state = np.zeros(self.scenes, dtype=np.uint8)
        absent = set(self.missing_shards())
        if views is not None and views > self.views:
            state |= 1
        for span in self.manifest.spans():
            if views is not None and span.view_start >= views:
                continue
            part = state[span.scene_start : span.scene_stop]
            if span.shard in absent:
                part |= 1
            else:
                part |= self._shard(span.shard, payload=False).skipped << 1
        missing, skipped = [], []
        for key in keys:
            position = self.position(key)
            if position is None or state[position] & 1:
                missing.append(key)
            elif state[position]:
                skipped.append(key)
        return Coverage(missing, skipped)

    def skipped(self) -> Iterator[Skipped]:
        """The scenes that were skipped, with the reason, over all shards on disk."""
        absent = set(self.missing_shards())
        for shard in range(self.manifest.shards):
            if shard not in absent:
                opened = self._shard(shard, payload=False)
                for _, key, reason in json.loads(opened.reasons):
                    yield Skipped(key, reason, shard)

    def rows(self) -> int:
        """Rows (view, head) over all shards on disk."""
        absent = set(self.missing_shards())
        return sum(
            int(self._shard(shard, payload=False).offsets[-1])
            for shard in range(self.manifest.shards)
            if shard not in absent
        )

    def size(self) -> int:
        """Bytes on disk of manifest and shards."""
        directory = self.path / SHARDS
        sizes = [file.stat().st_size for file in directory.glob("[0-9]*.safetensors")] if directory.is_dir() else []
        return sum(sizes) + (self.path / MANIFEST).stat().st_size

    def picture_digest(self, key: str, view: int) -> bytes:
        """The 16-byte digest of the picture's file that view ``view`` of a scene was built from; :class:`CacheError` as :meth:`read`."""
        opened, index, _ = self._find(key, view, payload=False)
        return opened.digests[index, 0].tobytes()

    def digests(self, position: int, view: int = 0) -> SceneDigests:
        """The digests that were recorded for the scene at ``position`` when its shard for ``view`` was built."""
        shard, index, _ = self.manifest.locate(position, view)
        three = self._shard(shard, payload=False).digests[index]
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
            ("teacher", self.manifest.teacher, teacher_fingerprint),
            ("data or views", self.manifest.source, source_identity),
        )
        for what, there, wanted in pairs:
            if wanted is not None and canonical(there) != canonical(wanted):
                raise CacheError(
                    f"cache {self.path} was built of another {what}: {differences(there, wanted, ('cache', 'this run'))}; "
                    f"run `{mend} --out OTHER_PATH` for a cache that fits, or ask for what this one holds"
                )

    def check_annotations(self, source: ViewSource) -> None:
        """Refuse a cache if a scene's boxes or gaze points are not those it was built with; pictures are not opened.

        The :class:`CacheError` names the scene, both digests and the command. Scenes unknown to the cache are passed over.
        """
        wanted = np.full(self.scenes, -1, dtype=np.int64)
        for number, key in enumerate(source.keys):
            position = self.position(key)
            if position is not None:
                wanted[position] = number
        absent = set(self.missing_shards())
        for span in self.manifest.spans():
            numbers = wanted[span.scene_start : span.scene_stop]
            if span.shard in absent or (numbers < 0).all():
                continue
            stored = self._shard(span.shard, payload=False).digests
            for index in np.flatnonzero(numbers >= 0):
                now = source.annotation_digests(int(numbers[index]))
                for what, row, digest in (("boxes", 1, now[0]), ("gaze points", 2, now[1])):
                    if stored[index, row].tobytes() != digest:
                        raise CacheError(
                            f"the {what} of scene {source.keys[int(numbers[index])]!r} have changed: cache {self.path} was built with "
                            f"{stored[index, row].tobytes().hex()}, now {digest.hex()}; {self._rebuild(span.shard)}"
                        )

    def holds(self, key: str, view: int) -> bool:
        """Whether the row can be read: its shard is on disk and did not skip the scene."""
        position = self.position(key)
        if position is None or not 0 <= view < self.views:
            return False
        shard, index, _ = self.manifest.locate(position, view)
        return (self.path / SHARDS / shard_name(shard)).exists() and not self._shard(shard, payload=False).skipped[
            index
        ]

    def check_shards(self) -> Iterator[tuple[int, CacheError | None]]:
        """Check every shard's digests, missing ones included; yields (shard, what is wrong or None)."""
        for shard in range(self.manifest.shards):
            try:
                self._shard(shard)
                yield shard, None
            except CacheError as error:
                yield shard, error

    def _rebuild(self, shard: int) -> str:
        command = self.manifest.command or "distill cache build"
        path = self.path / SHARDS / shard_name(shard)
        there = f"delete {path} and " if path.exists() else ""
        return f"{there}run `{command} --out {self.path}`: only what is missing is computed"

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

    def _find(self, key: str, view: int, payload: bool = True) -> tuple[_OpenShard, int, int]:
        """(open shard, scene within it, view within it) of a view that the cache has and did not skip."""
        position = self.position(key)
        if position is None:
            raise CacheError(
                f"scene {key!r} is not in cache {self.path}; run `{self.manifest.command or 'distill cache build'} --out {self.path}` to add it"
            )
        if not 0 <= view < self.views:
            raise CacheError(
                f"cache {self.path} has {self.views} views, view {view} was asked for; "
                f"run `distill cache build --views {view + 1} --out {self.path}`"
            )
        shard, index, column = self.manifest.locate(position, view)
        opened = self._shard(shard, payload)
        if opened.skipped[index]:
            raise CacheError(
                f"scene {key!r} was skipped when cache {self.path} was built; leave it out, or mend its picture: {self._rebuild(shard)}"
            )
        return opened, index, column

    def shard_tensors(self, shard: int) -> Mapping[str, np.ndarray]:
        """A shard's tensors as the format defines them, memory-mapped and checked; for tools that look at the whole."""
        return self._shard(shard).tensors

    def error_bound(self, key: str, view: int, logits: np.ndarray) -> np.ndarray:
        """The codec's largest |cached - live| ``[N]`` for the rows of a view whose live logits ``[N,h,w]`` are given."""
        position = self.position(key)
        if position is None:
            raise CacheError(f"scene {key!r} is not in cache {self.path}")
        shard, index, column = self.manifest.locate(position, view)
        opened = self._shard(shard)
        row = index * opened.span.views + column
        return self._codec.bound(opened.tensors, int(opened.offsets[row]), int(opened.offsets[row + 1]), logits)

    def _shard(self, shard: int, payload: bool = True) -> _OpenShard:
        """An open shard whose index, and with ``payload`` everything, was checked in this process."""
        table = self._table
        if table.process != os.getpid():
            table = self._forget()
        wanted = 2 if payload else 1
        with table.lock:
            opened, checked = table.open.get(shard), table.checked[shard]
            if opened is not None and checked >= wanted:
                table.open.move_to_end(shard)
                return opened
        # Files are opened and digests computed outside of the lock: at worst two threads check the same shard.
        path = f"{self._shards}{shard_name(shard)}"
        if opened is None:
            file = ShardFile.open(path, lambda: self._rebuild(shard), checked=checked > 0)
            span = self.manifest.span(shard)
            if not checked:
                self._check_index(file, span, path)
            opened = _OpenShard(file, span)
        if checked < wanted == 2:
            found = tensor_digest(opened.tensors)
            if opened.payload != found:
                raise CacheError(
                    f"shard {path} is damaged: its payload's digest is {found}, it states {opened.payload}; "
                    f"{self._rebuild(shard)}"
                )
        with table.lock:
            if wanted >= table.checked[shard] or shard not in table.open:
                table.open[shard] = opened
            table.checked[shard] = max(table.checked[shard], wanted)
            table.open.move_to_end(shard)
            while len(table.open) > self._limit:
                table.open.popitem(last=False)
        return opened

    def _check_index(self, file: ShardFile, span: Span, path: str) -> None:
        """Metadata against the manifest, the small tensors against their digest, shapes against the format."""
        remedy = self._rebuild(span.shard)
        height, width = self.heatmap_size
        stated = {name: value for name, value in file.metadata.items() if name not in ("index", "payload", "reasons")}
        keys = self._keys(span)
        wanted = {name: value for name, value in shard_metadata(self.manifest, span, keys).items() if name != "reasons"}
        if stated != wanted:
            raise CacheError(
                f"shard {path} is not this cache's: {differences(wanted, stated, ('manifest', 'shard'))}; {remedy}"
            )
        rows = len(file.tensors["boxes"]) if "boxes" in file.tensors else 0
        shapes: dict[str, tuple[int, ...]] = {
            "geometry": (span.scenes, span.views, 5),
            "offsets": (span.scenes * span.views + 1,),
            "boxes": (rows, 4),
            "digests": (span.scenes, 3, 16),
            "skipped": (span.scenes,),
            **({"inout": (rows,)} if self.has_inout else {}),
            **{name: (rows, height, width) if name == "heatmaps" else (rows,) for name in self._codec.tensors},
        }
        found = {name: array.shape for name, array in file.tensors.items()}
        if found != shapes:
            raise CacheError(f"shard {path} is damaged: it holds {found}, the format asks for {shapes}; {remedy}")
        index = digests({name: array for name, array in file.tensors.items() if name != "heatmaps"}, file.metadata)[0]
        if index != file.metadata.get("index") or not {"payload", "reasons"} <= set(file.metadata):
            raise CacheError(
                f"shard {path} is damaged: its index digest is {index}, it states {file.metadata.get('index')}; {remedy}"
            )
        offsets = file.tensors["offsets"]
        if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
            raise CacheError(f"shard {path} is damaged: its row offsets do not fit its {rows} rows; {remedy}")

    def _keys(self, span: Span) -> bytes:
        """The key digests of a span's scenes, from the segments that brought them."""
        parts: list[bytes] = []
        for segment in self.manifest.segments:
            if segment.keys:
                low, high = max(span.scene_start, segment.scene_start), min(span.scene_stop, segment.scene_stop)
                if low < high:
                    first = segment.scene_start
                    parts.append(segment.keys[KEY_BYTES * (low - first) : KEY_BYTES * (high - first)])
        return b"".join(parts)
