"""How fast a cache is read: rows at random and in order, cold and warm, against a plain memory copy; and how fast it opens."""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.benchmarks.cache_figures import Figure, figure
from teachers.cache.format import SHARDS, Manifest
from teachers.cache.keys import CHUNK
from teachers.cache.reader import CacheReader
from teachers.contract import GazeOutput, SceneViews
from teachers.runner import build_cache

SIDE, BATCH = 64, 64
ROW_BYTES = 4 * SIDE * SIDE  # a decoded map
SHARD_SCENES = 256
FALLBACK_CACHE = 32 << 20  # where the system does not tell the size of its last-level cache


class RandomMaps:
    """Scenes of one head each and a teacher that answers with random smooth maps: a cache's content without pictures."""

    identity, mend = {"reader": "random maps"}, "distill cache build"
    fingerprint, input_size, heatmap_size, has_inout = {"name": "random maps"}, (1, 1), (SIDE, SIDE), True

    def __init__(self, count: int) -> None:
        self.keys = tuple(f"train/{number // 1000:08d}/{number:08d}.jpg" for number in range(count))
        self._image = torch.zeros(1, 3, 1, 1)
        self._box = np.array([[[0.2, 0.2, 0.4, 0.4]]], np.float32)
        self._generator = torch.Generator().manual_seed(0)

    def load(self, scene: int, views: Sequence[int], size: tuple[int, int]) -> SceneViews:
        digest = scene.to_bytes(16, "big")
        count = len(views)
        return SceneViews(
            self._image.expand(count, -1, -1, -1), self._box.repeat(count, axis=0), np.zeros((count, 5)), digest, digest, digest
        )

    def annotation_digests(self, scene: int) -> tuple[bytes, bytes]:
        return scene.to_bytes(16, "big"), scene.to_bytes(16, "big")

    def picture_digest(self, scene: int) -> bytes:
        return scene.to_bytes(16, "big")

    def picture_stamp(self, scene: int) -> bytes:
        return scene.to_bytes(16, "big")

    def __call__(self, images: torch.Tensor, boxes: torch.Tensor, image_index: torch.Tensor) -> GazeOutput:
        coarse = torch.randn(len(boxes), 1, 8, 8, generator=self._generator) * 6 - 5
        maps = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return GazeOutput(maps[:, 0], torch.zeros(len(boxes)))


def last_level_cache() -> int:
    """Bytes of the processor's last-level cache, the largest that the system tells of, or a guess."""
    sizes = [FALLBACK_CACHE]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdecimal() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
    return max(sizes)


def forget_pages(cache: Path) -> bool:
    """Drop a cache's files from the system's page cache; False where that cannot be asked for. Maps of them must be gone."""
    gc.collect()
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in (cache / SHARDS).iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True


def make_random_cache(path: Path, rows: int, codec: str, tell: Callable[[int], None], scenes_per_shard: int = SHARD_SCENES) -> RandomMaps:
    """A cache of ``rows`` rows (one head, one view a scene) at ``path``."""
    source = RandomMaps(rows)
    build_cache(
        path, source, source, views=1, codec=codec, scenes_per_shard=scenes_per_shard, batch_images=BATCH,
        report=lambda record: tell(record.views),
    )
    return source


def _pairs(keys: Sequence[str], numbers: Sequence[int]) -> list[tuple[str, int]]:
    return [(keys[number], 0) for number in numbers]


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _rates(name: str, seconds: Sequence[float], *, ratio: float | None = None, bar: float | None = None, note: str = "") -> Figure:
    """Rows a second of batches that took ``seconds`` each."""
    rates = [BATCH / one for one in seconds]
    middle = float(np.median(rates))
    said = f"{middle * ROW_BYTES / 1e6:.0f} MB/s decoded" + (f"; {note}" if note else "")
    return figure(name, "rows/s", rates, ratio=ratio, bar=bar, least=True, note=said)


def measure_reading(folder: Path, rows: int, rounds: int, tell: Callable[[str, int, int], None]) -> list[Figure]:
    """Cold and warm reading of ``rows`` rows in each codec; every warm batch takes its turn beside a copy of as many rows."""
    codecs = ("q8", "fp16")
    figures: list[Figure] = []
    readers: dict[str, CacheReader] = {}
    source = RandomMaps(rows)
    dice = np.random.default_rng(0)
    batches = rows // BATCH
    for codec in codecs:
        path = folder / codec

        def told(done: int, codec: str = codec) -> None:
            tell(f"Writing {codec}", done, rows)

        make_random_cache(path, rows, codec, told)
        size = CacheReader(path).size() / rows
        most = {"q8": 4300.0, "fp16": None}[codec]
        figures.append(figure(f"{codec}: size of a row", "bytes", [size], bar=most, note=f"head and view at {SIDE}x{SIDE}, one head a scene, all files"))
        for order in ("in order", "at random"):
            dropped = forget_pages(path)
            reader = CacheReader(path)
            numbers = np.arange(rows) if order == "in order" else dice.permutation(rows)
            seconds = []
            for number in range(batches):
                items = _pairs(source.keys, numbers[number * BATCH : (number + 1) * BATCH].tolist())
                seconds.append(_timed(lambda reader=reader, items=items: reader.read_many(items)))  # type: ignore[misc]
                tell(f"Reading {codec} cold", number + 1, batches)
            # A mean over the whole pass: the first row of a shard pays for its digest, the others do not.
            whole = [batches * BATCH / sum(seconds)]
            rate = whole[0] * ROW_BYTES / 1e6
            cold = "" if dropped else "; the page cache could not be dropped here, so this is warm"
            figures.append(
                figure(f"{codec}: read cold, {order}", "rows/s", whole, note=f"{rate:.0f} MB/s decoded, every shard's digest checked{cold}")
            )
            del reader
        readers[codec] = CacheReader(path)
        for start in range(0, rows, BATCH):  # what is timed warm has been read, and checked, before
            readers[codec].read_many(_pairs(source.keys, range(start, min(start + BATCH, rows))))
    figures += _measure_warm(readers, source.keys, rounds, dice, tell)
    return figures


