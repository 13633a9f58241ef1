"""Predictions on a user's own pictures: whose answer stands where, what is written when, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.cli import main
from distill.errors import ConfigurationError, HeadsError, MetricError, PictureError
from distill.pictures import load_picture
from distill.predicting import load_gaze, overlay_names, predict
from distill.scenes import Scene
from distill.subjects import Subjects, find_heads_file, gather, given_pictures
from students.errors import ExportError
from teachers.contract import GazeOutput
from teachers.errors import DeviceError, UnknownModelError
from teachers.model import GazeModel, ModelConfig
from teachers.weights import save_model
from tests.fixtures import write_folder, write_picture

FRAMES = Path(__file__).parents[2] / "shared" / "data" / "frames"
HEADER = "image,person,xmin,ymin,xmax,ymax"


class Centre:
    """Looks at the cell that holds the head's own centre, on a map of 6 rows and 8 columns; in/out logit 2, or none."""

    input_size, heatmap_size = (24, 32), (6, 8)

    def __init__(self, inout: float | None = 2.0) -> None:
        self.has_inout, self.inout = inout is not None, inout

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        heatmap = torch.full((len(boxes), 6, 8), -4.0)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        heatmap[torch.arange(len(boxes)), (centres[:, 1] * 6).long(), (centres[:, 0] * 8).long()] = 1.0
        return GazeOutput(heatmap, None if self.inout is None else torch.full((len(boxes),), self.inout))


def heads_file(folder: Path, *rows: str) -> Path:
    path = folder / "heads.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def answered(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "answers.jsonl").read_text().splitlines()]


def everything(folder: Path, file: Path, **options: bool) -> Subjects:
    pictures, root = given_pictures([folder])
    return gather(pictures, file, root=root, **options)


def named(findings: Sequence) -> dict[str, int]:
    return {finding.name: finding.count for finding in findings}


def test_answers_in_the_order_of_the_heads_file(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / name)  # 64 x 48 pixels
    # By turns, so that neither the order of pictures nor that of people within them would do.
    rows = ["b.jpg,Zoë,32,0,48,16", "a.jpg,,0,0,16,16", "b.jpg,second,0,32,16,48", "a.jpg,,40,26,56,42"]
    subjects = everything(tmp_path, heads_file(tmp_path, *rows))
    prediction = predict(Centre(), "centre", subjects, tmp_path / "out", heatmaps=True)
    lines = answered(tmp_path / "out")
    assert [(line["image"], line["person"]) for line in lines] == [
        ("b.jpg", "Zoë"), ("a.jpg", "0"), ("b.jpg", "second"), ("a.jpg", "1"),
    ]
    assert [line["box"] for line in lines] == [[32, 0, 48, 16], [0, 0, 16, 16], [0, 32, 16, 48], [40, 26, 56, 42]]
    # Centres (40, 8), (8, 8), (8, 40), (48, 34): cells of 8 x 8 pixels, their upper left corner as the metrics count.
    assert [line["point"] for line in lines] == [[40, 8], [8, 8], [8, 40], [48, 32]]
    assert [line["point_normalised"] for line in lines] == [[5 / 8, 1 / 6], [1 / 8, 1 / 6], [1 / 8, 5 / 6], [6 / 8, 4 / 6]]
    assert lines[0]["inout"] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert lines[0]["peak"] == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert {line["model"] for line in lines} == {"centre"}
    assert prediction.people == tuple(lines)
    with np.load(tmp_path / "out" / "heatmaps.npz") as held:
        assert held["heatmap"].shape == (4, 6, 8)
        assert held["heatmap"].dtype == held["inout"].dtype == np.float32
        assert held["heatmap"].reshape(4, -1).argmax(1).tolist() == [1 * 8 + 5, 1 * 8 + 1, 5 * 8 + 1, 4 * 8 + 6]
        assert held["heatmap"].max() == 1.0  # logits, not probabilities
        assert held["inout"].tolist() == [2.0] * 4
        assert held["image"].tolist() == ["b.jpg", "a.jpg", "b.jpg", "a.jpg"]
        assert held["person"].tolist() == ["Zoë", "0", "second", "1"]


