"""The shards of a cache as a process has them open: mapped when they are needed, checked at the first read, few at a time."""

from __future__ import annotations

import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from teachers.cache.codecs import codec_named
from teachers.cache.container import ShardFile, index_digest, tensor_digest
from teachers.cache.format import SHARDS, Manifest, Span, differences, shard_name
from teachers.cache.remedies import missing_remedy, rebuild_remedy
from teachers.cache.writer import shard_metadata
from teachers.errors import CacheError

MAPS = 2048  # shards that are held mapped at most
UNKNOWN, INDEX, PAYLOAD = 0, 1, 2  # what was checked of a shard: nothing, its small tensors, everything


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


class ShardRows(NamedTuple):
    """What reading many rows at random needs of a shard, most of it in memory of its own: each tensor in the file is another
    page to miss. ``heatmaps`` are as stored; ``beside [R,C]`` float32 are box, in/out logit if there is one, and the codec's
    columns; ``offsets [S*V+1]`` (int64, as a memoryview: the quickest to take two numbers from) and ``geometry [S*V,5]`` are by
    view."""

    heatmaps: np.ndarray
    beside: np.ndarray
    offsets: memoryview
    geometry: np.ndarray
    views: int


class OpenShard:
    """A mapped shard with what a row needs at hand."""

    __slots__ = ("boxes", "digests", "geometry", "inout", "offsets", "payload", "reasons", "skipped", "span", "stamp", "tensors")

    def __init__(self, file: ShardFile, span: Span) -> None:
        self.tensors, self.span, self.stamp = file.tensors, span, file.stamp
        self.payload, self.reasons = file.metadata["payload"], file.metadata["reasons"]
        self.offsets, self.boxes, self.geometry = (file.tensors[name] for name in ("offsets", "boxes", "geometry"))
        self.inout, self.skipped, self.digests = (
            file.tensors.get("inout"),
            file.tensors["skipped"],
            file.tensors["digests"],
        )

    def rows(self, columns: Sequence[str]) -> ShardRows:
        """:class:`ShardRows` of this shard; ``columns`` are the codec's."""
        voice = [] if self.inout is None else [self.inout]
        beside = [self.boxes, *(part[:, None] for part in (*voice, *(self.tensors[name] for name in columns)))]
        return ShardRows(
            self.tensors["heatmaps"],
            np.concatenate(beside, axis=1),
            self.offsets.copy().data,
            self.geometry.reshape(-1, 5),
            self.span.views,
        )


class _Process:
    """What one process holds: its open shards; of some of them the rows; which it read since they were last looked at for dropping;
    and of each shard what was checked, and of which file (9 bytes a shard)."""

    __slots__ = ("checked", "lock", "number", "open", "recent", "rows", "stamps")

    def __init__(self, number: int, shards: int) -> None:
        self.number, self.lock = number, threading.RLock()
        self.open: OrderedDict[int, OpenShard] = OrderedDict()
        self.rows: dict[int, ShardRows] = {}
        self.recent: set[int] = set()
        self.checked, self.stamps = bytearray(shards), array("Q", bytes(8 * shards))


