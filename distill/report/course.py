"""The course of a training: its curves, what happened around each thaw, spikes, and the schedule that it followed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from distill.plan_picture import draw, drawable, svg
from distill.report.chart import Chart, Mark, figure
from distill.report.curves import around_thaws, marks, plan_charts, spike_marks, stage_norms, training_charts
from distill.report.markup import empty, number_cell, plain, table
from distill.report.records import RunRecord, number
from distill.report.strip import strip_figure


def training(run: RunRecord) -> str:
    charts = training_charts(run)
    if not charts:
        return empty(
            "No metrics were recorded yet; they appear while this run trains:", run.directory, "train --resume"
        )
    events, spikes = marks(run), spike_marks(run)
    legend = (
        '<p class="soft legend">Where stages open. The label is the block, and how many stages came with it.</p>'
        if events
        else ""
    )
    if spikes:
        legend += '<p class="soft legend spiked">Where the loss spiked after a thaw; what to do is said below the curves.</p>'
    without = (
        ""
        if _has(charts, "Distillation terms")
        else "<p>This run trained without a teacher: no distillation loss was recorded.</p>"
    )
    strips = strip_figure(stage_norms(run), [*events, *spikes], run.length, "g")
    return legend + without + _charts(charts, [*events, *spikes], run.length, "c") + strips + _spikes(run) + _validation_table(run)


def _spikes(run: RunRecord) -> str:
    """Each spike with what it was and what was held for it, then the advice that the trainer gave, each once."""
    lines = []
    for record in run.spikes:
        loss, before = number(record, "loss"), number(record, "before")
        ratio = f"{loss / before:.3g}×" if loss is not None and before else "n/a"
        following = number(record, "next_thaw")
        due = "none is left" if following is None else f"due at epoch {following:g}"
        cells = (
            f"<td>{int(record['step'])}</td><td>{escape(plain(record.get('thaw_epoch')))}</td><td>{number_cell(before, 3)}</td>"
            f'<td>{number_cell(loss, 3)}</td><td>{ratio}</td><td class="text">{"held, " if record.get("held") else ""}{due}</td>'
        )
        lines.append(f'<tr><th scope="row">{run.place(record):.4g}</th>{cells}</tr>')
    if not lines:
        return ""
    heads = ["Epochs", "Step", "Thaw of epoch", "Mean loss before", "Loss", "Ratio", "Next thaw"]
    shown = table("", "Spikes: steps soon after a thaw whose loss was far above the mean before it (--spike-factor).", heads, lines, text=(0, 6))
    advice = dict.fromkeys(str(record["advice"]) for record in run.spikes if record.get("advice"))
    return shown + "".join(f'<p class="note" role="note">{escape(text[:1].upper() + text[1:])}.</p>' for text in advice)


def _validation_table(run: RunRecord) -> str:
    if not run.validations:
        return '<p class="empty">No validation was recorded yet; the first follows the first epoch.</p>'
    keys = [
        ("auc", "AUC"),
        ("avg_l2", "avg L2"),
        ("avg_l2_mean_of", "avg L2 (mean of)"),
        ("min_l2", "min L2"),
        ("ap", "AP in/out"),
        ("kl_teacher", "KL from the teacher"),
        ("l2_teacher", "L2 from the teacher"),
    ]
    keys = [(key, title) for key, title in keys if any(number(record, key) is not None for record in run.validations)]
    lines = []
    for record in run.validations:
        cells = "".join(f"<td>{number_cell(number(record, key), 4)}</td>" for key, _ in keys)
        lines.append(f'<tr><th scope="row">{run.place(record):.4g}</th><td>{int(record["step"])}</td>{cells}</tr>')
    shown = table(
        "", "Validation after each of these epochs.", ["Epochs", "Steps", *(title for _, title in keys)], lines
    )
    return f"<details><summary>Validation as a table</summary>{shown}</details>"


def schedule(run: RunRecord) -> str:
    if not run.plan:
        return empty(
            "No plan lies beside this run; its schedule is compiled and written by", run.directory, "train --resume"
        )
    said = "".join(f"<p>{escape(str(text))}</p>" for text in _texts(run.plan, "messages"))
    warned = "".join(f'<p class="note" role="note">{escape(str(text))}</p>' for text in _texts(run.plan, "warnings"))
    return said + warned + _plan_picture(run) + _charts(plan_charts(run), marks(run), run.length, "p") + _thaw_table(run)


def _plan_picture(run: RunRecord) -> str:
    if not drawable(run.plan):
        return ""
    drawing = draw(run.plan)
    data = base64.b64encode(svg(drawing).encode()).decode("ascii")
    return (
        f'<figure class="plan"><img src="data:image/svg+xml;base64,{data}" alt="{escape(drawing.told)}" '
        f'width="{drawing.width:g}" height="{drawing.height:g}" style="max-width:100%;height:auto"></figure>'
    )


def _thaw_table(run: RunRecord) -> str:
    rows = around_thaws(run)
    if not rows:
        return '<p class="empty">Nothing opens in this run; <code>--finetune</code> opens the backbone.</p>'
    lines = []
    for row in rows:
        opening = row.opening
        cells = [number_cell(value, 3) for value in (row.thaw_time, row.weight, row.before, row.after, row.grad_norm)]
        state = " <small>to come</small>" if opening.planned else ""
        lines.append(
            f'<tr><th scope="row">{opening.epoch}{state}</th>'
            f'<td class="text wrap">{escape(", ".join(opening.opened))}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"<td>{_spiked(row.spike)}</td></tr>"
        )
    heads = ["Epoch", "Opened", "Thaw time", "Weight", "Loss before", "Loss after", "Top gradient norm", "Spike"]
    note = "Thaw events. Losses are means over the epoch before and the epoch after; the norm is the greatest after."
    return table("", note, heads, lines, text=(0, 1))


def _spiked(spike: Mapping[str, Any] | None) -> str:
    if spike is None:
        return '<span class="soft">none</span>'
    return f'<span class="bad">step {int(spike["step"])}{", next thaw held" if spike.get("held") else ""}</span>'


def _charts(charts: Sequence[Chart], events: Sequence[Mark], length: float, prefix: str) -> str:
    figures = "".join(figure(chart, events, length, f"{prefix}{i}") for i, chart in enumerate(charts))
    kind = "charts pairs" if len(charts) in (2, 4) else "charts"
    return f'<div class="{kind}">{figures}</div>' if figures else ""


def _has(charts: Sequence[Chart], title: str) -> bool:
    return any(chart.title == title for chart in charts)


def _texts(plan: Mapping[str, Any], key: str) -> list[Any]:
    value = plan.get(key)
    return value if isinstance(value, list) else []
