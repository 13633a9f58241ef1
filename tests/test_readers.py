"""Readers against fixtures of a few lines in the true layouts, with their traps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distill.errors import DataError
from distill.readers import open_data
from distill.readers.json_file import read_json
from distill.scenes import IN, OUT, SceneSet
from tests.fixtures import (
    SIZE,
    annotator_row,
    train_row,
    write_gazefollow,
    write_gazefollow_json,
    write_vat,
)

TRAIN, TEST = "train_annotations_release.txt", "test_annotations_release.txt"


def _found(data: SceneSet) -> dict[str, int]:
    return {finding.name: finding.count for finding in data.findings}


# GazeFollow, as published


def test_published_line_of_the_release(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_text(
        "train/00000093/00093103.jpg,92544,0.03,0.06,0.82,0.7,0.22859,0.28727,0.39034,0.52182,"
        "0.0,82.0,162.0,245.0,1,places_top,False\n"
    )
    (scene,) = open_data(f"gazefollow:{tmp_path}", "trainval").scenes
    assert scene.key == "train/00000093/00093103.jpg"
    assert scene.picture == tmp_path / scene.key
    assert (scene.box_pixels, scene.point_pixels, scene.group, scene.size) == (True, False, "", None)
    (head,) = scene.heads
    assert head.box == (0.0, 82.0, 162.0, 245.0)
    assert head.points == ((0.39034, 0.52182),)
    assert head.inout == IN
    seen = scene.normalised(640, 480).heads[0]
    assert seen.box == pytest.approx((0.0, 82 / 480, 162 / 640, 245 / 480))
    assert seen.points == ((0.39034, 0.52182),)


def test_training_rows_are_grouped_by_path(tmp_path: Path) -> None:
    data = open_data(write_gazefollow(tmp_path, 10), "trainval")
    assert [len(scene.heads) for scene in data.scenes] == [2, 2, 1, 2, 2, 1, 2, 2, 1, 2]
    out = [head for scene in data.scenes for head in scene.heads if head.inout == OUT]
    assert len(out) == 4 and all(head.points == () for head in out)
    assert [head.person for head in data.scenes[0].heads] == ["0", "1"]
    assert data.findings == () and data.reader == "gazefollow" and data.files == (tmp_path / TRAIN,)


def test_test_rows_keep_every_annotator(tmp_path: Path) -> None:
    data = open_data(write_gazefollow(tmp_path), "test")
    first, second = data.scenes
    assert [len(head.points) for head in first.heads] == [3, 3]
    assert [len(head.points) for head in second.heads] == [2]
    assert first.heads[0].box == (4.0, 6.0, 18.0, 22.0)
    assert first.heads[0].points == ((0.5, 0.75), (0.51, 0.73), (0.52, 0.71))
    assert first.heads[1].points == ((0.3, 0.6), (0.31, 0.58), (0.32, 0.56))
    assert all(head.inout == IN for scene in data.scenes for head in scene.heads)


def test_test_heads_of_one_eye_column_but_other_boxes_stay_apart(tmp_path: Path) -> None:
    rows = [
        annotator_row("test2/a.jpg", 0, (10, 2, 20, 12), (0.5, 0.5)),
        annotator_row("test2/a.jpg", 1, (10, 30, 20, 40), (0.9, 0.9)),
        annotator_row("test2/a.jpg", 2, (10, 2, 20, 12), (0.6, 0.5)),
    ]
    (tmp_path / TEST).write_text("\n".join(rows))
    data = open_data(f"gazefollow:{tmp_path}", "test")
    assert [head.points for head in data.scenes[0].heads] == [((0.5, 0.5), (0.6, 0.5)), ((0.9, 0.9),)]
    assert _found(data) == {"one eye, several boxes": 1}


def test_train_and_val_are_the_training_file_without_overlap(tmp_path: Path) -> None:
    write_gazefollow(tmp_path, 60)
    parts = {split: [s.key for s in open_data(tmp_path, split).scenes] for split in ("train", "val", "trainval")}
    assert sorted(parts["train"] + parts["val"]) == parts["trainval"]
    assert 0 < len(parts["val"]) < 20
    assert not any(key.startswith("test2") for key in parts["trainval"])


def test_every_trap_is_counted_with_an_example(tmp_path: Path) -> None:
    data = open_data(write_gazefollow(tmp_path, 10, traps=True), "trainval")
    assert _found(data) == {
        "marked invalid (inout -1)": 1,
        "reversed box": 1,
        "duplicate row": 1,
        "in frame without a gaze point": 1,
        "head box without area": 1,
    }
    examples = {finding.name: finding.example for finding in data.findings}
    assert examples["reversed box"] == f"{TRAIN}:19: 30, 40, 10, 20"
    # The byte order mark is no part of the first path.
    assert data.scenes[0].key == "train/00000000/00000000.jpg" and len(data.scenes[0].heads) == 2
    strays = data.scenes[-1]
    assert strays.heads[0].box == (10.0, 20.0, 30.0, 40.0)
    assert strays.normalised(*SIZE).heads[1].box == (50 / 64, 30 / 48, 1.0, 46 / 48)


def test_strict_turns_findings_into_an_error(tmp_path: Path) -> None:
    write_gazefollow(tmp_path, 10, traps=True)
    with pytest.raises(DataError, match=r"1 × reversed box \(train_annotations_release.txt:19"):
        open_data(tmp_path, "trainval", strict=True)
    assert len(open_data(tmp_path, "test", strict=True)) == 2


def test_a_gaze_point_over_the_edge_moves_to_it(tmp_path: Path) -> None:
    rows = [
        train_row("a.jpg", 0, (1, 1, 9, 9), (1.02, 0.5), 1),
        train_row("a.jpg", 1, (11, 1, 19, 9), (-0.004, 0.5), 1),
        train_row("a.jpg", 2, (21, 1, 29, 9), (-1.0, 0.5), 1),
        train_row("a.jpg", 3, (31, 1, 39, 9), (-0.2, -0.1), 1),
    ]
    (tmp_path / TRAIN).write_text("\n".join(rows))
    data = open_data(f"gazefollow:{tmp_path}", "trainval")
    assert [head.points for head in data.scenes[0].heads] == [((1.0, 0.5),), ((0.0, 0.5),)]
    assert _found(data) == {"gaze point outside the picture": 2, "in frame without a gaze point": 2}


GOOD = train_row("train/0/1.jpg", 7, (1, 2, 30, 40), (0.5, 0.5), 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD.rsplit(",", 3)[0], r":2: 14 columns where 17 are expected: the line is cut short"),
        (annotator_row("a.jpg", 1, (1, 2, 30, 40), (0.5, 0.5)), r":2: 16 columns .* in/out column is missing"),
        (GOOD.replace(",30,", ",thirty,"), r":2: head_xmax is 'thirty', not a finite number"),
        (GOOD.replace(",30,", ",nan,"), r":2: head_xmax is 'nan'"),
        (GOOD.replace(",0.5,0.5,", ",0.5,inf,"), r":2: gaze_y is 'inf'"),
        (GOOD.replace(",1,fixture", ",yes,fixture"), r":2: inout is 'yes', not 1 \(in\)"),
        (GOOD.replace(",1,fixture", ",2,fixture"), r":2: inout is '2'"),
    ],
)
def test_unreadable_lines_are_named(tmp_path: Path, bad: str, message: str) -> None:
    (tmp_path / TRAIN).write_text(f"{GOOD}\n{bad}\n")
    with pytest.raises(DataError, match=message) as caught:
        open_data(f"gazefollow:{tmp_path}", "trainval")
    assert str(tmp_path / TRAIN) in str(caught.value) and "\n" not in str(caught.value)


def test_blank_lines_and_windows_paths_are_fine(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_bytes(b"\r\n" + GOOD.replace("train/0/1.jpg", "train\\0\\1.jpg").encode() + b"\r\n\r\n")
    assert [scene.key for scene in open_data(tmp_path, "trainval").scenes] == ["train/0/1.jpg"]


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_bytes(GOOD.encode() + b"\n\xff\xfe\x00binary")
    with pytest.raises(DataError, match="not comma separated text"):
        open_data(tmp_path, "trainval")


def test_missing_files_and_empty_splits(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_text(GOOD)
    with pytest.raises(DataError, match=f"no {TEST} .* another split can be read"):
        open_data(tmp_path, "test")
    with pytest.raises(DataError, match="needs two scenes"):
        open_data(tmp_path, "val")
    (tmp_path / TRAIN).write_text("")
    with pytest.raises(DataError, match="has no scenes"):
        open_data(tmp_path, "trainval")
    (tmp_path / TRAIN).rename(tmp_path / "train_annotations.txt")
    with pytest.raises(DataError, match=r"2015 release.*extended"):
        open_data(f"gazefollow:{tmp_path}")


# GazeFollow, preprocessed


def test_preprocessed_json(tmp_path: Path) -> None:
    data = open_data(write_gazefollow_json(tmp_path), "trainval")
    assert data.reader == "gazefollow" and data.files == (tmp_path / "train_preprocessed.json",)
    first, second, _ = data.scenes
    assert (first.size, first.box_pixels, first.point_pixels) == (SIZE, False, False)
    assert first.heads[0].box == (8 / 64, 6 / 48, 24 / 64, 24 / 48)
    assert [(head.inout, head.points) for head in second.heads] == [(OUT, ()), (IN, ((0.25, 0.5),))]
    (test,) = open_data(tmp_path, "test").scenes
    assert test.heads[0].points == ((0.5, 0.5), (0.5, 0.75))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda e: e[0].update(num_heads=3), "num_heads is not the number of heads"),
        (lambda e: e[0]["heads"][0].update(bbox=[8, 6, 24, 26]), "bbox and bbox_norm differ"),
        (lambda e: e[0]["heads"][0].update(bbox=[8, 6, 24]), "bbox and bbox_norm differ"),
        (lambda e: e[0]["heads"][0].update(bbox=[8, 6, 24, float("nan")]), "bbox and bbox_norm differ"),
        (lambda e: e[0]["heads"][0].update(gazex=[1.0]), "gazex and gazex_norm differ"),
        (lambda e: e[0]["heads"][0].update(gazey=[]), "gazey and gazey_norm differ"),
        (lambda e: e[0]["heads"][0].update(bbox=[8.4, 6.9, 24, 24]), ""),  # rounding
        (lambda e: e[0]["heads"][0].update(bbox=[8, 6, 24, 24], bbox_norm=[8 / 64, 6 / 48, 24 / 64, 0.5]), ""),
        (lambda e: [head.pop(name) for head in e[0]["heads"] for name in ("bbox", "gazex", "gazey")] and e[0].pop("num_heads"), ""),
    ],
)
def test_what_is_said_twice_must_agree(tmp_path: Path, change, name: str) -> None:  # type: ignore[no-untyped-def]
    file = write_gazefollow_json(tmp_path) / "train_preprocessed.json"
    plain = open_data(f"gazefollow:{tmp_path}", "trainval")
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))
    changed = open_data(f"gazefollow:{tmp_path}", "trainval")
    assert [scene.heads for scene in changed.scenes] == [scene.heads for scene in plain.scenes]
    new = [finding for finding in changed.findings if finding not in plain.findings]
    assert [(finding.name, finding.count) for finding in new] == ([(name, 1)] if name else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[1].pop("width"), r"entry 1: 'width' is missing"),
        (lambda e: e[2]["heads"][0].update(bbox_norm=[0.1, 0.2, 0.3]), r"entry 2: not enough values"),
        (lambda e: e[2]["heads"][0].update(bbox_norm=[0.1, 0.2, 0.3, 10**400]), r"entry 2: int too large"),
        (lambda e: e[0]["heads"][0].update(inout=3), r"entry 0: inout is 3"),
        (lambda e: e[0]["heads"][0].update(gazex_norm=[float("nan")]), r"entry 0: nan is not a finite number"),
        (lambda e: [entry["heads"][0].update(inout=[1]) for entry in e], r"entry 0: inout is \[1\], not 1"),
        (lambda e: e[0].update(height=0), r"entry 0: picture size 64 x 0"),
    ],
)
def test_bad_json_entries_are_named(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    file = write_gazefollow_json(tmp_path) / "train_preprocessed.json"
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=message):
        open_data(f"gazefollow:{tmp_path}", "trainval")


def test_json_cut_short_is_named(tmp_path: Path) -> None:
    file = write_gazefollow_json(tmp_path) / "train_preprocessed.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(DataError, match=r"train_preprocessed.json: not readable as JSON"):
        open_data(tmp_path, "trainval")


@pytest.mark.parametrize("text", ['{"a": [NaN, -Infinity, 1e400]}', "\ufeff[1]", '"\\ud800"', str(2**70), '{"b": "Straße", "b": -0.5}', "[]"])
def test_json_means_what_python_says(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    assert repr(read_json(file, "write it again")) == repr(json.loads(text.removeprefix("\ufeff")))


@pytest.mark.parametrize("content", [b"", b"[1,]", b"[1] x", b'["\xff"]', b"[" * 200_000, b"9" * 5_000, b'"\xc3'])
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a.json: not readable as JSON \(.+\); write it again"):
        read_json(file, "write it again")


# VideoAttentionTarget


def test_vat_joins_tracks_and_smooths_boxes(tmp_path: Path) -> None:
    data = open_data(f"vat:{write_vat(tmp_path)}", "test")
    assert len(data) == 13 and [len(scene.heads) for scene in data.scenes] == [1] * 3 + [2] * 10
    scene = data.scenes[0]
    assert scene.key == "Test_Show/130_142/00000001.jpg" and scene.group == "Test_Show"
    assert scene.picture == tmp_path / "images/Test Show/130_142/00000001.jpg" and scene.picture.is_file()
    lefts = np.array([4.0 + frame for frame in range(13)])
    for frame, seen in enumerate(data.scenes):
        window = [lefts[min(max(frame + step, 0), 12)] for step in range(-5, 6)]
        assert seen.heads[0].box == pytest.approx((np.mean(window), 6, np.mean(window) + 16, 24))
    assert [head.person for head in data.scenes[5].heads] == ["s00", "s01"]
    assert [scene.heads[0].inout for scene in data.scenes[:4]] == [IN, OUT, IN, IN]
    assert [scene.heads[0].points for scene in data.scenes[:3]] == [((40.0, 30.0),), (), ((0.0, 20.0),)]
    assert _found(data) == {"lone negative gaze coordinate": 1}
    assert data.findings[0].example == "Test Show/130_142/s00.txt:3: -1, 20"


def test_vat_shows_with_spaces_find_their_pictures(tmp_path: Path) -> None:
    write_vat(tmp_path)
    data = open_data(f"videoattentiontarget:{tmp_path}", "trainval")
    assert {scene.group for scene in data.scenes} == {"Show_One", "Show_Two", "Third_Show"}
    assert {scene.picture.parts[-3] for scene in data.scenes} == {"Show_One", "Show Two", "Third_Show"}
    assert all(scene.picture.is_file() for scene in data.scenes)


def test_vat_training_takes_every_sixth_frame_and_validation_every_one(tmp_path: Path) -> None:
    write_vat(tmp_path)
    whole, train, val = (open_data(tmp_path, split) for split in ("trainval", "train", "val"))
    assert [scene.key[-12:] for scene in whole.scenes] == ["00000001.jpg", "00000007.jpg", "00000013.jpg"] * 3
    assert len(train) == 6 and len(val) == 13
    assert not {scene.group for scene in train.scenes} & {scene.group for scene in val.scenes}


def test_vat_boxes_over_the_edge_are_clamped_with_the_size(tmp_path: Path) -> None:
    folder = tmp_path / "annotations/test/A Show/1_2"
    folder.mkdir(parents=True)
    (folder / "s00.txt").write_text("00000001.jpg,-10,-4,20,90,70,20\n")
    (scene,) = open_data(tmp_path, "test").scenes
    head = scene.normalised(*SIZE).heads[0]
    assert head.box == pytest.approx((0.0, 0.0, 20 / 64, 1.0)) and head.points == ((1.0, 20 / 48),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00000002.jpg,1,2,30,40,5", r"s00.txt:2: 6 columns where 7 are expected"),
        ("00000002.jpg,1,2,30,40,5,x", r"s00.txt:2: gazey is 'x', not a finite number"),
        ("00000002.jpg,1,nan,30,40,5,6", r"s00.txt:2: ymin is 'nan', not a finite number"),
    ],
)
def test_vat_unreadable_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    folder = tmp_path / "annotations/train/A/1_2"
    folder.mkdir(parents=True)
    (folder / "s00.txt").write_text(f"00000001.jpg,1,2,30,40,5,6\n{line}\n")
    with pytest.raises(DataError, match=message):
        open_data(f"vat:{tmp_path}", "trainval")


def test_vat_repeated_and_reversed_rows(tmp_path: Path) -> None:
    folder = tmp_path / "annotations/test/A/1_2"
    folder.mkdir(parents=True)
    (folder / "s00.txt").write_text("1.jpg,30,2,10,40,5,6\n1.jpg,30,2,10,40,5,6\n")
    data = open_data(f"vat:{tmp_path}", "test")
    assert data.scenes[0].heads[0].box == pytest.approx((10, 2, 30, 40))
    assert _found(data) == {"reversed box": 1, "duplicate row": 1}


def test_vat_a_box_without_area_is_said_even_where_smoothing_gives_it_one(tmp_path: Path) -> None:
    folder = tmp_path / "annotations/test/A/1_2"
    folder.mkdir(parents=True)
    (folder / "s00.txt").write_text("1.jpg,10,10,21,21,5,6\n2.jpg,0,0,0,0,5,6\n")
    data = open_data(f"vat:{tmp_path}", "test")
    assert [len(scene.heads) for scene in data.scenes] == [1, 1] and _found(data) == {"box without area in a track": 1}
    assert data.findings[0].example == "A/1_2/s00.txt:2: 2.jpg"
    with pytest.raises(DataError, match="1 × box without area in a track"):
        open_data(f"vat:{tmp_path}", "test", strict=True)


def test_reading_opens_no_picture(tmp_path: Path) -> None:
    write_gazefollow(tmp_path, 5)
    for picture in tmp_path.rglob("*.jpg"):
        picture.unlink()
    assert len(open_data(tmp_path, "trainval")) == 5


def test_digest_follows_the_annotations(tmp_path: Path) -> None:
    before = open_data(write_gazefollow(tmp_path, 5), "trainval").digest()
    assert open_data(tmp_path, "trainval").digest() == before
    file = tmp_path / TRAIN
    file.write_text(file.read_text().replace("0.55", "0.56"))
    assert open_data(tmp_path, "trainval").digest() != before


def test_preprocessed_heads_without_a_point_and_pictures_without_heads_are_named(tmp_path: Path) -> None:
    file = write_gazefollow_json(tmp_path) / "train_preprocessed.json"
    entries = json.loads(file.read_text())
    entries[0]["heads"][0] |= {name: [] for name in ("gazex", "gazey", "gazex_norm", "gazey_norm")}
    entries[2] |= {"heads": [], "num_heads": 0}
    file.write_text(json.dumps(entries))
    found = {finding.name: (finding.count, finding.action) for finding in open_data(tmp_path, "trainval").findings}
    assert found == {"in frame without a gaze point": (1, "head dropped"), "picture without heads": (1, "left out")}
