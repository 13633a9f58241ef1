"""The processes of one launch of a build: when the others have ended, and what they have done as far as the disk shows it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch import distributed

from teachers.cache.format import SHARDS, Span, shard_name
from teachers.cache.reader import CacheReader
from teachers.cache.writer import shard_path

BEGUN, ENDED, FAILED = "cache build: begun", "cache build: ended", "cache build: failed"
LOOK_SECONDS = 2.0  # between two looks at the directory: it may hold thousands of files, on a network
# A launcher ends the whole launch when a process of its machine fails; that one of another machine is gone may show in nothing but silence.
SILENCE_SECONDS = 3600.0


class Launch:
    """This process among those of its launch, as :func:`joined` gives it."""

    def __init__(self, store: distributed.Store, rank: int, processes: int) -> None:
        self._store, self.rank, self.processes = store, rank, processes

    def begin(self) -> None:
        """Let the others compute, of the first process; wait for that, of the others: what they are to do is counted first."""
        if self.rank == 0:
            self._store.set(BEGUN, "1")
        else:
            self._store.wait([BEGUN], timedelta(seconds=SILENCE_SECONDS))

    def end(self, *, failed: bool = False) -> None:
        """Say that this process has done its share, or failed."""
        self._store.add(FAILED, int(failed))
        self._store.add(ENDED, 1)

    def failed(self) -> int:
        """How many processes have failed so far."""
        return int(self._store.add(FAILED, 0))

    def running(self) -> int:
        """How many of the other processes have not ended; for one that has not ended itself."""
        return self.processes - 1 - int(self._store.add(ENDED, 0))


@contextmanager
def joined() -> Iterator[Launch | None]:
    """The launch that torchrun or accelerate made this process a part of; None for a process of its own.

    RANK and WORLD_SIZE alone are no launch: nothing says that the other processes run at the same time.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 if os.environ.get("WORLD_SIZE", "1").isdecimal() else False
    if not several or "TORCHELASTIC_RUN_ID" not in os.environ or not distributed.is_available():
        yield None
        return
    # The launcher's store alone, without a process group: nothing is to be exchanged, and the machines need not reach each other.
    store, rank, processes = next(iter(distributed.rendezvous("env://", timeout=timedelta(minutes=10))))
    launch = Launch(store, rank, processes)
    try:
        yield launch
    except BaseException:
        launch.end(failed=True)
        raise
    launch.end()


@dataclass(frozen=True, slots=True)
class OthersSummary:
    """What the other processes of a launch did: ``shards_written``, their ``rows`` and ``bytes``, and the scenes that they ``skipped`` as
    (key, reason). ``processes`` counts all of the launch; ``failed`` those of the others that failed, and
    ``silent`` those that had not ended when this one stopped waiting."""

    processes: int
    shards_written: int
    rows: int
    bytes: int
    silent: int
    failed: int
    skipped: tuple[tuple[str, str], ...] = ()


class OthersWork:
    """The shards that the other processes of a launch compute, by what is on disk; ``replaced`` are those that were there before."""

    def __init__(self, path: Path, spans: Sequence[Span] = (), replaced: frozenset[int] = frozenset()) -> None:
        self._path, self._spans = path, list(spans)
        self.views_total = sum(span.scenes * span.views for span in spans)
        self._before = {span.shard: self._stamp(span.shard) for span in spans if span.shard in replaced}
        self._done: set[int] = set()
        self._looked = -LOOK_SECONDS

    def _stamp(self, shard: int) -> tuple[int, int]:
        facts = shard_path(self._path, shard).stat()
        return facts.st_ino, facts.st_mtime_ns

    def look(self, *, now: bool = False) -> bool:
        """Look at the disk, unless that was done just now; whether more is there than before."""
        if not self._spans or (not now and time.monotonic() - self._looked < LOOK_SECONDS):
            return False
        self._looked, before = time.monotonic(), len(self._done)
        try:
            there = set(os.listdir(self._path / SHARDS))
        except FileNotFoundError:
            return False  # the first shard makes the directory
        for span in self._spans:
            shard = span.shard
            if shard not in self._done and shard_name(shard) in there and self._before.get(shard) != self._stamp(shard):
                self._done.add(shard)
        return len(self._done) > before

    @property
    def views(self) -> int:
        """The views of the shards that were there at the last look."""
        return sum(span.scenes * span.views for span in self._spans if span.shard in self._done)

    def wait(self, launch: Launch) -> Iterator[int]:
        """Yields how many other processes have not ended, now and then, until all have or nothing was heard for long."""
        heard, running = time.monotonic(), launch.running()
        while running:
            yield running
            time.sleep(0.2)
            before, running = running, launch.running()
            if self.look() or running < before:
                heard = time.monotonic()
            if time.monotonic() - heard > SILENCE_SECONDS:
                break
        self.look(now=True)

    def summary(self, reader: CacheReader, launch: Launch) -> OthersSummary:
        """What was done, to be asked when the wait is over."""
        rows = size = 0
        skipped: list[tuple[str, str]] = []
        for shard in sorted(self._done):
            reader.replaced(shard)
            rows += reader.rows_in(shard)
            size += shard_path(self._path, shard).stat().st_size
            skipped += [(one.key, one.reason) for one in reader.skipped_scenes_in(shard)]
        return OthersSummary(launch.processes, len(self._done), rows, size, launch.running(), launch.failed(), tuple(skipped))
