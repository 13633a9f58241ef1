"""Heads found: face boxes widened, boxes told apart, ONNX detectors read as declared, people followed and smoothed through a video."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.cli import main
from distill.detecting import CascadeDetector, Found, Widening, distinct, find_heads, open_detector, overlap
from distill.errors import ConfigurationError, HeadsError, MissingExtraError, PictureError
from distill.tracking import Tracker
from teachers.contract import GazeOutput
from tests.fixtures import write_folder, write_picture

FRAMES = Path(__file__).parents[2] / "shared" / "data" / "frames"


class Boxes:
    """Finds what it is told, call by call, the last of it for ever."""

    name = "told"

    def __init__(self, *calls: list[Found]) -> None:
        self.calls, self.count = calls, 0

    def __call__(self, picture: np.ndarray) -> list[Found]:
        self.count += 1
        return self.calls[min(self.count, len(self.calls)) - 1]


class Centre:
    """Looks at the head's own centre on a map of 6 x 8 cells; in/out logit 0."""

    input_size = (24, 32)

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        heatmap = torch.full((len(boxes), 6, 8), -40.0)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        heatmap[torch.arange(len(boxes)), (centres[:, 1] * 6).long(), (centres[:, 0] * 8).long()] = 40.0
        return GazeOutput(heatmap, torch.zeros(len(boxes)))


def test_a_face_is_widened_about_a_raised_middle() -> None:
    assert Widening(1.5, 0.1)((100, 200, 140, 240)) == pytest.approx((90, 186, 150, 246))


def test_heads_are_told_apart_and_kept_within_the_picture() -> None:
    found = [Found((50, 10, 90, 50), 0.5), Found((52, 10, 92, 50), 0.9), Found((-20, -5, 30, 40), 0.4), Found((200, 0, 240, 40), 1.0)]
    kept = distinct(found, 100, 60)
    assert [each.box for each in kept] == [(0, 0, 30, 40), (52, 10, 92, 50)]
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_boxes_found_are_predicted_like_any_others(tmp_path: Path) -> None:
    pictures = [write_picture(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    subjects = find_heads(pictures, Boxes([Found((0, 0, 16, 16), 1), Found((40, 20, 60, 44), 1)], []))
    assert [(row.image, row.person, row.box) for row in subjects.rows] == [
        (str(pictures[0]), "1", (0, 0, 16, 16)), (str(pictures[0]), "2", (40, 20, 60, 44)),
    ]
    assert subjects.without == (pictures[1],)
    with pytest.raises(HeadsError, match="told found no head in any of the 2 pictures given; give boxes"):
        find_heads(pictures, Boxes([]))
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"b\.jpg"):
        find_heads(pictures, Boxes([]))
    assert len(find_heads(pictures, Boxes([Found((0, 0, 9, 9), 1)]), skip_unreadable=True).unreadable) == 1


def test_an_absent_opencv_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"cv2 is needed .*gaze-distill\[detect\]"):
        open_detector()


# --- people followed ---------------------------------------------------------------------------------------------------------


def test_people_are_followed_by_overlap_and_smoothed_in_time() -> None:
    tracker = Tracker(0.5)
    a, b = Found((0, 0, 10, 10), 1), Found((50, 0, 60, 10), 1)
    assert [track.number for track in tracker.boxes([a, b], 0.0)] == [1, 2]
    # The second one moves a little, the first is not found, somebody else appears.
    tracks = tracker.boxes([Found((52, 0, 62, 10), 1), Found((80, 80, 90, 90), 1)], 0.25)
    assert [track.number for track in tracks] == [1, 2, 3]
    follow = 1 - math.exp(-0.25 / 0.5)
    assert tracks[1].box == pytest.approx((50 + 2 * follow, 0, 60 + 2 * follow, 10))
    assert tracks[0].box == (0, 0, 10, 10)
    assert [track.number for track in tracker.boxes([], 0.6)] == [2, 3]  # 0.6 s without the first
    tracker.answer(tracks[1], np.zeros((2, 2)), 0.2, 0.0)
    tracker.answer(tracks[1], np.ones((2, 2)), 0.6, 0.25)
    assert tracks[1].heatmap == pytest.approx(np.full((2, 2), follow))
    assert tracks[1].inout == pytest.approx(0.2 + 0.4 * follow)


def test_no_smoothing() -> None:
    tracker = Tracker(0.0)
    tracker.boxes([Found((0, 0, 10, 10), 1)], 0.0)
    assert tracker.boxes([Found((1, 0, 11, 10), 1)], 0.04)[0].box == (1, 0, 11, 10)


