"""Score cards as tables: the same rows of text for the console (rich) and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.metrics import GazeMetrics
from distill.metrics.bootstrap import LOWER_IS_BETTER, Interval
from distill.scorecard import Card, Pair, Scorecards

# Metric, heading, digits.
COLUMNS = (
    ("auc", "AUC ↑", 3), ("avg_l2", "avg L2 ↓", 3), ("avg_l2_mean_of", "mean-of ↓", 3), ("min_l2", "min L2 ↓", 3), ("angle", "angle ↓", 1), ("ap", "AP ↑", 3),
)
NAMES = {"auc": "AUC", "avg_l2": "avg L2", "avg_l2_mean_of": "mean-of", "min_l2": "min L2", "angle": "angle", "ap": "in/out AP"}
DIGITS = {name: digits for name, _, digits in COLUMNS}
BREAK = "\n"


@dataclass(frozen=True)
class Sheet:
    """A table as text: the first ``left`` columns are words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def sheets(cards: Scorecards, *, detail: bool) -> list[Sheet]:
    """Scores with intervals, paired differences, and with ``detail`` slices and reliability of every model."""
    found = [_scores(cards)]
    found += [_pair(pair, cards) for pair in cards.pairs]
    if detail:
        for card in cards.cards:
            if card.slices:
                found.append(_slices(card))
            if card.reliability is not None:
                found.append(_reliability(card))
    return found


def flag_lines(cards: Scorecards) -> list[str]:
    """What is wrong with each model, a line each."""
    return [f"{card.name}: {flag}" for card in cards.cards for flag in card.flags]


def markdown(cards: Scorecards, rows: tuple[Sequence[str], Sequence[Sequence[str]]], machine: str) -> str:
    """The whole result as Markdown; ``rows`` is the table of sizes and times, as the console prints it."""
    lines = ["# Evaluation", "", *(f"- {line}" for line in cards.provenance()), f"- timed on {machine}", ""]
    lines += [f"- **warning** {line}" for line in flag_lines(cards)]
    if flag_lines(cards):
        lines.append("")
    for sheet in [Sheet("Models", tuple(rows[0]), tuple(tuple(row) for row in rows[1]), 2), *sheets(cards, detail=True)]:
        lines += [f"## {sheet.title}", "", *_markdown(sheet), ""]
    digests = Sheet("Checkpoints", ("model", "role", "digest"), tuple((c.name, c.role, c.digest or "-") for c in cards.cards if c.role != "baseline"), 3)
    return "\n".join([*lines, f"## {digests.title}", "", *_markdown(digests), ""])


def _markdown(sheet: Sheet) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace(BREAK, "<br>") for cell in cells) + " |"

    rule = [" :-- " if number < sheet.left else " --: " for number in range(len(sheet.columns))]
    return [line(sheet.columns), "|" + "|".join(rule) + "|", *(line(row) for row in sheet.rows)]


def shown(value: float | None, digits: int = 3) -> str:
    """A number, or n/a."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def span(interval: Interval | None, digits: int = 3) -> str:
    """An interval in few characters: ``.105–.131``; empty without one."""
    return "" if interval is None else f"{_short(interval.low, digits)}–{_short(interval.high, digits)}"


def _short(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text[1:] if digits > 1 and text.startswith("0.") else text


def with_interval(name: str, metrics: GazeMetrics, intervals: Mapping[str, Interval | None]) -> str:
    """A metric's value, below it its interval where there is one, and below in/out AP its prevalence."""
    value, digits = getattr(metrics, name), DIGITS[name]
    lines = [shown(value, digits), span(intervals.get(name), digits)]
    if name == "ap" and value is not None:
        lines.append(f"of {shown(metrics.ap_prevalence)}")
    return BREAK.join(filter(None, lines))


def _scores(cards: Scorecards) -> Sheet:
    # A column that is n/a in every row says nothing.
    used = [column for column in COLUMNS if any(getattr(card.metrics, column[0]) is not None for card in cards.cards)]
    rows = []
    for card in cards.cards:
        rows.append((card.name, *(with_interval(name, card.metrics, card.intervals) for name, _, _ in used)))
    heads = cards.cards[-1].metrics
    title = f"Scores of {heads.heads:,} heads, {heads.heads_in:,} of them in the frame"
    if used and used[-1][0] == "ap":
        title += " (AP: below it the prevalence)"
    return Sheet(title, ("model", *(heading for _, heading, _ in used)), tuple(rows))


def _pair(pair: Pair, cards: Scorecards) -> Sheet:
    rows = []
    if not any(pair.differences.values()):
        return _plain_pair(pair, cards)
    for name, _, digits in COLUMNS:
        found = pair.differences.get(name)
        if found is None:
            continue
        verdict = "not shown"
        if found.real:
            verdict = "better" if (found.value < 0) == (name in LOWER_IS_BETTER) else "worse"
        bounds = f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
        rows.append((NAMES[name], f"{found.value:+.{digits}f}", bounds, f"{found.p:.3f}", f"{found.better:.0%}", verdict))
    columns = ("metric", "difference", "95 % interval", "p", "better in", "verdict")
    return Sheet(f"{pair.name} less {pair.other}, on the same heads", columns, tuple(rows))


def _plain_pair(pair: Pair, cards: Scorecards) -> Sheet:
    """The differences alone, where there is no interval to judge them by."""
    mine, theirs = (next(card.metrics for card in cards.cards if card.name == name) for name in (pair.name, pair.other))
    rows = []
    for name, _, digits in COLUMNS:
        values = getattr(mine, name), getattr(theirs, name)
        if values[0] is not None and values[1] is not None:
            rows.append((NAMES[name], f"{values[0] - values[1]:+.{digits}f}", "not shown"))
    title = f"{pair.name} less {pair.other}: whether it is real cannot be said of fewer than two {cards.clusters} with labels"
    return Sheet(title, ("metric", "difference", "verdict"), tuple(rows))


def _slices(card: Card) -> Sheet:
    rows = []
    before = ""
    for part in card.slices:
        found = part.metrics
        right = "n/a" if part.inout_right is None else f"{part.inout_right:.0%}"
        numbers = (f"{found.heads:,}", shown(found.auc), shown(found.avg_l2), shown(found.angle, 1), shown(found.ap), right)
        rows.append((part.by if part.by != before else "", part.name, *numbers))
        before = part.by
    columns = ("by", "slice", "heads", "AUC ↑", "avg L2 ↓", "angle ↓", "AP ↑", "right")
    return Sheet(f"{card.name} by slice (right: in/out at probability ½)", columns, tuple(rows), 2)


def _reliability(card: Card) -> Sheet:
    found = card.reliability
    assert found is not None
    rows = tuple(
        (f"{bin.low:.1f} to {bin.high:.1f}", f"{bin.heads:,}", shown(bin.score), shown(bin.share_in)) for bin in found.bins if bin.heads
    )
    title = f"{card.name}: in/out as a probability (ECE {found.ece:.3f}, Brier {found.brier:.3f}, {found.heads:,} labelled heads)"
    return Sheet(title, ("score", "heads", "mean score", "share in"), rows)


def rendered(sheet: Sheet) -> Any:
    """The sheet as a rich table."""
    from distill.console import table

    return table(sheet.title, list(sheet.columns), [list(row) for row in sheet.rows], left=sheet.left)
