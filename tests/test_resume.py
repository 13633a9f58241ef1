"""kill -9 in the middle of a run, and resume: what comes out is, to the bit, what an undisturbed run gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import write_folder
from refusals import Refusals
from training_world import TINY, World, cache_arguments, make_world, store_teacher

from distill.cli import main
from distill.configuration import config_from_sections
from distill.student_start import resumed_student
from students.catalogue import STUDENTS
from students.checkpoint import checkpoints, newest_intact, read_checkpoint_file
from students.errors import RunError

pytestmark = pytest.mark.usefixtures("tiny_students")

ROOT = Path(__file__).parents[1]


class Trainings:
    """Starts `distill` in processes of its own and says how they ended."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._errors = server, folder / "errors"

    def _start(self, arguments: list[str], moment: str) -> list[str]:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps([arguments, moment, str(self._errors)]), file=self._server.stdin, flush=True)
        return self._line()

    def _line(self) -> list[str]:
        assert self._server.stdout is not None
        while True:
            words = self._server.stdout.readline().split()
            if words[:1] in (["holding"], ["status"], []):
                return words

    def finish(self, arguments: list[str]) -> str:
        """Run to the end; returns what went to standard error."""
        said = self._start(arguments, "")
        assert said == ["status", "0"], self._errors.read_text()
        return self._errors.read_text()

    def kill(self, arguments: list[str], moment: str) -> None:
        """SIGKILL at the n-th record of a kind."""
        told = self._start(arguments, moment)
        assert told[0] == "holding", self._errors.read_text()
        os.kill(int(told[1]), signal.SIGKILL)
        assert self._line() == ["status", "-9"]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/training_world.py"), "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield Trainings(server, tmp_path_factory.mktemp("said"))
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, each with a thaw, that ended by itself; tests copy it before they change it."""
    run = tmp_path_factory.mktemp("calm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, config in TINY.items():
            patch.setitem(STUDENTS, name, config)
        torch.set_num_threads(1)
        assert main(world.arguments(run, checkpoint_steps=3)) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


TIMES = ("seconds", "images_per_s")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The run's records, times aside."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert [path.name for path in checkpoints(one)] == [path.name for path in checkpoints(other)]
    for mine, theirs in zip(checkpoints(one), checkpoints(other), strict=True):
        a, b = read_checkpoint_file(mine), read_checkpoint_file(theirs)
        assert a.model.keys() == b.model.keys() and all(torch.equal(a.model[name], b.model[name]) for name in a.model)
        assert a.optimizer.keys() == b.optimizer.keys() and len(a.optimizer) > 0
        for name, entries in a.optimizer.items():
            assert entries.keys() == b.optimizer[name].keys()
            assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(b.optimizer[name][key])) for key, value in entries.items())
        for facts in (a.facts, b.facts):
            facts["sums"].pop("seconds", None)
        assert a.facts == b.facts
    assert metrics(one) == metrics(other)
    described = [json.loads((run / "student/model.json").read_text()) for run in (one, other)]
    assert described[0]["weights_digest"] == described[1]["weights_digest"]
    assert described[0]["facts"]["step"] == described[1]["facts"]["step"]


def test_the_run_that_is_killed_has_what_the_kills_need(finished: Path) -> None:
    records = metrics(finished)
    assert [(r["step"], r["epoch"], len(r["opened"])) for r in records if r["kind"] == "thaw"] == [(0, 0, 1), (4, 1, 1), (8, 2, 2)]
    assert len([record for record in records if record["kind"] == "step"]) == 12
    assert len({record["loss"] for record in records if record["kind"] == "step"}) == 12


@pytest.mark.parametrize("kills", [["checkpoint:3", "thaw:2"], ["step:5", "validation:1"]], ids=["around-thaws", "between"])
def test_a_killed_run_resumes_to_the_bit(kills: list[str], world: World, finished: Path, trainings: Trainings, tmp_path: Path) -> None:
    # checkpoint:3 is the end of epoch 0, with epoch 1 about to thaw a block (0, 3 and 4 are written); thaw:2 is then the second
    # thaw of the resumed process, announced with no step made since. step:5 has a checkpoint two steps back; validation:1 comes
    # before the checkpoint of its epoch.
    run = tmp_path / "run"
    arguments = world.arguments(run, checkpoint_steps=3)
    for moment in kills:
        trainings.kill(arguments, moment)
        arguments = ["train", "--resume", str(run)]
    trainings.finish(arguments)
    assert_same_run(finished, run)


def test_a_run_killed_before_its_first_step_is_resumed_too(world: World, trainings: Trainings, tmp_path: Path, finished: Path) -> None:
    run = tmp_path / "run"
    trainings.kill(world.arguments(run, checkpoint_steps=3), "thaw:1")
    trainings.finish(["train", "--resume", str(run)])
    assert_same_run(finished, run)


def test_a_killed_run_on_labelled_and_unlabelled_scenes_resumes_to_the_bit(world: World, trainings: Trainings, tmp_path: Path) -> None:
    photos, own = write_folder(tmp_path / "photos", 9), tmp_path / "own"
    assert main(["cache", "build", "--images", str(photos), "--teacher", str(world.teacher), "--out", str(own), "--views", "2", "--device", "cpu"]) == 0
    options: dict[str, Any] = {"unlabelled": own, "batch_size": 8, "epochs": 2, "checkpoint_steps": 3}
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert main(world.arguments(calm, **options)) == 0
    trainings.kill(world.arguments(run, **options), "step:7")
    trainings.finish(["train", "--resume", str(run)])
    assert_same_run(calm, run)


@pytest.mark.soak
@pytest.mark.parametrize(
    "moment",
    # Every step; and around each thaw both sides: the checkpoint before it, the thaw itself, and the first step after it.
    [f"{kind}:{number}" for kind, last in (("step", 12), ("checkpoint", 7), ("thaw", 3), ("validation", 3)) for number in range(1, last + 1)],
)
def test_a_kill_at_every_moment(moment: str, world: World, finished: Path, trainings: Trainings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainings.kill(world.arguments(run, checkpoint_steps=3), moment)
    trainings.finish(["train", "--resume", str(run)])
    assert_same_run(finished, run)


def test_a_finished_run_is_left_as_it_is(run: Path, finished: Path) -> None:
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_run(finished, run)


# -- damage -------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_the_older_checkpoint_serves_when_the_newest_is_damaged(damage: str, run: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest, older = checkpoints(run)
    if damage == "cut":
        cut(newest)
    else:
        content = bytearray(newest.read_bytes())
        content[-50] ^= 1
        newest.write_bytes(bytes(content))
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().err
    assert str(newest) in said and f"the older {older.name} is used instead" in said
    assert ("cut short" in said) == (damage == "cut")
    assert_same_run(finished, run)


def test_without_an_intact_checkpoint_nothing_is_touched(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in checkpoints(run):
        cut(path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(run)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill: error:")]
    assert len(errors) == 1 and all(path.name in errors[0] for path in checkpoints(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_newer_checkpoint_does_not_push_out_new_ones(run: Path) -> None:
    from students.checkpoint import save_checkpoint

    checkpoint = read_checkpoint_file(checkpoints(run)[1])
    cut(checkpoints(run)[0])
    save_checkpoint(run, checkpoint, 10, keep=1)
    assert [path.stem for path in checkpoints(run)] == ["step-0000012", "step-0000010"]
    assert newest_intact(run)[1].stem == "step-0000010"


# -- another command line -----------------------------------------------------------------------------------------------


def test_other_values_are_warned_of_one_by_one_and_the_saved_ones_kept(run: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "9", "--distill-weight", "0.25", "--finetune-layers", "3", "--use-amp", "--seed", "3"]
    assert main(["train", "--resume", str(run), *arguments]) == 0
    said = capsys.readouterr().err
    warned = [line for line in said.splitlines() if line.startswith("warning: --")]
    assert len(warned) == 4, "--seed is what it was"
    for name, value, own in (("epochs", "9", "3"), ("distill-weight", "0.25", "0.5"), ("finetune-layers", "3", "1"), ("use-amp", "True", "False")):
        assert any(f"--{name} {value} differs from the run's own {own}, which is kept" in line for line in warned), name
    assert_same_run(finished, run)


def test_more_epochs_by_override_keep_the_final_rate_and_are_remembered(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run), "--epochs", "5"]) == 0
    assert metrics(run)[-1]["step"] == 12, "without --override the run's own length stands"
    assert main(["train", "--resume", str(run), "--override", "--epochs", "5", "--limit-steps", "14"]) == 0
    assert "--epochs 5 takes the place of the run's own 3" in capsys.readouterr().err
    assert metrics(run)[-1]["step"] == 14
    # Another resumption, with no word of it, goes on to the end that was asked for.
    assert main(["train", "--resume", str(run), "--override", "--limit-steps", "0"]) == 0
    steps = [record for record in metrics(run) if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 21))
    rates = [record["lr_head"] for record in steps]
    assert rates[0] == max(rates) and rates == sorted(rates, reverse=True)
    assert rates[12:] == [pytest.approx(1e-3 * 0.01)] * 8
    assert [record["lr_backbone"] for record in steps][12:] == [pytest.approx(1e-4 * 0.01)] * 8
    config = json.loads((run / "config.json").read_text())
    assert config["schedule"]["epochs"] == 5 and config["schedule"]["planned_epochs"] == 3
    assert config["facts"]["lineage"]["views"] == 2
    assert len(json.loads((run / "plan.json").read_text())["epochs"]) == 5


def test_a_run_that_stopped_at_its_limit_goes_on(world: World, finished: Path, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    # Killed before its limit, it stops there once it is resumed: the undisturbed run would have.
    trainings.kill(world.arguments(run, checkpoint_steps=3, limit_steps=6), "step:4")
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run)[-1]["step"] == 6 and "limit" not in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--limit-steps", "8"]) == 0
    assert "--limit-steps 8 takes the place of the run's own 6" in capsys.readouterr().err and metrics(run)[-1]["step"] == 8
    assert main(["train", "--resume", str(run)]) == 0
    assert "the run had stopped at its --limit-steps 8; now it goes on to its end" in capsys.readouterr().err
    newest, whole = (read_checkpoint_file(checkpoints(place)[0]) for place in (run, finished))
    assert all(torch.equal(value, whole.model[name]) for name, value in newest.model.items())
    steps = [[record for record in metrics(place) if record["kind"] == "step"] for place in (run, finished)]
    assert steps[0] == steps[1] and newest.facts["step"] == 12
    assert json.loads((run / "config.json").read_text())["train"]["limit_steps"] == 0


def test_a_run_that_was_moved_resumes_where_it_is(finished: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(finished, tmp_path / "elsewhere" / "renamed"))
    cut(checkpoints(moved)[0])
    assert main(["train", "--resume", str(moved)]) == 0
    assert_same_run(finished, moved)


# -- refused ------------------------------------------------------------------------------------------------------------


def test_a_directory_that_holds_a_run_is_not_trained_into(run: Path, world: World, finished: Path, refused: Refusals) -> None:
    error = refused(*world.arguments(run))
    assert f"{run} already holds a run; go on with it by `distill train --resume {run}`" in error
    assert_same_run(finished, run)


def test_a_directory_without_a_run_is_not_resumed(tmp_path: Path, refused: Refusals) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run to resume" in refused("train", "--resume", str(tmp_path / "empty"))
    assert "holds no run to resume" in refused("train", "--resume", str(tmp_path / "absent"))
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_a_file_or_a_place_near_a_run_is_answered_with_the_run(run: Path, refused: Refusals, monkeypatch: pytest.MonkeyPatch) -> None:
    for inside in (checkpoints(run)[0], run / "config.json", run / "checkpoints", run / "student"):
        error = refused("train", "--resume", str(inside))
        assert str(inside) in error and f"its run is `--resume {run}`" in error
    elsewhere = run.parent.parent / "notes.txt"
    elsewhere.write_text("...")
    monkeypatch.chdir(elsewhere.parent)
    error = refused("train", "--resume", str(elsewhere))
    assert f"--resume takes the directory of a run, and {elsewhere} is a file" in error and "runs/NAME" in error
    # What lies below a directory of runs, and below ./runs, is offered by name.
    assert f"give the directory of a run, such as {run}" in refused("train", "--resume", str(run.parent))
    shutil.copytree(run, Path("runs/first"))
    assert "give the directory of a run, such as runs/first" in refused("train", "--resume", str(elsewhere))


@pytest.mark.parametrize(("content", "message"), [
    ("{", "cannot be read"), ("[]", "is no configuration of a run"), ("{}", "is no configuration of a run"), ("", "has no facts"),
])  # fmt: skip
def test_a_configuration_that_is_none_is_refused(content: str, message: str, run: Path, refused: Refusals) -> None:
    whole = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(content or json.dumps({name: whole[name] for name in whole if name != "facts"}))
    error = refused("train", "--resume", str(run))
    assert f"{run}/config.json {message}" in error and "start the run again under another --name" in error


def test_the_choice_that_is_in_force_is_the_one_that_is_stored(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def facts() -> dict[str, Any]:
        return json.loads((run / "config.json").read_text())["facts"]

    before = facts()
    assert before["selection"] == {"split": "val", "metric": "avg_l2", "scenes": 0}
    # Without --override nothing changes, in the configuration or in what is stored of it.
    assert main(["train", "--resume", str(run), "--best-metric", "auc"]) == 0 and facts() == before
    more = ["train", "--resume", str(run), "--override", "--epochs", "4"]
    assert main([*more, "--best-metric", "auc", "--val-scenes", "1"]) == 0
    assert "the best student was chosen by metric avg_l2, scenes 0, split val" in capsys.readouterr().err
    chosen = {"split": "val", "metric": "auc", "scenes": 1}
    assert facts() == {**before, "selection": chosen}
    assert json.loads((run / "student/model.json").read_text())["facts"]["selection"] == chosen
    assert main(["train", "--resume", str(run), "--override", "--epochs", "5"]) == 0
    assert facts()["selection"] == chosen, "the next resumption goes on by it"


def test_another_student_is_refused(run: Path, refused: Refusals) -> None:
    error = refused("train", "--resume", str(run), "--student", "tiny_vit")
    assert f"--student is tiny_vit, and {run} is a run of tiny_cnn; leave --student out" in error
    error = refused("train", "--resume", str(run), "--override", "--student", "tiny_vit")
    assert "is of another student: it differs in backbone, levels" in error
    assert json.loads((run / "config.json").read_text())["student"]["student"] == "tiny_cnn"


def test_another_cache_is_refused(run: Path, world: World, tmp_path: Path, refused: Refusals) -> None:
    other = tmp_path / "other cache"
    teacher = store_teacher(tmp_path / "teacher", shift=0.5)
    assert main(cache_arguments(world, teacher=teacher, out=other)) == 0
    error = refused("train", "--resume", str(run), "--override", "--cache", str(other))
    assert "another cache (cache: " in error and "resume with the same --data and --cache" in error


def test_epochs_of_another_length_are_refused(run: Path, finished: Path, refused: Refusals) -> None:
    error = refused("train", "--resume", str(run), "--override", "--batch-size", "4")
    assert "was made with 4 steps an epoch, this run would have 5" in error and "raise --accumulate" in error
    assert_same_run(finished, run)
    assert json.loads((run / "config.json").read_text())["data"]["batch_size"] == 5


def test_a_resumption_loads_no_pretrained_weights(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads((run / "config.json").read_text())
    described["student"] |= {"random_backbone": False, "backbone_weights": "/gone/since"}
    described["facts"]["backbone_weights"] = {"source": "weights that were there once"}
    (run / "config.json").write_text(json.dumps(described))
    cut(checkpoints(run)[0])
    monkeypatch.setattr("distill.student_start.load_pretrained_backbone", lambda *_: pytest.fail("the checkpoint holds every weight"))
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_run(finished, run)
    config = config_from_sections({name: described[name] for name in described if name != "facts"}, "config.json")
    assert resumed_student(config, run)[1]["backbone_weights"] == {"source": "weights that were there once"}


def test_a_cache_that_has_grown_does_not_change_the_run(run: Path, world: World, finished: Path, tmp_path: Path, refused: Refusals) -> None:
    grown = Path(shutil.copytree(world.cache, tmp_path / "grown"))
    assert main(cache_arguments(world, out=grown, views=3)) == 0
    more = ["train", "--resume", str(run), "--override", "--cache", str(grown)]
    assert "(views: 2 there, 3 here)" in refused(*more, "--views", "3")
    cut(checkpoints(run)[0])
    assert main(more) == 0
    assert_same_run(finished, run)


def test_a_run_file_beside_a_resumption_is_compared_like_options(run: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[run]\nname = "other"\n[student]\nstudent = "tiny_cnn"\n[schedule]\nepochs = 3\nfinetune = true\ndistill_weight = "0.25"\n')
    cut(checkpoints(run)[0])
    assert main(["train", str(recipe), "--resume", str(run), "--finetune-layers", "2"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: --")]
    assert len(warned) == 2 and all("which is kept" in line for line in warned)
    assert "--distill-weight 0.25 differs from the run's own 0.5" in warned[0] and "--finetune-layers 2" in warned[1]
    assert_same_run(finished, run)


def test_without_a_directory_the_run_that_is_meant_is_found(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["train", "--resume"]) == 2
    assert "no run is below runs; give the directory of a run" in capsys.readouterr().err
    older, newer = (Path(shutil.copytree(run, Path("runs") / name)) for name in ("older", "newer"))
    for place, moment in ((older, 1_000_000), (newer, 2_000_000)):
        cut(checkpoints(place)[0])
        for path in place.rglob("*"):
            os.utime(path, (moment, moment))
    assert main(["train", "--resume"]) == 0
    assert f"resuming {newer}, the newest of 2 runs below runs" in capsys.readouterr().err
    assert_same_run(finished, newer)
    # The name that a run was given, or that its file gives it, says which one is meant.
    Path("older.toml").write_text("[schedule]\nepochs = 3\n")
    assert main(["train", "older.toml", "--resume"]) == 0
    assert_same_run(finished, older)
    assert main(["train", "--runs", ".", "--name", "run", "--resume"]) == 0
    assert "differs" not in capsys.readouterr().err
    assert_same_run(finished, run)


def test_no_checkpoint_at_all_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no checkpoint to resume from"):
        newest_intact(tmp_path)