def test_a_model_without_inout(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    predict(Centre(None), "centre", everything(folder, folder / "heads.csv"), tmp_path / "out", heatmaps=True)
    assert {line["inout"] for line in answered(tmp_path / "out")} == {None}
    with np.load(tmp_path / "out" / "heatmaps.npz") as held:
        assert sorted(held) == ["heatmap", "image", "person"]


def test_one_overlay_a_picture_with_everybody_in_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    prediction = predict(Centre(), "centre", everything(folder, folder / "heads.csv"), tmp_path / "out")
    assert [path.name for path in prediction.overlays] == ["photo 0_gaze.png", "photo 1_gaze.png", "photo 2_gaze.png"]
    for path in prediction.overlays:
        with Image.open(path) as drawn:
            assert drawn.size == (64, 48)
    assert prediction.heatmaps is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers.jsonl", *(p.name for p in prediction.overlays)]
    none = predict(Centre(), "centre", everything(folder, folder / "heads.csv"), tmp_path / "bare", overlays=False)
    assert none.overlays == ()
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["answers.jsonl"]


def test_a_photograph_held_sideways(tmp_path: Path) -> None:
    photo = write_picture(tmp_path / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as stored:
        stored.save(photo, exif=exif)  # 64 x 48 stored, 48 x 64 upright
    subjects = everything(tmp_path, heads_file(tmp_path, "a.jpg,1,0,56,12,64"))
    assert subjects.findings == ()
    predict(Centre(), "centre", subjects, tmp_path / "out")
    line = answered(tmp_path / "out")[0]
    assert line["box"] == [0, 56, 12, 64]
    assert line["point"] == pytest.approx([6, 5 / 6 * 64], abs=1e-3)
    with Image.open(tmp_path / "out" / "a_gaze.png") as drawn:
        assert drawn.size == (48, 64)


def test_grey_pictures_of_more_than_eight_bits(tmp_path: Path) -> None:
    """16 bits are the upper eight; 32 bits have no agreed range, and are not guessed at."""
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "deep.png", exif=True), np.repeat(grey[..., None], 3, axis=2))
    for values in (grey.astype(np.int32) * 257, grey.astype(np.float32) / 255):
        Image.fromarray(values).save(tmp_path / "deeper.tif")
        with pytest.raises(PictureError, match=r"deeper\.tif cannot be decoded \(its values have 32 bits"):
            load_picture(tmp_path / "deeper.tif")


def test_boxes_are_put_right_with_a_finding(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    subjects = everything(tmp_path, heads_file(tmp_path, "a.jpg,1,-8,4,20,60", "a.jpg,2,30,20,10,4", "a.jpg,3,0,0,64,48"))
    assert [head.box for head in subjects.scenes[0].heads] == [(0, 4, 20, 48), (10, 4, 30, 20), (0, 0, 64, 48)]
    assert named(subjects.findings) == {"reversed box": 1, "box over the edge": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,1,70,4,80,20", r"heads\.csv:3: the box 70, 4, 80, 20 lies outside a\.jpg, which is 64 x 48"),
        ("a.jpg,1,-20,4,0,20", r"heads\.csv:3: .* lies outside"),
        ("a.jpg,1,10,4,10,20", r"heads\.csv:3: the box 10, 4, 10, 20 has no area"),
        ("gone.jpg,1,0,0,10,10", r"heads\.csv:3: picture gone\.jpg is neither given nor on the disk"),
        ("a.jpg,1,0,0,10", r"heads\.csv:3: 5 columns"),
    ],
)
def test_a_heads_file_that_does_not_fit(tmp_path: Path, row: str, message: str) -> None:
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(HeadsError, match=message):
        everything(tmp_path, heads_file(tmp_path, "a.jpg,1,0,0,10,10", row))


def test_rows_and_pictures_without_a_partner_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_picture(tmp_path / name)
    file = heads_file(tmp_path, "a.jpg,1,0,0,10,10", "b.jpg,1,0,0,10,10", "b.jpg,2,0,0,12,10")
    subjects = gather([tmp_path / "a.jpg", tmp_path / "c.jpg"], file)
    assert subjects.ignored == 2
    assert subjects.without == (tmp_path / "c.jpg",)
    assert [row.image for row in subjects.rows] == ["a.jpg"]
    with pytest.raises(HeadsError, match="all of its 3 rows are for other pictures"):
        gather([tmp_path / "c.jpg"], file)
    with pytest.raises(HeadsError, match="no row that can be used"):
        gather([tmp_path / "c.jpg"], heads_file(tmp_path))


