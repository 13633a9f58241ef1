"""Pictures that nobody labelled, from the folder to a trained run: beside labelled data, alone, and refused where they teach nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import write_folder, write_picture
from PIL import Image
from refusals import Refusals
from training_world import CNN, TINY, World, cache_arguments, make_model, make_world, store_teacher

from distill.cli import main
from distill.readers import open_data
from distill.runlog import read_metrics
from students.catalogue import STUDENTS
from teachers.cache.reader import CacheReader
from teachers.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("tiny_students")


def build(photos: Path, out: Path, teacher: Path, *more: object) -> list[str]:
    return ["cache", "build", "--images", str(photos), "--teacher", str(teacher), "--out", str(out), "--views", "2", "--device", "cpu", *map(str, more)]


class Home(World):
    """A :class:`World` with a folder of eleven photographs, of which a cache was built."""

    @property
    def photos(self) -> Path:
        return self.data.parent / "photos"

    @property
    def own(self) -> Path:
        return self.data.parent / "own"

    def mixed(self, run: Path, student: str = "tiny_cnn", **options: Any) -> list[str]:
        return self.arguments(run, student, **{"unlabelled": self.own, "epochs": 2, "batch_size": 6, **options})

    def alone(self, run: Path, **options: Any) -> list[str]:
        return self.arguments(run, **{"data": None, "cache": self.own, "epochs": 2, "batch_size": 4, **options})


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    make_world(root, 16)
    write_folder(root / "photos", 11)
    assert main(build(root / "photos", root / "own", root / "teacher")) == 0
    return root


def home_in(root: Path) -> Home:
    return Home(root / "data", root / "teacher", root / "cache")


@pytest.fixture(scope="module")
def home(pristine: Path) -> Home:
    """What a test may read, not spoil."""
    return home_in(pristine)


@pytest.fixture
def spoilt(pristine: Path, tmp_path: Path) -> Home:
    """What a test may spoil; its cache of photographs was built where they are now."""
    shutil.copytree(pristine, tmp_path / "world")
    mine = home_in(tmp_path / "world")
    shutil.rmtree(mine.own)
    assert main(build(mine.photos, mine.own, mine.teacher)) == 0
    return mine


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run) if record["kind"] == kind]


def facts_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())["facts"]


# -- beside labelled data -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixed run of two epochs that ended by itself."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDENTS, "tiny_cnn", TINY["tiny_cnn"])
        torch.set_num_threads(1)
        assert main(home.mixed(run, checkpoint_steps=2)) == 0
    return run


def test_a_mixed_run_states_both_kinds_and_their_lineage(home: Home, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(finished)
    assert facts["scenes"] == {"labelled": 15, "unlabelled": 10, "held_out": 1, "validation": 1}
    lineage = facts["lineage"]
    caches = [CacheReader(path).manifest.identity_digest() for path in (home.cache, home.own)]
    assert [lineage["cache"], *(entry["cache"] for entry in lineage["unlabelled"])] == caches
    photos = open_data(f"folder:{home.photos}", "all")
    assert lineage["unlabelled"][0] == {
        "cache": caches[1], "teacher": lineage["teacher"], "views": 2, "scenes": 11, "data": photos.digest(), "reader": "folder", "split": "all",
    }  # fmt: skip
    config = json.loads((finished / "config.json").read_text())
    assert (config["data"]["unlabelled_views"], config["data"]["unlabelled_share"]) == (2, 0.5)
    assert load_model(finished / "student")[1]["facts"]["lineage"] == lineage
    steps = records(finished, "step")
    assert len(steps) == 10 and all(record["heatmap"] > 0 and record["kd_heatmap"] > 0 and record["kd_inout"] > 0 for record in steps)
    for record in records(finished, "validation"):
        assert 0 < record["avg_l2"] < 1.5 and record["kl_teacher"] > 0 and 0 <= record["l2_teacher"] < 1.5
    capsys.readouterr()
    assert main(["info", str(finished), "--json"]) == 0
    links = json.loads(capsys.readouterr().out)["links"]
    assert [(link["what"], link["status"]) for link in links][:7] == [(what, "ok") for what in ("data", "teacher", "cache", "data", "teacher", "cache")] + [
        ("scenes", "not checked")
    ]
    assert links[6]["name"] == "15 labelled, 10 unlabelled, 1 held out, 1 validation"
    assert main(["report", str(finished)]) == 0
    page = (finished / "report.html").read_text()
    assert "15 labelled and 10 unlabelled scenes, 1 more held out" in page and "Agreement with the teacher" in page and "KL from the teacher" in page


def test_the_console_states_the_numbers(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(home.mixed(tmp_path / "run", epochs=1, unlabelled_share=0.34, limit_steps=1)) == 0
    said = capsys.readouterr().err
    assert (
        "learning from 15 labelled and 10 unlabelled scenes: a batch holds 4 + 2 pictures, an epoch is a pass over the labelled ones (3 steps) and 0.6 "
        "passes over the unlabelled ones; agreement with the teacher is measured on 1 more"
    ) in said
    assert "kl_teacher" in said and "avg_l2" in said


def test_another_unlabelled_cache_is_refused_on_resumption(home: Home, finished: Path, tmp_path: Path, refused: Refusals) -> None:
    other = tmp_path / "other"
    assert main(build(home.photos, other, home.teacher, "--codec", "q8", "--seed", 5)) == 0
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert "another cache (unlabelled: " in refused("train", "--resume", str(run), "--override", "--unlabelled", str(other))


def test_two_unlabelled_caches_add_up(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "more", 5)
    teacher = store_teacher(tmp_path / "teacher", shift=0.5)
    assert main(build(tmp_path / "more", tmp_path / "second", teacher)) == 0
    run = tmp_path / "run"
    assert main(home.mixed(run, unlabelled=f"{home.own},{tmp_path}/second", epochs=1)) == 0
    # Photographs 0 to 2 lie in both folders, byte for byte: nothing forbids that.
    assert facts_of(run)["scenes"]["unlabelled"] + facts_of(run)["scenes"]["held_out"] == 16
    said = capsys.readouterr().err
    digests = [CacheReader(path).manifest.teacher["weights"] for path in (home.cache, tmp_path / "second")]
    assert f"cache {home.cache} was built by teacher tiny ({digests[0]}), cache {tmp_path}/second by tiny ({digests[1]}): the student learns from both" in said
    assert main(["info", str(run)]) == 0


def test_maps_of_another_size_are_resampled_with_a_note(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tmp_path / "teacher"
    save_model(teacher, make_model(replace(CNN, heatmap_size=(24, 24))), "middling", {})
    assert main(build(home.photos, tmp_path / "other", teacher)) == 0
    assert main(home.mixed(tmp_path / "run", unlabelled=tmp_path / "other", epochs=1)) == 0
    said = capsys.readouterr().err
    assert f"maps of cache {tmp_path}/other (24×24) are resampled bilinearly" in said and f"maps of cache {home.cache} (32×32)" in said
    assert "by middling (" in said


# -- alone --------------------------------------------------------------------------------------------------------------


def test_pure_distillation_keeps_the_student_that_agrees_best(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refusals
) -> None:
    runs = [tmp_path / "cached", tmp_path / "unlabelled"]
    assert main(home.alone(runs[0])) == 0
    said = capsys.readouterr().err
    assert "no labels to validate on: the best student is the one with the lowest kl_teacher, its divergence from the teacher on 1 scenes" in said
    assert "learning from 10 scenes without labels, by distillation alone, 2 steps an epoch" in said
    assert main(home.alone(runs[1], cache=None, unlabelled=home.own)) == 0
    for run in runs:
        assert facts_of(run)["scenes"] == {"labelled": 0, "unlabelled": 10, "held_out": 1, "validation": 0}
        steps = records(run, "step")
        assert len(steps) == 4 and all((record["heatmap"], record["spatial"], record["inout"]) == (0, 0, 0) for record in steps)
        assert all(record["kd_heatmap"] > 0 and record["kd_inout"] > 0 for record in steps)
        validations = records(run, "validation")
        assert validations[0]["best"] and all("avg_l2" not in record for record in validations)
        end = records(run, "end")[0]
        assert (end["metric"], end["best"]) == ("kl_teacher", min(record["kl_teacher"] for record in validations))
        assert main(["report", str(run)]) == 0 and main(["info", str(run)]) == 0
        assert "0 labelled and 10 unlabelled scenes" in (run / "report.html").read_text()
        assert main(["train", "--resume", str(run)]) == 0, "nothing is left to do, and nothing is refused"
    assert "has nothing of its own to be scored on; give labelled --data" in refused("eval", str(runs[0]))
    one, other = (load_model(run / "student")[1]["weights_digest"] for run in runs)
    assert one == other, "two names for the same thing"


def test_a_best_metric_that_cannot_be_measured_is_refused(home: Home, tmp_path: Path, refused: Refusals) -> None:
    assert "best_metric is kl_teacher, which is measured on unlabelled scenes" in refused(*home.arguments(tmp_path / "run", best_metric="kl_teacher"))
    assert main(home.mixed(tmp_path / "mixed", epochs=1, best_metric="l2_teacher")) == 0
    assert records(tmp_path / "mixed", "end")[0]["metric"] == "l2_teacher"


def test_labels_elsewhere_validate(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refusals) -> None:
    run = tmp_path / "run"
    assert main(home.alone(run, val_data=home.data, val_split="trainval", val_scenes=4, epochs=1)) == 0
    validation = records(run, "validation")[0]
    assert validation["heads"] >= 4 and validation["avg_l2"] > 0 and validation["kl_teacher"] > 0
    assert records(run, "end")[0]["metric"] == "avg_l2" and facts_of(run)["scenes"]["validation"] == 4
    capsys.readouterr()
    assert main(["eval", str(run), "--gallery", "0", "--json", "--scenes", "4", "--device", "cpu"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out)["rows"] if row["role"] == "student")
    assert row["avg_l2"] == pytest.approx(validation["avg_l2"], abs=1e-6)
    assert "has a gaze label to validate on" in refused(*home.alone(tmp_path / "other", val_data=f"folder:{home.photos}", val_split="all"))


def test_pictures_of_the_validation_split_are_not_trained_on(spoilt: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = open_data(spoilt.data, "val").scenes[0]
    shutil.copy(judged.picture, spoilt.photos / "in disguise.jpg")
    with (spoilt.photos / "heads.csv").open("a") as file:
        file.write("in disguise.jpg,,2,2,20,20\n")
    assert main(build(spoilt.photos, spoilt.own, spoilt.teacher)) == 0
    run = tmp_path / "run"
    capsys.readouterr()
    assert main(spoilt.mixed(run, epochs=1)) == 0
    assert f"1 pictures of {spoilt.own} are in the validation split too and are not trained on" in capsys.readouterr().err
    scenes = facts_of(run)["scenes"]
    assert scenes["unlabelled"] + scenes["held_out"] == 11 == facts_of(run)["lineage"]["unlabelled"][0]["scenes"]
    # By --val-data, the labelled pictures too.
    run = tmp_path / "other"
    shutil.copytree(spoilt.data, tmp_path / "copy")
    assert main(spoilt.arguments(run, val_data=tmp_path / "copy", epochs=1, batch_size=4, train_split="trainval")) == 0
    assert "1 pictures of the training data are in the validation split too" in capsys.readouterr().err
    assert facts_of(run)["scenes"]["labelled"] == 15


# -- a student that goes on from a run ----------------------------------------------------------------------------------


def test_a_student_goes_on_from_a_run(home: Home, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refusals) -> None:
    run = tmp_path / "adapted"
    begin = home.alone(run, student=finished, random_backbone=None, epochs=1, lr=1e-9, finetune=None)
    assert main(begin) == 0
    said = capsys.readouterr().err
    there, mine = (load_model(path / "student")[0] for path in (finished, run))
    assert mine.config == there.config
    learned = {name for name, value in mine.state_dict().items() if not torch.allclose(value, there.state_dict()[name], atol=1e-6)}
    assert learned == set(), "with no rate to speak of, it is where it began"
    facts = facts_of(run)
    assert facts["student_weights"] == load_model(finished / "student")[1]["weights_digest"] and facts["name"] == "tiny_cnn"
    assert f"before training: kl_teacher {facts['before']['kl_teacher']:.4f}" in said
    assert records(run, "validation")[0]["kl_teacher"] == pytest.approx(facts["before"]["kl_teacher"], abs=1e-4)
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["plan", str(recipe(tmp_path, finished))]) == 0
    error = refused(*home.alone(tmp_path / "other", student=finished, random_backbone=True))
    assert f"student is {finished}, which brings all its weights, and random_backbone is set too" in error


def recipe(folder: Path, student: Path) -> Path:
    file = folder / "recipe.toml"
    file.write_text(f'[student]\nstudent = "{student}"\n[schedule]\nepochs = 3\n')
    return file


# -- refused ------------------------------------------------------------------------------------------------------------


def test_labels_without_gaze_and_no_distillation(home: Home, tmp_path: Path, refused: Refusals) -> None:
    photos = f"folder:{home.photos}"
    for options in ({"cache": None, "data": photos}, {"data": photos}, {"cache": None, "unlabelled": home.own}):
        error = refused(*home.alone(tmp_path / "run", distill_weight=0, **options))
        assert "has a gaze label and distill_weight is 0: there is nothing to learn from" in error
        assert ("give a teacher's --cache" in error) == (options == {"cache": None, "data": photos})
    assert "distill_weight is not 0 but there is no teacher" in refused(*home.alone(tmp_path / "run", cache=None, data=photos))
    error = refused(*home.mixed(tmp_path / "run", distill_weight=0))
    assert f"unlabelled data ({home.own}) are given but distill_weight is 0: nothing would be learned from them" in error
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_mixed(home: Home, tmp_path: Path, refused: Refusals) -> None:
    run = tmp_path / "run"
    assert "no teacher's cache of" in refused(*home.mixed(run, cache=None))
    assert "no teacher's cache of" in refused(*home.mixed(run, cache=None, data=f"folder:{home.photos}"))
    assert "are added up, not averaged; leave the weight out" in refused(*home.mixed(run, unlabelled=f"{home.own}:0.5"))
    assert f"was built from labelled data ({home.data})" in refused(*home.alone(run, cache=None, unlabelled=home.cache))
    assert "names 1 caches, --unlabelled-data 2 data sets" in refused(*home.mixed(run, unlabelled_data=f"folder:{home.photos},folder:{home.photos}"))
    assert "unlabelled_share is 1.0; give a fraction between 0 and 1" in refused(*home.mixed(run, unlabelled_share=1))
    assert "a batch of 1 picture cannot hold labelled and unlabelled ones" in refused(*home.mixed(run, batch_size=1))
    assert str(tmp_path / "nowhere") in refused(*home.mixed(run, unlabelled=tmp_path / "nowhere"))
    assert not run.exists()


def test_teachers_with_and_without_inout(home: Home, tmp_path: Path, refused: Refusals) -> None:
    silent = tmp_path / "teacher"
    save_model(silent, make_model(replace(CNN, heatmap_size=(32, 32), inout="none")), "silent", {})
    assert main(build(home.photos, tmp_path / "silent", silent)) == 0
    error = refused(*home.mixed(tmp_path / "run", unlabelled=tmp_path / "silent"))
    assert f"cache {tmp_path}/silent has no in/out logits, that of cache {home.cache} has" in error and "--inout-weight 0" in error
    assert main(cache_arguments(home, teacher=silent, out=tmp_path / "labelled")) == 0
    error = refused(*home.mixed(tmp_path / "run", cache=tmp_path / "labelled"))
    assert f"cache {tmp_path}/labelled has no in/out logits, that of cache {home.own} has" in error
    assert main(home.mixed(tmp_path / "run", unlabelled=tmp_path / "silent", inout_weight=0, epochs=1)) == 0
    assert all(record["kd_inout"] == 0 and record["kd_heatmap"] > 0 for record in records(tmp_path / "run", "step"))


def test_pictures_that_were_moved(spoilt: Home, tmp_path: Path, refused: Refusals) -> None:
    moved = Path(shutil.move(spoilt.photos, tmp_path / "elsewhere"))
    error = refused(*spoilt.mixed(tmp_path / "run"))
    assert f"{spoilt.photos} does not exist (cache {spoilt.own} was built from it); say where its pictures are now with --unlabelled-data SPEC" in error
    assert "with --data SPEC" in refused(*spoilt.alone(tmp_path / "run"))
    run = tmp_path / "run"
    assert main(spoilt.mixed(run, epochs=1, unlabelled_data=f"folder:{moved}")) == 0
    assert main(["info", str(run)]) == 0
    assert main(spoilt.alone(tmp_path / "alone", cache=None, unlabelled=spoilt.own, unlabelled_data=f"folder:{moved}", epochs=1)) == 0
    assert main(["train", "--resume", str(run)]) == 0
    assert f"{tmp_path / 'gone'} does not exist; say" in refused(*spoilt.mixed(tmp_path / "x", unlabelled_data=f"folder:{tmp_path / 'gone'}"))


def test_pictures_that_were_replaced(spoilt: Home, tmp_path: Path, refused: Refusals) -> None:
    pictures = sorted(spoilt.photos.glob("*.jpg"))
    held_out = [scene for scene in pictures if scene.name == held_out_photo(spoilt)]
    for changed in (held_out[0], next(picture for picture in pictures if picture != held_out[0])):
        before = changed.read_bytes()
        Image.open(changed).save(changed, quality=50)
        assert f"the picture of scene {changed.name!r} has changed" in refused(
            *spoilt.alone(tmp_path / changed.stem, batch_size=10), new=f"{changed.stem}/"
        )
        changed.write_bytes(before)


def held_out_photo(home: Home) -> str:
    from distill.splits import carve

    return carve(open_data(f"folder:{home.photos}", "all").scenes)[1][0].key


def test_a_cache_that_lacks_scenes_names_the_command_that_adds_them(spoilt: Home, tmp_path: Path, refused: Refusals) -> None:
    write_picture(spoilt.photos / "new one.jpg")
    with (spoilt.photos / "heads.csv").open("a") as file:
        file.write("new one.jpg,,2,2,20,20\n")
    for arguments, option in ((spoilt.alone(tmp_path / "run"), "--views"), (spoilt.mixed(tmp_path / "run"), "--unlabelled-views")):
        error = refused(*arguments)
        assert f"cache {spoilt.own} lacks 2 views of 1 of 12 training scenes (first: new one.jpg); run `" in error and f"fewer with {option}" in error
    command = shlex.split(error.partition("run `")[2].partition("` again")[0])
    assert command[0] == "distill" and main(command[1:]) == 0
    assert main(spoilt.alone(tmp_path / "run", epochs=1)) == 0


def test_a_cache_that_lacks_labelled_scenes(spoilt: Home, tmp_path: Path, refused: Refusals) -> None:
    before = (spoilt.data / "train_annotations_release.txt").read_text()
    write_picture(spoilt.data / "train/90000000/90000001.jpg")
    extra = before.splitlines()[0].split(",")
    extra[0] = "train/90000000/90000001.jpg"
    (spoilt.data / "train_annotations_release.txt").write_text(before + ",".join(extra) + "\n")
    error = refused(*spoilt.mixed(tmp_path / "run"))
    assert f"cache {spoilt.cache} lacks 2 views of 1 of 16 training scenes (first: train/90000000/90000001.jpg)" in error and f"--out {spoilt.cache}` again" in error


def test_a_held_out_picture_is_not_fed(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.feeding import SceneBatches

    fed: list[str] = []
    plain = SceneBatches._collate
    monkeypatch.setattr(SceneBatches, "_collate", lambda self, keys, samples: fed.extend(keys) or plain(self, keys, samples))
    assert main(home.alone(tmp_path / "run", batch_size=5)) == 0
    names = {f"photo {number}.jpg" for number in range(11)}
    assert set(fed) == names - {held_out_photo(home)}


@pytest.mark.soak
def test_a_mixed_run_of_two_processes_is_that_of_one(home: Home, tmp_path: Path) -> None:
    """Launched as a user launches them; what is learned is the sum over both processes' shares."""
    root = Path(__file__).parents[1]
    options: dict[str, Any] = {"batch_size": 5}
    assert main(home.mixed(tmp_path / "one/run", "tiny_calm", **options)) == 0
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    line = home.mixed(tmp_path / "two/run", "tiny_calm", **options)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    script = [str(root / "tests/training_world.py"), str(dumps), json.dumps([line])]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {path.stem for path in dumps.glob("*.safetensors")} == {"run-0-of-2", "run-1-of-2"}, "there were two"
    one, two = (records(tmp_path / name / "run", "step") for name in ("one", "two"))
    assert len(one) == len(two) > 5
    for mine, theirs in zip(one, two, strict=True):
        for term in ("loss", "heatmap", "inout", "kd_heatmap", "kd_inout"):
            assert mine[term] == pytest.approx(theirs[term], abs=1e-5), (mine["step"], term)
    assert done.stderr.count("learning from 15 labelled and 10 unlabelled scenes") == 1