def _measure_warm(
    readers: dict[str, CacheReader], keys: Sequence[str], rounds: int, dice: np.random.Generator, tell: Callable[[str, int, int], None]
) -> list[Figure]:
    rows = len(keys)
    buffer = np.empty((rows, SIDE, SIDE), np.float32)
    for start in range(0, rows, 4096):
        dice.standard_normal(out=buffer[start : start + 4096], dtype=np.float32)
    # Both sides write to the same tensor again and again, as a training loop's batches do.
    tensor = torch.empty(BATCH, SIDE, SIDE)
    out = tensor.numpy()
    seconds: dict[str, list[float]] = {}

    def copy(numbers: np.ndarray) -> None:
        np.take(buffer, numbers, axis=0, out=out, mode="clip")

    for turn in range(rounds):
        first = int(dice.integers(0, rows - BATCH + 1))
        for order in ("at random", "in order"):
            for name in ("copy", *readers):
                numbers = dice.integers(0, rows, BATCH) if order == "at random" else np.arange(first, first + BATCH)
                if name == "copy":
                    took = _timed(lambda numbers=numbers: copy(numbers))  # type: ignore[misc]
                else:
                    items = _pairs(keys, numbers.tolist())
                    took = _timed(lambda name=name, items=items: readers[name].read_many(items, out=out))  # type: ignore[misc]
                seconds.setdefault(f"{name} {order}", []).append(took)
        tell("Reading warm", turn + 1, rounds)
    beyond = rows * ROW_BYTES / last_level_cache()
    figures = [_rates("copy of float32 rows, at random", seconds["copy at random"], note=f"from {beyond:.1f} last-level caches")]
    figures.append(_rates("copy of float32 rows, in order", seconds["copy in order"]))
    for name in readers:
        for order in ("at random", "in order"):
            ratio = float(np.median(seconds[f"copy {order}"]) / np.median(seconds[f"{name} {order}"]))
            bar = 1 / 6 if (name, order) == ("q8", "at random") else None
            figures.append(_rates(f"{name}: read warm, {order}", seconds[f"{name} {order}"], ratio=ratio, bar=bar, note="ratio to the copy"))
    return figures


def measure_opening(folder: Path, shards: int, rounds: int, tell: Callable[[str, int, int], None]) -> list[Figure]:
    """Opening a cache of ``shards`` shards, and what a run asks of it before its first step."""
    path = folder / "shards"
    source = make_random_cache(path, shards, "q8", lambda done: tell("Writing shards", done, shards), scenes_per_shard=1)
    alone, whole = [], []
    for turn in range(rounds):
        gc.collect()
        alone.append(_timed(lambda: CacheReader(path)))

        def begin() -> None:
            reader = CacheReader(path)
            reader.check_annotations(source)
            reader.covers(source.keys)

        whole.append(_timed(begin))
        tell("Opening", turn + 1, rounds)
    return [
        figure(f"open {shards} shards", "s", alone),
        figure(f"open {shards} shards, every index checked", "s", whole, bar=1.0, note="with coverage and annotations, as a run begins"),
    ]


def measure_memory(folder: Path, scenes: int) -> list[Figure]:
    """Bytes a scene that opening a cache takes at its peak."""

    def peak(count: int) -> int:
        path = folder / f"{count}-scenes"
        path.mkdir(parents=True, exist_ok=True)
        keys = [f"train/{number:08d}.jpg" for number in range(count)]
        empty = Manifest({"name": "t"}, {"reader": "r"}, "q8", (SIDE, SIDE), True)
        (path / "cache.json").write_bytes(empty.grown(keys, 4, 64).to_json())
        tracemalloc.start()
        try:
            reader = CacheReader(path)
            assert reader.scenes == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(CHUNK)  # what is imported or made once is not a scene's
    # Three times: the interpreter's table of interned strings doubles now and then, and counts once.
    slopes = [(peak(3 * scenes) - peak(scenes)) / (2 * scenes) for _ in range(3)]
    return [figure("memory: opening, at its peak", "bytes a scene", slopes, bar=64.0, note="building and reading are measured by the test suite")]
