"""The runner: a teacher over the views of a data set, once, into a cache."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from teachers.cache.codecs import Codec, codec_named
from teachers.cache.format import KEY_BYTES, SHARDS, Manifest, Span, key_digests, plain
from teachers.cache.reader import CacheReader
from teachers.cache.writer import (
    remove_abandoned,
    settle_manifest,
    shard_metadata,
    shard_path,
    skipped_reasons,
    write_shard,
)
from teachers.contract import SceneViews, Teacher, ViewSource
from teachers.errors import CacheError


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """How far a build is, after each batch: of this process's share, counted from the start of this call.

    ``views`` and ``scenes`` are done (skipped ones included), ``rows`` computed, ``bytes`` written; ``seconds`` since the start.
    """

    shard: int
    scenes: int
    scenes_total: int
    views: int
    views_total: int
    rows: int
    bytes: int
    skipped: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build did. ``skipped`` lists (scene key, reason) of the scenes skipped by this call; ``shards_elsewhere`` are
    missing shards that belong to other parts, or to scenes or views that were not asked for; ``teacher_seconds`` of ``seconds`` went
    into the teacher's forward passes."""

    shards_written: int
    shards_present: int
    shards_elsewhere: int
    scenes: int
    views: int
    rows: int
    bytes: int
    seconds: float
    teacher_seconds: float
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every shard of the cache is on disk."""
        return self.shards_elsewhere == 0


class _Load(NamedTuple):
    """A piece of work in flight: some views of one scene of a span."""

    span: Span
    scene: int
    number: int
    first: bool
    views: range
    future: Future[SceneViews]


@dataclass(slots=True)
class _Shard:
    """A shard in the making, its rows already encoded."""

    span: Span
    geometry: np.ndarray
    digests: np.ndarray
    skipped: np.ndarray
    counts: np.ndarray
    boxes: list[np.ndarray] = field(default_factory=list)
    inout: list[np.ndarray] = field(default_factory=list)
    encoded: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    reasons: list[tuple[int, str, str]] = field(default_factory=list)

    @classmethod
    def empty(cls, span: Span) -> _Shard:
        scenes, views = span.scenes, span.views
        return cls(
            span,
            np.zeros((scenes, views, 5)),
            np.zeros((scenes, 3, 16), np.uint8),
            np.zeros(scenes, np.uint8),
            np.zeros(scenes * views, np.int64),
        )

    def tensors(self, manifest: Manifest) -> dict[str, np.ndarray]:
        rows = int(self.counts.sum())
        height, width = manifest.heatmap_size
        codec = codec_named(manifest.codec)
        # Encoding nothing gives the empty tensors of a shard without heads.
        pieces = self.encoded or [codec.encode(np.zeros((0, height, width), np.float32), str)]
        tensors = {name: np.concatenate([piece[name] for piece in pieces]) for name in codec.tensors}
        tensors["geometry"] = self.geometry
        tensors["offsets"] = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        tensors["boxes"] = np.concatenate([np.zeros((0, 4), np.float32), *self.boxes])
        tensors["digests"], tensors["skipped"] = self.digests, self.skipped
        if manifest.has_inout:
            tensors["inout"] = np.concatenate([np.zeros(0, np.float32), *self.inout])
        if len(tensors["boxes"]) != rows or len(tensors["heatmaps"]) != rows:
            raise ValueError(
                f"shard {self.span.shard} has {rows} rows, {len(tensors['boxes'])} boxes, {len(tensors['heatmaps'])} maps"
            )
        return tensors


class _Batch:
    """Views of one shard that wait for a forward pass."""

    def __init__(self, teacher: Teacher, codec: Codec, shard: _Shard) -> None:
        self._teacher, self._codec, self._shard = teacher, codec, shard
        self._images: list[torch.Tensor] = []
        self._boxes: list[np.ndarray] = []
        self._names: list[str] = []
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: torch.Tensor, boxes: np.ndarray, name: str) -> None:
        self._images.append(image)
        self._boxes.append(boxes)
        self._names.append(name)

    def run(self, limit: int) -> int:
        """One forward pass over the first ``limit`` views that wait; returns the rows that it gave."""
        if not self._images:
            return 0
        waiting = self._boxes[:limit]
        counts = [len(boxes) for boxes in waiting]
        boxes = np.concatenate(waiting).astype(np.float32)
        # A teacher on a GPU has them stacked in page-locked memory.
        stack = getattr(self._teacher, "stack", torch.stack)
        images = stack(self._images[:limit])
        started = time.perf_counter()
        heatmap, inout = answer(self._teacher, images, boxes, np.repeat(np.arange(len(counts)), counts))
        self.seconds += time.perf_counter() - started
        names = [
            f"{name}, head {head}"
            for name, count in zip(self._names[:limit], counts, strict=True)
            for head in range(count)
        ]
        if inout is not None and not np.isfinite(inout).all():
            raise CacheError(
                f"{names[int(np.argmin(np.isfinite(inout)))]}: in/out logit is not finite; check the teacher's weights, or use --precision fp32"
            )
        self._shard.encoded.append(self._codec.encode(heatmap, names.__getitem__))
        self._shard.boxes.append(boxes)
        if inout is not None:
            self._shard.inout.append(inout)
        for queue in (self._images, self._boxes, self._names):
            del queue[:limit]
        return len(boxes)


def answer(
    teacher: Teacher, images: torch.Tensor, boxes: np.ndarray, image_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """A teacher's ``heatmap [N,h,w]`` and ``inout [N]`` (or None) as float32 arrays; shapes are checked against its word."""
    with torch.inference_mode():
        output = teacher(images, torch.from_numpy(boxes), torch.from_numpy(image_index.astype(np.int64)))
        heatmap = output.heatmap.float().cpu().numpy()
        inout = None if output.inout is None else output.inout.float().cpu().numpy()
    if heatmap.shape != (len(boxes), *teacher.heatmap_size) or (inout is not None) != teacher.has_inout:
        raise ValueError(
            f"teacher gave maps {heatmap.shape} for {len(boxes)} heads, it states {teacher.heatmap_size}, in/out {teacher.has_inout}"
        )
    if inout is not None and inout.shape != (len(boxes),):
        raise ValueError(f"teacher gave in/out logits {inout.shape} for {len(boxes)} heads")
    return heatmap, inout


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
    """For each scene of the cache, its index in the source, or -1."""
    there = np.frombuffer(manifest.key_bytes(), dtype=">u8").astype(np.uint64)
    given = key_digests(source.keys)
    order = np.argsort(given)
    place = np.minimum(np.searchsorted(given[order], there), len(given) - 1)
    return np.where(given[order][place] == there, order[place], -1)


