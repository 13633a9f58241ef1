"""What a training wrote into its run directory, read back: configuration, plan and metrics.

``metrics.jsonl`` holds one object a line. A killed run leaves a last line that is cut short, and a resumed run writes
its steps again from the checkpoint on: the cut line is left out, and of what was written twice the later counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.report.errors import ReportError

Record = Mapping[str, Any]
_KINDS = ("start", "step", "epoch", "validation", "thaw", "spike")  # the trainer writes others, which say nothing here


@dataclass(frozen=True)
class Opening:
    """Stages that open at the first step of ``epoch``; ``planned`` where the run has not come that far."""

    epoch: int
    opened: tuple[str, ...]
    planned: bool = False


@dataclass(frozen=True)
class RunRecord:
    """One run as it lies on disk. Each tuple is in the order of its steps; ``plan`` is empty where none was written."""

    directory: Path
    config: Record = field(default_factory=dict)
    plan: Record = field(default_factory=dict)
    starts: tuple[Record, ...] = ()
    steps: tuple[Record, ...] = ()
    epochs: tuple[Record, ...] = ()
    validations: tuple[Record, ...] = ()
    thaws: tuple[Record, ...] = ()
    spikes: tuple[Record, ...] = ()

    @cached_property
    def steps_per_epoch(self) -> int:
        """As the trainer or the plan says; else from the first whole epoch; else all that was recorded is one epoch."""
        plan = self.plan.get("config")
        for record in (*self.starts[-1:], *([plan] if isinstance(plan, dict) else [])):
            stated = number(record, "steps_per_epoch")
            if stated:
                return max(1, int(stated))
        for record in self.epochs[:1]:
            return max(1, int(record["step"]) // (int(record["epoch"]) + 1))
        return max([1, *(int(r["step"]) for r in self.steps)])

    def place(self, record: Record) -> float:
        """When a record was written, in epochs: its steps done over the steps of an epoch."""
        return int(record["step"]) / self.steps_per_epoch

    @cached_property
    def done(self) -> float:
        """Epochs that the run has behind it."""
        return max([0.0, *(self.place(r) for r in (*self.steps[-1:], *self.epochs[-1:], *self.validations[-1:]))])

    @cached_property
    def length(self) -> float:
        """Epochs that the plan covers, or that were recorded where there is no plan or the run went on beyond it."""
        return max(float(len(self.planned)), self.done, 1.0)

    @property
    def planned(self) -> list[Record]:
        """The plan's lines, one an epoch."""
        lines = self.plan.get("epochs")
        return [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []

    @cached_property
    def openings(self) -> tuple[Opening, ...]:
        """The thaw events: as they were recorded, then as the plan has them for the epochs that are still to come."""
        seen = [Opening(int(r["epoch"]), _names(r.get("opened"))) for r in self.thaws]
        last = max([-1, *(int(r["epoch"]) for r in (*self.thaws, *self.steps[-1:]))])
        events = self.plan.get("events") or self.plan.get("thaw_events") or []
        for event in events if isinstance(events, list) else []:
            if isinstance(event, dict) and isinstance(event.get("epoch"), int) and event["epoch"] > last:
                names = event.get("opened")
                opened = _names(names) if names is not None else self._by_index(event.get("stages"))
                seen.append(Opening(event["epoch"], opened, planned=True))
        return tuple(seen)

    def _by_index(self, stages: object) -> tuple[str, ...]:
        """Stages counted in opening order, last block first, in words."""
        blocks = self.plan.get("blocks")
        if not isinstance(stages, list) or not isinstance(blocks, int):
            return ()
        return tuple("stem" if index == blocks else f"block {blocks - 1 - index}" for index in stages)


def _names(opened: object) -> tuple[str, ...]:
    return tuple(str(name) for name in opened) if isinstance(opened, list) else ()


def read_run(run_dir: Path) -> RunRecord:
    """Read a run directory. Raises :class:`ReportError` if it holds no run or if one of its files is damaged."""
    if not run_dir.is_dir():
        raise ReportError(f"{run_dir} is not a directory; give a run's directory, such as runs/demo")
    config, plan = run_dir / "config.json", run_dir / "plan.json"
    metrics = run_dir / "metrics.jsonl"
    if not config.is_file() and not metrics.is_file():
        raise ReportError(
            f"{run_dir} holds no run (neither config.json nor metrics.jsonl); `distill train` writes one to runs/<name>"
        )
    by_kind: dict[str, list[Record]] = {kind: [] for kind in _KINDS}
    for record in read_lines(metrics) if metrics.is_file() else ():
        if record["kind"] in by_kind:
            by_kind[record["kind"]].append(record)
    return RunRecord(
        directory=run_dir,
        config=read_object(config) if config.is_file() else {},
        plan=read_object(plan) if plan.is_file() else {},
        starts=tuple(by_kind["start"]),
        steps=tuple(by_kind["step"]),
        epochs=tuple(by_kind["epoch"]),
        validations=tuple(by_kind["validation"]),
        thaws=tuple(by_kind["thaw"]),
        spikes=tuple(by_kind["spike"]),
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; anything else is a :class:`ReportError` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} is not JSON ({error}); write it again with the command that made it") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path} holds a {type(value).__name__}, not an object; write it again with its command")
    return value


def read_lines(path: Path) -> list[Record]:
    """The records of a metrics file, without what a resumed run wrote anew and without a cut last line."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    kept: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step, kind = int(record["step"]), str(record["kind"])
            if kind in _KINDS[1:]:
                int(record["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline follows: the writer was killed in this line
                break
            raise ReportError(
                f"{path}, line {number}: not a record with kind, step and epoch ({error}); remove the line"
            ) from error
        while kept and int(kept[-1]["step"]) > step:
            kept.pop()
        same: list[Record] = []
        while kept and int(kept[-1]["step"]) == step:
            same.insert(0, kept.pop())
        kept += [old for old in same if old["kind"] != kind or old.get("opened") != record.get("opened")]
        kept.append(record)
    return kept


def number(record: Record, key: str) -> float | None:
    """A finite number, or None where the record has none under this key."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