class ShardTable:
    """A cache's shards, open for reading by any number of threads; at most ``limit`` maps are held.

    It may be forked or pickled: each process opens its own shards and checks them itself. A file that takes a shard's name
    later is checked like the first.
    """

    def __init__(self, path: Path, manifest: Manifest, limit: int) -> None:
        self.path, self.manifest, self.limit = path, manifest, limit
        self._codec, self._identity = codec_named(manifest.codec), manifest.identity_digest()
        self._prefix = f"{path / SHARDS}{os.sep}"
        self._forget()

    def _forget(self) -> _Process:
        # Set at once, lock and all: threads of a forked process may meet here, and the lock may have been forked while held.
        held = self.process = _Process(os.getpid(), self.manifest.shards)
        return held

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "process"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _held(self) -> _Process:
        held = self.process
        return held if held.number == os.getpid() else self._forget()

    def file(self, shard: int) -> str:
        return f"{self._prefix}{shard_name(shard)}"

    def present(self) -> np.ndarray:
        """Whether each shard is on disk ``[shards]`` bool."""
        there = np.zeros(self.manifest.shards, dtype=bool)
        directory = self.path / SHARDS
        if directory.is_dir():
            with os.scandir(directory) as entries:
                for entry in entries:
                    stem, dot, rest = entry.name.partition(".")
                    if dot and rest == "safetensors" and stem.isdecimal() and int(stem) < len(there):
                        there[int(stem)] |= entry.name == shard_name(int(stem))
        return there

    def drop(self, shard: int) -> None:
        """Let go of a shard whose file was replaced."""
        held = self._held()
        with held.lock:
            held.open.pop(shard, None)
            held.rows.pop(shard, None)

    def several(self, shards: Sequence[int]) -> list[ShardRows]:
        """The rows of each of ``shards``, checked whole."""
        held = self._held()
        with held.lock:
            held.recent.update(shards)
            found = [held.rows.get(shard) for shard in shards]
        if None not in found:
            return found  # type: ignore[return-value]
        fresh: dict[int, ShardRows] = {}
        for shard, rows in zip(shards, found, strict=True):
            if rows is None and shard not in fresh:
                opened = self.get(shard)
                fresh[shard] = opened.rows(self._codec.columns)
                with held.lock:
                    # Not if it was dropped meanwhile: what is kept is a part of the open shard.
                    if held.open.get(shard) is opened:
                        held.rows[shard] = fresh[shard]
        return [rows or fresh[shard] for shard, rows in zip(shards, found, strict=True)]

    def get(self, shard: int, payload: bool = True) -> OpenShard:
        """An open shard whose index, and with ``payload`` everything, was checked in this process; else :class:`CacheError`."""
        held, wanted = self._held(), PAYLOAD if payload else INDEX
        with held.lock:
            opened, checked = held.open.get(shard), held.checked[shard]
            if opened is not None and checked >= wanted:
                held.recent.add(shard)
                return opened
            stamp = held.stamps[shard] if checked else None
        # Files are opened and digests computed outside of the lock: at worst two threads check the same shard.
        path = self.file(shard)
        if opened is None:
            file = ShardFile.open(path, lambda: self._remedy(shard), known=stamp)
            if file.stamp != stamp:
                checked = UNKNOWN
            span = self.manifest.span(shard)
            if not checked:
                self._check_index(file, span, path)
            opened = OpenShard(file, span)
        if checked < wanted == PAYLOAD:
            found = tensor_digest(opened.tensors)
            if opened.payload != found:
                raise CacheError(
                    f"shard {path} is damaged: its payload's digest is {found}, it states {opened.payload}; {self._remedy(shard)}"
                )
        with held.lock:
            other = held.stamps[shard] != opened.stamp
            if other or wanted >= held.checked[shard] or shard not in held.open:
                held.open[shard] = opened
            if other:
                held.rows.pop(shard, None)
            held.checked[shard] = wanted if other else max(held.checked[shard], wanted)
            held.stamps[shard] = opened.stamp
            held.open.move_to_end(shard)
            while len(held.open) > self.limit:
                oldest, one = held.open.popitem(last=False)
                if oldest in held.recent:
                    # A second chance, at the end of the line: as good as dropping what was read longest ago, and cheaper to keep.
                    held.recent.discard(oldest)
                    held.open[oldest] = one
                else:
                    held.rows.pop(oldest, None)
        return opened

    def _remedy(self, shard: int) -> str:
        if os.path.exists(self.file(shard)):
            return rebuild_remedy(self.path, self.manifest, [shard])
        return missing_remedy(self.path, self.manifest)

    def _check_index(self, file: ShardFile, span: Span, path: str) -> None:
        """Metadata against the manifest, the small tensors against their digest, shapes against the format."""

        def wrong(what: str) -> CacheError:
            return CacheError(f"shard {path} {what}; {self._remedy(span.shard)}")

        height, width = self.manifest.heatmap_size
        stated = {name: value for name, value in file.metadata.items() if name not in ("index", "payload", "reasons")}
        metadata = shard_metadata(self._identity, span, self.manifest.keys_of(span))
        wanted: Mapping[str, str] = {name: value for name, value in metadata.items() if name != "reasons"}
        if stated != wanted:
            raise wrong(f"is not this cache's: {differences(wanted, stated, ('manifest', 'shard'))}")
        rows = len(file.tensors["boxes"]) if "boxes" in file.tensors else 0
        shapes: dict[str, tuple[int, ...]] = {
            "geometry": (span.scenes, span.views, 5),
            "offsets": (span.scenes * span.views + 1,),
            "boxes": (rows, 4),
            "digests": (span.scenes, 3, 16),
            "skipped": (span.scenes,),
            **({"inout": (rows,)} if self.manifest.has_inout else {}),
            **{name: (rows, height, width) if name == "heatmaps" else (rows,) for name in self._codec.tensors},
        }
        found = {name: array.shape for name, array in file.tensors.items()}
        if found != shapes:
            raise wrong(f"is damaged: it holds {found}, the format asks for {shapes}")
        index = index_digest(file.tensors, file.metadata)
        if index != file.metadata.get("index") or not {"payload", "reasons"} <= set(file.metadata):
            raise wrong(f"is damaged: its index digest is {index}, it states {file.metadata.get('index')}")
        offsets = file.tensors["offsets"]
        if offsets[0] != 0 or offsets[-1] != rows or (offsets[1:] < offsets[:-1]).any():
            raise wrong(f"is damaged: its row offsets do not fit its {rows} rows")
