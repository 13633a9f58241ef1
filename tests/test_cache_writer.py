"""Temporary files: whose they are is in their names, and only what nobody writes is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_world import build, make_scenes, make_source

from teachers.cache import writer
from teachers.cache.format import MANIFEST
from teachers.cache.writer import ABANDONED_SECONDS, remove_abandoned, write_whole


def ended_process() -> int:
    """The number of a process that was, and is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_temporary_file_is_named_by_host_and_process_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-7.example.org")
    seen: list[str] = []

    def chunks() -> list[bytes]:
        seen.extend(path.name for path in tmp_path.iterdir())
        assert remove_abandoned(tmp_path) == 0, "a living process's own"
        return [b"whole"]

    assert write_whole(tmp_path / "00003.safetensors", (chunk for _ in "1" for chunk in chunks())) == 5
    (name,) = seen
    assert name.startswith(f".00003.node-7-example-org.{os.getpid()}.") and name.endswith(".tmp")
    assert [path.name for path in tmp_path.iterdir()] == ["00003.safetensors"]


@pytest.mark.parametrize(
    ("host", "process", "age", "gone"),
    [
        ("here", "ended", 0.0, True),
        ("here", "living", 0.0, False),
        ("here", "living", ABANDONED_SECONDS + 60, True),  # the number was given again
        ("elsewhere", "ended", 0.0, False),
        ("elsewhere", "ended", ABANDONED_SECONDS - 60, False),
        ("elsewhere", "ended", ABANDONED_SECONDS + 60, True),
        ("", "", 0.0, False),  # a name of an earlier version says nothing
        ("", "", ABANDONED_SECONDS + 60, True),
    ],
)
def test_only_what_nobody_writes_is_removed(tmp_path: Path, host: str, process: str, age: float, gone: bool) -> None:
    number = {"ended": ended_process, "living": os.getpid, "": int}[process]()
    name = f".00000.{writer._host() if host == 'here' else 'node-9'}.{number}.ab12cd34.tmp" if host else ".00000.ab12cd34.tmp"
    file = tmp_path / name
    file.write_bytes(b"half")
    os.utime(file, (time.time() - age,) * 2)
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert remove_abandoned(tmp_path) == 0 and file.exists(), "a lock is respected, whatever the name says"
    assert remove_abandoned(tmp_path) == int(gone)
    assert file.exists() is not gone


def test_a_file_system_without_locks_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 3)), tmp_path / "cache"
    numbers = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK]

    def none(*_: object) -> None:
        raise OSError(numbers[0], os.strerror(numbers[0]))

    monkeypatch.setattr(fcntl, "flock", none)
    while numbers:
        assert build(cache / str(numbers[0]), source).complete
        numbers.pop(0)
    # Any other failure of a lock is one.
    numbers.append(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        build(cache / "ill", source)


@pytest.mark.parametrize("look", ["exists", "iterdir"])
def test_a_cache_that_another_process_makes_between_two_looks_is_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    """Whichever of the two looks the other process comes before, the directory is not taken for somebody else's."""
    source, cache = make_source(make_scenes(tmp_path / "pictures", 3)), tmp_path / "cache"
    original, came = getattr(Path, look), []

    def looked(path: Path) -> object:
        if path in (cache, cache / MANIFEST) and not came:
            came.append(look)
            build(cache, source)
        return original(path)

    cache.mkdir()
    monkeypatch.setattr(Path, look, looked)
    summary = build(cache, source)
    assert came and summary.complete and summary.shards_written == 0
