"""The report: what it reads, what it draws, and that the page stands alone and is safe to open."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from distill.commands import report as command
from distill.report import (
    GalleryItem,
    LineageRow,
    ModelRow,
    ReportFacts,
    gather_facts,
    load_gallery,
    save_gallery,
    save_rows,
)
from distill.report.curves import around_thaws
from distill.report.errors import ReportError
from distill.report.records import read_lines, read_run
from tests.report_world import EVIL, Page, html, make_run, plan, step, thaw, validation, write_lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "demo")


def picture(colour: str = "red", width: int = 32) -> Image.Image:
    return Image.new("RGB", (width, width // 2), colour)


def full_facts(run: Path) -> ReportFacts:
    save_rows(
        run,
        [
            ModelRow("centre", "baseline", avg_l2=0.3),
            ModelRow("prior", "baseline", avg_l2=0.2),
            ModelRow("big", "teacher", 90_000_000, 180.0, 60.0, 0.95, 0.1, 0.05, 0.9),
            ModelRow(EVIL, "student", 1_200_000, 4.5, 7.5, 0.93, 0.12, 0.06, None),
        ],
        data="12 scenes",
    )
    exports = run / "exports"
    exports.mkdir()
    (exports / "student.onnx").write_bytes(b"x" * 2_500_000)
    (exports / "student.json").write_text(json.dumps({"format": "onnx", "parity": {"max_point_shift": 0.0}}))
    save_gallery(run, [GalleryItem(f"a.jpg {EVIL}", picture(), picture("blue"), picture("green"), 0.1, 0.25)])
    return gather_facts(run)


# What is read


def test_places_of_records_in_epochs(run: Path) -> None:
    record = read_run(run)
    assert [record.place(r) for r in record.steps] == [n / 4 for n in range(1, 9)]
    assert [record.place(r) for r in record.thaws] == [0.0, 1.0]
    assert [record.place(r) for r in record.validations] == [1.0, 2.0]
    assert record.done == 2.0 and record.length == 5.0


def test_openings_are_the_recorded_ones_and_then_the_planned(run: Path) -> None:
    found = [(o.epoch, o.opened, o.planned) for o in read_run(run).openings]
    assert found == [(0, ("blocks.2",), False), (1, ("blocks.1",), False), (4, ("block 0", "stem"), True)]


def test_steps_per_epoch_without_plan_and_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_lines(tmp_path / "metrics.jsonl", [step(1), step(2)])
    assert read_run(tmp_path).steps_per_epoch == 2
    write_lines(tmp_path / "metrics.jsonl", [step(1), {"kind": "epoch", "step": 4, "epoch": 0}, step(5)])
    assert read_run(tmp_path).steps_per_epoch == 4


def test_a_resumed_run_counts_its_later_writing(tmp_path: Path) -> None:
    first = [step(n, loss=1.0) for n in range(1, 5)] + [
        validation(0),
        thaw(1, "a"),
        step(5, loss=1.0),
        step(6, loss=1.0),
    ]
    again = [{"kind": "start", "step": 4}, thaw(1, "a"), step(5, loss=2.0)]
    found = read_lines(write_lines(tmp_path / "m", first + again))
    assert [(r["kind"], r["step"]) for r in found] == [
        *(("step", n) for n in range(1, 5)),
        *[("validation", 4), ("start", 4), ("thaw", 4), ("step", 5)],
    ]
    assert found[-1]["loss"] == 2.0


def test_two_thaws_at_one_step_are_both_kept(tmp_path: Path) -> None:
    assert len(read_lines(write_lines(tmp_path / "m", [thaw(1, "a"), thaw(1, "b"), thaw(1, "b")]))) == 2


def test_a_last_line_cut_short_is_left_out_and_another_damaged_line_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", [step(1), step(2)])
    whole = path.read_text()
    path.write_text(whole + '{"kind": "step", "st')
    assert len(read_lines(path)) == 2
    path.write_text('{"kind": "step", "st\n' + whole)
    with pytest.raises(ReportError, match=r"m\.jsonl, line 1: .*remove the line"):
        read_lines(path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="is not a directory"):
        read_run(tmp_path / "absent")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ReportError, match=r"config\.json holds a list"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ReportError, match=r"config\.json is not JSON"):
        read_run(tmp_path)


def test_averaged_weights_are_shown_and_may_be_the_best(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(validation(2, avg_l2=0.14, ema_avg_l2=0.05, ema_auc=0.85)) + "\n")
    page = html(run)
    assert "<b>0.050</b><span>after 3 epochs, averaged weights</span>" in page
    assert "avg L2, averaged weights" in page and "AUC, averaged weights" in page


def test_losses_around_a_thaw(run: Path) -> None:
    _, second, third = around_thaws(read_run(run))
    assert second.before == pytest.approx((8 + 4 + 8 / 3 + 2) / 4)
    assert second.after == pytest.approx((8 / 5 + 8 / 6 + 8 / 7 + 1) / 4)
    assert (second.thaw_time, second.weight, second.grad_norm) == (0.5, 1.0, 8.0)
    assert third.before is None and third.grad_norm is None and third.opening.planned


# Facts and gallery


def test_rows_come_back_as_they_were_saved(run: Path) -> None:
    rows = (ModelRow("a", "teacher", 7, 1.5, 2.5, 0.9, 0.1, 0.05, None), ModelRow("b"))
    save_rows(run, rows, data="d", machine="m")
    facts = gather_facts(run)
    assert (facts.rows, facts.data, facts.machine) == (rows, "d", "m")
    assert not list(run.glob("*.new"))


def test_a_row_that_cannot_be_understood_is_refused(run: Path) -> None:
    (run / "eval.json").write_text(json.dumps({"rows": [{"name": "x", "role": "uncle"}]}))
    with pytest.raises(ReportError, match="'uncle'"):
        gather_facts(run)
    (run / "eval.json").write_text(json.dumps({"lines": []}))
    with pytest.raises(ReportError, match="no list of objects under 'rows'"):
        gather_facts(run)


def test_exports_are_measured_on_disk_and_never_outside(run: Path) -> None:
    full_facts(run)
    (run / "exports" / "gone.json").write_text(json.dumps({"file": "gone.onnx"}))
    (run / "exports" / "away.json").write_text(json.dumps({"file": "../config.json"}))
    (found,) = gather_facts(run).exports
    assert (found.path.name, found.format, found.bytes, dict(found.parity)) == (
        "student.onnx",
        "onnx",
        2_500_000,
        {"max_point_shift": 0.0},
    )


def test_lineage_is_read(run: Path) -> None:
    (run / "lineage.json").write_text(
        json.dumps({"rows": [{"what": "cache", "name": "c", "digest": "ab", "state": "changed"}]})
    )
    facts = gather_facts(run)
    assert facts.lineage == (LineageRow("cache", "c", "ab", "changed"),)
    assert '<td class="text bad">changed</td>' in html(run, facts)


def test_gallery_round_trip_and_limit(run: Path) -> None:
    items = [GalleryItem("one", picture("red"), None, picture("blue"), None, 0.5), GalleryItem("two", picture())]
    save_gallery(run, items)
    first, second = load_gallery(run)
    assert (first.caption, first.teacher, first.teacher_error, first.student_error) == ("one", None, None, 0.5)
    assert first.student is not None and first.student.getpixel((3, 3))[2] > 240  # type: ignore[index]
    assert second.truth is not None and second.truth.size == (32, 16)
    assert len(load_gallery(run, limit=1)) == 1
    save_gallery(run, items[:1])
    assert sorted(p.name for p in (run / "gallery").iterdir()) == ["000-student.jpg", "000-truth.jpg", "gallery.json"]
    assert [p.name for p in run.iterdir() if p.name.startswith("gallery")] == ["gallery"]


def test_a_gallery_that_cannot_be_written_leaves_the_former(run: Path) -> None:
    save_gallery(run, [GalleryItem("kept", picture())])
    with pytest.raises(ValueError):
        save_gallery(run, [GalleryItem("new", picture(), teacher_error=math.nan)])
    assert [item.caption for item in load_gallery(run)] == ["kept"]
    assert not (run / "gallery.new").exists()


def test_damaged_galleries_are_refused(run: Path) -> None:
    index = save_gallery(run, [GalleryItem("a", picture())]) / "gallery.json"
    whole = (index.parent / "000-truth.jpg").read_bytes()
    (index.parent / "000-truth.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReportError, match=r"000-truth\.jpg cannot be decoded"):
        load_gallery(run)
    (index.parent / "000-truth.jpg").unlink()
    with pytest.raises(ReportError, match=r"000-truth\.jpg, which is not there"):
        load_gallery(run)
    for name in ("../config.json", "..", "/etc/hostname", 3):
        index.write_text(json.dumps({"version": 1, "items": [{"truth": name}]}))
        with pytest.raises(ReportError, match="not a file of its folder"):
            load_gallery(run)
    index.write_text(json.dumps({"version": 2, "items": []}))
    with pytest.raises(ReportError, match="version 2, this is version 1"):
        load_gallery(run)


# The page


def test_the_whole_page(run: Path) -> None:
    page = html(run, full_facts(run))
    tags = Page(page).tags
    figures = [a for t, a in tags if t == "figure" and a.get("class") == "chart"]
    assert len(figures) == 10
    assert len([1 for t, a in tags if t == "line" and (a.get("class") or "").startswith("thaw")]) == 3 * len(figures)
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for text in (
        "18",
        "40×",
        "0.120",
        "0.930",
        "90.0 M",
        "1.2 M",
        "12 scenes",
        "student.onnx",
        "2.50 MB",
        "best baseline 0.200",
    ):
        assert text in page, text
    assert "off by <b>0.250</b>" in page
    assert "2 of 5 epochs, 8 steps, 50 images per second." in page
    assert "to come" in page


def test_every_chart_is_wellformed_and_told_in_words(run: Path) -> None:
    charts = re.findall(r"<svg.*?</svg>", html(run))
    assert len(charts) == 10
    for chart in charts:
        tree = ElementTree.fromstring(chart)
        title, told = tree.find("title"), tree.find("desc")
        assert title is not None and told is not None and title.text and "at epoch" in (told.text or "")
        assert not re.search(r"\bnan\b|\binf\b", chart)


def test_nothing_in_a_run_becomes_markup(run: Path) -> None:
    evil = run.with_name(f"{EVIL.replace('/', '_')}")
    run.rename(evil)
    with (evil / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(thaw(2, f'"><img src=x onerror=1>{EVIL}')) + "\n")
    page = html(evil, full_facts(evil))
    tags = Page(page).tags
    assert len([t for t, _ in tags if t == "script"]) == 1
    assert not any("onerror" in a for _, a in tags)
    assert page.count("&lt;script&gt;alert") >= 4


def test_the_file_stands_alone(run: Path) -> None:
    page = html(run, full_facts(run))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    sources = [a["src"] or "" for t, a in Page(page).tags if "src" in a]
    assert [s.partition(";base64,")[0] for s in sources] == ["data:image/jpeg"] * 3 + ["data:image/svg+xml"]
    assert all(a.get("alt") for t, a in Page(page).tags if t == "img")
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page and "@media print" in page


def test_wide_pictures_are_made_smaller(run: Path) -> None:
    save_gallery(run, [GalleryItem("a", picture(width=2000))])
    assert 'width="2000"' not in html(run, gather_facts(run))
    assert 'width="640" height="320"' in html(run, gather_facts(run))


def test_what_is_missing_is_said_with_its_remedy(tmp_path: Path) -> None:
    bare = tmp_path / "my run"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    page = html(bare)
    Page(page)
    for verb in (
        f"distill eval &#x27;{bare}&#x27;",
        f"distill export &#x27;{bare}&#x27; --format onnx",
        f"distill info &#x27;{bare}&#x27;",
    ):
        assert verb in page
    assert f"distill train --resume &#x27;{bare}&#x27;" in page
    assert "No step was recorded yet." in page and "<svg" not in page


def test_without_teacher_and_without_thaw(run: Path) -> None:
    (run / "plan.json").write_text(json.dumps(plan() | {"thaw_events": []}))
    write_lines(run / "metrics.jsonl", [step(n, kd_heatmap=0.0, kd_inout=0.0) for n in range(1, 9)])
    save_rows(run, [ModelRow("me", "student", avg_l2=0.2)])
    page = html(run, gather_facts(run))
    assert "trained without a teacher" in page and "The teacher is not in this table" in page
    assert "Nothing opens in this run" in page and "No validation was recorded yet" in page
    assert "Distillation terms" not in page


def test_values_that_are_not_finite_leave_gaps(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(step(9, loss=math.nan, grad_norm=math.inf)) + "\n")
    assert not re.search(r"\bnan\b|\binf\b", "".join(re.findall(r"<figure.*?</figure>", html(run))).lower())


def test_a_report_that_fails_leaves_the_former(run: Path) -> None:
    html(run)
    before = (run / "report.html").read_bytes()
    (run / "plan.json").write_text("{")
    with pytest.raises(ReportError, match=r"plan\.json"):
        html(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.new"))


# The command


def arguments(*given: str) -> Any:
    parser = ArgumentParser()
    command.register(parser.add_subparsers())
    return parser.parse_args(["report", *given])


def test_the_command_writes_and_prints_the_path(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_gallery(run, [GalleryItem(f"item {n}", picture()) for n in range(3)])
    args = arguments(str(run), "--gallery", "2")
    assert args.run(args) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert "item 1" in page and "item 2" not in page
    args = arguments(str(run), "--out", str(run / "new" / "r.html"))
    assert args.run(args) == 0 and (run / "new" / "r.html").is_file()
    with pytest.raises(SystemExit):
        arguments(str(run), "--gallery", "-1")


def test_the_command_is_light_to_import() -> None:
    code = "import sys, distill.commands.report as r; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
