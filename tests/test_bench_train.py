"""``distill bench train`` on tiny models: what it states, not how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_world import TINY

from distill.benchmarks.train import _print, verdicts
from distill.cli import main
from distill.step_cost import StepCost, Times, ratio
from students.catalogue import STUDENTS


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in TINY.items():
        monkeypatch.setitem(STUDENTS, name, config)


def test_medians_quartiles_and_ratios() -> None:
    one, other = Times([0.1, 0.2, 0.4], [0.1, 0.1, 0.1]), Times([0.3, 0.3, 0.9], [0.05, 0.05, 0.05])
    assert one.facts() == {
        "measurements": 3, "wall_ms": {"median": 200.0, "low": 150.0, "high": 300.0}, "cpu_ms": {"median": 100.0, "low": 100.0, "high": 100.0},
    }
    assert ratio(other, one) == {"wall": 1.5, "cpu": 0.5}


def test_all_sides_are_stated(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_teacher = ["--teacher-backbone", "test_vit", "--teacher-size", "64"]
    sizes = ["--batch", "2", "--steps", "2", "--rounds", "2", "--online-rounds", "1"]
    assert main(["bench", "train", "--students", "tiny_cnn", *tiny_teacher, *sizes, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["teacher"] == {"backbone": "test_vit", "pixels": 64, "weights": "random"} and facts["batch"] == 2
    (student,) = facts["students"]
    assert (student["bar_cached_over_task"], student["bar_online_over_cached"]) == (1.05, 3.0)
    assert student["frozen"]["task"]["measurements"] == student["open"]["cached"]["measurements"] == 2
    assert student["open"]["online"]["measurements"] == 1 and "online" not in student["frozen"]
    for clock in ("wall", "cpu"):
        medians = [student["open"][side][f"{clock}_ms"]["median"] for side in ("task", "cached")]
        assert student["open"]["cached_over_task"][clock] == pytest.approx(medians[1] / medians[0], rel=0.01)
    assert [(v["ratio"], v["clock"]) for v in student["verdicts"][:6]] == [
        *[("cached_over_task", "wall"), ("cached_over_task", "cpu")] * 2, ("online_over_cached", "wall"), ("online_over_cached", "cpu"),
    ]
    assert all(v["value"] == student[v["state"]][v["ratio"]][v["clock"]] and v["met"] in (True, False) for v in student["verdicts"][:6])
    rows = student["stages"]
    assert rows[0]["open_blocks"] == 0 and rows[-1]["stem_open"]
    for column in ("open_blocks", "trainable", "saved_bytes"):
        values = [row[column] for row in rows]
        assert values == sorted(set(values)), column
    assert rows[-1]["trainable"] == student["parameters"] and rows[-1]["cpu_share_of_all_open"] == 1.0


def test_the_sides_see_the_same_pictures_and_only_one_the_teacher(tmp_path: Path) -> None:
    cost = StepCost(tmp_path, batch=2, steps=2, workers=1)
    task, cached = cost.student("tiny_cnn", weight=0.0, opened=False), cost.student("tiny_cnn", weight=0.5, opened=False)
    batches = [list(side.feed.batches(0, 0)) for side in (task, cached)]
    assert [len(each) for each in batches] == [2, 2]
    assert [b.scenes for b in batches[0]] == [b.scenes for b in batches[1]]
    assert all(b.teacher_heatmap is None for b in batches[0])
    assert all(b.teacher_heatmap is not None and (b.teacher_heatmap.mean() < -4 < 0 < b.teacher_heatmap.max()) and b.teacher_inout is not None for b in batches[1])
    cached.measure()
    assert cached.trainer.step == 2 and len(cached.times.wall) == len(cached.times.cpu) == 1


def measured(cached: dict[str, float], online: dict[str, float], shares: list[float], bar: float | None) -> dict[str, Any]:
    spread = {"median": 1.0, "low": 1.0, "high": 1.0}
    times = {"wall_ms": spread, "cpu_ms": spread}
    stages = [
        {"open_blocks": n, "stem_open": n == len(shares) - 1, "trainable": n, "saved_bytes": n, "cpu_share_of_all_open": share, **times}
        for n, share in enumerate(shares)
    ]
    state = {"task": times, "cached": times, "cached_over_task": cached}
    return {
        "student": "tiny", "parameters": 1_000_000, "frozen": state, "open": {**state, "online": times, "online_over_cached": online}, "stages": stages,
        "bar_cached_over_task": 1.05, "bar_online_over_cached": bar,
    }


def test_every_ratio_is_judged_by_its_bar() -> None:
    found = verdicts(measured({"wall": 1.05, "cpu": 1.0501}, {"wall": 3.0, "cpu": 2.99}, [0.4, 1.0, 1.0], 3.0))
    assert [(v["state"], v["ratio"], v["clock"], v["value"], v["bar"], v["met"]) for v in found] == [
        ("frozen", "cached_over_task", "wall", 1.05, 1.05, True), ("frozen", "cached_over_task", "cpu", 1.0501, 1.05, False),
        ("open", "cached_over_task", "wall", 1.05, 1.05, True), ("open", "cached_over_task", "cpu", 1.0501, 1.05, False),
        ("open", "online_over_cached", "wall", 3.0, 3.0, True), ("open", "online_over_cached", "cpu", 2.99, 3.0, False),
        ("0 blocks open", "over_all_open", "cpu", 0.4, 1.0, True), ("1 blocks open", "over_all_open", "cpu", 1.0, 1.0, False),
    ]
    assert [v["met"] for v in verdicts(measured({}, {"wall": 9.0}, [1.0], None))] == [None]


def test_the_table_says_met_or_missed_and_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    student = measured({"wall": 1.0, "cpu": 1.2}, {"wall": 4.0, "cpu": 2.0}, [0.4, 1.0], 3.0)
    student["verdicts"] = verdicts(student)
    teacher = {"backbone": "big", "pixels": 448}
    _print({"students": [student], "teacher": teacher, "batch": 8, "cache": "maps", "device": "cpu", "threads": 1, "load": 0.0})
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if line.startswith("│ tiny")]
    assert [row[4:7] for row in rows] == [["1.000", "≤ 1.05", "met"], ["1.200", "≤ 1.05", "MISSED"]] * 2
    assert [row[8:] for row in rows] == [["", "", ""], ["", "", ""], ["4.000", "≥ 3", "met"], ["2.000", "≥ 3", "MISSED"]]
    assert "bars met: 4 of 7; MISSED: tiny, frozen, cpu: cached over task 1.200, bar 1.05; tiny, open, cpu: cached over task 1.200" in said


def test_bad_values_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--rounds", "0"]) == 2
    assert main(["bench", "train", "--students", "lite0_tinny"]) == 2
    said = capsys.readouterr().err
    assert "--rounds is 0" in said and "lite0_tiny" in said
