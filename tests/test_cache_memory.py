"""Memory while building and reading: what it grows by when the cache does, a scene; peaks, not what is left at the end."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teachers.build_plan import plan_build
from teachers.cache.format import Manifest
from teachers.cache.reader import CacheReader
from teachers.contract import GazeOutput, SceneViews
from teachers.runner import build_cache

PROMISED = 64  # bytes a scene
FEW, MANY = 1_500, 4_500


class Keys(Sequence[str]):
    """Keys that are made when they are asked for: the data set's own memory is not the cache's."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self.count:
            raise IndexError(number)
        return f"train/{number // 1000:08d}/{number:08d}.jpg"


class Plain:
    """A source of scenes with one head each, and a teacher of 2×2 maps: next to nothing but the cache's own work."""

    identity, mend = {"reader": "plain"}, "distill cache build"
    fingerprint, input_size, heatmap_size, has_inout = {"name": "plain"}, (2, 2), (2, 2), True

    def __init__(self, count: int) -> None:
        self.keys = Keys(count)
        self._image, self._box = torch.zeros(1, 3, 2, 2), np.array([[[0.2, 0.2, 0.4, 0.4]]], np.float32)

    def load(self, scene: int, views: Sequence[int], size: tuple[int, int]) -> SceneViews:
        count = len(views)
        digest = scene.to_bytes(16, "big")
        box = self._box.repeat(count, axis=0)
        return SceneViews(self._image.expand(count, -1, -1, -1), box, np.zeros((count, 5)), digest, digest, digest)

    def annotation_digests(self, scene: int) -> tuple[bytes, bytes]:
        return scene.to_bytes(16, "big"), scene.to_bytes(16, "big")

    def picture_digest(self, scene: int) -> bytes:
        return scene.to_bytes(16, "big")

    def picture_stamp(self, scene: int) -> bytes:
        return scene.to_bytes(16, "big")

    def __call__(self, images: torch.Tensor, boxes: torch.Tensor, image_index: torch.Tensor) -> GazeOutput:
        return GazeOutput(torch.zeros(len(boxes), 2, 2), torch.zeros(len(boxes)))


def settled(measure: Callable[[int], float], most: float) -> float:
    """What ``measure(attempt)`` gives; again, at most three times together, while that is below 0 or above ``most``.

    A table of the whole process (that of interned strings holds a part of every path) doubles now and then, by megabytes that are
    charged to whoever is measured at that moment. It does not double twice in a row; what is the cache's own comes every time.
    """
    for attempt in range(3):
        found = measure(attempt)
        if 0 <= found <= most:
            break
    return found


def peak(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        kept = work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del kept


def slope(work: Callable[[int, int], Any]) -> float:
    """Bytes a scene that the peak of ``work(scenes, attempt)`` grows by."""
    work(100, 0)  # what is imported or made once is not the cache's
    return settled(lambda attempt: (peak(lambda: work(MANY, attempt)) - peak(lambda: work(FEW, attempt))) / (MANY - FEW), PROMISED)


def build(path: Path, count: int, **options: Any) -> None:
    plain = Plain(count)
    build_cache(path, plain, plain, views=1, scenes_per_shard=500, batch_images=250, workers=1, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Caches of 100, FEW and MANY scenes, named by them, and the slope of building them."""
    folder = tmp_path_factory.mktemp("memory")
    found = slope(lambda count, attempt: build(folder / str(attempt) / str(count), count))
    return folder / "0", found


def test_building_takes_few_bytes_a_scene(built: tuple[Path, float]) -> None:
    folder, first = built
    assert 0 <= first <= PROMISED
    # Going on with one that is there, and growing it, read what there is.
    assert 0 <= slope(lambda count, _: build(folder / str(count), count)) <= PROMISED

    def plan(count: int, _: int) -> None:
        plain = Plain(count + 500)
        planned = plan_build(
            folder / str(count), plain, plain, views=1, heads=lambda _: 1, scenes_per_shard=500, batch_images=250, trial=False
        )
        assert planned.new_scenes == 500

    assert 0 <= slope(plan) <= PROMISED


def test_reading_takes_few_bytes_a_scene(built: tuple[Path, float]) -> None:
    folder = built[0]

    def read(count: int, _: int) -> CacheReader:
        reader = CacheReader(folder / str(count), open_shards=2)
        plain = Plain(count)
        reader.check_annotations(plain)
        assert reader.covers(plain.keys) == ([], [])
        assert reader.rows() == count
        return reader

    def all_rows(count: int, _: int) -> None:
        reader, keys = read(count, 0), Plain(count).keys
        for start in range(0, count, 50):
            pairs: Iterator[tuple[str, int]] = ((keys[number], 0) for number in range(start, start + 50))
            reader.read_many(list(pairs))
            reader.read(keys[start], 0)

    assert 0 <= slope(read) <= PROMISED
    assert 0 <= slope(all_rows) <= PROMISED


def test_an_open_cache_takes_few_bytes_a_scene(tmp_path: Path) -> None:
    count = 50_000
    empty = Manifest({"name": "t"}, {"reader": "r"}, "fp16", (16, 16), True)
    (tmp_path / "cache.json").write_bytes(empty.grown([str(number) for number in range(count)], 4, 64).to_json())
    CacheReader(tmp_path)

    def held(_: int) -> float:
        tracemalloc.start()
        reader = CacheReader(tmp_path)
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert reader.position("123") == 123 and reader.position("50000") is None
        return used / count

    assert 0 < settled(held, 32) <= 32


@pytest.mark.parametrize(("charged", "found"), [({}, 20), ({(0, MANY)}, 20), ({(0, FEW)}, 20), ({(1, MANY), (2, MANY)}, 20)])
def test_what_a_process_is_charged_with_once_is_no_cache_s(charged: set[tuple[int, int]], found: float) -> None:
    tables: list[bytes] = []

    def work(count: int, attempt: int) -> bytearray:
        if (attempt, count) in charged:
            tables.append(bytes(8_000_000))
        return bytearray(20 * count)

    assert slope(work) == pytest.approx(found, abs=1)


def test_what_comes_every_time_is_measured() -> None:
    assert slope(lambda count, _: bytearray(65 * count)) > PROMISED
    assert slope(lambda count, _: bytearray(8_000_000 - count)) < 0