def process_part(part: tuple[int, int]) -> tuple[int, int]:
    """``part`` divided further among the processes of one launch (RANK and WORLD_SIZE, as torchrun and accelerate set them)."""
    index, count = part
    if not 0 <= index < count:
        raise CacheError(
            f"--part {index}/{count} does not exist; parts of {count} are 0/{count} to {count - 1}/{count}"
        )
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return index + count * rank, count * world


def build_cache(
    path: Path | str,
    teacher: Teacher,
    source: ViewSource,
    *,
    views: int,
    codec: str = "fp16",
    scenes_per_shard: int = 64,
    batch_images: int = 16,
    part: tuple[int, int] = (0, 1),
    on_error: str = "stop",
    report: Callable[[BuildRecord], None] | None = None,
    workers: int = 1,
    command: str = "",
) -> BuildSummary:
    """Compute what cache ``path`` lacks of ``source`` × ``views``, and nothing else; create the cache if there is none.

    The share of this process is the shards whose number is ``part[0]`` modulo ``part[1]``, divided further by RANK and WORLD_SIZE.
    ``on_error`` is what an unreadable scene does: ``"stop"`` raises its error (finished shards stay), ``"skip"`` marks it in its shard.
    ``workers`` threads prepare the pictures of the next scenes during the forward pass; at most ``batch_images`` views of a scene, and
    two batches or two scenes a worker, are in memory. ``command`` is recorded for the cache's messages (``source.mend`` if empty).

    Raises :class:`CacheError` if the cache is of another teacher, data set or view policy, if annotations or pictures have changed
    since it was begun, or if a map cannot be stored; OSError if the disk is full or read-only.
    """
    if on_error not in ("stop", "skip"):
        raise CacheError(f"--on-error {on_error!r} is unknown; give stop or skip")
    started, path = time.perf_counter(), Path(path)
    index, count = process_part(part)
    settle_manifest(path, wanted_manifest(teacher, source, codec, command), source.keys, views, scenes_per_shard)
    remove_abandoned(path / SHARDS)
    reader = CacheReader(path)
    # The reader's: another process may have grown the cache since.
    manifest = reader.manifest
    reader.check_annotations(source)
    numbers = scene_numbers(manifest, source)
    missing = [manifest.span(shard) for shard in reader.missing_shards()]
    asked = [span for span in missing if span.view_start < views and has_scenes(span, numbers, source, path)]
    mine = [span for span in asked if span.shard % count == index]
    totals = sum(span.scenes for span in mine), sum(span.scenes * span.views for span in mine)
    scenes_done = views_done = rows = size = written = 0
    teacher_seconds = 0.0
    skipped: list[tuple[str, str]] = []

    def tell(shard: int) -> None:
        if report is not None:
            seconds = time.perf_counter() - started
            report(BuildRecord(shard, scenes_done, totals[0], views_done, totals[1], rows, size, len(skipped), seconds))

    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="views") as pool:
        try:
            loads = _loads(pool, path, mine, numbers, source, teacher.input_size, batch_images, max(workers, 1))
            for span, pieces in groupby(loads, key=lambda load: load.span):
                shard = _Shard.empty(span)
                batch = _Batch(teacher, codec_named(codec), shard)
                for load in pieces:
                    last = load.views.stop == span.view_stop
                    if not shard.skipped[load.scene]:
                        try:
                            loaded = load.future.result()
                        except Exception as error:
                            if on_error == "stop" or not getattr(error, "mendable", False) or not load.first:
                                raise
                            key = source.keys[load.number]
                            shard.skipped[load.scene] = 1
                            for row, digest in enumerate(source.annotation_digests(load.number), start=1):
                                shard.digests[load.scene, row] = np.frombuffer(digest, np.uint8)
                            shard.reasons.append((span.scene_start + load.scene, key, str(error)))
                            skipped.append((key, str(error)))
                        else:
                            _accept(reader, shard, batch, load, loaded, source)
                    views_done += len(load.views)
                    scenes_done += last
                    while len(batch) >= batch_images:
                        rows += batch.run(batch_images)
                        tell(span.shard)
                rows += batch.run(batch_images)
                teacher_seconds += batch.seconds
                keys = manifest.key_bytes()[KEY_BYTES * span.scene_start : KEY_BYTES * span.scene_stop]
                metadata = shard_metadata(manifest, span, keys, skipped_reasons(shard.reasons))
                size += write_shard(path, span, shard.tensors(manifest), metadata)
                written += 1
                tell(span.shard)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return BuildSummary(
        written,
        manifest.shards - len(missing),
        len(reader.missing_shards()),
        manifest.scenes,
        manifest.views,
        rows,
        size,
        time.perf_counter() - started,
        teacher_seconds,
        tuple(skipped),
    )


