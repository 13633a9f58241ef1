"""Choosing the best student on test: refused without the flag, and said everywhere with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures import write_childplay, write_gazefollow
from training_world import World

from distill.cli import main
from distill.errors import ConfigurationError
from distill.predicting import load_gaze
from distill.scenes import IN, OUT, UNKNOWN, Head, Scene
from distill.selection import mark, refuse_unmeasurable

pytestmark = pytest.mark.usefixtures("tiny_students")


def _train(run: Path, data: Path, **options: object) -> int:
    world = World(data, data, data)
    return main(world.arguments(run, cache=None, distill_weight=0, epochs=1, limit_steps=2, **options))


def test_test_is_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_gazefollow(tmp_path / "data", 6)
    assert _train(tmp_path / "runs/a", data, val_split="test") == 2
    error = capsys.readouterr().err
    assert "val_split is test: the best student would be chosen on the split that it is reported on" in error
    assert "--allow-test-selection" in error and not (tmp_path / "runs").exists()


def test_with_the_flag_every_result_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_gazefollow(tmp_path / "data", 6)
    run = tmp_path / "runs/a"
    assert _train(run, data, val_split="test", allow_test_selection=True) == 0
    chosen = {"split": "test", "metric": "avg_l2", "scenes": 0}
    assert json.loads((run / "student/model.json").read_text(encoding="utf-8"))["facts"]["selection"] == chosen
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["facts"]["selection"] == chosen and config["data"]["allow_test_selection"] is True
    assert load_gaze(str(run), "cpu")[1] == "a (chosen on test)"
    capsys.readouterr()
    assert main(["eval", str(run), "--data", str(data), "--split", "test", "--device", "cpu", "--gallery", "0", "--json"]) == 0
    assert "a (chosen on test)" in [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert "a (chosen on test)" in (run / "eval.json").read_text(encoding="utf-8")
    assert main(["train", "--resume", str(run)]) == 0


def test_a_data_set_with_its_own_validation_split_uses_it(tmp_path: Path) -> None:
    run = tmp_path / "runs/c"
    assert _train(run, write_childplay(tmp_path / "data"), batch_size=2) == 0
    facts = json.loads((run / "student/model.json").read_text(encoding="utf-8"))["facts"]
    assert facts["selection"]["split"] == "val" and facts["lineage"]["reader"] == "childplay"
    assert load_gaze(str(run), "cpu")[1] == "c"


def _scene(*heads: tuple[int, int]) -> Scene:
    """A scene of heads, each by its label and its number of gaze points."""
    return Scene("a", "a.jpg", tuple(Head((0.1, 0.1, 0.2, 0.2), ((0.5, 0.5),) * points, inout) for inout, points in heads))


@pytest.mark.parametrize("metric", ["avg_l2", "auc", "min_l2", "avg_l2_mean_of"])
def test_a_distance_needs_a_gaze_point_in_the_frame(metric: str) -> None:
    refuse_unmeasurable(metric, [_scene((OUT, 0)), _scene((OUT, 0), (IN, 1))], "D val", inout=True)
    for heads in ([(OUT, 0)], [(OUT, 1)], [(UNKNOWN, 1)], [(IN, 0), (UNKNOWN, 0)]):
        with pytest.raises(ConfigurationError, match=rf"best_metric is {metric}, and no head of D val \(1 scenes\) has a gaze point in the frame: .*--val-data") as caught:
            refuse_unmeasurable(metric, [_scene(*heads)], "D val", inout=True)
        assert "--best-metric ap" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="or by --best-metric ap"):
        refuse_unmeasurable(metric, [_scene((OUT, 0), (IN, 0))], "D val", inout=True)


def test_average_precision_needs_both_kinds_and_a_student_that_tells_them_apart() -> None:
    both = [_scene((OUT, 0)), _scene((IN, 1))]
    refuse_unmeasurable("ap", both, "D val", inout=True)
    refuse_unmeasurable("kl_teacher", [], "D val", inout=False)
    with pytest.raises(ConfigurationError, match=r"best_metric is ap, and the student has no in/out head: choose the best student by avg_l2 or auc"):
        refuse_unmeasurable("ap", both, "D val", inout=False)
    for heads in ([(IN, 1), (IN, 1)], [(OUT, 0)], [(IN, 1), (UNKNOWN, 0)]):
        with pytest.raises(ConfigurationError, match=r"the heads of D val \(1 scenes\) are not some in and some out of the frame: choose .*, or on other"):
            refuse_unmeasurable("ap", [_scene(*heads)], "D val", inout=True)


def test_what_cannot_be_measured_is_refused_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_gazefollow(tmp_path / "data", 6)
    assert _train(tmp_path / "runs/a", data, best_metric="ap") == 2
    assert "best_metric is ap, and the heads of" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, ""),
        ({"selection": {"split": "val"}, "lineage": {"split": "train"}}, ""),
        ({"selection": {"split": "test"}}, " (chosen on test)"),
        ({"selection": {"split": "val"}, "lineage": {"split": "test"}}, " (trained on test)"),
        ({"selection": {"split": "test"}, "lineage": {"split": "test"}}, " (trained on test, chosen on test)"),
        ({"selection": None, "lineage": None}, ""),
    ],
)
def test_mark(facts: dict[str, object], words: str) -> None:
    assert mark(facts) == words
