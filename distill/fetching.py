"""What the user sees of a download: megabytes, rate and time left, drawn only if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from distill.console import Bar, progress

if TYPE_CHECKING:
    from teachers.download import DownloadRecord

MEGABYTE = 10**6


@contextmanager
def download_progress() -> Iterator[Callable[[DownloadRecord], None]]:
    """A callable for ``report=`` of whatever may fetch a teacher; the bar appears with the first record."""
    with ExitStack() as stack:
        bar: Bar | None = None

        def report(record: DownloadRecord) -> None:
            nonlocal bar
            if bar is None or bar.title != f"Fetching {record.name}":
                total = -(-(record.total or 0) // MEGABYTE)
                bar = stack.enter_context(progress(f"Fetching {record.name}", total=total, unit="MB"))
                bar.resume_from(record.done // MEGABYTE)
            whole = record.done == record.total
            done = bar.total if whole else record.done // MEGABYTE
            if done > bar.done or whole:
                bar.update(done - bar.done)

        yield report