def write_video(path: Path, frames: int = 6, rate: float = 10.0) -> Path:
    cv2 = pytest.importorskip("cv2", reason="the extra 'detect' is absent")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (64, 48))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 30 * number % 256, np.uint8))
    writer.release()
    return path


def test_a_video_is_answered_frame_by_frame_and_written_as_mp4(tmp_path: Path) -> None:
    from distill.video import VideoFile, predict_video

    path = write_video(tmp_path / "clip.avi")
    detector = Boxes([Found((0, 0, 16, 16), 1)], [Found((0, 0, 16, 16), 1)], [Found((0, 0, 16, 16), 1), Found((41, 25, 57, 41), 1)])
    result = predict_video(Centre(), "centre", path, detector, tmp_path / "out", tau=0.0, every=2)
    assert (result.frames, result.people, result.lines, detector.count) == (6, 2, 8, 3)
    lines = [json.loads(line) for line in result.answers.read_text().splitlines()]
    assert [(line["frame"], line["seconds"], line["person"]) for line in lines] == [
        (0, 0.0, "1"), (1, 0.1, "1"), (2, 0.2, "1"), (3, 0.3, "1"), (4, 0.4, "1"), (4, 0.4, "2"), (5, 0.5, "1"), (5, 0.5, "2"),
    ]
    assert lines[-1]["point"] == [48, 32]
    assert lines[-1]["box"] == [41, 25, 57, 41]
    assert lines[-1]["inout"] == 0.5
    assert result.overlay == tmp_path / "out" / "clip_gaze.mp4"
    written = VideoFile(result.overlay)
    shown = list(written)
    written.close()
    assert (len(shown), written.rate, shown[0].shape) == (6, 10.0, (48, 64, 3))
    assert np.ptp(shown[0].astype(int), axis=(0, 1)).max() > 60  # frame 0 was black: what is drawn stands out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["clip_gaze.jsonl", "clip_gaze.mp4"]


def test_videos_that_cannot_be_read_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distill.video import predict_video

    pytest.importorskip("cv2", reason="the extra 'detect' is absent")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(PictureError, match=r"video .*broken\.mp4 cannot be decoded; convert it"):
        predict_video(Centre(), "x", tmp_path / "broken.mp4", Boxes([]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["predict", "demo", str(tmp_path / "broken.mp4"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("distill: error: video ")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigurationError, match="below is a file or lies below one, and a folder is to be written; choose another --out"):
        predict_video(Centre(), "x", write_video(tmp_path / "clip.avi"), Boxes([]), tmp_path / "taken" / "below")


def test_a_video_that_was_cut_off_is_answered_up_to_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distill.commands.predict_video import show_videos
    from distill.video import predict_video

    whole = write_video(tmp_path / "whole.avi", 40)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = predict_video(Centre(), "x", cut, Boxes([Found((0, 0, 16, 16), 1)]), tmp_path / "out", overlays=False)
    assert 0 < result.frames < 40
    assert result.missing == 40 - result.frames
    assert len(result.answers.read_text().splitlines()) == result.frames
    show_videos([result])
    printed = capsys.readouterr()
    assert f"claims {40 - result.frames} frames more, which cannot be decoded" in printed.err
    assert f"{result.frames} frames, 1 person, {result.frames} answers" in printed.out


def test_nobody_in_a_video(tmp_path: Path) -> None:
    from distill.video import predict_video

    result = predict_video(Centre(), "x", write_video(tmp_path / "clip.avi", 2), Boxes([]), tmp_path / "out", overlays=False)
    assert (result.people, result.answers.read_text(), result.overlay) == (0, "", None)


# --- detectors ---------------------------------------------------------------------------------------------------------------


def write_detector(path: Path, rows: list[list[float]], **adapter: object) -> Path:
    """A graph whose answer is ``rows`` whatever it sees, of input 1 x 3 x 40 x 80, with its adapter beside it."""
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is absent")
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.from_array(np.array([rows], np.float32), "rows")
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0), helper.make_node("Sub", ["mean", "mean"], ["zero"]),
        helper.make_node("Add", ["rows", "zero"], ["found"]),
    ]
    graph = helper.make_graph(
        nodes, "detector", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 40, 80])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, None)], [values],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    lines = [f"{key} = {json.dumps(value)}" for key, value in adapter.items()]
    path.with_suffix(".toml").write_text("\n".join(lines))
    return path


