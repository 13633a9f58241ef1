"""A cache built as a user builds it over two processes, and by parts: the bytes of one process at the same thread count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_world import shard_files
from fixtures import write_gazefollow
from training_world import World, cache_arguments, store_teacher

from distill.cli import main
from distill.readers import open_data
from teachers.cache.reader import CacheReader
from teachers.cache.verify import NOISE

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_launched_processes_and_parts_give_the_bytes_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(write_gazefollow(tmp_path / "data", 24), store_teacher(tmp_path / "teacher"), tmp_path / "cache")
    words = cache_arguments(world, **{"scenes-per-shard": 3})
    # One of five jobs, by hand, has been and gone; two processes of a launch find the rest.
    assert main([*words, "--part", "3/5", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["part"], first["shards_written"], first["complete"]) == ([3, 5], 1, False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "distill"]
    done = subprocess.run([*launch, *words, "--json"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    main_process = json.loads(done.stdout)
    assert main_process["part"] == [0, 2], "two processes were not launched"
    # The first process looked when the other had ended.
    assert main_process["complete"] is True and main_process["shards_elsewhere"] == 0
    reader = CacheReader(world.cache)
    shards = reader.manifest.shards
    by_the_other = shards - 1 - main_process["shards_written"]
    assert reader.missing_shards() == [] and main_process["shards_written"] == (shards + 1) // 2
    assert by_the_other == shards // 2 - 1 > 0
    others = main_process["others"]
    assert (others["processes"], others["shards_written"], others["silent"], others["skipped"]) == (2, by_the_other, 0, [])
    assert first["rows"] + main_process["rows"] + others["rows"] == reader.rows()
    assert main([*words[: words.index("--out")], "--out", str(tmp_path / "one"), *words[words.index("--out") + 2 :]]) == 0
    assert shard_files(world.cache) == shard_files(tmp_path / "one")
    # Any number of processes on resumption: what two left, one finishes.
    (world.cache / "shards/00000.safetensors").unlink()
    (world.cache / "shards/00003.safetensors").unlink()
    assert main([*words, "--json"]) == 0
    assert shard_files(world.cache) == shard_files(tmp_path / "one")
    # One process with another number of threads: sums in another order, and rows within what the codec may cause.
    torch.set_num_threads(2)
    assert main([*words[: words.index("--out")], "--out", str(tmp_path / "threads"), *words[words.index("--out") + 2 :]]) == 0
    other = CacheReader(tmp_path / "threads")
    assert (tmp_path / "threads/cache.json").read_bytes() == (world.cache / "cache.json").read_bytes()
    compared = 0
    for scene in open_data(str(world.data), "trainval").scenes:
        for view in range(reader.views):
            mine, theirs = (CacheReader(path).read(scene.key, view) for path in (world.cache, tmp_path / "threads"))
            assert np.array_equal(mine.geometry, theirs.geometry) and np.array_equal(mine.boxes, theirs.boxes)
            # Each is within its bound of the live map, and the live maps differ by rounding.
            bound = other.error_bound(scene.key, view, mine.heatmap) * 2 + NOISE["fp32"] * np.abs(mine.heatmap).max(axis=(1, 2), initial=0)
            assert (np.abs(mine.heatmap - theirs.heatmap).max(axis=(1, 2), initial=0) <= bound).all()
            compared += len(bound)
    assert compared == reader.rows() > 24
    capsys.readouterr()
    assert main(["cache", "verify", str(world.cache), "--rows", "1000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == reader.rows()
