"""Bad input, command by command: one line with what is wrong and what to do, exit code 2, and nothing lost that was there before."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fixtures import train_row, write_folder, write_gazefollow
from refusals import Refusals
from training_world import TINY, World, cache_arguments, make_trainer, make_world, store_teacher

from distill.cli import main
from distill.configuration import RunConfig
from distill.runlog import RunLog, read_metrics
from students.catalogue import STUDENTS
from students.checkpoint import checkpoints, newest_intact
from students.errors import RunError

pytestmark = pytest.mark.usefixtures("tiny_students")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    make_world(root, 12)
    return root


@pytest.fixture
def world(pristine: Path, tmp_path: Path) -> World:
    """A data set, a teacher and a cache that a test may spoil."""
    shutil.copytree(pristine, tmp_path / "world")
    return World(tmp_path / "world/data", tmp_path / "world/teacher", tmp_path / "world/cache")


@pytest.fixture(scope="module")
def trained(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; tests copy it before they change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    world = World(pristine / "data", pristine / "teacher", pristine / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDENTS, "tiny_cnn", TINY["tiny_cnn"])
        assert main(world.arguments(run, epochs=1)) == 0
    return run


FIRST = "train/00000000/00000000.jpg"
ANNOTATIONS = "train_annotations_release.txt"


# -- pictures and annotations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "cut", "no picture"])
def test_a_picture_that_cannot_be_read(damage: str, world: World, refused: Refusals) -> None:
    picture = world.data / FIRST
    whole = picture.read_bytes()
    if damage == "missing":
        picture.unlink()
    else:
        picture.write_bytes(whole[:300] if damage == "cut" else b"hello")
    word = "does not exist; check" if damage == "missing" else "cannot be decoded"
    error = refused(*cache_arguments(world, out=world.cache.parent / "new"), new="world/new")
    assert f"picture {picture} {word}" in error
    run = world.cache.parent / "run"
    error = refused(*world.arguments(run), new="world/run")
    assert f"picture {picture} {word}" in error
    # Another picture in its place is not what the teacher saw; once the old one is back the run goes on from its first moment.
    shutil.copy(world.data / "train/00000000/00000001.jpg", picture)
    assert main(["train", "--resume", str(run)]) == 2
    assert f"the picture of scene {FIRST!r} has changed" in refused.capsys.readouterr().err
    picture.write_bytes(whole)
    assert newest_intact(run)[0].facts["step"] == 0
    assert main(["train", "--resume", str(run)]) == 0


def test_a_picture_of_the_validation_split_that_cannot_be_read(world: World, refused: Refusals, trained: Path) -> None:
    run = Path(shutil.copytree(trained, world.cache.parent / "run"))
    for picture in (world.data / "train").rglob("*.jpg"):
        picture.write_bytes(b"")
    for command in (["eval", run, "--data", world.data, "--split", "val", "--gallery", "0"], ["export", run, "--data", world.data]):
        assert "cannot be decoded" in refused(*command)


def test_a_place_where_no_run_can_be_kept(world: World, refused: Refusals, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("...")
    error = refused(*world.arguments(tmp_path / "file" / "run"))
    assert f"{tmp_path}/file/run cannot be written" in error and error.endswith("give another place with --runs")


def test_a_box_outside_its_picture(world: World, refused: Refusals, capsys: pytest.CaptureFixture[str]) -> None:
    with (world.data / ANNOTATIONS).open("a") as file:
        file.write(train_row(FIRST, 99, (100.0, 100.0, 120.0, 120.0), (0.5, 0.5), 1) + "\n")
    error = refused(*cache_arguments(world, out=world.cache.parent / "new"), new="world/new")
    assert f"scene {FIRST}: head" in error and "box 100, 100, 120, 120 lies outside its picture" in error and "64 x 48 pixels" in error
    assert main(["data", "check", str(world.data), "--strict", "--no-baselines", "--no-sheet"]) == 2
    assert "1 × head wholly outside the picture; mend the annotations" in capsys.readouterr().err
    # The cache that is there was built before the line: it is of other boxes now.
    assert FIRST in refused(*world.arguments(world.cache.parent / "run"))
    assert main(cache_arguments(world, out=world.cache.parent / "skipping", **{"on-error": "skip"})) == 0


def test_a_reversed_box_is_put_right_and_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (world.data / ANNOTATIONS).read_text().splitlines()
    fields = lines[0].split(",")
    fields[10], fields[12] = fields[12], fields[10]
    (world.data / ANNOTATIONS).write_text("\n".join([",".join(fields), *lines[1:]]) + "\n")
    assert main(["data", "check", str(world.data), "--strict", "--no-baselines", "--no-sheet"]) == 2
    assert "1 × reversed box" in capsys.readouterr().err
    assert main(world.arguments(world.cache.parent / "run", epochs=1)) == 0, "the box is the same one"


@pytest.mark.parametrize(("spoilt", "message"), [
    (lambda fields: fields[:9], "9 columns where 17 are expected: the line is cut short"),
    (lambda fields: [*fields[:8], "left", *fields[9:]], "gaze_x is 'left', not a finite number"),
    (lambda fields: [*fields[:11], "nan", *fields[12:]], "nan"),
])  # fmt: skip
def test_a_line_of_annotations_that_cannot_be_read(spoilt, message: str, world: World, refused: Refusals) -> None:  # type: ignore[no-untyped-def]
    file = world.data / ANNOTATIONS
    lines = file.read_text().splitlines()
    lines[3] = ",".join(spoilt(lines[3].split(",")))
    file.write_text("\n".join(lines) + "\n")
    run = world.cache.parent / "run"
    for command in (["data", "check", world.data], cache_arguments(world, out=world.cache.parent / "new"), world.arguments(run)):
        error = refused(*command)
        assert f"{file}:4: " in error and message in error
    assert not run.exists() and not (world.cache.parent / "new").exists()


# -- names and values ---------------------------------------------------------------------------------------------------


def test_unknown_names_offer_the_nearest(world: World, refused: Refusals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    error = refused("cache", "build", "--data", world.data, "--teacher", "gazelle_dinov2_vitb15", "--out", tmp_path / "new")
    assert "unknown teacher 'gazelle_dinov2_vitb15'; nearest: gazelle_dinov2_vitb14" in error
    assert "unknown student 'tiny_cn'; nearest: tiny_cnn" in refused(*world.arguments(run, student="tiny_cn"))
    assert "has no split 'trian'; choose one of train, val" in refused(*world.arguments(run, train_split="trian"))
    assert "unknown reader 'gazefolow'; did you mean 'gazefollow'?" in refused("data", "check", f"gazefolow:{world.data}")
    recipe = tmp_path / "recipe.toml"
    for text, message in (
        ("[data]\nbatchsize = 3\n", "unknown key 'batchsize' in [data]; nearest: batch_size in [data]"),
        ("[dat]\nbatch_size = 3\n", "unknown section [dat]; nearest: data"),
        ("[run]\nbatch_size = 3\n", "key 'batch_size' belongs to [data], not to [run]"),
        ("[data]\nbatch_size = 'three'\n", "batch_size must be int, got 'three'"),
        ("[data\n", "is not valid TOML"),
    ):
        recipe.write_text(text)
        error = refused("train", recipe)
        assert message in error and str(recipe) in error
    assert "recipes/ holds examples" in refused("train", tmp_path / "absent.toml")


@pytest.mark.parametrize(("name", "value", "message"), [
    ("batch_size", 0, "batch_size is 0; it must be at least 1"),
    ("augment", 7, "augment is 7.0; give a strength between 0 and 2"),
    ("device", "gpu", "device is 'gpu'; use auto, cpu or cuda"),
    ("best_metric", "avg_l3", "best_metric is 'avg_l3'; choose one of auc, avg_l2"),
    ("tracker", "wandbb", "tracker 'wandbb' is not known; nearest: wandb"),
    ("distill_weight", "cosin 1 -> 0", "'cosin 1 -> 0' is not a curve; write a number"),
    ("distill_weight", "-1", "distill_weight must not be negative"),
    ("unfreeze_interval", 0, "set --unfreeze-interval"),
    ("epochs", 0, "epochs must be a whole number of at least 1"),
    ("lr", "nan", "lr must be above 0, got nan"),
    ("seed", -1, "seed is -1; it must be at least 0"),
    ("seed", 2**32, "seed is 4294967296; it must be below 4294967296"),
    ("name", "a/b", "the run's name is 'a/b'; give a plain name"),
    ("data", "/nowhere/at/all", "no data set at /nowhere/at/all: the folder does not exist"),
    ("cache", "/nowhere/at/all", "/nowhere/at/all"),
    ("val_split", "train", "scenes are in both train and train"),
])  # fmt: skip
def test_a_value_that_cannot_be(name: str, value: object, message: str, world: World, refused: Refusals, tmp_path: Path) -> None:
    assert message in refused(*world.arguments(tmp_path / "run", **{name: value}))


# -- caches, runs, models -----------------------------------------------------------------------------------------------


def test_a_cache_of_another_teacher(world: World, refused: Refusals, tmp_path: Path) -> None:
    other = store_teacher(tmp_path / "other", shift=0.5)
    error = refused(*cache_arguments(world, teacher=other))
    assert f"cache {world.cache} holds something else: teacher.weights: cache " in error and "give another --out" in error


def test_a_cache_of_other_scenes_or_a_damaged_one(world: World, refused: Refusals, tmp_path: Path) -> None:
    error = refused(*world.arguments(tmp_path / "run", train_split="test"))
    assert f"cache {world.cache} was built of another" in error and "--split test" in error
    shard = next((world.cache / "shards").glob("0*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(bytes(content))
    assert shard.name in refused(*world.arguments(tmp_path / "run"), new="run/")


def test_a_cache_that_lacks_some_of_the_training_scenes(world: World, refused: Refusals, tmp_path: Path) -> None:
    with (world.data / ANNOTATIONS).open("a") as file:
        for number in range(90, 96):
            picture = world.data / FIRST.replace("00000000.jpg", f"000000{number}.jpg")
            shutil.copy(world.data / FIRST, picture)
            file.write(train_row(str(picture.relative_to(world.data)), number, (6.0, 8.0, 22.0, 26.0), (0.5, 0.5), 1) + "\n")
    run = tmp_path / "run"
    error = refused(*world.arguments(run))
    assert f"cache {world.cache} lacks 2 views of " in error and "training scenes (first: train/00000000/0000009" in error
    assert f"--out {world.cache}" in error and not run.exists()
    # The command that it names adds them.
    assert main(cache_arguments(world)) == 0 and main(world.arguments(run, epochs=1, limit_steps=1)) == 0


def test_choosing_the_best_student_on_the_test_split_is_said(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, said in (("val", 0), ("test", 1)):
        allowed = ["--allow-test-selection"] if said else []
        assert main([*world.arguments(tmp_path / split, val_split=split, limit_steps=1), *allowed]) == 0
        warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the best student is chosen on the split 'test'")]
        assert len(warnings) == said


def test_a_distillation_weight_without_a_teacher(world: World, refused: Refusals, tmp_path: Path) -> None:
    assert "give --cache PATH, or --distill-weight 0" in refused(*world.arguments(tmp_path / "run", cache=None))
    assert "no data set is given: set data in [data], or --data PATH" in refused("train", "--epochs", "1", "--name", "run", "--runs", tmp_path)


def test_labels_without_a_gaze_point_and_no_teacher(world: World, refused: Refusals, tmp_path: Path) -> None:
    file = world.data / ANNOTATIONS
    rows = [line.split(",") for line in file.read_text().splitlines()]
    file.write_text("".join(",".join([*row[:8], "-1", "-1", *row[10:14], "0", *row[15:]]) + "\n" for row in rows))
    silent = {"cache": None, "distill_weight": 0}
    judged = write_gazefollow(tmp_path / "judged", 6)
    for more in ({}, {"val_data": judged}):  # validated on scenes that have points, there is still nothing to learn where people look from
        error = refused(*world.arguments(tmp_path / "run", **silent, **more))
        assert f"no head of {world.data} has a gaze label and distill_weight is 0: there is nothing to learn from" in error
    # With a teacher there is something to learn, but nothing to judge the student by.
    again = world.cache.parent / "again"
    assert main(cache_arguments(world, out=again)) == 0
    error = refused(*world.arguments(tmp_path / "run", cache=again))
    assert "best_metric is avg_l2, and no head of" in error and "has a gaze point in the frame" in error


def test_unlabelled_heads_alone_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_folder(tmp_path / "photos", 4)
    words = ["--data", photos, "--epochs", 1, "--name", "run", "--runs", tmp_path, "--student", "tiny_cnn", "--device", "cpu"]
    assert main(["train", *map(str, words), "--random-backbone"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no head of {photos} has a gaze label and distill_weight is 0" in line and not (tmp_path / "run").exists()


def test_a_directory_that_holds_a_run_or_something_else(world: World, refused: Refusals, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert "already holds a run; go on with it by" in refused(*world.arguments(run))
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("...")
    assert "is not empty and holds no run; give this run another --name" in refused(*world.arguments(other))


def test_a_run_that_is_not_there(refused: Refusals, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for command in (["eval", absent, "--data", tmp_path], ["export", absent], ["report", absent], ["info", absent], ["train", "--resume", absent]):
        assert str(absent) in refused(*command)


def test_a_stored_student_that_was_cut_short(refused: Refusals, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    weights = run / "student/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    write_folder(tmp_path / "photos")
    for command in (["eval", run], ["export", run], ["predict", run, tmp_path / "photos", "--out", tmp_path / "answers"]):
        assert f"{weights} is damaged or cut short" in refused(*command)


# -- heads files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "message"), [
    ("ghost.jpg,1,1,1,9,9", "picture ghost.jpg is neither given nor on the disk"),
    ("photo 1.jpg,2,100,100,120,120", "the box 100, 100, 120, 120 lies outside photo 1.jpg, which is 64 x 48 pixels"),
    ("photo 1.jpg,2,9,9,9,20", "the box 9, 9, 9, 20 has no area"),
    ("photo 1.jpg,2,9,9", "4 columns where 6 are expected"),
    ("photo 1.jpg,2,9,9,left,20", "xmax is 'left', not a finite number"),
])  # fmt: skip
def test_a_heads_file_that_does_not_fit(line: str, message: str, world: World, refused: Refusals, tmp_path: Path) -> None:
    heads = write_folder(tmp_path / "photos") / "heads.csv"
    count = len(heads.read_text().splitlines())
    heads.write_text(heads.read_text() + line + "\n")
    error = refused("predict", world.teacher, tmp_path / "photos", "--out", tmp_path / "answers")
    assert f"{heads}:{count + 1}: {message}" in error
    assert not (tmp_path / "answers").exists()


def test_rows_for_pictures_that_were_not_given_are_counted(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_folder(tmp_path / "photos")
    assert main(["predict", str(world.teacher), str(photos / "photo 1.jpg"), "--out", str(tmp_path / "answers"), "--no-overlays"]) == 0
    assert "rows of the heads file for pictures that were not given are ignored: 3" in capsys.readouterr().err
    assert len((tmp_path / "answers/answers.jsonl").read_text().splitlines()) == 1


# -- checkpoints and a full disk ----------------------------------------------------------------------------------------


def test_checkpoints_that_were_cut_short(refused: Refusals, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for path in checkpoints(run):
        path.write_bytes(path.read_bytes()[:1000])
    error = refused("train", "--resume", run)
    assert f"no checkpoint of {run} is intact" in error and "start the run again with another --name" in error


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: how a full disk looks to one that writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_when_the_run_begins(world: World, refused: Refusals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with file_size_limit(100_000):
        error = refused(*world.arguments(run), new="run/")
    assert f"checkpoint {run}/checkpoints/step-0000000.safetensors cannot be written" in error and "make room on the disk" in error
    assert list((run / "checkpoints").iterdir()) == []


def test_a_disk_that_fills_up_loses_no_checkpoint(world: World, refused: Refusals, trained: Path, tmp_path: Path) -> None:
    # The first checkpoint has no optimizer state, so that a limit between the two sizes hits the second one.
    small, large = sorted(path.stat().st_size for path in checkpoints(trained))
    run = tmp_path / "run"
    with file_size_limit((small + large) // 2):
        error = refused(*world.arguments(run, epochs=1), new="run/")
    assert "step-0000002.safetensors cannot be written" in error and f"distill train --resume {run}" in error
    assert [path.stem for path in checkpoints(run)] == ["step-0000000"] and not list(run.rglob("*.tmp"))
    # With room again the command that was named makes the run that an undisturbed one would have been.
    assert main(["train", "--resume", str(run)]) == 0
    one, other = newest_intact(run)[0], newest_intact(trained)[0]
    assert all(torch.equal(one.model[name], other.model[name]) for name in other.model)
    kinds = [[record["kind"] for record in read_metrics(path)] for path in (run, trained)]
    assert kinds[0] == kinds[1]


def test_metrics_that_cannot_be_written_name_their_file(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, TINY["tiny_cnn"], 1)
    log = RunLog(tmp_path, trainer.plan, trainer.accelerator)
    log.begin(RunConfig())
    log({"kind": "end", "step": 1})
    written = (tmp_path / "metrics.jsonl").stat().st_size
    with file_size_limit(written + 10), pytest.raises(RunError, match=f"{tmp_path}/metrics.jsonl cannot be written .*--resume {tmp_path}"):
        log({"kind": "end", "step": 2})
    log.close()
    # The line that was cut short is left out, and written over when the run goes on.
    assert read_metrics(tmp_path) == [{"kind": "end", "step": 1}]
