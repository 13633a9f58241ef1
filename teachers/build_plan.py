"""What a cache build would cost, before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from teachers.build_work import choose_work, readable, scene_numbers, wanted_manifest
from teachers.cache.codecs import codec_named
from teachers.cache.format import MANIFEST, Manifest, Span
from teachers.cache.memo import PictureMemo
from teachers.cache.reader import CacheReader
from teachers.cache.writer import plan_manifest
from teachers.contract import Teacher, ViewSource
from teachers.picture_check import check_pictures
from teachers.shard_draft import answer

# A header of six tensors and the metadata takes 750 to 900 bytes.
HEADER_BYTES = 1000


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build would do: ``rows`` and ``bytes`` of the shards that it would compute, ``seconds`` in one process."""

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
    part: tuple[int, int] = (0, 1),
    rebuild: Sequence[int] = (),
    retry_skipped: bool = False,
) -> BuildPlan:
    """What :func:`build_cache` would do, without writing anything.

    ``heads(scene)`` counts the heads of a scene of ``source``. ``seconds`` is estimated from one batch of the first scenes
    that are missing, in one process (0 without ``trial``). Raises as :func:`build_cache` does before its first batch.
    """
    path = Path(path)
    wanted = wanted_manifest(teacher, source, codec)
    manifest = plan_manifest(path, wanted, source.keys, views, scenes_per_shard)
    reader = CacheReader(path) if (path / MANIFEST).exists() else None
    known = 0 if reader is None else reader.scenes
    if reader is not None and not rebuild:
        reader.check_annotations(source)
    numbers = scene_numbers(manifest, source)
    work = choose_work(
        path, manifest, reader, numbers, source, views=views, size=teacher.input_size, part=part, rebuild=rebuild,
        retry_skipped=retry_skipped,
    )
    if reader is not None and not rebuild:
        memo = PictureMemo(path, reader.scenes, writes=False)
        check_pictures(reader, source, numbers, work.to_check(reader, part), memo=memo, skip_unreadable=True)
    spans = list(work.spans())
    rows = images = size = 0
    for span in spans:
        inside = sum(heads(int(number)) for number in numbers[span.scene_start : span.scene_stop])
        rows += inside * span.views
        images += span.scenes * span.views
        size += _shard_bytes(manifest, span, inside * span.views)
    first = (int(number) for span in spans for number in numbers[span.scene_start : span.scene_stop])
    seconds = _trial(teacher, source, first, views, batch_images, images) if spans and trial else 0.0
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


def _trial(teacher: Teacher, source: ViewSource, scenes: Iterator[int], views: int, batch_images: int, images: int) -> float:
    """Seconds that ``images`` views would take, from a batch of the first scenes loaded and run twice; the first is to warm up.

    Scenes that cannot be read are passed over: the build will say what is to become of them.
    """
    chosen: list[int] = []
    seconds, count = 0.0, min(views, batch_images)
    for scene in scenes:
        if not readable(source, scene, teacher.input_size):
            continue
        chosen.append(scene)
        if len(chosen) * count >= batch_images:
            break
    for _ in range(2 if chosen else 0):
        started = time.perf_counter()
        loaded = [source.load(scene, range(count), teacher.input_size) for scene in chosen]
        pictures = [one for one in loaded if one.boxes.shape[1]]
        if pictures:
            heads = np.concatenate([np.full(count, one.boxes.shape[1]) for one in pictures])
            boxes = np.concatenate([one.boxes.reshape(-1, 4) for one in pictures]).astype(np.float32)
            answer(teacher, torch.cat([one.images for one in pictures]), boxes, np.repeat(np.arange(len(heads)), heads))
        seconds = time.perf_counter() - started
    return seconds / (count * len(chosen)) * images if chosen else 0.0
