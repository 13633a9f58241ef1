"""Which charts a run gets, and what the schedule did around each thaw event."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from distill.report.chart import Chart, Mark, Series
from distill.report.records import Opening, Record, RunRecord, number
from distill.report.strip import Strips


@dataclass(frozen=True)
class Around:
    """A thaw event and the run around it: mean loss over the epoch before and after, greatest gradient norm after, its spike if any."""

    opening: Opening
    thaw_time: float | None
    weight: float | None
    before: float | None
    after: float | None
    grad_norm: float | None
    spike: Record | None = None


# What a step's record calls the kinds of heatmap distillation, and what a reader calls them.
_KINDS = (("kd_kl", "KL"), ("kd_bce", "BCE per cell"), ("kd_mse", "MSE"), ("kd_dist", "correlation (DIST)"))
_ADDED = (
    ("weighted_heatmap", "heatmap"), ("weighted_spatial", "spatial"), ("weighted_inout", "in/out"), ("weighted_kd_heatmap", "teacher's heatmap"),
    ("weighted_kd_inout", "teacher's in/out"),
)


def training_charts(run: RunRecord) -> list[Chart]:
    """Losses, validation and gradients, from what the trainer recorded; a chart without values is left out."""
    task = [
        _steps(run, "heatmap", "heatmap", unless_zero=True),
        _steps(run, "inout", "in/out", unless_zero=True),
        _steps(run, "spatial", "spatial", unless_zero=True),
    ]
    kinds = [_steps(run, key, name, unless_zero=True) for key, name in _KINDS]
    # Logs of earlier versions have the sum of the kinds alone.
    summed = [] if any(len(series.x) for series in kinds) else [_steps(run, "kd_heatmap", "heatmap", unless_zero=True)]
    kd = [*summed, *kinds, _steps(run, "kd_inout", "in/out", unless_zero=True)]
    charts = [
        Chart(
            "Validation distance",
            "Predicted point to annotation, in [0,1] of the picture's sides; lower is better.",
            [
                _validation(run, "avg_l2", "avg L2"), _validation(run, "min_l2", "min L2"),
                _validation(run, "ema_avg_l2", "avg L2, averaged weights"),
            ],
        ),
        Chart(
            "Validation AUC and AP",
            "Heatmap AUC over in-frame heads, average precision of in/out; higher is better.",
            [
                _validation(run, "auc", "AUC"), _validation(run, "ap", "AP in/out"),
                _validation(run, "ema_auc", "AUC, averaged weights"),
            ],
        ),
        Chart(
            "Agreement with the teacher",
            "Divergence of the student's heatmaps from the teacher's on unlabelled scenes that are held out, in nats; lower is better.",
            [_validation(run, "kl_teacher", "KL at T=1")],
        ),
        Chart(
            "Total loss",
            "Weighted by the plan, whose weight and temperature move: compare the terms rather than the total.",
            [_steps(run, "loss", "total")],
            log=True,
        ),
        Chart("Task terms", "Cross-entropy against the annotations.", task, log=True),
        Chart("Distillation terms", "Before any weight; they follow the temperature.", kd, log=True),
        Chart(
            "What each term adds to the loss",
            "After every weight, the plan's distillation weight included: which voice is the loudest.",
            [_steps(run, key, name, unless_zero=True) for key, name in _ADDED],
            log=True,
        ),
        Chart(
            "The teacher's voice",
            "Reliability: how far it is believed where its peak lies off the annotation, mean over heads. Mass: the share of its map near its own "
            "peak at the temperature in force; near 0 the target is flat.",
            [_steps(run, "reliability", "reliability"), _steps(run, "target_mass", "mass near the peak")],
            from_zero=True,
        ),
        Chart(
            "Gradient norm",
            "Before clipping. A jump after a thaw asks for a lower --backbone-lr or a longer --unfreeze-interval.",
            [_steps(run, "grad_norm", "gradient norm")],
            log=True,
        ),
    ]
    return [kept for chart in charts if (kept := _with_values(chart))]


def plan_charts(run: RunRecord) -> list[Chart]:
    """The compiled plan over the whole run, also where the run has not come that far."""
    blocks = number(run.plan, "blocks")
    opened = [_plan(run, "open_blocks", "open")]
    if blocks is not None:
        opened.append(Series("all", [0.0, run.length], [blocks, blocks], reference=True))
    charts = [
        Chart(
            "Open blocks",
            "Counted from the last one; the stem opens with the first block.",
            opened,
            from_zero=True,
            whole=True,
        ),
        Chart(
            "Thaw time",
            "The schedule's clock; distillation slows it below the dashed line of a run without a teacher.",
            [
                _plan(run, "thaw_time", "thaw time"),
                Series("without distillation", [0.0, run.length], [0.0, run.length], reference=True),
            ],
            from_zero=True,
        ),
        Chart(
            "Distillation weight and temperature",
            "In force at each epoch's first step.",
            [_plan(run, "distill_weight", "weight"), _plan(run, "temperature", "temperature")],
            from_zero=True,
        ),
        Chart(
            "Learning rates",
            "Of the head and of the last block; a stage warms up from when it opens.",
            [_steps(run, "lr_head", "head", positive=True), _steps(run, "lr_backbone", "last block", positive=True)],
            log=True,
        ),
    ]
    return [kept for chart in charts if (kept := _with_values(chart))]


def stage_norms(run: RunRecord) -> Strips:
    """The gradient's norm of the head and of every stage, in the order in which they open."""
    rows: dict[str, list[tuple[float, float]]] = {"head": []}
    for stages in (opening.opened for opening in run.openings if not opening.planned):
        rows |= {stage: [] for stage in stages}
    for record in run.steps:
        norms = record.get("grad_norms")
        if not isinstance(norms, dict):
            continue
        for stage in norms:
            value = number(norms, stage)
            if value is not None:
                rows.setdefault(str(stage), []).append((run.place(record), value))
    return Strips(
        "Gradient norm by stage",
        "Before clipping; the head on top, then the stages in the order in which they open, the stem last. A stronger colour is a greater norm, on a "
        "logarithmic scale; empty is closed. A stage that stays far above the others asks for a lower --backbone-lr.",
        rows,
    )


