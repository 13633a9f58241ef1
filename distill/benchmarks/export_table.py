"""``distill bench export`` as a table for people: a line a file and number of heads, narrow enough for a console of a hundred columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from distill.benchmarks.export_figures import PICTURES_AT_ONCE

# Of a file as such, shown in its first line alone; of a call with so many heads.
FILE = (("MB", "mb", "{:.2f}"),)
CALL = (
    ("ms", "median_ms", "{:.1f}"), ("p95", "p95_ms", "{:.1f}"), ("CPU ms", "cpu_ms", "{:.1f}"), ("speed", "speed_over_base", "{:.2f}"),
    ("pict/s", "pictures_per_s", "{:.1f}"), ("peak MB", "peak_mb", "{:.0f}"),
)
JUDGED = (("AUC", "auc", "{:.4f}"), ("avg L2", "avg_l2", "{:.4f}"), ("shift", "mean_shift", "{:.3f}"), ("flips", "flips", "{:.3f}"))


def show(about: Mapping[str, Any], facts: Sequence[Mapping[str, Any]], withheld: Sequence[Mapping[str, str]]) -> None:
    """Print the table, what its columns are, and a line for each file that there is not, with the reason."""
    from distill.console import print_result

    print_result(figures(about, facts))
    print_result("")
    for line in legend(about):
        print_result(line)
    for entry in together(withheld):
        print_result(f"not in the table: {entry}")


def figures(about: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> Table:
    """The table; a line for each of ``facts``, which come file by file."""
    title = f"{about['run']}: {about['threads']} threads, {about['rounds']} rounds in turn, load {about['load']}"
    result = Table(title=Text(title), title_justify="left", header_style="bold", box=SIMPLE, padding=(0, 0), show_edge=False, pad_edge=False)
    result.add_column("file", overflow="fold")
    for name in ("heads", *(column[0] for column in (*FILE, *CALL, *JUDGED))):
        result.add_column(name, justify="right", overflow="fold")
    before = None
    for fact in facts:
        own = (fact["model"], fact["format"], fact["precision"])
        once = own != before
        before = own
        cells = (
            _name(fact) if once else "", str(fact["people"]), *(_figure(fact, key, form) if once else "" for _, key, form in FILE),
            *(_figure(fact, key, form) for _, key, form in CALL), *(_figure(fact, key, form) if once else "" for _, key, form in JUDGED),
        )
        result.add_row(*map(Text, cells))  # names of files hold brackets, which rich would take for styles
    return result


def legend(about: Mapping[str, Any]) -> list[str]:
    """What the columns are, in the order of the table."""
    return [
        f"ms, p95: a call with one picture, median and 95th percentile of the clock. CPU ms: processor time of all its threads. speed: {about['base']} = 1.",
        f"pict/s: with {PICTURES_AT_ONCE} pictures a call. peak MB: by which a process grows that opens the file and calls it.",
        f"AUC, avg L2: on {about['pictures']} pictures. shift: of the highest cell from the student's, mean, in cells. flips: share of in/out turned.",
    ]


def together(withheld: Sequence[Mapping[str, str]]) -> list[str]:
    """A line a reason, which precisions of one format often share."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in withheld:
        reasons.setdefault((entry["format"], entry["reason"]), []).append(entry["precision"])
    return [f"{kind} {', '.join(precisions)}: {reason}" for (kind, reason), precisions in reasons.items()]


def _name(fact: Mapping[str, Any]) -> str:
    """What a line is of: the student in torch, one of its files by format and precision, another model by its file's name."""
    if fact["format"] == "student":
        return "student in torch"
    return str(fact["model"]) if fact["format"] == "black box" else f"{fact['format']} {fact['precision']}"


def _figure(fact: Mapping[str, Any], key: str, form: str) -> str:
    value = fact.get(key)
    return "-" if value is None else form.format(value)