def test_unreadable_pictures_stop_or_are_left_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / name)
    data = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) // 2])
    file = heads_file(tmp_path, "b.jpg,1,0,0,10,10", "a.jpg,1,0,0,10,10")
    subjects = everything(tmp_path, file, skip_unreadable=True)
    assert [row.image for row in subjects.rows] == ["a.jpg"]
    assert subjects.places == ((0,),)
    assert len(subjects.unreadable) == 1
    assert "b.jpg" in subjects.unreadable[0]
    # The header alone is whole: found only when the picture is decoded, when one answer is there already.
    out = tmp_path / "out"
    out.mkdir()
    (out / "answers.jsonl").write_text("before")
    (out / "a_gaze.png").write_text("before")
    with pytest.raises(PictureError, match=r"b\.jpg"):
        predict(Centre(), "centre", everything(tmp_path, file), out, heatmaps=True)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"answers.jsonl": "before", "a_gaze.png": "before"}
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"b\.jpg cannot be opened"):
        everything(tmp_path, file)


def test_a_model_that_diverged_writes_nothing(tmp_path: Path) -> None:
    class Diverged(Centre):
        def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
            return GazeOutput(torch.full((len(boxes), 6, 8), torch.nan), None)

    folder = write_folder(tmp_path / "photos")
    with pytest.raises(MetricError, match=r"photo 0\.jpg: .*not finite"):
        predict(Diverged(), "x", everything(folder, folder / "heads.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MetricError, match="in/out"):
        predict(Centre(torch.nan), "x", everything(folder, folder / "heads.csv"), tmp_path / "out")


def test_another_call_takes_the_place_of_the_first(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    subjects = everything(folder, folder / "heads.csv")
    predict(Centre(), "first", subjects, tmp_path / "out", heatmaps=True)
    predict(Centre(), "second", subjects, tmp_path / "out", overlays=False)
    assert {line["model"] for line in answered(tmp_path / "out")} == {"second"}
    assert not (tmp_path / "out" / "heatmaps.npz").exists()  # they would not be the second one's


def test_pictures_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 2)
    write_picture(folder / "answers" / "photo 0_gaze.png")
    pictures, root = given_pictures([folder], folder / "answers")
    assert [path.name for path in pictures] == ["photo 0.jpg", "photo 1.jpg"]
    assert root == folder
    pictures, root = given_pictures([folder / "photo 0.jpg", folder], folder)
    assert [path.name for path in pictures] == ["photo 0.jpg", "photo 1.jpg", "photo 0_gaze.png"]
    assert root is None
    with pytest.raises(PictureError, match="does not exist"):
        given_pictures([tmp_path / "none.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match="no pictures in folder"):
        given_pictures([tmp_path / "empty"])


def test_heads_file_beside_the_pictures(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 2)
    assert find_heads_file(None, [folder]) == find_heads_file(None, [folder / "photo 0.jpg"]) == folder / "heads.csv"
    assert find_heads_file(tmp_path / "other.csv", [folder]) == tmp_path / "other.csv"
    with pytest.raises(ConfigurationError, match="--heads"):
        find_heads_file(None, [tmp_path])


def test_overlay_names_are_unique_and_spare_the_pictures(tmp_path: Path) -> None:
    def names(*pictures: str, out: str = "out") -> list[str]:
        return overlay_names([Scene(p, str(tmp_path / p), ()) for p in pictures], tmp_path / out)

    assert names("p/a.jpg", "p/b.jpg") == ["a_gaze.png", "b_gaze.png"]
    assert names("p/a.jpg", "q/a.jpg") == ["p/a_gaze.png", "q/a_gaze.png"]
    assert names("p/a.jpg", "p/a.png") == ["a_jpg_gaze.png", "a_png_gaze.png"]
    with pytest.raises(ConfigurationError, match="another --out"):
        names("p/a.jpg", "p/a_gaze.png", out="p")


# --- models ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a student of random weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="tf_efficientnet_lite0", input_size=(32, 32), levels=(1,), stride=4, dim=16, layers=1, attention_heads=2,
        heatmap_size=(16, 16),
    )
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    save_model(directory / "student", GazeModel(config), "tiny_student", {})
    (directory / "config.json").write_text("{}")
    return directory


def test_models_by_run_and_by_directory(run: Path) -> None:
    model, name = load_gaze(str(run), "cpu")
    assert (name, model.input_size) == ("tiny", (32, 32))
    assert load_gaze(str(run / "student"), "cpu")[1] == "student"


def test_models_that_are_not_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModelError, match=r"'gazele_dinov2_vitb14'; nearest: gazelle_dinov2_vitb14"):
        load_gaze("gazele_dinov2_vitb14", "cpu")
    monkeypatch.chdir(run.parents[0])
    (run.parent / "runs").symlink_to(".", target_is_directory=True)
    with pytest.raises(UnknownModelError, match="runs/tiny"):
        load_gaze("runs/tinny", "cpu")
    with pytest.raises(ExportError, match="does not exist"):
        load_gaze(str(tmp_path / "student.onnx"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="no student yet"):
        load_gaze(str(tmp_path))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no GPU"):
            load_gaze(str(run), "cuda")


def test_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "photos", 3)
    write_picture(folder / "nobody.jpg")
    out = tmp_path / "answers"
    arguments = ["predict", str(run), str(folder / "photo 0.jpg"), str(folder / "nobody.jpg"), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--heatmaps", "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["model"], facts["people"], facts["pictures"], facts["ignored_rows"]) == ("tiny", 2, 1, 2)
    assert facts["pictures_without_heads"] == [str(folder / "nobody.jpg")]
    assert "rows of the heads file for pictures that were not given are ignored: 2" in said.err
    assert "pictures without a row in the heads file have no answer: 1" in said.err
    with np.load(facts["heatmaps"]) as held:
        points = held["heatmap"].reshape(2, -1).argmax(1)
    assert [line["point_normalised"] for line in answered(out)] == [[p % 16 / 16, p // 16 / 16] for p in points]
    assert main([*arguments, "--no-overlays"]) == 0
    assert "photo 0.jpg" in capsys.readouterr().out
    assert main(["predict", "no-such", str(folder), "--out", str(out)]) == 2
    assert "unknown model" in capsys.readouterr().err
    assert answered(out)[0]["model"] == "tiny"


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_picture_of_one_pixel(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it as the box: an answer; in pixels, where 0 to 1 is nearly always a mistake, the line that says what to write."""
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    arguments = ["predict", str(run), str(tmp_path / "dot.png"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    heads = tmp_path / "heads.csv"
    heads.write_text(f"{HEADER}\ndot.png,,0,0,1,1\n")
    assert main(arguments) == 2
    assert "or its sides are one pixel, name the columns xmin_norm,ymin_norm,xmax_norm,ymax_norm" in capsys.readouterr().err
    heads.write_text("image,person,xmin_norm,ymin_norm,xmax_norm,ymax_norm\ndot.png,,0,0,1,1\n")
    assert main(arguments) == 0
    (line,) = answered(tmp_path / "out")
    assert line["box"] == [0, 0, 1, 1] and all(0 <= value < 1 for value in line["point"]) and 0 < line["peak"] < 1 and 0 < line["inout"] < 1
    with Image.open(tmp_path / "out" / "dot_gaze.png") as drawn:
        drawn.load()


@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"{FRAMES} is not here")
def test_real_frames(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(FRAMES / name) for name in ("00002575.jpg", "00002675.jpg")]
    assert main(["predict", str(run), *files, "--heads", str(FRAMES / "heads.csv"), "--out", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["people"], facts["pictures"], facts["ignored_rows"]) == (4, 2, 8)
    lines = answered(tmp_path)
    assert [line["person"] for line in lines] == ["1", "2", "1", "2"]
    assert lines[0]["box"] == [553, 71, 752, 275]
    with Image.open(facts["overlays"][0]) as drawn:
        assert drawn.size == (1920, 1080)
