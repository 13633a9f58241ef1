"""The cache's format, version 1: the specification, and the manifest that it begins with.

A cache is a directory::

    cache.json                       the manifest: what was run on what, and which shard holds which scenes and views
    shards/00000.safetensors         immutable shards, numbered from 0, five digits or more
    .lock, .pictures, .cache.json,   a writer's own (:mod:`teachers.cache.memo`, :mod:`teachers.cache.writer`); readers ignore every
    shards/.00000.XXXX.tmp           name that begins with a dot (``.cache.json`` is a copy of the manifest, to restore a damaged one)

**Manifest.** ``cache.json`` is UTF-8 JSON with these members:

- ``format`` is ``"gaze-teacher-cache"``, ``version`` is 1. A reader refuses any other pair.
- ``teacher``: the teacher's fingerprint. ``source``: the identity of the data (reader, split, view policy with seed).
  Both are JSON objects, opaque to the cache: compared as a whole, never interpreted.
- ``codec`` (``"fp16"`` or ``"q8"``), ``heatmap_size`` ``[h, w]``, ``has_inout``.
- ``segments``: a list. Each has ``first_shard``, ``scene_start``, ``scene_stop``, ``view_start``, ``view_stop``,
  ``scenes_per_shard``, and ``keys``: for the scenes that it adds to the cache (those beyond every earlier segment), in
  order, the 8-byte BLAKE2b digest of each scene's key (UTF-8), concatenated, in base64. A segment adds scenes, with all views
  that the others have by then, from view 0 on; or it adds views to all scenes that are there, and then has no keys.
- ``command``: how the cache was last asked for, and in which directory; for messages only (:mod:`teachers.cache.command`).
- ``digest``: BLAKE2b-16 (hex) of the canonical JSON (sorted keys, no spaces, ASCII) of all other members.

*Identity* is the members ``format, version, teacher, source, codec, heatmap_size, has_inout``; its digest is BLAKE2b-16
(hex) of their canonical JSON.

**Which shard.** Segment ``g`` has ``ceil((scene_stop - scene_start) / scenes_per_shard)`` shards from ``first_shard`` on. Its shard
number ``first_shard + i`` holds the scenes from ``scene_start + i * scenes_per_shard``, ``scenes_per_shard`` of them or up to ``scene_stop``,
and the views ``view_start <= v < view_stop``. Segments never overlap, and together they cover scenes × views without a
gap. A cache grows by more segments; those that are there never change.

**Shard.** A safetensors file (8-byte little-endian header length, JSON header, tensors without gaps, little-endian), and
one that is canonical: header keys sorted, no spaces, ASCII, padded with spaces to a multiple of 8; tensors ordered by item
size, largest first, then by name. So equal content is equal bytes. With S scenes, V views and R rows (heads):

=============  =========  ==============  ====================================================================================
``geometry``   F64        ``[S,V,5]``     the view: left, top, right, bottom in [0,1] of the picture, then 1 if mirrored, else 0
``offsets``    I64        ``[S*V+1]``     rows of (scene s, view v) are ``offsets[s*V+v] : offsets[s*V+v+1]``, heads in order
``boxes``      F32        ``[R,4]``       head boxes as the teacher saw them: xyxy in [0,1] of the view
``inout``      F32        ``[R]``         in/out logits; absent if not ``has_inout``
``scale``      F32        ``[R]``         codec q8 only
``offset``     F32        ``[R]``         codec q8 only
``heatmaps``   F16 or U8  ``[R,h,w]``     logits; F16 for fp16; for q8 ``logit = offset + scale * value``
``digests``    U8         ``[S,3,16]``    BLAKE2b-16 of the picture's file, of the boxes, of the gaze points with in/out labels
``skipped``    U8         ``[S]``         1: the scene could not be read; it has no rows, and no picture digest
=============  =========  ==============  ====================================================================================

``__metadata__`` (all strings): ``format`` ``"gaze-teacher-cache/1"``; ``identity``, the manifest's identity digest; ``shard``; ``scenes``
and ``views`` as ``"start:stop"``; ``keys``, BLAKE2b-16 of the concatenated key digests of its scenes; ``reasons``, a JSON list of
``[scene, key, reason]`` for the skipped ones; ``index`` and ``payload``, the two digests. A *tensor digest* takes, for each tensor in the
order of names: name, dtype and shape as canonical JSON ``[name, dtype, shape]``, then its bytes. ``payload`` is the tensor digest of
all tensors; ``index`` that of all but ``heatmaps``, after the canonical JSON of the metadata without ``index`` and ``payload``.
Together they cover every byte of the file that a canonical header leaves free.

**Prohibitions.** A writer must not change a visible shard, must not write one under its final name but rename a flushed file
to it, must not let a batch cross a shard, and must write the manifest that speaks of a shard before the shard. It may replace a
shard, by renaming a whole one of the same scenes and views over it, only where that is damaged, skipped a scene, or
was made from annotations or pictures that have changed since; whoever has the old file mapped goes on with that, and one who opens the
name again must check what is then there. A reader must not read a shard whose identity, number, ranges or keys differ from what the manifest says; must check
``payload`` before it trusts a heatmap (``index`` is enough for the small tensors); must not take a map for that of another view (the
mirror image of a map is not the map of the mirror image); and must not read a row of a skipped scene.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from teachers.cache.codecs import CODECS
from teachers.cache.keys import CHUNK, KEY_BYTES, KeyIndex, key_digests
from teachers.errors import CacheError

FORMAT, VERSION = "gaze-teacher-cache", 1
MANIFEST, SPARE, SHARDS = "cache.json", ".cache.json", "shards"
DIGEST_BYTES = 16


# Made once: opening a thousand shards writes twenty thousand small values.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, no spaces, ASCII."""
    return _ENCODER.encode(value).encode("ascii")


