"""The data check: counts, findings of annotations and pictures, baselines against brute force, the commands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from distill.commands import data as command
from distill.contact_sheet import WIDTH, contact_sheet
from distill.datacheck import DataReport, check_data, write_record
from distill.datastats import data_stats
from distill.errors import ConfigurationError, DataError, PictureError
from distill.pictures import load_picture
from distill.readers import open_data, open_splits
from tests.fixtures import (
    train_row,
    write_coco,
    write_folder,
    write_gazefollow,
    write_gazefollow_json,
    write_picture,
    write_vat,
)

TRAIN, TEST = "train_annotations_release.txt", "test_annotations_release.txt"


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, where a check leaves its contact sheet unless told otherwise."""
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)
    return folder


def _found(report: DataReport) -> dict[str, int]:
    return {finding.name: finding.count for finding in report.findings}


def _data(argument: str, *more: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    options = parser.parse_args(["data", argument, *more])
    return int(options.run(options))


def test_counts_of_every_split(tmp_path: Path) -> None:
    report = check_data(open_splits(write_gazefollow(tmp_path, 30)), baselines=False)
    train, val, test = report.splits
    assert (train.split, val.split, test.split) == ("train", "val", "test")
    assert train.scenes + val.scenes == 30 and train.pictures == train.scenes
    assert train.heads + val.heads == 50 and train.outside + val.outside == 10
    assert (test.scenes, test.heads, test.inside, test.outside, test.unknown) == (2, 3, 3, 0, 0)
    assert (test.annotations, test.annotators, test.pictures) == (8, 3, 2)
    assert report.findings == () and report.baselines is None
    assert train.digest == open_data(tmp_path, "train").digest()


def test_findings_of_one_file_are_counted_once(tmp_path: Path) -> None:
    report = check_data(open_splits(write_gazefollow(tmp_path, 10, traps=True)), baselines=False)
    assert _found(report) == {
        "marked invalid (inout -1)": 1,
        "reversed box": 1,
        "duplicate row": 1,
        "in frame without a gaze point": 1,
        "head box without area": 1,
        "head box over the picture's edge": 1,
    }


def test_findings_of_two_files_are_added(tmp_path: Path) -> None:
    report = check_data(open_splits(write_vat(tmp_path)), baselines=False)
    # One in each of three training shows, one in the test show.
    assert _found(report) == {"lone negative gaze coordinate": 4}
    assert report.findings[0].example == "Show One/130_142/s00.txt:3: -1, 20"


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    data = open_data(write_gazefollow(tmp_path, 6), "trainval")
    pictures = [scene.picture for scene in data.scenes]
    pictures[0].unlink()
    whole = pictures[1].read_bytes()
    pictures[1].write_bytes(whole[: len(whole) // 2])
    pictures[2].write_bytes(b"no picture")
    report = check_data([data])
    assert _found(report) == {"picture missing": 1, "picture corrupt": 2}
    assert {f.example for f in report.findings} == {str(pictures[0]), str(pictures[1])}
    assert report.splits[0].pictures == 3
    # Broken pictures take no part in the rows without a model, nor are they opened when pictures are left alone.
    assert report.baselines is not None and report.baselines.heads == 4 and report.baselines.of == 8
    assert check_data([data], pictures=False, baselines=False).findings == ()


def test_a_picture_whose_name_no_file_can_have(tmp_path: Path) -> None:
    row = train_row("a\0.jpg", 0, (0, 0, 9, 9), (0.5, 0.5), 1)
    (tmp_path / TRAIN).write_text(row)
    data = open_data(tmp_path, "trainval")
    assert _found(check_data([data])) == {"picture unreadable": 1}
    with pytest.raises(PictureError, match=r"cannot be read .*null byte"):
        load_picture(data.scenes[0].picture)


def test_boxes_against_the_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    rows = [
        train_row("a.jpg", 0, (-0.9, 0, 64.9, 48.0), (0.5, 0.5), 1),  # less than a pixel over
        train_row("a.jpg", 1, (-2, 5, 20, 20), (0.5, 0.5), 1),
        train_row("a.jpg", 2, (64, 5, 90, 20), (0.5, 0.5), 1),  # nothing of it inside
    ]
    (tmp_path / TRAIN).write_text("\n".join(rows))
    report = check_data([open_data(tmp_path, "trainval")], baselines=False)
    assert _found(report) == {"head box over the picture's edge": 1, "head wholly outside the picture": 1}
    assert report.findings[0].example == "a.jpg: person 1, box -2, 5, 20, 20 in 64 x 48"


def test_points_in_pixels_against_the_picture(tmp_path: Path) -> None:
    data = open_data(write_vat(tmp_path), "test")
    file = data.files[0]
    file.write_text(file.read_text().replace("40,30", "70,30"))
    report = check_data([open_data(tmp_path, "test")], baselines=False)
    assert _found(report)["gaze point outside the picture"] == 11


def test_stated_size_that_is_not_the_files(tmp_path: Path) -> None:
    write_gazefollow_json(tmp_path)
    Image.new("RGB", (20, 10)).save(tmp_path / "train/00000000/00000002.jpg")
    report = check_data([open_data(tmp_path, "trainval")], baselines=False)
    assert _found(report) == {"picture of another size than stated": 1}
    assert report.findings[0].example == "train/00000000/00000002.jpg: 64 x 48, is 20 x 10"


def test_a_picture_in_training_and_test_is_found(tmp_path: Path) -> None:
    write_gazefollow(tmp_path, 8)
    train, test = tmp_path / "train/00000001/00000005.jpg", tmp_path / "test2/00000001/00000001.jpg"
    test.write_bytes(train.read_bytes())
    report = check_data(open_splits(tmp_path), baselines=False)
    assert _found(report) == {"same picture in two splits": 1}
    assert "train/00000001/00000005.jpg = test test2/00000001/00000001.jpg" in report.findings[0].example


def test_a_show_in_training_and_test_is_found(tmp_path: Path) -> None:
    report = check_data(open_splits(write_vat(tmp_path, test="Show_Two")), baselines=False)
    assert _found(report)["show or video in several splits"] == 1


def test_photographs_are_seen_upright(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "grey").save(tmp_path / "photo 0.jpg", exif=exif)
    # Upright it is 48 wide, and the second head (42..58) is over its edge.
    data = open_data(tmp_path)
    assert _found(check_data([data])) == {"head box over the picture's edge": 1}
    assert data_stats(data).sizes == {"48 x 64": 1}


# Splits that are there


def test_open_splits_hides_no_unreadable_file(tmp_path: Path) -> None:
    write_gazefollow(tmp_path, 4)
    with (tmp_path / TRAIN).open("a") as stream:
        stream.write("train/a.jpg,1,2\n")
    with pytest.raises(DataError, match=f"{TRAIN}:8: 3 columns"):
        open_splits(tmp_path)
    (tmp_path / TRAIN).unlink()
    assert [data.split for data in open_splits(tmp_path)] == ["test"]
    write_gazefollow(tmp_path, 1)
    assert [(data.split, len(data)) for data in open_splits(tmp_path)] == [("train", 1), ("val", 0), ("test", 2)]
    report = check_data(open_splits(tmp_path))
    assert report.baselines is not None and report.baselines.split == "test"
    assert report.splits[1].heads == 0
    (tmp_path / TEST).write_text("x\n")
    with pytest.raises(DataError, match=f"{TEST}:1: 1 columns"):
        open_splits(tmp_path)


def test_one_data_set_at_a_time(tmp_path: Path) -> None:
    sets = [open_data(write_gazefollow(tmp_path / name, 3), "trainval") for name in ("a", "b")]
    with pytest.raises(DataError, match="one data set"):
        check_data(sets)
    with pytest.raises(DataError, match="one data set"):
        check_data([])


# Contact sheet and distributions


def test_contact_sheet_shows_the_scenes(tmp_path: Path) -> None:
    data = open_data(write_gazefollow(tmp_path, 9), "trainval")
    data.scenes[0].picture.unlink()
    sheet = contact_sheet(data, 6, 0, columns=3)
    assert sheet.width > 3 * WIDTH and sheet.height > 2 * WIDTH * 48 // 64
    assert contact_sheet(data, 6, 0, columns=3).tobytes() == sheet.tobytes()
    assert contact_sheet(data, 6, 1, columns=3).tobytes() != sheet.tobytes()
    for scene in data.scenes[1:]:
        scene.picture.unlink()
    with pytest.raises(DataError, match="no picture of split 'trainval'"):
        contact_sheet(data)


def test_stats_by_hand(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / name)
    rows = [
        train_row("a.jpg", 0, (16, 12, 32, 24), (0.875, 0.375), 1),  # centre (0.375, 0.375), to the right by 0.5
        train_row("a.jpg", 1, (16, 24, 32, 48), (0.375, 0.25), 1),  # centre (0.375, 0.75), up by 0.5
        train_row("b.jpg", 2, (0, 0, 16, 12), (-1.0, -1.0), 0),
        train_row("gone.jpg", 3, (0, 0, 16, 12), (0.5, 0.5), 1),
    ]
    (tmp_path / TRAIN).write_text("\n".join(rows))
    stats = data_stats(open_data(tmp_path, "trainval"))
    assert (stats.scenes, stats.of, stats.unreadable) == (2, 3, 1)
    assert stats.heads_per_scene == {1: 1, 2: 1} and stats.inout == {"in": 2, "out": 1, "unknown": 0}
    assert stats.gaze_distance is not None and stats.gaze_distance.mean == pytest.approx(0.5)
    assert stats.head_height is not None and stats.head_height.mean == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    assert stats.directions == {"right": 1, "down": 0, "left": 0, "up": 1}
    assert stats.annotator_spread is None and stats.sizes == {"64 x 48": 2}


def test_stats_without_a_picture(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_text(train_row("gone.jpg", 3, (0, 0, 16, 12), (0.5, 0.5), 1))
    with pytest.raises(DataError, match=r"none of 1 pictures .*/gone.jpg"):
        data_stats(open_data(tmp_path, "trainval"))


# Commands


def test_check_command_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gazefollow(tmp_path / "d", 12, traps=True)
    out, sheet = tmp_path / "new/check.json", tmp_path / "new/sheet.png"
    assert _data("check", str(tmp_path / "d"), "--json", "--out", str(out), "--sheet", str(sheet)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [split["split"] for split in facts["splits"]] == ["train", "val", "test"]
    assert facts["findings"][1]["name"] == "reversed box"
    record = json.loads(out.read_text())
    assert record["kind"] == "data check" and record["splits"] == facts["splits"]
    with Image.open(sheet) as picture:
        assert picture.width > WIDTH
    assert sorted(path.name for path in out.parent.iterdir()) == ["check.json", "sheet.png"]


def test_check_command_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _data("check", str(write_gazefollow(tmp_path, 12, traps=True))) == 0
    shown = capsys.readouterr().out
    for word in ("head-position prior", "reversed box", f"{TRAIN}:", "marked invalid", "val", "corners put right"):
        assert word in shown


def test_strict_is_an_error_after_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gazefollow(tmp_path, 8, traps=True)
    with pytest.raises(DataError, match="is not clean: 1 × marked invalid"):
        _data("check", str(tmp_path), "--strict", "--json", "--no-baselines")
    assert json.loads(capsys.readouterr().out)["findings"]
    assert _data("check", str(tmp_path), "--split", "test", "--strict") == 0


def test_every_check_leaves_a_contact_sheet(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_gazefollow(tmp_path / "my data", 6)
    assert _data("check", str(data), "--no-baselines", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sheet"] == "runs/data-check/my data.jpg"
    with Image.open(here / "runs/data-check/my data.jpg") as picture:
        assert picture.format == "JPEG" and picture.width > WIDTH
    (here / "runs/data-check/my data.jpg").unlink()
    for words in (("--no-sheet",), ("--no-pictures",)):
        assert _data("check", str(data), "--no-baselines", *words, "--json") == 0
        assert "sheet" not in json.loads(capsys.readouterr().out) and not [*here.rglob("*.jpg")]
    with pytest.raises(ConfigurationError, match="contradict"):
        _data("check", str(data), "--no-sheet", "--sheet", "a.png")


@pytest.mark.parametrize("stands_in_the_way", ["no picture opens", "a file where the folder should be"])
def test_the_report_does_not_wait_for_the_sheet(stands_in_the_way: str, tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing sheet is a warning; one that was asked for an error, but behind the report."""
    data = write_gazefollow(tmp_path / "d", 3)
    if stands_in_the_way == "no picture opens":
        for picture in data.rglob("*.jpg"):
            picture.write_bytes(b"")
    for name in ("runs", "asked"):
        if stands_in_the_way != "no picture opens":
            (here / name).write_text("")
    assert _data("check", str(data)) == 0
    said = capsys.readouterr()
    assert "warning: no contact sheet: " in said.err and ("picture corrupt" in said.out) == (stands_in_the_way == "no picture opens")
    assert ("as no picture opens" in " ".join(said.out.split())) == (stands_in_the_way == "no picture opens")
    with pytest.raises((DataError, OSError)):
        _data("check", str(data), "--sheet", "asked/sheet.png", "--json")
    assert "sheet" not in json.loads(capsys.readouterr().out)


def test_a_turned_picture_is_not_on_the_sheet_and_the_others_are(tmp_path: Path) -> None:
    write_coco(tmp_path)
    turned = next(iter(open_data(tmp_path).scenes)).picture
    with Image.open(turned) as picture:
        upright = picture.copy()
    upright.transpose(Image.Transpose.ROTATE_90).save(turned)
    report = check_data([open_data(tmp_path)])
    assert _found(report)["picture turned against its annotations"] == 1
    assert contact_sheet(open_data(tmp_path), 6, 0).width < 1.5 * WIDTH


def test_check_refuses_a_sheet_of_no_format_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sheet.txt is to end in .png or .jpg"):
        _data("check", str(tmp_path / "nowhere"), "--sheet", str(tmp_path / "sheet.txt"))


def test_stats_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gazefollow(tmp_path, 8)
    assert _data("stats", str(tmp_path), "--split", "test", "--json") == 0
    assert json.loads(capsys.readouterr().out)["inout"] == {"in": 3, "out": 0, "unknown": 0}
    assert _data("stats", str(tmp_path)) == 0
    assert "gaze distance" in capsys.readouterr().out


def test_synth_command_writes_what_check_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--width", "160", "--height", "120")
    assert _data("synth", str(tmp_path / "s"), "--scenes", "6", "--processes", "1", *size, "--json") == 0
    assert json.loads(capsys.readouterr().out)["train_scenes"] == 6
    report = check_data(open_splits(tmp_path / "s"))
    assert sum(split.scenes for split in report.splits) == 6 and report.findings == ()


def test_record_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check_data(open_splits(write_folder(tmp_path / "f")))
    out = tmp_path / "check.json"
    out.write_text("earlier")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_record(report, "folder:f", out)
    assert out.read_text() == "earlier" and [path.name for path in tmp_path.glob(".*")] == []
