"""kill -9 at many moments, and two processes at once: the finished cache is that of an undisturbed build."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cache_world import build, make_scenes, make_source, shard_files

from teachers.cache.reader import CacheReader

ROOT = Path(__file__).parents[1]


class Builds:
    """Starts builds in processes of their own and says how they ended."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def _line(self) -> list[str]:
        assert self._server.stdout is not None
        return self._server.stdout.readline().split()

    def start(self, cache: Path, pictures: Path, *environments: dict[str, str]) -> None:
        assert self._server.stdin is not None
        print(
            json.dumps([[str(cache), str(pictures), one] for one in environments]), file=self._server.stdin, flush=True
        )

    def kill(self, cache: Path, pictures: Path, moment: str) -> None:
        """Start a build and SIGKILL it at ``moment``."""
        self.start(cache, pictures, {"HOLD": moment})
        told, process = self._line()
        assert told == "holding", "the build ended before it could be killed"
        os.kill(int(process), signal.SIGKILL)
        assert self._line() == ["status", "-9"]

    def finish(self, cache: Path, pictures: Path, *environments: dict[str, str]) -> list[list[str]]:
        """Builds side by side, one for each environment: (shards written, shards present) of each."""
        self.start(cache, pictures, *(environments or ({},)))
        lines = [self._line() for _ in environments or ({},)]
        assert self._line() == ["status", *["0" for _ in lines]]
        return [line[1:] for line in lines]


@pytest.fixture(scope="module")
def builds() -> Iterator[Builds]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "tests/cache_world.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield Builds(server)
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bytes are equal at equal thread count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inodes(cache: Path) -> dict[str, tuple[int, int]]:
    files = (cache / "shards").glob("[0-9]*.safetensors")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def survive(builds: Builds, tmp_path: Path, moments: list[str]) -> None:
    pictures, cache, finished = tmp_path / "pictures", tmp_path / "cache", {}
    scenes = make_scenes(pictures, 22)
    for moment in moments:
        builds.kill(cache, pictures, moment)
        assert inodes(cache).items() >= finished.items(), "a finished shard was written again"
        finished = inodes(cache)
        if (cache / "cache.json").exists():
            reader = CacheReader(cache)
            missing = set(reader.missing_shards())
            assert all(error is None for shard, error in reader.check_shards() if shard not in missing)
    assert builds.finish(cache, pictures) == [[str(6 - len(finished)), str(len(finished))]]
    assert inodes(cache).items() >= finished.items()
    build(tmp_path / "calm", make_source(scenes))
    assert shard_files(cache) == shard_files(tmp_path / "calm")
    assert (cache / "cache.json").read_bytes() == (tmp_path / "calm/cache.json").read_bytes()
    assert not list(cache.rglob("*.tmp")), "what a kill left behind was not cleared away"


def test_three_kills(builds: Builds, tmp_path: Path) -> None:
    # The manifest in flight; a forward pass in the middle of the third shard; a shard in flight, its bytes not yet flushed.
    survive(builds, tmp_path, ["flush:1", "pass:5", "flush:3"])


@pytest.mark.soak
def test_twenty_kills(builds: Builds, tmp_path: Path) -> None:
    dice = random.Random(20)
    for batch in range(5):
        moments = [f"{dice.choice(['flush', 'pass'])}:{dice.randint(1, 3)}" for _ in range(4)]
        survive(builds, tmp_path / str(batch), moments)


def test_two_processes_at_once(builds: Builds, tmp_path: Path) -> None:
    pictures, cache = tmp_path / "pictures", tmp_path / "cache"
    scenes = make_scenes(pictures, 22)
    both = builds.finish(cache, pictures, *({"RANK": rank, "WORLD_SIZE": "2"} for rank in "01"))
    assert [written for written, _ in both] == ["3", "3"]
    build(tmp_path / "calm", make_source(scenes))
    assert shard_files(cache) == shard_files(tmp_path / "calm")
