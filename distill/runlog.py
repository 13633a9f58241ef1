"""What a run leaves behind while it goes: ``metrics.jsonl``, a tracker's curves, and what is shown of it on the console."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill.agreement import AGREEMENT
from distill.configuration import RunConfig
from distill.console import say, warn
from distill.live import Display, open_display
from schedules.plan import Plan
from students.errors import RunError
from students.trainer import Record
from teachers.weights import write_atomically

FILE = "metrics.jsonl"


def read_metrics(run: Path) -> list[Record]:
    """The records of a run's ``metrics.jsonl``; a last line cut short by a kill is left out."""
    records = []
    path = run / FILE
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


@contextmanager
def writing(path: Path, run: Path) -> Iterator[None]:
    """Where a file of a run is written: the system's refusal (a full disk, a read-only directory) becomes a :class:`RunError`."""
    try:
        yield
    except OSError as error:
        remedy = f"make room on the disk, then go on with `distill train --resume {run}`" if run.is_dir() else "give another place with --runs"
        raise RunError(f"{path} cannot be written ({error}); {remedy}") from None


def scalars_of(record: Record) -> dict[str, float]:
    """The finite numbers of a record for a tracker, ``kind/name``; those of a nested table are ``kind/table/name``."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= {f"{name}/{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return {
        f"{record['kind']}/{name}": float(value)
        for name, value in flat.items()
        if isinstance(value, int | float) and name != "step" and math.isfinite(value)
    }
def scores(record: Mapping[str, Any]) -> str:
    """What a validation measured, in one line."""
    shown = {name: record[name] for name in ("auc", "avg_l2", "min_l2", "ap", *AGREEMENT) if name in record}
    return "  ".join(f"{name} {'n/a' if value is None else f'{value:.4f}'}" for name, value in shown.items())


class RunLog:
    """Takes the trainer's records: a line of JSON each, tracker scalars, and progress with rate and time left."""

    def __init__(self, run: Path, plan: Plan, accelerator: Accelerator, watch: Callable[[Record], None] | None = None) -> None:
        self.run, self.plan, self.accelerator, self.watch = run, plan, accelerator, watch
        self._file: Any = None
        self._display: Display | None = None

    def begin(self, config: RunConfig, from_step: int = 0) -> None:
        """Open the log; on resumption lines past ``from_step`` are cut off, as those steps will be made again."""
        for message in self.plan.messages:
            say(message)
        for message in self.plan.warnings:
            warn(message)
        if not self.accelerator.is_main_process:
            return
        kept = [record for record in read_metrics(self.run) if from_step and record["step"] <= from_step]
        # A thaw is announced after the checkpoint of its step, so it will be announced again; the end likewise.
        kept = [r for r in kept if r["kind"] != "end" and not (r["kind"] == "thaw" and r["step"] == from_step)]
        with writing(self.run / FILE, self.run):
            write_atomically(self.run / FILE, "".join(json.dumps(record) + "\n" for record in kept).encode())
            # Unbuffered: nothing is left that closing the file could fail to write.
            self._file = (self.run / FILE).open("ab", buffering=0)
        self.accelerator.init_trackers(
            "distill", {f"{s}.{k}": str(v) for s, part in config.to_json().items() for k, v in part.items()},
            # Its files lie with the run, not where the command happened to be given.
            init_kwargs={"wandb": {"name": self.run.name, "dir": str(self.run)}},
        )

    def __call__(self, record: Record) -> None:
        if self._file is not None and record["kind"] not in ("start", "checkpoint"):
            with writing(self.run / FILE, self.run):
                line = memoryview((json.dumps(record) + "\n").encode())
                while line:
                    line = line[self._file.write(line) :]
        if record["kind"] in ("step", "epoch", "validation", "thaw_loss"):
            self.accelerator.log(scalars_of(record), step=record["step"])
        if record["kind"] == "start" and self.accelerator.is_main_process:
            self._display = open_display(f"Training {self.run.name}", self.plan)
        if self._display is not None:
            self._display.show(record)
        if self.watch is not None:
            self.watch(record)

    def close(self) -> None:
        """Close file, display and trackers, whatever happened."""
        if self._display is not None:
            self._display.close()
            self._display = None
        if self._file is not None:
            self._file.close()
            self._file = None
        self.accelerator.end_training()  # in every process: the group is left by all of them
