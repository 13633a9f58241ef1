"""The report's course of a training: every term, reliability, the gradient of every stage, and spikes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.report_world import EVIL, Page, html, make_run, write_lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "demo")


def told_of_everything(run: Path) -> None:
    """Adds what a run with several kinds of distillation, reliability and a watch over its thaws records."""
    kinds = {"kd_kl": 1.5, "kd_dist": 0.25, "kd_mse": 0.0, "reliability": 0.75, "target_mass": 0.5, "weighted_heatmap": 0.5, "weighted_kd_heatmap": 2.0}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "step":
            opened = {"head": 3.0, "blocks.2": 0.5, **({"blocks.1": 0.25} if record["epoch"] else {})}
            record |= kinds | {"grad_norms": opened}
    spike = {"kind": "spike", "step": 6, "epoch": 1, "thaw_epoch": 1, "loss": 9.0, "before": 3.0, "factor": 2.0, "held": True, "next_thaw": 5}
    write_lines(run / "metrics.jsonl", [*records[:-2], spike | {"advice": f"lower --backbone-lr {EVIL}"}, *records[-2:]])


def test_every_term_reliability_and_the_gradient_of_every_stage_are_shown(run: Path) -> None:
    before = html(run)
    assert "correlation (DIST)" not in before and "Gradient norm by stage" not in before and "heatmap <b>2</b>" in before
    told_of_everything(run)
    page = html(run)
    Page(page)
    keys = re.findall(r'<span class="key[^>]*><i></i>([^<]*) <b>([^<]*)</b>', page)
    for key in (("KL", "1.5"), ("correlation (DIST)", "0.25"), ("reliability", "0.75"), ("mass near the peak", "0.5"), ("teacher&#x27;s heatmap", "2")):
        assert key in keys, key
    assert "MSE" not in dict(keys), "what is not in use has no line"
    told = re.search(r'<desc id="g-d">(.*?)</desc>', page)
    assert told is not None and told.group(1) == (
        "head: between 3 and 3, 3 at the end. blocks.2: between 0.5 and 0.5, 0.5 at the end. blocks.1: between 0.25 and 0.25, 0.25 at the end."
    )
    strip = ElementTree.fromstring(re.search(r'<figure class="strips">.*?(<svg.*?</svg>)', page).group(1))  # type: ignore[union-attr]
    assert [text.text for text in strip.findall("text") if text.get("class") == "row"] == ["head", "blocks.2", "blocks.1"]


def test_a_spike_is_marked_in_every_curve_and_told_with_its_advice(run: Path) -> None:
    assert "Spikes:" not in html(run) and 'class="spike"' not in html(run)
    told_of_everything(run)
    page = html(run)
    training = page.partition('<section id="training">')[2].partition("</section>")[0]
    charts = training.count('<figure class="chart"')
    assert training.count('<line class="spike"') == charts + 1 > 8, "and in the strips"
    # Step 6 of four an epoch, on an axis of five epochs: 1.5 / 5 of 382 units from x=46.
    assert training.count('<line class="spike" x1="160.6"') == charts
    assert "spike at step 6: loss 9 after 3 before the thaw of epoch 1" in training
    row = re.search(r"Spikes:.*?<tbody>(.*?)</tbody>", training)
    assert row is not None
    cells = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row.group(1))]
    assert cells == ["1.5", "6", "1", "3.000", "9.000", "3×", "held, due at epoch 5"]
    assert training.count('role="note">Lower --backbone-lr &lt;script&gt;') == 1 and page.count("<script>") == 1
    schedule = page.partition('<section id="thaw">')[2]
    assert schedule.count("step 6, next thaw held") == 1 and schedule.count('<span class="soft">none</span>') == 2
