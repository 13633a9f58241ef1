"""The page: sections in the order in which a reader asks, everything escaped, nothing fetched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distill.report.chart import short
from distill.report.course import schedule, training
from distill.report.facts import ExportFacts, ModelRow, ReportFacts
from distill.report.gallery import GalleryItem
from distill.report.markup import empty, img, millions, number_cell, plain, table
from distill.report.records import RunRecord, number, read_run
from distill.report.sheet import SCRIPT, STYLE

_SHOWN = 4  # gallery items before the fold
# Nothing may be loaded: the browser itself keeps the promise that the file stands alone.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(run_dir: Path, out: Path, facts: ReportFacts) -> Path:
    """Write the report of ``run_dir`` to ``out`` in one step (a former one stays until then) and return ``out``.

    Raises :class:`~distill.report.errors.ReportError` when ``run_dir`` holds no run or a file in it is damaged.
    """
    page = render(read_run(run_dir), facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(out.name + ".new")
    fresh.write_text(page, encoding="utf-8")
    os.replace(fresh, out)
    return out


def render(run: RunRecord, facts: ReportFacts) -> str:
    """The whole page as text."""
    name = run.directory.resolve().name
    sections = [
        ("result", "Result", _result(run, facts)),
        ("gallery", "Gallery", _gallery(run, facts.gallery)),
        ("training", "Training", training(run)),
        ("thaw", "Schedule", schedule(run)),
        ("exports", "Exported files", _exports(run, facts)),
        ("lineage", "Lineage and configuration", _lineage(run, facts)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · distill report</title><style>{STYLE}</style></head><body>"
        f'<header><p class="over">distill report</p><h1>{escape(name)}</h1><p class="lead">{_lead(run)}</p>'
        f'<nav aria-label="Sections">{links}</nav></header><main>{body}</main>{_footer(facts)}'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _lead(run: RunRecord) -> str:
    steps = max([0, *(int(r["step"]) for r in (*run.steps[-1:], *run.epochs[-1:]))])
    if not steps:
        return "No step was recorded yet."
    words = f"{run.done:.3g} of {run.length:.3g} epochs, {steps} steps"
    rates = [rate for r in run.epochs if (rate := number(r, "images_per_s"))]
    if rates:
        words += f", {sorted(rates)[len(rates) // 2]:.0f} images per second"
    facts = run.config.get("facts")
    scenes = facts.get("scenes") if isinstance(facts, dict) else None
    if isinstance(scenes, dict) and scenes.get("unlabelled"):
        words += f"; {scenes.get('labelled')} labelled and {scenes['unlabelled']} unlabelled scenes"
        if scenes.get("held_out"):
            words += f", {scenes['held_out']} more held out for agreement with the teacher"
    return escape(words) + "."


def _result(run: RunRecord, facts: ReportFacts) -> str:
    parts = [_tiles(run, facts)]
    if facts.rows:
        parts.append(_comparison(facts))
        if facts.of("teacher") is None:
            parts.append(
                empty(
                    "The teacher is not in this table: give it to the evaluation to see what was lost.",
                    run.directory,
                    "eval",
                )
            )
    else:
        parts.append(
            empty("Nothing was compared yet: baseline, teacher and student are measured by", run.directory, "eval")
        )
    return "".join(parts)


def _tiles(run: RunRecord, facts: ReportFacts) -> str:
    student, teacher = facts.of("student"), facts.of("teacher")
    tiles: list[tuple[str, str, str] | None] = []
    if student is not None:
        tiles.append(_distance_tile(student, teacher, _best_baseline(facts)))
        tiles.append(_ratio_tile("Smaller", student.megabytes, teacher.megabytes if teacher else None, "MB"))
        tiles.append(_ratio_tile("Faster", student.ms, teacher.ms if teacher else None, "ms per image"))
        if student.auc is not None:
            beside = f"teacher {teacher.auc:.3f}" if teacher and teacher.auc is not None else "heatmap, in-frame heads"
            tiles.append(("AUC", f"{student.auc:.3f}", beside))
    else:
        scored = [
            (value, r, averaged) for r in run.validations for key, averaged in (("avg_l2", ""), ("ema_avg_l2", ", averaged weights"))
            if (value := number(r, key)) is not None
        ]
        if scored:
            value, best, averaged = min(scored, key=lambda each: each[0])
            tiles.append(("Best avg L2 in validation", f"{value:.3f}", f"after {run.place(best):.3g} epochs{averaged}"))
    shown = "".join(
        f'<div class="tile"><span class="what">{escape(what)}</span><b>{escape(value)}</b>'
        f"<span>{escape(beside)}</span></div>"
        for what, value, beside in (tile for tile in tiles if tile is not None)
    )
    return f'<div class="tiles">{shown}</div>' if shown else ""


def _distance_tile(
    student: ModelRow, teacher: ModelRow | None, baseline: ModelRow | None
) -> tuple[str, str, str] | None:
    if student.avg_l2 is None:
        return None
    others = [("teacher", teacher), ("best baseline", baseline)]
    beside = ", ".join(f"{name} {row.avg_l2:.3f}" for name, row in others if row is not None and row.avg_l2 is not None)
    return ("Student's avg L2", f"{student.avg_l2:.3f}", beside or "of the picture's sides")


def _best_baseline(facts: ReportFacts) -> ModelRow | None:
    scored = [
        (row.avg_l2, i, row) for i, row in enumerate(facts.rows) if row.role == "baseline" and row.avg_l2 is not None
    ]
    return min(scored)[2] if scored else None


def _ratio_tile(what: str, mine: float | None, theirs: float | None, unit: str) -> tuple[str, str, str] | None:
    if not mine:
        return None
    if not theirs:
        return ("Student", f"{short(mine)}", unit)
    if theirs < mine:
        what = {"Smaller": "Larger", "Faster": "Slower"}[what]
    ratio = max(theirs / mine, mine / theirs)
    return (f"{what} than the teacher", f"{ratio:.3g}×", f"{short(mine)} against {short(theirs)} {unit}")


def _comparison(facts: ReportFacts) -> str:
    worst = max([row.avg_l2 for row in facts.rows if row.avg_l2 is not None], default=0.0)
    lines = []
    for row in facts.rows:
        bar = ""
        if row.avg_l2 is not None and worst > 0:
            bar = f'<span class="bar" style="width:{100 * row.avg_l2 / worst:.0f}%"></span>'
        role = f"<small>{row.role}</small>" if row.role and row.role != row.name else ""
        cells = [
            millions(row.parameters),
            number_cell(row.megabytes, 1),
            number_cell(row.ms, 1),
            number_cell(row.auc, 3),
            number_cell(row.avg_l2, 3) + bar,
            number_cell(row.min_l2, 3),
            number_cell(row.ap, 3),
        ]
        tds = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr class="{row.role}"><th scope="row">{escape(row.name)}{role}</th>{tds}</tr>')
    heads = ["Parameters", "MB", "ms per image", "AUC ↑", "avg L2 ↓", "min L2 ↓", "AP in/out ↑"]
    where = " ".join(
        [f"Measured on {facts.data}." if facts.data else "", f"Timed on {facts.machine}." if facts.machine else ""]
    ).strip()
    return table("compare", where or "Models compared on the same heads.", ["Model", *heads], lines)


def _gallery(run: RunRecord, items: Sequence[GalleryItem]) -> str:
    if not items:
        return empty(
            "No pictures were kept: the heads as annotators, teacher and student see them are drawn by",
            run.directory,
            "eval",
        )
    figures = []
    for item in items:
        shown = [
            ("truth", item.truth, None),
            ("teacher", item.teacher, item.teacher_error),
            ("student", item.student, item.student_error),
        ]
        pictures = "".join(
            f"<figure>{img(picture, f'{item.caption}: {role}')}<figcaption>{role}"
            f"{'' if error is None else f' · off by <b>{error:.3f}</b>'}</figcaption></figure>"
            for role, picture, error in shown
            if picture is not None
        )
        figures.append(
            f'<figure class="trio"><figcaption>{escape(item.caption)}</figcaption><div>{pictures}</div></figure>'
        )
    first = f'<div class="gallery">{"".join(figures[:_SHOWN])}</div>'
    more = ""
    if figures[_SHOWN:]:
        rest = f'<div class="gallery">{"".join(figures[_SHOWN:])}</div>'
        more = f"<details><summary>{len(figures) - _SHOWN} more</summary>{rest}</details>"
    absent = "" if any(i.teacher for i in items) else "<p>The evaluation had no teacher to draw beside the student.</p>"
    return (
        '<p class="soft">Crosses are annotators, the ring is the model\'s point, the wash its heatmap. Distances are '
        f"in [0,1] of the picture's sides.</p>{absent}{first}{more}"
    )


def _exports(run: RunRecord, facts: ReportFacts) -> str:
    if not facts.exports:
        return empty(
            "Nothing was exported yet; a deployable file, checked against the student, is written by",
            run.directory,
            "export --format onnx",
        )
    lines = [_export_line(export) for export in facts.exports]
    return table(
        "",
        "Each file was compared with the student before it was kept.",
        ["File", "Format", "Size", "Parity"],
        lines,
        text=(0, 1, 3),
    )


def _export_line(export: ExportFacts) -> str:
    parity = ", ".join(f"{k.replace('_', ' ')} {plain(v)}" for k, v in export.parity.items()) or "not recorded"
    return (
        f'<tr><th scope="row"><code>{escape(export.path.name)}</code></th><td class="text">{escape(export.format)}</td>'
        f'<td>{export.bytes / 1e6:.2f} MB</td><td class="text wrap">{escape(parity)}</td></tr>'
    )


def _lineage(run: RunRecord, facts: ReportFacts) -> str:
    parts = []
    if facts.lineage:
        lines = []
        for row in facts.lineage:
            kind = "ok" if row.state in ("", "ok") else "bad"
            lines.append(
                f'<tr><th scope="row">{escape(row.what)}</th><td class="text wrap">{escape(row.name)}</td>'
                f'<td class="text"><code>{escape(row.digest[:16])}</code></td>'
                f'<td class="text {kind}">{escape(row.state or "recorded")}</td></tr>'
            )
        parts.append(
            table(
                "",
                "From the pictures to the exported file.",
                ["Artefact", "Name", "Digest", "State"],
                lines,
                text=range(4),
            )
        )
    else:
        parts.append(
            empty("The chain of digests, from the pictures to the exported file, is printed by", run.directory, "info")
        )
    if run.config:
        lines = [
            f'<tr><th scope="row"><code>{escape(key)}</code></th><td class="text wrap">{escape(plain(value))}</td></tr>'
            for key, value in _flat(run.config)
        ]
        shown = table("", "The resolved configuration.", ["Key", "Value"], lines, text=(0, 1))
        parts.append(f"<details><summary>Configuration</summary>{shown}</details>")
    return "".join(parts)


def _footer(facts: ReportFacts) -> str:
    terms = [
        (
            "AUC",
            "area under the ROC curve of the heatmap, annotators' pixels being the positives; mean over in-frame heads",
        ),
        ("avg L2", "distance from the predicted point to the mean annotation, in [0,1] of the picture's sides"),
        ("min L2", "distance from the predicted point to the nearest annotation"),
        ("AP in/out", "average precision of “the target is in the frame”; n/a where the data has one class only"),
        (
            "thaw time",
            "epochs, each counted as 1 / (1 + κ·w): distillation weight w slows the schedule that opens stages",
        ),
    ]
    entries = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms)
    return f"<footer><dl>{entries}</dl></footer>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
