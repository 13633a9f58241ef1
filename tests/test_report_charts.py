"""The report's charts: ticks, thinning, lines and marks, to the unit."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from distill.report.chart import Chart, Mark, Series, _log_ticks, _ticks, figure, nice_step, short, thin
from distill.report.curves import short_stages
from distill.report.strip import COLUMNS, SHADES, Strips, cells, shortened, strip_figure


def test_ticks() -> None:
    chart = Chart("", "", [])
    assert [nice_step(span, 4) for span in (4, 5, 0.9, 37)] == [1, 2, 0.5, 10]
    assert _ticks([0.1, 0.27], chart) == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert _ticks([0.01, 0.8], chart) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert _ticks([0, 3], Chart("", "", [], whole=True, from_zero=True)) == [0, 1, 2, 3]
    assert _ticks([5, 5], chart)[0] <= 5 <= _ticks([5, 5], chart)[-1] and len(_ticks([0, 0], chart)) >= 2
    assert _log_ticks(0.3, 4) == pytest.approx([0.2, 0.5, 1, 2, 5])
    assert _log_ticks(0.03, 4) == pytest.approx([0.01, 0.1, 1, 10])
    assert _log_ticks(1e-6, 1e-3) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3])


def test_short_numbers() -> None:
    assert [short(v) for v in (0, 0.06134, 12.34, 1240.4, 3.2e-5, -1e-4, 2.5e7)] == [
        *("0", "0.0613", "12.3", "1240", "3.2e-5", "-1e-4", "2.5e7")
    ]


def test_thinning_keeps_means_and_extremes() -> None:
    values = [float(n % 10) for n in range(1000)]
    drawn = thin(Series("s", [n / 10 for n in range(1000)], values), most=100)
    assert len(drawn.x) == 100 and drawn.banded
    assert (min(drawn.low), max(drawn.high)) == (0.0, 9.0)
    assert drawn.y[50] == pytest.approx(4.5, abs=0.6) and drawn.x == sorted(drawn.x)
    few = thin(Series("s", [0, 1, 2], [1.0, math.nan, 3.0]))
    assert (few.x, few.y, few.banded) == ([0, 2], [1.0, 3.0], False)


def test_a_step_series_is_drawn_as_steps() -> None:
    svg = figure(
        Chart("t", "n", [Series("open", [0, 1, 2], [1, 1, 2], step=True)], from_zero=True, whole=True), [], 2.0, "i"
    )
    # 382 units wide from x=46, 180 high from y=206: one epoch is 191, one block 90.
    assert 'd="M46.0 116.0H237.0V116.0H428.0V26.0"' in svg


def test_marks_stand_where_stages_open_and_their_labels_do_not_collide() -> None:
    marks = [Mark(0, "6", "first"), Mark(5, "5 +1", "second"), Mark(5.05, "4", "third", planned=True)]
    svg = figure(Chart("t", "n", [Series("a", [0, 10], [1, 2])]), marks, 10.0, "i")
    tree = ElementTree.fromstring(re.search(r"<svg.*</svg>", svg).group(0))  # type: ignore[union-attr]
    groups = tree.findall("g")
    assert [g.find("title").text for g in groups] == ["first", "second", "third"]  # type: ignore[union-attr]
    assert [g.find("line").get("x1") for g in groups] == ["46.0", "237.0", "238.9"]  # type: ignore[union-attr]
    assert [len(g.findall("text")) for g in groups] == [1, 1, 0]
    assert groups[2].find("line").get("class") == "thaw planned"  # type: ignore[union-attr]


def test_labels_of_stages() -> None:
    assert [short_stages(n) for n in ([], ["blocks.11"], ["blocks.0", "stem"], ["norm"], ["stages.2.1", "a", "b"])] == [
        *("thaw", "11", "0 +1", "norm", "2.1 +2")
    ]


def test_strips_are_means_of_spans_and_a_closed_stage_is_empty() -> None:
    # Ten epochs of 48 steps: four steps a span. The second row opens at half time and is ten times the first.
    steps = [(n / 48, 2.0) for n in range(1, 481)]
    rows = {"head": steps, "late": [(x, 20.0) for x, _ in steps if x > 5], "never": [], "zero": [(1.0, 0.0), (2.0, math.nan)]}
    head, late = cells(Strips("t", "n", rows), 10.0)
    assert len(head.values) == COLUMNS and head.values == pytest.approx([2.0] * COLUMNS)
    assert late.values[: COLUMNS // 2] == (None,) * (COLUMNS // 2) and late.values[COLUMNS // 2 :] == pytest.approx([20.0] * (COLUMNS // 2))
    assert (late.low, late.high, late.last) == (20.0, 20.0, 20.0)
    mixed = cells(Strips("t", "n", {"a": [(0.01, 1.0), (0.02, 100.0)]}), 10.0)[0]
    assert mixed.values[0] == pytest.approx(10.0), "the geometric mean"


def test_strips_of_few_steps_have_no_holes_but_keep_what_was_closed() -> None:
    # Eight steps over the run: each fills the fifteen spans that it stands for.
    rows = {"all": [(n / 8, float(n)) for n in range(1, 9)], "late": [(n / 8, 1.0) for n in range(5, 9)]}
    first, late = cells(Strips("t", "n", rows), 1.0)
    assert [first.values[i] for i in (0, 14, 15, 29, 60, 119)] == pytest.approx([1.0, 1.0, 2.0, 2.0, 5.0, 8.0]) and None not in first.values
    assert late.values[59] is None and late.values[60] == 1.0 and late.values.count(None) == 60


def test_a_strip_figure_is_wellformed_and_told_in_words() -> None:
    rows = {f"net.model.blocks.{n}.{'x' * 20}": [(e + 0.5, 10.0 ** (n - 2)) for e in range(4)] for n in range(5)}
    marks = [Mark(1, "", "opened"), Mark(2.5, "", "spike at step 5", spike=True)]
    html = strip_figure(Strips("Norms <b>", "note", rows), marks, 4.0, "i")
    tree = ElementTree.fromstring(re.search(r"<svg.*</svg>", html).group(0))  # type: ignore[union-attr]
    shades = [path for path in tree.findall("path") if path.get("class") == "shade"]
    # Five rows over four powers of ten: shades 0, 2, 4, 6 and the darkest, each with the same number of cells.
    assert [float(path.get("fill-opacity") or 0) for path in shades] == sorted(float(path.get("fill-opacity") or 0) for path in shades)
    assert len(shades) == 5 <= SHADES and len({(path.get("d") or "").count("M") for path in shades}) == 1
    assert shades[-1].get("fill-opacity") == "1.0"
    assert "between 0.01 and 0.01, 0.01 at the end." in (tree.find("desc").text or "")  # type: ignore[union-attr]
    assert [g.find("title").text for g in tree.findall("g")] == ["opened", "spike at step 5"]  # type: ignore[union-attr]
    assert [g.find("path") is not None for g in tree.findall("g")] == [False, True]
    assert "Norms &lt;b&gt;" in html and "<b>0.01</b>" in html and "<b>100</b>" in html
    assert strip_figure(Strips("t", "n", {"a": []}), marks, 4.0, "i") == ""


def test_long_names_keep_their_end() -> None:
    name = "net.model.stages.2.blocks.11"
    assert shortened("head") == "head" and shortened(name) == "…" + name[-21:] and len(shortened(name)) == 22
