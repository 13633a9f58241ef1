"""A reader that many threads share, as feeding's do: few maps held, every row right, damage found by whoever comes first."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from teachers.cache.ensemble import open_caches
from teachers.cache.reader import CacheReader
from teachers.cache.shards import MAPS, maps_to_hold
from teachers.errors import CacheError
from tests.cache_world import build, make_scenes, make_source

THREADS = 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    build(folder / "cache", make_source(make_scenes(folder / "pictures", 30)), scenes_per_shard=1)
    return folder / "cache"


def keys() -> list[str]:
    return [f"{number:03d}.png" for number in range(30)]


def test_threads_read_many_shards_at_random_through_two_maps(cache: Path) -> None:
    alone, shared = CacheReader(cache), CacheReader(cache, open_shards=2)
    wanted = {(key, view): alone.read(key, view) for key in keys() for view in range(3)}

    def read_much(seed: int) -> int:
        dice = random.Random(seed)
        for _ in range(400):
            key, view = dice.choice(keys()), dice.randrange(3)
            row, right = shared.read(key, view), wanted[key, view]
            assert np.array_equal(row.heatmap, right.heatmap) and np.array_equal(row.geometry, right.geometry)
            assert shared.picture_digest(key, view) == shared.digests(keys().index(key), view).picture
        return seed

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            assert list(pool.map(read_much, range(THREADS))) == list(range(THREADS))
    finally:
        sys.setswitchinterval(interval)
    assert len(shared._table.process.open) == 2 and set(shared._table.process.checked) == {2}


def test_no_thread_reads_past_a_damaged_payload(cache: Path, tmp_path: Path) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 6))
    build(tmp_path / "cache", source)
    path = tmp_path / "cache/shards/00001.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-200] ^= 8
    path.write_bytes(damaged)
    reader = CacheReader(tmp_path / "cache")

    def refused(number: int) -> bool:
        if number % 2:
            reader.covers(source.keys)  # opens the shard without a look at its payload
        try:
            reader.read(source.keys[5], number % 3)
        except CacheError as error:
            return "00001.safetensors is damaged: its" in str(error)
        return False

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(refused, range(64)))


def test_a_forked_reader_does_not_wait_for_a_lock_that_was_held(cache: Path) -> None:
    reader = CacheReader(cache)
    right = reader.read("002.png", 1).heatmap
    with ThreadPoolExecutor(1) as pool:
        pool.submit(reader._table.process.lock.acquire).result()  # a thread that the child will not have holds it
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(600)  # waiting would be for ever
            try:
                code = 0 if np.array_equal(reader.read("002.png", 1).heatmap, right) else 1
            finally:
                os._exit(code)
        pool.submit(reader._table.process.lock.release).result()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_maps_leave_descriptors_for_the_rest(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= maps_to_hold() <= MAPS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4096))
    assert (maps_to_hold(), maps_to_hold(3), maps_to_hold(100)) == (16, 5, 1)
    reader = CacheReader(cache)
    for key in keys():
        reader.read(key, 0)
    assert len(reader._table.process.open) == 16
    several = open_caches([str(cache)] * 2)
    assert [each._table.limit for each in several.readers] == [8, 8]  # type: ignore[union-attr]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert maps_to_hold() == MAPS