def test_a_detector_is_read_as_its_adapter_says(tmp_path: Path) -> None:
    picture = np.zeros((80, 120, 3), np.uint8)  # into 40 x 80 pixels
    rows = [[10, 5, 30, 25, 0.9], [60, 30, 70, 40, 0.2], [math.nan, 0, 1, 1, 0.9]]
    squashed = open_detector(str(write_detector(tmp_path / "a.onnx", rows, finds="head")))
    assert [(each.box, round(each.score, 3)) for each in squashed(picture)] == [((15, 10, 45, 50), 0.9)]
    # Kept in proportion, 60 x 40 pixels of the 80 x 40 are the picture, 10 on either side are not.
    centred = open_detector(str(write_detector(tmp_path / "b.onnx", [[30, 20, 20, 20, 9.0]], finds="head", fit="centre", form="cxcywh", logits=True)))
    assert [each.box for each in centred(picture)] == [pytest.approx((20, 20, 60, 60))]
    units = open_detector(str(write_detector(tmp_path / "c.onnx", np.array([[0.25, 0.25, 0.5, 0.5, 1.0]]).T.tolist(), unit="unit", transposed=True, factor=2.0, raised=0.0)))
    assert [each.box for each in units(picture)] == [pytest.approx((15, 10, 75, 50))]


def test_detectors_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist; give `opencv`"):
        open_detector(str(tmp_path / "none.onnx"))
    path = write_detector(tmp_path / "a.onnx", [[1, 2, 3]])
    with pytest.raises(ConfigurationError, match=r"gave \(1, 3\) boxes .*correct columns"):
        open_detector(str(path))(np.zeros((8, 8, 3), np.uint8))
    for line, said in (("form = 'corners'", "one of xyxy"), ("treshold = 1", "'treshold' is unknown"), ("boxes = 'b'", "has no output 'b', it has found"), ("size 3", "no TOML")):
        path.with_suffix(".toml").write_text(line)
        with pytest.raises(ConfigurationError, match=said):
            open_detector(str(path))
    path.with_suffix(".toml").unlink()
    with pytest.raises(ConfigurationError, match=r"no adapter .*a\.toml.*yolo"):
        open_detector(str(path))


def test_command_finds_heads_where_no_file_says_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = write_detector(tmp_path / "a.onnx", [[10, 5, 30, 25, 0.9]], finds="head")
    folder = write_folder(tmp_path / "photos", 2)
    out = tmp_path / "out"
    words = ["predict", "demo", str(folder), "--device", "cpu", "--out", str(out), "--json"]
    assert main([*words, "--detector", str(detector)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["heads"], facts["people"], facts["pictures"]) == ("a.onnx", 2, 2)
    assert json.loads((out / "answers.jsonl").read_text().splitlines()[0])["box"] == [8, 6, 24, 30]  # of 64 x 48 pixels
    assert main([*words, "--detector", str(detector), "--heads", str(folder / "heads.csv")]) == 2
    assert "leave one of the two out" in capsys.readouterr().err
    (folder / "talk.MP4").write_bytes(b"")
    assert main(words) == 0  # the heads file beside the pictures comes first
    said = capsys.readouterr()
    assert json.loads(said.out)["heads"] == str(folder / "heads.csv")
    assert f"warning: videos in the folders given are not looked at: 1 (first: {folder / 'talk.MP4'})" in said.err


def test_the_cascades_take_any_picture() -> None:
    pytest.importorskip("cv2", reason="the extra 'detect' is absent")
    detector = CascadeDetector()
    for size in ((1, 1), (30, 500), (200, 200)):
        assert detector(np.zeros((*size, 3), np.uint8)) == []


def test_the_cascades_find_a_face() -> None:
    pytest.importorskip("cv2", reason="the extra 'detect' is absent")
    data = pytest.importorskip("skimage.data", reason="scikit-image is absent")
    found = CascadeDetector()(data.astronaut())
    # Her head, hair included, is at about (165, 20)-(290, 210) of 512 x 512 pixels.
    assert max(overlap(each.box, (165, 20, 290, 210)) for each in found) > 0.5


@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"{FRAMES} is not here")
def test_the_cascades_find_heads_in_a_real_frame() -> None:
    pytest.importorskip("cv2", reason="the extra 'detect' is absent")
    found = CascadeDetector()(np.asarray(Image.open(FRAMES / "00002655.jpg")))
    assert len(found) == 2
    for annotated in ((559, 100, 751, 304), (1127, 38, 1374, 305)):
        assert max(overlap(each.box, annotated) for each in found) > 0.5


@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"{FRAMES} is not here")
def test_the_cascades_find_no_heads_in_windows_and_arms() -> None:
    pytest.importorskip("cv2", reason="the extra 'detect' is absent")
    found = CascadeDetector()(np.asarray(Image.open(FRAMES / "00002615.jpg")))
    assert all(max(overlap(each.box, head) for head in ((583, 63, 782, 267), (1058, 45, 1312, 311))) > 0.5 for each in found)
    assert found
