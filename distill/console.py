"""What the user sees while work is under way: progress with rate and time left, tables, warnings.

Everything here goes to standard error, so that standard output holds results alone (``--json`` depends on it). On a terminal
progress is a live bar; elsewhere it is a plain line now and then. In a run of several processes only the first one speaks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # a plain line this often: enough to see life, little enough to keep a log readable


def is_main_process() -> bool:
    """Whether this process is the one that speaks (rank 0, or the only one)."""
    return os.environ.get("RANK", "0") == "0"


def stderr() -> Console:
    """The console for everything that is no result."""
    return Console(stderr=True, quiet=not is_main_process(), highlight=False, emoji=False)


def say(message: str) -> None:
    """One plain line to standard error."""
    stderr().print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """One warning line to standard error."""
    stderr().print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = int(seconds + 0.5)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 picture``, ``2 pictures``; ``many`` where the plural is not ``one`` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _shown(facts: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items())


class Bar:
    """Progress of one piece of work; made by :func:`progress`."""

    def __init__(self, title: str, total: int, unit: str, live: Progress | None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._live = live
        self._task = live.add_task(title, total=total, unit=unit, rate="", facts="") if live else None
        self._start = time.monotonic()
        self._last = self._start
        self._before = 0

    def resume_from(self, done: int) -> None:
        """Count ``done`` as there already: it is in the total, not in the rate."""
        self.done = self._before = done
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done)

    def update(self, count: int = 1, **facts: Any) -> None:
        """Advance by ``count``; ``facts`` are shown behind the bar until the next update."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self._before) / max(now - self._start, 1e-9)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, rate=f"{rate:.3g} {self.unit}/s", facts=_shown(facts))
        elif is_main_process() and (now - self._last >= PLAIN_SECONDS or self.done >= self.total > 0):
            self._last = now
            left = duration((self.total - self.done) / rate) if rate > 0 else "?"
            share = f"{100 * self.done // max(self.total, 1)}%"
            say(f"{self.title}: {self.done}/{self.total} {self.unit} ({share}), {rate:.3g}/s, {left} left  {_shown(facts)}".rstrip())


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Bar]:
    """``with progress("Building cache", total=800, unit="views") as bar: bar.update(16, mb=3.2)``."""
    console = stderr()
    if not console.is_terminal or not is_main_process():
        yield Bar(title, total, unit, None)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[facts]}"),
    )
    with Progress(*columns, console=console) as live:
        yield Bar(title, total, unit, live)


def table(title: str, columns: list[str], rows: list[list[str]], *, left: int = 1, compact: bool = False) -> Table:
    """A rich table: the first ``left`` columns are text, the others are numbers and stand to the right.

    Every string is shown as it is: names of files hold brackets and colons, which rich would take for styles and pictures. What does not
    fit is folded, never cut off. ``compact``: without a frame, a space between columns.
    """
    result = Table(title=Text(title), title_justify="left", header_style="bold")
    if compact:
        result.box, result.padding, result.show_edge, result.pad_edge = SIMPLE, (0, 0), False, False
    for number, column in enumerate(columns):
        result.add_column(Text(column), justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        result.add_row(*map(Text, row))
    return result


def result_width() -> int:
    """Columns that a result has: those of the terminal, elsewhere enough not to fold."""
    console = Console()
    return console.width if console.is_terminal else max(console.width, 160)


def print_result(renderable: Any) -> None:
    """A result for people, to standard output; a string is shown as it is."""
    if is_main_process():
        console = Console(highlight=False, emoji=False, width=result_width())
        console.print(renderable, markup=not isinstance(renderable, str), soft_wrap=isinstance(renderable, str))


def print_json(facts: Any) -> None:
    """A result for programs: JSON, alone on standard output."""
    import json

    if is_main_process():
        sys.stdout.write(json.dumps(facts, indent=1, allow_nan=False) + "\n")
