"""A run as a training leaves it, without a training, and a reader of the report's page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from distill.report import ReportFacts, write_report

EVIL = "<script>alert('x')</script>"


def step(number: int, per_epoch: int = 4, **values: Any) -> dict[str, Any]:
    """A step record as the trainer writes it: ``step`` counts the steps done."""
    base = {
        "kind": "step",
        "step": number,
        "epoch": (number - 1) // per_epoch,
        "loss": 8.0 / number,
        "heatmap": 0.5 / number,
    }
    return (
        base | {"inout": 0.3, "kd_heatmap": 2.0, "kd_inout": 0.1, "grad_norm": float(number), "lr_head": 1e-3} | values
    )


def validation(epoch: int, per_epoch: int = 4, **values: Any) -> dict[str, Any]:
    base = {
        "kind": "validation",
        "step": (epoch + 1) * per_epoch,
        "epoch": epoch,
        "auc": 0.8,
        "min_l2": 0.1,
        "ap": None,
    }
    return base | {"avg_l2": 0.3 / (epoch + 1)} | values


def thaw(epoch: int, *opened: str, per_epoch: int = 4) -> dict[str, Any]:
    return {"kind": "thaw", "step": epoch * per_epoch, "epoch": epoch, "opened": list(opened)}


def plan(epochs: int = 5, blocks: int = 3) -> dict[str, Any]:
    lines = [
        {"epoch": e, "open_blocks": min(blocks, e + 1), "thaw_time": e / 2, "distill_weight": 1.0, "temperature": 2.0}
        for e in range(epochs)
    ]
    events = [{"epoch": 0, "stages": [0]}, {"epoch": 1, "stages": [1]}, {"epoch": 4, "stages": [2, 3]}]
    said = {"messages": ["One block every epoch."], "warnings": [f"Beyond the run {EVIL}"]}
    return {"blocks": blocks, "epochs": lines, "thaw_events": events, "config": {"epochs": len(lines), "steps_per_epoch": 4}, **said}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def make_run(folder: Path) -> Path:
    """A run of two of five epochs, four steps each."""
    folder.mkdir()
    records = [{"kind": "start", "step": 0, "steps_per_epoch": 4}, thaw(0, "blocks.2"), *(step(n) for n in range(1, 5))]
    records += [{"kind": "epoch", "step": 4, "epoch": 0, "loss": 1.0, "images_per_s": 50.0}, validation(0)]
    records += [thaw(1, "blocks.1"), *(step(n) for n in range(5, 9)), validation(1)]
    write_lines(folder / "metrics.jsonl", records)
    (folder / "config.json").write_text(json.dumps({"train": {"batch": 8, "note": EVIL}, "seed": 0}))
    (folder / "plan.json").write_text(json.dumps(plan()))
    return folder


class Page(HTMLParser):
    """Checks that tags are balanced and collects them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def html(run: Path, facts: ReportFacts | None = None) -> str:
    return write_report(run, run / "report.html", facts or ReportFacts()).read_text(encoding="utf-8")
