"""What every test relies on: no network, no cache but its own, and one thread, so that sums add up in one order."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from refusals import Refusals

# Before anything imports torch or the hub's client, which read these once. Child processes inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
_HOME = tempfile.mkdtemp(prefix="gaze-distill-tests-")
os.environ["HF_HOME"] = str(Path(_HOME, "huggingface"))
os.environ["TORCH_HOME"] = str(Path(_HOME, "torch"))
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(_HOME, "inductor"))  # the user's own may hold what a killed compilation left
os.environ["GAZE_DISTILL_HOME"] = str(Path(_HOME, "gaze-distill"))
# What one process of a divided run has made for all; the first process makes the folder, and removes it with its own.
os.environ.setdefault("GAZE_TESTS_SHARED", str(Path(_HOME, "shared")))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the tests' own caches hold."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def no_flush() -> Iterator[None]:
    """No test waits for the disk: what a flush brings shows when the power goes, and what is killed here is a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # refuses what is no open file, as a flush does
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine, so that a test that needs one fails everywhere alike."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family != getattr(socket, "AF_UNIX", None) and isinstance(address, tuple):
            host = str(address[0])
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise ConnectionRefusedError(f"tests use no network, and one asked for {host}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusals:
    """Runs a command that must be refused, and sees that it changes nothing below ``tmp_path``."""
    from refusals import Refusals

    return Refusals(tmp_path, capsys)


@pytest.fixture
def tiny_students(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The catalogue of students holds the tests' tiny ones as well, and torch keeps to one thread."""
    import torch
    from training_world import TINY

    from students.catalogue import STUDENTS

    for name, config in TINY.items():
        monkeypatch.setitem(STUDENTS, name, config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
