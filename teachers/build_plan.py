"""What a cache build would cost, before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teachers.cache.codecs import codec_named
from teachers.cache.format import MANIFEST, Manifest, Span
from teachers.cache.reader import CacheReader
from teachers.cache.writer import plan_manifest
from teachers.contract import Teacher, ViewSource
from teachers.runner import answer, has_scenes, scene_numbers, wanted_manifest

# A header of six tensors and the metadata takes 750 to 900 bytes.
HEADER_BYTES = 1000


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build would do, for all parts together: ``rows`` and ``bytes`` of the missing shards, ``seconds`` in one process."""

    scenes: int
    heads: int
    views: int
    new_scenes: int
    shards: int
    shards_missing: int
    rows: int
    bytes: int
    seconds: float


def plan_build(
    path: Path | str,
    teacher: Teacher,
    source: ViewSource,
    *,
    views: int,
    heads: Callable[[int], int],
    codec: str = "fp16",
    scenes_per_shard: int = 64,
    batch_images: int = 16,
    trial: bool = True,
) -> BuildPlan:
    """What :func:`build_cache` would do, without writing anything.

    ``heads(scene)`` counts the heads of a scene of ``source``. ``seconds`` is estimated from two batches of the first scene
    that is missing, in one process (0 without ``trial``). Raises as :func:`build_cache` does before its first batch.
    """
    path = Path(path)
    wanted = wanted_manifest(teacher, source, codec)
    manifest = plan_manifest(path, wanted, source.keys, views, scenes_per_shard)
    known = 0
    missing = set(range(manifest.shards))
    if (path / MANIFEST).exists():
        reader = CacheReader(path)
        reader.check_annotations(source)
        known, missing = reader.scenes, missing - (set(range(reader.manifest.shards)) - set(reader.missing_shards()))
    numbers = scene_numbers(manifest, source)
    spans = [
        span
        for span in manifest.spans()
        if span.shard in missing and span.view_start < views and has_scenes(span, numbers, source, path)
    ]
    rows = images = size = 0
    for span in spans:
        inside = sum(heads(int(number)) for number in numbers[span.scene_start : span.scene_stop])
        rows += inside * span.views
        images += span.scenes * span.views
        size += _shard_bytes(manifest, span, inside * span.views)
    seconds = (
        _trial(teacher, source, int(numbers[spans[0].scene_start]), views, batch_images, images)
        if spans and trial
        else 0.0
    )
    return BuildPlan(
        manifest.scenes,
        sum(map(heads, range(len(source.keys)))),
        manifest.views,
        manifest.scenes - known,
        manifest.shards,
        len(spans),
        rows,
        size,
        seconds,
    )


def _shard_bytes(manifest: Manifest, span: Span, rows: int) -> int:
    """About a shard's size: its tensors to the byte, its header rounded up."""
    height, width = manifest.heatmap_size
    codec = codec_named(manifest.codec)
    row = codec.cell_bytes * height * width + codec.row_bytes + 16 + (4 if manifest.has_inout else 0)
    return HEADER_BYTES + rows * row + span.scenes * (49 + 48 * span.views) + 8


def _trial(teacher: Teacher, source: ViewSource, number: int, views: int, batch_images: int, images: int) -> float:
    """Seconds that ``images`` views would take, from one scene's views loaded and run twice; the first is to warm up."""
    count = min(views, batch_images)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        loaded = source.load(number, range(count), teacher.input_size)
        heads = loaded.boxes.shape[1]
        if heads:
            answer(
                teacher,
                loaded.images,
                loaded.boxes.reshape(-1, 4).astype(np.float32),
                np.repeat(np.arange(count), heads),
            )
        seconds = time.perf_counter() - started
    return seconds / count * images