def digest_of(data: bytes) -> str:
    """BLAKE2b-16 in hex."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as JSON would give it back (tuples become lists), so that two of them compare."""
    result: dict[str, Any] = json.loads(canonical(value))
    return result


@dataclass(frozen=True, slots=True)
class Segment:
    """Scenes × views that were added to the cache in one request; ``keys`` holds 8 bytes for every scene that is new."""

    first_shard: int
    scene_start: int
    scene_stop: int
    view_start: int
    view_stop: int
    scenes_per_shard: int
    keys: bytes = field(default=b"", repr=False)

    @property
    def shards(self) -> int:
        return -(-(self.scene_stop - self.scene_start) // self.scenes_per_shard)


@dataclass(frozen=True, slots=True)
class Span:
    """What one shard holds: scenes ``scene_start:scene_stop`` of the cache's order, views ``view_start:view_stop``."""

    shard: int
    scene_start: int
    scene_stop: int
    view_start: int
    view_stop: int

    @property
    def scenes(self) -> int:
        return self.scene_stop - self.scene_start

    @property
    def views(self) -> int:
        return self.view_stop - self.view_start


def shard_name(shard: int) -> str:
    return f"{shard:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class Manifest:
    """``cache.json``: identity, segments, and the arithmetic between scenes, views and shards."""

    teacher: Mapping[str, Any]
    source: Mapping[str, Any]
    codec: str
    heatmap_size: tuple[int, int]
    has_inout: bool
    segments: tuple[Segment, ...] = ()
    command: str = ""

    @property
    def scenes(self) -> int:
        return max((segment.scene_stop for segment in self.segments), default=0)

    @property
    def views(self) -> int:
        return max((segment.view_stop for segment in self.segments), default=0)

    @property
    def shards(self) -> int:
        return sum(segment.shards for segment in self.segments)

    def identity(self) -> dict[str, Any]:
        """What must be equal for two caches to hold the same rows for the same scene and view."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "teacher": plain(self.teacher),
            "source": plain(self.source),
            "codec": self.codec,
            "heatmap_size": list(self.heatmap_size),
            "has_inout": self.has_inout,
        }

    def identity_digest(self) -> str:
        return digest_of(canonical(self.identity()))

    def key_bytes(self) -> bytes:
        """The key digests of all scenes in order, 8 bytes each."""
        return b"".join(segment.keys for segment in self.segments)

    def keys_of(self, span: Span) -> bytes:
        """The key digests of a span's scenes, from the segments that brought them."""
        parts: list[bytes] = []
        for segment in self.segments:
            if segment.keys:
                low, high = max(span.scene_start, segment.scene_start), min(span.scene_stop, segment.scene_stop)
                if low < high:
                    first = segment.scene_start
                    parts.append(segment.keys[KEY_BYTES * (low - first) : KEY_BYTES * (high - first)])
        return b"".join(parts)

    def spans(self) -> Iterator[Span]:
        """Every shard's span, by shard number."""
        for segment in self.segments:
            for shard in range(segment.first_shard, segment.first_shard + segment.shards):
                yield self._span(segment, shard)

    def span(self, shard: int) -> Span:
        for segment in self.segments:
            if segment.first_shard <= shard < segment.first_shard + segment.shards:
                return self._span(segment, shard)
        raise IndexError(f"shard {shard} of {self.shards}")

    @staticmethod
    def _span(segment: Segment, shard: int) -> Span:
        start = segment.scene_start + (shard - segment.first_shard) * segment.scenes_per_shard
        stop = min(start + segment.scenes_per_shard, segment.scene_stop)
        return Span(shard, start, stop, segment.view_start, segment.view_stop)

    def locate(self, scene: int, view: int) -> tuple[int, int, int]:
        """(shard, scene within it, view within it) of a scene's position and a view's number."""
        for segment in self.segments:
            if segment.scene_start <= scene < segment.scene_stop and segment.view_start <= view < segment.view_stop:
                part, index = divmod(scene - segment.scene_start, segment.scenes_per_shard)
                return segment.first_shard + part, index, view - segment.view_start
        raise IndexError(f"scene {scene}, view {view} in a cache of {self.scenes} scenes and {self.views} views")

    def shards_of(self, scene: int) -> Iterator[int]:
        """The shards that hold views of the scene at a position, on disk or not."""
        for segment in self.segments:
            if segment.scene_start <= scene < segment.scene_stop:
                yield segment.first_shard + (scene - segment.scene_start) // segment.scenes_per_shard

    def locate_many(self, scenes: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :meth:`locate` for places ``[M]`` and view numbers ``[M]`` that the cache has; three int64 arrays ``[M]``."""
        if len(self.segments) == 1:
            only = self.segments[0]
            part, within = np.divmod(scenes - only.scene_start, only.scenes_per_shard)
            return only.first_shard + part, within, views - only.view_start
        shards, index, column = (np.full(len(scenes), -1, dtype=np.int64) for _ in range(3))
        for segment in self.segments:
            here = (scenes >= segment.scene_start) & (scenes < segment.scene_stop)
            here &= (views >= segment.view_start) & (views < segment.view_stop)
            part, within = np.divmod(scenes[here] - segment.scene_start, segment.scenes_per_shard)
            shards[here], index[here], column[here] = segment.first_shard + part, within, views[here] - segment.view_start
        return shards, index, column

    def grown(self, keys: Sequence[str], views: int, scenes_per_shard: int) -> Manifest:
        """The manifest that also holds ``keys`` at ``views`` views; the same object if it does already.

        The cache stays a full table: new scenes get all the views that the others have, new views are added for all.
        """
        if views < 1 or scenes_per_shard < 1:
            raise CacheError(f"views ({views}) and scenes per shard ({scenes_per_shard}) must be at least 1")
        new = key_digests(keys)
        known = KeyIndex(self.key_bytes())
        strange = np.ones(len(new), dtype=bool)
        for start in range(0, len(new) if len(known) else 0, CHUNK):
            strange[start : start + CHUNK] = known.places_of(new[start : start + CHUNK]) < 0
        new = new[strange]
        scenes, before, after = self.scenes, self.views, max(self.views, views)
        segments = list(self.segments)
        if scenes and after > before:
            segments.append(Segment(self.shards, 0, scenes, before, after, scenes_per_shard))
        if len(new):
            first = sum(segment.shards for segment in segments)
            if sys.byteorder == "little":
                new.byteswap(inplace=True)
            segments.append(Segment(first, scenes, scenes + len(new), 0, after, scenes_per_shard, new.tobytes()))
        return self if len(segments) == len(self.segments) else replace(self, segments=tuple(segments))

    def to_json(self) -> bytes:
        body: dict[str, Any] = {**self.identity(), "command": self.command, "segments": []}
        for segment in self.segments:
            row = {name: getattr(segment, name) for name in Segment.__slots__ if name != "keys"}
            body["segments"].append({**row, "keys": base64.b64encode(segment.keys).decode("ascii")})
        body["digest"] = digest_of(canonical(body))
        return json.dumps(body, indent=1, sort_keys=True).encode("ascii") + b"\n"

    def _sound(self) -> bool:
        """Whether every member is of its type, and the segments are such as :meth:`grown` adds: a full table, shards numbered on."""
        facts = self.heatmap_size + tuple(getattr(one, name) for one in self.segments for name in Segment.__slots__ if name != "keys")
        named = isinstance(self.teacher, dict) and isinstance(self.source, dict) and isinstance(self.command, str)
        if not named or self.codec not in CODECS or type(self.has_inout) is not bool or {type(fact) for fact in facts} != {int}:
            return False
        scenes = views = shards = 0
        for one in self.segments:
            grows = one.scene_start < one.scene_stop and one.view_start < one.view_stop and one.scenes_per_shard > 0
            more_views = (one.scene_start, one.scene_stop, one.view_start) == (0, scenes, views)
            more_scenes = (one.scene_start, one.view_start) == (scenes, 0) and (not scenes or one.view_stop == views)
            keys = one.scene_stop - one.scene_start if more_scenes else 0
            if not grows or not (more_views or more_scenes) or one.first_shard != shards or len(one.keys) != KEY_BYTES * keys:
                return False
            scenes, views, shards = one.scene_stop, one.view_stop, shards + one.shards
        return min(self.heatmap_size) > 0

    @classmethod
    def from_json(cls, data: bytes, path: Path) -> Manifest:
        """Parse and check; :class:`CacheError` names ``path`` and what is wrong."""
        try:
            body = json.loads(data)
            if body["format"] != FORMAT or body["version"] != VERSION:
                raise CacheError(
                    f"{path} has format {body['format']!r} version {body['version']!r}, this program reads {FORMAT!r} version "
                    f"{VERSION}; build the cache again with `distill cache build`"
                )
            stated = body.pop("digest")
            if stated != digest_of(canonical(body)):
                raise CacheError(
                    f"{path} is damaged: its digest is {digest_of(canonical(body))}, it states {stated}; "
                    "restore it from a copy, or delete the cache and build it again with `distill cache build`"
                )
            segments = tuple(
                Segment(**{**row, "keys": base64.b64decode(row["keys"], validate=True)}) for row in body["segments"]
            )
            height, width = body["heatmap_size"]
            manifest = cls(
                body["teacher"],
                body["source"],
                body["codec"],
                (height, width),
                body["has_inout"],
                segments,
                body["command"],
            )
            if not manifest._sound():
                raise KeyError("a member is not what the format asks for")
            return manifest
        except CacheError:
            raise
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise CacheError(
                f"{path} is damaged, or not a cache's manifest ({error}); restore it from a copy, delete the cache and build it again with "
                "`distill cache build`, or give the directory that `distill cache build --out` wrote"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(
                f"{path} is not a cache's manifest ({error}); give the directory that `distill cache build --out` wrote"
            ) from None

    @classmethod
    def load(cls, cache: Path) -> Manifest:
        """Read ``cache/cache.json``; :class:`CacheError` if there is none or it is damaged."""
        path = cache / MANIFEST
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise CacheError(
                f"{cache} is no cache: it has no {MANIFEST}; build one with `distill cache build ... --out {shlex.quote(str(cache))}`"
            ) from None
        except (PermissionError, IsADirectoryError) as error:
            raise CacheError(f"{path} cannot be read ({error.strerror}); make it readable") from None
        try:
            return cls.from_json(data, path)
        except CacheError as error:
            raise CacheError(f"{error}{_restoring(cache)}") from None


def _restoring(cache: Path) -> str:
    """The command that puts the writer's copy in a damaged manifest's place, for the end of a message; nothing if that is not whole."""
    try:
        Manifest.from_json((cache / SPARE).read_bytes(), cache / SPARE)
    except (OSError, CacheError):
        return ""
    # Not resolved: a link's own name is what the user knows it by.
    command = "cp {} {}".format(*(shlex.quote(os.path.abspath(cache / name)) for name in (SPARE, MANIFEST)))
    return f"; the copy that the last build made of it is whole: run `{command}`"


def differences(left: Mapping[str, Any], right: Mapping[str, Any], names: tuple[str, str], limit: int = 3) -> str:
    """Where two identities differ, leaf by leaf, in words: ``weights: cache abc, run def``."""

    def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping) and value:
            return {
                path: leaf
                for name in value
                for path, leaf in leaves(value[name], f"{prefix}.{name}" if prefix else str(name)).items()
            }
        return {prefix: value}

    def short(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return text if len(text) <= 40 else text[:37] + "..."

    a, b = leaves(plain(left)), leaves(plain(right))
    absent = "(none)"
    found = [name for name in sorted({*a, *b}) if a.get(name, absent) != b.get(name, absent)]
    parts = [
        f"{name}: {names[0]} {short(a.get(name, absent))}, {names[1]} {short(b.get(name, absent))}"
        for name in found[:limit]
    ]
    return "; ".join(parts) + (f"; and {len(found) - limit} more" if len(found) > limit else "")
