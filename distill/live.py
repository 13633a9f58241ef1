"""How a training looks while it goes: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from distill.agreement import AGREEMENT
from distill.console import Bar, duration, is_main_process, say, stderr, warn
from schedules.plan import Plan
from students.trainer import TERMS, Record

SHOWN = ("auc", "avg_l2", "min_l2", "ap", *AGREEMENT, "ema_auc", "ema_avg_l2")  # of a validation; all of it is in metrics.jsonl


class Display(Protocol):
    """What takes a training's records and shows them."""

    def show(self, record: Record) -> None: ...

    def close(self) -> None: ...


def open_display(title: str, plan: Plan) -> Display:
    """The live panel where standard error is a terminal, plain lines otherwise."""
    console = stderr()
    if console.is_terminal and is_main_process():
        return LiveDisplay(title, plan, console)
    return PlainDisplay(plan)


def events(record: Record, plan: Plan) -> list[tuple[bool, str]]:
    """The sentences that a record is worth for good, each with whether it is a warning."""
    kind = record["kind"]
    if kind == "thaw":
        return [(False, (
            f"epoch {record['epoch']}: opened {', '.join(record['opened'])}; {record['open_blocks']} of {plan.blocks} "
            f"blocks open, {record['trainable']:,} parameters train"
        ))]
    if kind == "thaw_loss":
        return [(False, (
            f"thaw of epoch {record['thaw_epoch']}: mean loss {record['before']:.4g} before, {record['after']:.4g} in the "
            f"{record['steps']} steps after"
        ))]
    if kind == "spike":
        due, epochs = record["next_thaw"], plan.config.epochs
        after = "none is left" if due is None else f"due at epoch {due}{f', beyond the {epochs} of this run' if due >= epochs else ''}"
        held = f"the next thaw is held by one interval ({after})" if record["held"] else f"the next thaw: {after}"
        return [(True, (
            f"step {record['step']}: loss {record['loss']:.4g} is above {record['factor']:g} times the {record['before']:.4g} before the "
            f"thaw of epoch {record['thaw_epoch']}: {record['advice']}; {held}"
        ))]
    if kind == "validation":
        text = "  ".join(f"{name} {_number(record.get(name))}" for name in SHOWN if name in record)
        averaged = ", averaged weights" if record["weights"] == "averaged" else ""
        return [(False, f"epoch {record['epoch']}: {text}{f'  (best so far{averaged})' if record['best'] else ''}")]
    if kind == "end" and record["stopped_early"]:
        best = f"{record['metric']} {_number(record['best'])} of step {record['best_step']}"
        return [(False, f"stopped early at step {record['step']}: no validation since has been better than {best} (--patience)")]
    return []


def _number(value: Any) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _tell(record: Record, plan: Plan) -> None:
    for warning, text in events(record, plan):
        (warn if warning else say)(text)


class PlainDisplay:
    """A line now and then with rate and time left, and one for every thaw, spike and validation."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._bar: Bar | None = None

    def show(self, record: Record) -> None:
        if record["kind"] == "start":
            self._bar = Bar("Training", record["total"], "steps", None)
            self._bar.resume_from(record["step"])
        elif record["kind"] == "step" and self._bar is not None:
            self._bar.update(
                record["step"] - self._bar.done, epoch=record["epoch"], loss=record["loss"], kd=record["kd_heatmap"], w=record["weight"],
                T=record["temperature"], open=record["open_blocks"],
            )
        _tell(record, self.plan)

    def close(self) -> None:
        """Nothing is held open."""


class LiveDisplay:
    """Epoch, step, rate, time left, losses, what the plan has in force, and the last validation, drawn in place.

    Times are counted from the first record of this process: a resumed run's earlier steps are in the bar, not in the rate.
    """

    def __init__(self, title: str, plan: Plan, console: Console) -> None:
        self.title, self.plan = title, plan
        self.last: Record = {}
        self.validation: Record = {}
        self.best: Record = {}
        self.steps_per_epoch, self.total, self.begun_at, self.start = 1, 0, 0, time.monotonic()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(None), TaskProgressColumn(), MofNCompleteColumn(), TextColumn("steps"),
            console=console,
        )
        self.task = self.progress.add_task(title, total=None)
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self.render, transient=True)
        self.live.start()

    def show(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "start":
            self.total, self.steps_per_epoch, self.begun_at = record["total"], record["steps_per_epoch"], record["step"]
            self.start = time.monotonic()
            self.progress.update(self.task, total=self.total, completed=record["step"])
        elif kind == "step":
            self.last = record
            self.progress.update(self.task, completed=record["step"])
        elif kind == "validation":
            self.validation = record
            self.best = record if record["best"] else self.best
        _tell(record, self.plan)

    def close(self) -> None:
        """Leave the terminal with the lines that were told."""
        self.live.stop()

    def render(self) -> RenderableType:
        """The panel as it is now."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim")
        rows.add_column()
        rows.add_row("time", self._pace())
        if last := self.last:
            terms = "  ".join(f"{name} {last[name]:.4g}" for name in TERMS if last.get(name))
            norm = "skipped (fp16 overflow)" if last["grad_norm"] is None else f"{last['grad_norm']:.3g}"
            rows.add_row("losses", f"{terms}  gradient {norm}")
            rows.add_row(
                "plan", f"w {last['weight']:.3g}  T {last['temperature']:.3g}  open {last['open_blocks']} of {self.plan.blocks} blocks"
                f"{' and the stem' if last['stem_open'] else ''}  rates: head {last['lr_head']:.2e}, backbone {last['lr_backbone']:.2e}"
            )
        if self.validation:
            shown = "  ".join(f"{name} {_number(self.validation.get(name))}" for name in SHOWN if name in self.validation)
            best = f"  (best: epoch {self.best['epoch']})" if self.best else ""
            rows.add_row("validation", f"epoch {self.validation['epoch']}: {shown}{best}")
        return Group(self.progress, rows)

    def _pace(self) -> str:
        step = self.last.get("step", self.begun_at)
        passed = time.monotonic() - self.start
        epoch = f"epoch {min(step, max(self.total - 1, 0)) // self.steps_per_epoch} of {self.plan.config.epochs}"
        if step <= self.begun_at:
            return f"{epoch}  {duration(passed)} passed"
        rate = (step - self.begun_at) / max(passed, 1e-9)
        return f"{epoch}  {rate:.3g} steps/s  {duration(passed)} passed  {duration((self.total - step) / rate)} left"
