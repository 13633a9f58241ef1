"""ChildPlay's reader against its true layout: its header, its clip names, the classes that say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import DataError
from distill.readers import open_data, open_splits
from distill.scenes import IN, OUT, SceneSet
from tests.fixtures import CHILDPLAY_HEADER, SIZE, write_childplay

CLIP = "1Aea8BH-PCs_1256-1258"


def _found(data: SceneSet) -> dict[str, int]:
    return {finding.name: finding.count for finding in data.findings}


def _one_clip(root: Path, *lines: str, clip: str = CLIP, header: str = CHILDPLAY_HEADER) -> Path:
    file = root / f"annotations/train/{clip}.csv"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join((header, *lines)) + "\n")
    return root


def test_published_line(tmp_path: Path) -> None:
    clip = "1Aea8BH-PCs_1256-1506"
    _one_clip(tmp_path, f"{clip},1,1,444,408,238,264,inside_visible,1238.849,425.843,1", clip=clip)
    data = open_data(tmp_path, "train")
    (scene,) = data.scenes
    assert data.reader == "childplay" and scene.key == f"{clip}/1Aea8BH-PCs_1256.jpg" and scene.group == "1Aea8BH-PCs"
    assert scene.picture == tmp_path / "images" / clip / "1Aea8BH-PCs_1256.jpg"
    (head,) = scene.heads
    assert (head.box, head.points, head.inout, head.person) == ((444, 408, 682, 672), ((1238.849, 425.843),), IN, "1")
    assert scene.normalised(1920, 1080).heads[0].box == pytest.approx((444 / 1920, 408 / 1080, 682 / 1920, 672 / 1080))


def test_frames_people_and_classes(tmp_path: Path) -> None:
    data = open_data(f"childplay:{write_childplay(tmp_path)}", "train")
    assert [scene.key for scene in data.scenes] == [
        *(f"{CLIP}/1Aea8BH-PCs_{number}.jpg" for number in (1256, 1257, 1258)),
        *(f"a_b-c_7-9-downsampled/a_b-c_{number}.jpg" for number in (7, 8, 9)),
    ]
    assert all(scene.picture.is_file() for scene in data.scenes)
    assert [[head.inout for head in scene.heads] for scene in data.scenes] == [[IN], [OUT], [IN]] * 2
    assert data.scenes[0].normalised(*SIZE).heads[0].points == ((40 / 64, 30 / 48),)
    assert _found(data) == {"no gaze target (eyes_closed)": 2, "in frame without a gaze point": 2}
    assert data.findings[0].example == f"{CLIP}.csv:4" and data.findings[0].action == "row dropped"


def test_the_splits_are_its_own(tmp_path: Path) -> None:
    write_childplay(tmp_path)
    assert {data.split: len(data) for data in open_splits(tmp_path)} == {"train": 6, "val": 3, "test": 3}
    assert len(open_data(tmp_path, "trainval")) == 9
    for file in (tmp_path / "annotations/test").iterdir():
        file.unlink()
    assert [data.split for data in open_splits(tmp_path)] == ["train", "val"]
    with pytest.raises(DataError, match=r"no annotations/test/\*.csv .*\(it has train, val\)"):
        open_data(tmp_path, "test")


def test_every_frame_without_a_label_leaves_nobody(tmp_path: Path) -> None:
    kinds = ("gaze_shift", "inside_occluded", "inside_uncertain", "eyes_closed")
    lines = [f"{CLIP},{frame},1,4,4,9,9,{kind},-1,-1,1" for frame, kind in enumerate(kinds, 1)]
    _one_clip(tmp_path, *lines)
    with pytest.raises(DataError, match=r"no scenes left after 1 × no gaze target \(gaze_shift\) \(1Aea"):
        open_data(tmp_path, "train")


def test_boxes_points_and_repetitions(tmp_path: Path) -> None:
    _one_clip(
        tmp_path,
        f"{CLIP},1,1,30,8,-20,16,inside_visible,-3,20,1",
        f"{CLIP},1,1,10,8,20,16,inside_visible,5,20,1",
        f"{CLIP},2,1,10,8,0,16,outside_frame,-1,-1,1",
        "",
        f"{CLIP},2,2,10,8,4,16,inside_visible,-1,20,1",
        f"{CLIP},3,2,10.5,8,4,16,outside_frame,-1,-1,0",
    )
    data = open_data(tmp_path, "train")
    assert [scene.heads[0].box for scene in data.scenes] == [(10, 8, 30, 24), (10.5, 8, 14.5, 24)]
    assert data.scenes[0].heads[0].points == ((0, 20),)
    assert _found(data) == {
        "reversed box": 1, "gaze point outside the picture": 1, "duplicate row": 1, "head box without area": 1, "in frame without a gaze point": 1,
    }
    with pytest.raises(DataError, match=r"1 × reversed box \(1Aea8BH-PCs_1256-1258.csv:2"):
        open_data(tmp_path, "train", strict=True)


GOOD = f"{CLIP},1,1,4,4,9,9,inside_visible,5,5,1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace("inside_visible", "looking"), r":3: gaze_class is 'looking', not one of inside_visible"),
        (GOOD.replace(",5,5,", ",5,nan,"), r":3: gaze_y is 'nan', not a finite number"),
        (GOOD.replace(",1,1,4", ",0,1,4"), r":3: frame is '0', not a number from 1"),
        (GOOD.replace(",1,1,4", ",1.5,1,4"), r":3: frame is '1.5'"),
        (GOOD.rsplit(",", 3)[0], r":3: 8 columns where 10 are expected: the line is cut short"),
        (GOOD.replace("1256", "1257"), r":3: clip is '1Aea8BH-PCs_1257-1258' in the file of '1Aea8BH-PCs_1256-1258'"),
    ],
)
def test_unreadable_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    _one_clip(tmp_path, GOOD, line)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, "train")


def test_numbers_whose_sum_is_not_finite_are_finite_themselves(tmp_path: Path) -> None:
    _one_clip(tmp_path, GOOD.replace(",4,4,9,9,", ",4,4,1e308,1e308,"))
    (scene,) = open_data(tmp_path, "train").scenes
    assert scene.normalised(8, 8).heads[0].box == (0.5, 0.5, 1.0, 1.0)


def test_a_header_and_a_name_that_are_not_its_own(tmp_path: Path) -> None:
    _one_clip(tmp_path / "a", GOOD, header=CHILDPLAY_HEADER.replace("bbox_width", "bbox_w"))
    with pytest.raises(DataError, match=r":1: no column bbox_width; the header must be clip,frame"):
        open_data(f"childplay:{tmp_path}/a", "train")
    _one_clip(tmp_path / "b", GOOD, clip="somewhere")
    with pytest.raises(DataError, match=r"somewhere.csv: a clip is named VIDEO_START-END.csv"):
        open_data(f"childplay:{tmp_path}/b", "train")


def test_columns_in_another_order(tmp_path: Path) -> None:
    names = ["is_child", *reversed(CHILDPLAY_HEADER.split(",")[:-1])]
    values = dict(zip(CHILDPLAY_HEADER.split(","), GOOD.split(","), strict=True))
    _one_clip(tmp_path, ",".join(values[name] for name in names), header=", ".join(names).upper())
    assert open_data(f"childplay:{tmp_path}", "train").scenes[0].heads[0].box == (4, 4, 13, 13)
