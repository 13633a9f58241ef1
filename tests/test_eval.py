"""``distill eval``: one table as text, JSON and Markdown, paired differences, and what it refuses before it scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures import write_coco, write_folder, write_gazefollow, write_vat
from training_world import store_teacher

from distill.cli import main
from distill.readers import open_data
from distill.report.facts import ModelRow, gather_facts, save_rows
from teachers.weights import load_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, ``here`` and ``there``, and two data sets."""
    root = tmp_path_factory.mktemp("eval")
    write_gazefollow(root / "gf", 12)
    write_vat(root / "vat", frames=6)
    store_teacher(root / "here")
    store_teacher(root / "there", 0.5)
    return root


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["eval", *map(str, words), "--device", "cpu"])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_json_holds_everything_that_a_table_needs_to_be_compared(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"gazefollow:{world / 'gf'}"
    words = (world / "here", "--data", data, "--split", "test", "--paired", world / "there", "--resamples", 200, "--seed", 3, "--json")
    code, out, err = evaluated(capsys, *words)
    assert code == 0, err
    facts = json.loads(out)
    assert [row["name"] for row in facts["rows"]] == ["centre", "head-position prior", "here", "there"]
    assert (facts["protocol"], facts["resamples"], facts["seed"], facts["clusters"]) == ("gazefollow", 200, 3, "scenes")
    assert facts["data_digest"] == open_data(data, "test").digest()
    for card, row in zip(facts["models"], facts["rows"], strict=True):
        for name in ("auc", "avg_l2", "min_l2"):
            assert card["metrics"][name] == row[name]
            bounds = card["intervals"][name]
            assert bounds["low"] <= row[name] <= bounds["high"] and bounds["clusters"] == 2
        assert card["metrics"]["avg_l2_mean_of"] >= card["metrics"]["avg_l2"]
    here, there = facts["models"][2:]
    for card in (here, there):
        assert card["digest"] == load_model(world / card["name"])[1]["weights_digest"]
        assert {part["by"] for part in card["slices"]} == {"head height", "distance", "people", "gaze"}
        assert card["reliability"]["heads"] == card["metrics"]["heads"] == 3
    (pair,) = facts["paired"]
    assert (pair["name"], pair["other"]) == ("here", "there")
    assert pair["differences"]["avg_l2"]["value"] == pytest.approx(here["metrics"]["avg_l2"] - there["metrics"]["avg_l2"])
    assert pair["differences"]["ap"] is None  # GazeFollow's test heads are all in
    assert json.loads(evaluated(capsys, *words)[1])["models"][2]["intervals"] == here["intervals"]


def test_markdown_and_text_carry_protocol_and_digests(world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = f"vat:{world / 'vat'}"
    file = tmp_path / "tables" / "result.md"
    code, out, err = evaluated(
        capsys, world / "here", world / "there", "--data", data, "--paired", world / "there", "--resamples", 100, "--detail", "--markdown", file
    )
    assert code == 0, err
    text = file.read_text(encoding="utf-8")
    digests = [load_model(world / name)[1]["weights_digest"] for name in ("here", "there")]
    for needed in (open_data(data, "test").digest(), *digests, "protocol vat", "no intervals: they need two clips"):
        assert needed in text and needed in out
    for heading in ("## Models", "## Scores of 9 heads", "## here less there", "## here by slice", "## there: in/out as a probability", "## Checkpoints"):
        assert heading in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") and "\n" not in line for line in tables) and any("<br>" in line for line in tables)
    assert "warning: " in err  # untrained models say the same of everybody
    assert all(f"**warning** {line.removeprefix('warning: ')}" in text for line in err.splitlines() if line.startswith("warning: here"))


def test_the_protocol_can_be_chosen(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for protocol in ("gazefollow", "gazefollow64"):
        words = (world / "here", "--data", world / "gf", "--resamples", 0, "--protocol", protocol, "--json")
        facts = json.loads(evaluated(capsys, *words)[1])
        assert facts["protocol"] == protocol and all(card["intervals"] == {} for card in facts["models"])
        found[protocol] = facts["models"][-1]["metrics"]
    assert found["gazefollow"]["auc"] != found["gazefollow64"]["auc"]
    assert found["gazefollow"]["avg_l2"] == found["gazefollow64"]["avg_l2"]


def test_two_models_of_one_name_are_two_rows(world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(world / "there", tmp_path / "here")
    facts = json.loads(evaluated(capsys, world / "here", tmp_path / "here", "--data", world / "gf", "--resamples", 0, "--json")[1])
    assert [card["name"] for card in facts["models"][2:]] == ["here", str(tmp_path / "here")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--resamples", 5), "--resamples is 5"),
        (("--paired", "HERE", "--resamples", 0), "--paired needs intervals"),
        (("--paired", "HERE"), "nothing to be compared with"),
        (("--scenes", -5), "--scenes is -5; give 0 or more"),
        (("--gallery", -1), "--gallery is -1; give 0 or more"),
        (("--seed", -1), "--seed is -1; give 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_before_scoring(
    words: tuple[object, ...], told: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(world / "here") if word == "HERE" else str(word) for word in words]
    code, out, err = evaluated(capsys, world / "here", "--data", world / "gf", *given)
    assert code == 2 and out == "" and told in err and "Evaluating" not in err and err.count("\n") == 1


def test_the_report_reads_what_eval_writes(tmp_path: Path) -> None:
    rows = [ModelRow("a", "student", auc=0.9), ModelRow("centre", "baseline", auc=0.6)]
    save_rows(tmp_path, rows, data="x", machine="y", details={"models": [{"name": "a"}], "rows": "never these", "protocol": "vat"})
    facts = gather_facts(tmp_path)
    assert facts.rows == tuple(rows) and (facts.data, facts.machine) == ("x", "y")
    assert json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))["protocol"] == "vat"


def test_pictures_without_labels_are_refused_before_anything_is_scored(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (write_folder(tmp_path / "csv"), write_coco(tmp_path / "coco")):
        code, out, err = evaluated(capsys, world / "here", "--data", data, "--split", "all")
        assert (code, out) == (2, "") and "has a head with a gaze point or labelled out of the frame, so there is nothing to score" in err


def test_intervals_of_video_are_by_clip_and_constant_answers_are_flagged(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two clips with one error each: by clip the interval reaches from one to the other, by head it would be much narrower."""
    data = write_vat(tmp_path / "vat", frames=6)
    for tree in ("annotations/test", "images"):
        shutil.copytree(data / tree / "Test Show", data / tree / "Other Show")
    scenes = [scene.normalised(64, 48) for scene in open_data(data, "test").scenes]
    heads = [(scene, head) for scene in scenes for head in scene.heads]
    heatmap = np.full((len(heads), 64, 64), -9.0, dtype=np.float32)
    for row, (scene, head) in enumerate(heads):
        x, y = head.points[0] if head.points else (0.5, 0.5)
        heatmap[row, int(64 * y), int(64 * x) + (16 if scene.key.startswith("Other") else 0)] = 9.0
    same = {"scene": [scene.key for scene, _ in heads], "box": [head.box for _, head in heads], "inout": np.full(len(heads), 0.3)}
    np.savez(tmp_path / "shifted.npz", heatmap=heatmap, **same)
    np.savez(tmp_path / "constant.npz", heatmap=np.zeros_like(heatmap), **same)
    code, out, err = evaluated(capsys, tmp_path / "shifted.npz", tmp_path / "constant.npz", "--data", data, "--json")
    assert code == 0, err
    facts = json.loads(out)
    shifted, constant = facts["models"][-2:]
    errors: dict[bool, list[float]] = {True: [], False: []}
    for row, (scene, head) in enumerate(heads):
        if head.points:
            y, x = divmod(int(heatmap[row].argmax()), 64)
            errors[scene.key.startswith("Other")].append(float(np.hypot(x / 64 - head.points[0][0], y / 64 - head.points[0][1])))
    found = shifted["intervals"]["avg_l2"]
    assert (facts["clusters"], found["clusters"]) == ("clips", 2)
    assert (found["low"], found["high"]) == pytest.approx((np.mean(errors[False]), np.mean(errors[True])), abs=1e-9)
    assert [line.partition(":")[0] for line in constant["flags"]][:3] == ["in/out collapsed", "constant in/out", "constant heatmaps"]
    assert "constant heatmaps" in err


def test_a_single_clip_has_no_interval_and_the_table_says_so(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (world / "here", "--data", world / "vat", "--split", "test", "--paired", world / "there")
    code, out, _ = evaluated(capsys, *words)
    assert code == 0 and "no intervals: they need two clips or more" in " ".join(out.split())
    assert "here less there: whether it is real cannot be said of fewer than two clips" in " ".join(out.split())
    facts = json.loads(evaluated(capsys, *words, "--json")[1])
    mine, theirs = (card["metrics"]["avg_l2"] for card in facts["models"][-2:])
    assert set(facts["paired"][0]["differences"].values()) == {None} and mine != theirs
    (line,) = (line for line in out[out.index("less there") :].splitlines() if "│ avg L2" in line)
    assert f"{mine - theirs:+.3f}" in line and "not shown" in line


@pytest.fixture
def run_dir(world: Path, tmp_path: Path) -> Path:
    """A run as ``eval`` sees it: a student, a configuration, no teacher."""
    shutil.copytree(world / "here", tmp_path / "runs/mine/student")
    (tmp_path / "runs/mine/config.json").write_text("{}")
    return tmp_path / "runs/mine"


@pytest.mark.parametrize("words", [("RUN", "--gallery"), ("--gallery", "RUN"), ("--gallery=3", "RUN")])
def test_a_gallery_is_asked_for_with_and_without_a_number(words: tuple[str, ...], run_dir: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(run_dir) if word == "RUN" else word for word in words]
    code, _, err = evaluated(capsys, *given, "--data", world / "gf", "--split", "trainval", "--resamples", 0, "--teacher", world / "there")
    assert code == 0, err
    items = json.loads((run_dir / "gallery/gallery.json").read_text(encoding="utf-8"))["items"]
    assert len(items) == (3 if "3" in "".join(words) else 9)
    assert {item["caption"].partition(":")[0] for item in items} == {"best", "median", "worst"}
    for item in items:
        assert all((run_dir / "gallery" / item[role]).is_file() for role in ("truth", "teacher", "student"))
    rows = {row["name"]: row["role"] for row in json.loads((run_dir / "eval.json").read_text(encoding="utf-8"))["rows"]}
    assert rows == {str(world / "there"): "teacher", "mine": "student"}


def test_models_may_stand_around_the_gallery(run_dir: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--gallery", world / "there", run_dir, "--data", world / "gf", "--resamples", 0, "--json")
    assert [row["name"] for row in json.loads(evaluated(capsys, *words)[1])["rows"][2:]] == ["there", "mine"]
    assert len(json.loads((run_dir / "gallery/gallery.json").read_text(encoding="utf-8"))["items"]) == 2  # all scenes that there are


def test_a_gallery_without_a_run_is_not_passed_over(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (world / "here", "--data", world / "gf", "--resamples", 0)
    assert "no gallery is drawn: it is part of a run's report" in evaluated(capsys, *words, "--gallery")[2]
    assert "gallery" not in evaluated(capsys, *words)[2]
    code, out, err = evaluated(capsys, "--data", world / "gf", "--gallery")
    assert (code, out) == (2, "") and "no model is given; name a run directory" in err
    with pytest.raises(SystemExit) as left:
        evaluated(capsys, *words, "--gallery", 2.5)
    assert left.value.code == 2 and "--gallery: 2.5 is no whole number" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_to_is_scored_all_the_same(run_dir: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "eval.json").mkdir()  # as good as read-only, for root too
    code, out, err = evaluated(capsys, run_dir, "--data", world / "gf", "--resamples", 0, "--json")
    assert code == 0 and json.loads(out)["rows"][-1]["name"] == "mine"
    assert f"warning: {run_dir} cannot be written to" in err and not (run_dir / "gallery").exists()


def test_a_model_called_as_another_is_given_is_a_row_of_its_own(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "there", tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    facts = json.loads(evaluated(capsys, world / "here", "--paired", "here", "--data", world / "gf", "--resamples", 100, "--json")[1])
    assert [card["name"] for card in facts["models"][2:]] == ["here", "here (2)"]
    (pair,) = facts["paired"]
    mine, theirs = (card["metrics"]["avg_l2"] for card in facts["models"][2:])
    assert (pair["name"], pair["other"]) == ("here", "here (2)") and pair["differences"]["avg_l2"]["value"] == pytest.approx(mine - theirs) != 0


def test_video_s_auc_is_refused_for_several_annotators_before_scoring(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = evaluated(capsys, world / "here", "--data", world / "gf", "--protocol", "vat")
    assert (code, out) == (2, "") and "protocol vat is of one annotator a head, and heads of" in err and "split test, have up to 3" in err
    code, out, err = evaluated(capsys, world / "here", "--data", world / "gf", "--split", "val", "--protocol", "vat", "--resamples", 0)
    assert code == 0, err