def spike_marks(run: RunRecord) -> list[Mark]:
    """The spikes after thaws as marks of their own."""
    return [Mark(run.place(record), "", _spike_told(record), spike=True) for record in run.spikes]


def _spike_told(record: Record) -> str:
    loss, before = number(record, "loss"), number(record, "before")
    return f"spike at step {int(record['step'])}: loss {loss or 0:.4g} after {before or 0:.4g} before the thaw of epoch {record.get('thaw_epoch')}"


def marks(run: RunRecord) -> list[Mark]:
    """The thaw events as vertical lines."""
    found = []
    for opening in run.openings:
        stages = ", ".join(opening.opened) or "stages"
        detail = f"epoch {opening.epoch}: {stages} {'will open' if opening.planned else 'opened'}"
        found.append(Mark(float(opening.epoch), short_stages(opening.opened), detail, opening.planned))
    return found


def short_stages(names: Sequence[str]) -> str:
    """A label of a few characters: the first stage's number or name, and how many came with it."""
    if not names:
        return "thaw"
    digits = re.findall(r"\d+", names[0])
    first = ".".join(digits) if digits else names[0].rsplit(".", 1)[-1][:8]
    return first if len(names) == 1 else f"{first} +{len(names) - 1}"


def around_thaws(run: RunRecord) -> list[Around]:
    """For each thaw event, what the guide's advice on spikes needs to see."""
    lines = {line.get("epoch"): line for line in run.planned}
    rows = []
    for opening in run.openings:
        line = lines.get(opening.epoch, {})
        before = _within(run, "loss", opening.epoch - 1)
        after = _within(run, "loss", opening.epoch)
        norms = _within(run, "grad_norm", opening.epoch)
        rows.append(
            Around(
                opening,
                number(line, "thaw_time"),
                number(line, "distill_weight"),
                fmean(before) if before else None,
                fmean(after) if after else None,
                max(norms) if norms else None,
                next((record for record in run.spikes if not opening.planned and record.get("thaw_epoch") == opening.epoch), None),
            )
        )
    return rows


def _within(run: RunRecord, key: str, epoch: int) -> list[float]:
    return [v for r in run.steps if int(r["epoch"]) == epoch and (v := number(r, key)) is not None]


def _steps(run: RunRecord, key: str, name: str, *, unless_zero: bool = False, positive: bool = False) -> Series:
    """A quantity of every step. ``positive`` leaves out zeros, which stand for a closed stage's rate."""
    series = _series(run, run.steps, key, name)
    if unless_zero and not any(series.y):
        return Series(name, [], [])
    if positive:
        pairs = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y > 0]
        return Series(name, [x for x, _ in pairs], [y for _, y in pairs])
    return series


def _validation(run: RunRecord, key: str, name: str) -> Series:
    return replace(_series(run, run.validations, key, name), dots=True)


def _series(run: RunRecord, records: Sequence[Record], key: str, name: str) -> Series:
    pairs = [(run.place(r), v) for r in records if (v := number(r, key)) is not None]
    return Series(name, [x for x, _ in pairs], [y for _, y in pairs])


def _plan(run: RunRecord, key: str, name: str) -> Series:
    pairs = [(float(line["epoch"]), v) for line in run.planned if (v := number(line, key)) is not None]
    if pairs and key != "thaw_time":
        pairs.append((pairs[-1][0] + 1, pairs[-1][1]))  # the last epoch's value holds to its end
    return Series(name, [x for x, _ in pairs], [y for _, y in pairs], step=key == "open_blocks")


def _with_values(chart: Chart) -> Chart | None:
    series = [s for s in chart.series if len(s.x)]
    if not any(not s.reference for s in series):
        return None
    return replace(chart, series=series)
