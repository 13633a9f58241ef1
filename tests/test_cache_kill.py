"""kill -9 at many moments, and two processes at once: the finished cache is that of an undisturbed build."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
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
        self._server, self.hits = server, 0

    def _line(self) -> list[str]:
        assert self._server.stdout is not None
        return self._server.stdout.readline().split()

    def start(self, cache: Path, pictures: Path, *environments: dict[str, str]) -> None:
        assert self._server.stdin is not None
        print(
            json.dumps([[str(cache), str(pictures), one] for one in environments]), file=self._server.stdin, flush=True
        )

    def kill(self, cache: Path, pictures: Path, moment: str, log: Path) -> int:
        """Start a build and SIGKILL it at ``moment``; returns its process id."""
        self.start(cache, pictures, {"HOLD": moment, "LOG": str(log)})
        told, process = self._line()
        assert told == "holding", "the build ended before it could be killed"
        what, _, when = moment.partition(":")
        if what == "after":
            strike(int(process), float(when))
        else:
            os.kill(int(process), signal.SIGKILL)
        line = self._line()
        if what == "after" and line[0] == "done":
            # It was through before the blow fell; what it left is judged all the same.
            line = self._line()
        else:
            self.hits += 1
        assert line in (["status", "-9"], ["status", "0"])
        assert what == "after" or line[1] == "-9"
        return int(process)

    def finish(self, cache: Path, pictures: Path, *environments: dict[str, str]) -> list[list[str]]:
        """Builds side by side, one for each environment: (shards written, shards present) of each."""
        self.start(cache, pictures, *(environments or ({},)))
        lines = [self._line() for _ in environments or ({},)]
        assert self._line() == ["status", *["0" for _ in lines]]
        return [line[1:] for line in lines]


def strike(process: int, delay: float) -> None:
    """SIGKILL a process after ``delay`` seconds, unless it has ended by then: its number may be another's."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(process)
        try:
            time.sleep(delay)
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


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


def check_log(log: Path, killed: dict[int, tuple[set[str], set[str]]], last: set[str]) -> None:
    """No shard was computed twice but one that was in flight when its process was killed.

    ``killed`` has for each process, in order, the shards on disk before it began and after it was killed; ``last`` those before the
    build that was left in peace.
    """
    computed: dict[int, set[str]] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        process, shard = map(int, line.split())
        computed.setdefault(process, set()).add(f"{shard:05d}.safetensors")
    for process, (before, after) in killed.items():
        begun = computed.pop(process, set())
        assert not begun & before, "a finished shard was computed again"
        assert len(begun - after) <= 1, "more than the shard in flight was lost"
    (peaceful,) = computed.values() or (set(),)
    assert not peaceful & last, "a finished shard was computed again"


def survive(builds: Builds, tmp_path: Path, moments: list[str]) -> None:
    pictures, cache, log = tmp_path / "pictures", tmp_path / "cache", tmp_path / "log"
    scenes = make_scenes(pictures, 22)
    finished: dict[str, tuple[int, int]] = {}
    killed: dict[int, tuple[set[str], set[str]]] = {}
    for moment in moments:
        before = finished
        process = builds.kill(cache, pictures, moment, log)
        finished = inodes(cache)
        killed[process] = set(before), set(finished)
        assert finished.items() >= before.items(), "a finished shard was written again"
        if (cache / "cache.json").exists():
            reader = CacheReader(cache)
            missing = set(reader.missing_shards())
            assert all(error is None for shard, error in reader.check_shards() if shard not in missing)
    assert builds.finish(cache, pictures, {"LOG": str(log)}) == [[str(6 - len(finished)), str(len(finished))]]
    check_log(log, killed, set(finished))
    assert inodes(cache).items() >= finished.items()
    build(tmp_path / "calm", make_source(scenes))
    assert shard_files(cache) == shard_files(tmp_path / "calm")
    assert (cache / "cache.json").read_bytes() == (tmp_path / "calm/cache.json").read_bytes()
    assert not list(cache.rglob("*.tmp")), "what a kill left behind was not cleared away"


def test_four_kills(builds: Builds, tmp_path: Path) -> None:
    # The manifest in flight; its copy; a forward pass in the middle of the third shard; a shard in flight, its bytes not yet flushed.
    survive(builds, tmp_path, ["flush:1", "flush:3", "pass:5", "flush:3"])


@pytest.mark.soak
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="a process that may have ended is killed safely on Linux alone")
def test_twenty_kills(builds: Builds, tmp_path: Path) -> None:
    """Twenty, at moments of chance by the clock, and twenty more where it hurts: each is followed by the same command."""
    dice = random.Random(20)
    make_scenes(tmp_path / "pictures", 22)
    builds.finish(tmp_path / "first", tmp_path / "pictures")  # waits for the server to have imported everything
    began = time.monotonic()
    builds.finish(tmp_path / "calm", tmp_path / "pictures")
    whole, before = time.monotonic() - began, builds.hits
    for batch in range(80):
        if builds.hits - before >= 20:
            break
        survive(builds, tmp_path / f"clock-{batch}", [f"after:{dice.uniform(0.0, whole):.4f}"])
    assert builds.hits - before >= 20, "too few kills fell into a build"
    for batch in range(5):
        moments = [f"{dice.choice(['flush', 'pass'])}:{dice.randint(1, 3)}" for _ in range(4)]
        survive(builds, tmp_path / f"held-{batch}", moments)


def test_two_processes_at_once(builds: Builds, tmp_path: Path) -> None:
    pictures, cache = tmp_path / "pictures", tmp_path / "cache"
    scenes = make_scenes(pictures, 22)
    both = builds.finish(cache, pictures, *({"RANK": rank, "WORLD_SIZE": "2"} for rank in "01"))
    assert [written for written, _ in both] == ["3", "3"]
    build(tmp_path / "calm", make_source(scenes))
    assert shard_files(cache) == shard_files(tmp_path / "calm")