def has_scenes(span: Span, numbers: np.ndarray, source: ViewSource, path: Path) -> bool:
    """Whether the source has a shard's scenes: all of them or none, since a shard is computed whole."""
    there = numbers[span.scene_start : span.scene_stop] >= 0
    if there.all() or not there.any():
        return bool(there.all())
    raise CacheError(
        f"shard {span.shard} of cache {path} needs {int((~there).sum())} scenes that this data set does not have; finish the cache with "
        "the data set that it was begun with, or give another --out"
    )


def _loads(
    pool: ThreadPoolExecutor,
    path: Path,
    spans: list[Span],
    numbers: np.ndarray,
    source: ViewSource,
    size: tuple[int, int],
    batch_images: int,
    workers: int,
) -> Iterator[_Load]:
    """The work of all spans in order, loaded ahead by a bounded number of pieces."""

    def submit() -> Iterator[_Load]:
        for span in spans:
            # Another process may have been given the same part.
            if shard_path(path, span.shard).exists():
                continue
            for scene in range(span.scenes):
                number = int(numbers[span.scene_start + scene])
                for start in range(span.view_start, span.view_stop, batch_images):
                    views = range(start, min(start + batch_images, span.view_stop))
                    future = pool.submit(source.load, number, views, size)
                    yield _Load(span, scene, number, start == span.view_start, views, future)

    ahead: deque[_Load] = deque()
    images = 0
    for load in submit():
        ahead.append(load)
        images += len(load.views)
        while len(ahead) > 2 * workers and images > 2 * batch_images:
            images -= len(ahead[0].views)
            yield ahead.popleft()
    yield from ahead


def _accept(
    reader: CacheReader, shard: _Shard, batch: _Batch, load: _Load, loaded: SceneViews, source: ViewSource
) -> None:
    """Check a loaded scene and queue its views."""
    span, key = shard.span, source.keys[load.number]
    three = np.frombuffer(loaded.picture_digest + loaded.boxes_digest + loaded.points_digest, np.uint8).reshape(3, 16)
    earlier = None
    if not load.first:
        earlier = shard.digests[load.scene, 0].tobytes()
    elif span.view_start > 0:
        earlier = _earlier_digest(reader, span.scene_start + load.scene)
    if earlier is not None and earlier != loaded.picture_digest:
        raise CacheError(
            f"the picture of scene {key!r} has changed: other views in cache {reader.path} were built from {earlier.hex()}, it is now "
            f"{loaded.picture_digest.hex()}; put the old picture back, or build another cache with --out"
        )
    shard.digests[load.scene] = three
    for offset, view in enumerate(load.views):
        column = view - span.view_start
        shard.geometry[load.scene, column] = loaded.geometry[offset]
        boxes = loaded.boxes[offset]
        shard.counts[load.scene * span.views + column] = len(boxes)
        # A scene without heads has nothing to ask the teacher.
        if len(boxes):
            batch.add(loaded.images[offset], boxes, f"scene {key!r}, view {view}")


def _earlier_digest(reader: CacheReader, position: int) -> bytes | None:
    """The picture's digest in the shard that holds view 0 of a scene; None if that is missing, or skipped the scene."""
    shard = reader.manifest.locate(position, 0)[0]
    if not shard_path(reader.path, shard).exists():
        return None
    digest = reader.digests(position).picture
    return digest if any(digest) else None
