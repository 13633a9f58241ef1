"""The runtime without torch: the file that is copied beside each export, alone in a process where importing torch raises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from distill.exported import ExportedFile
from distill.exporting import export_run
from distill.gate_scenes import gate_scenes
from students.export import Wanted
from students.gaze_predictor import GazePredictor
from students.onnx_runtime import file_digest
from tests.export_world import already_traced, tiny_export, tiny_run


@pytest.fixture(scope="module")
def predictor() -> GazePredictor:
    return GazePredictor(tiny_export().path, threads=1)


def noise(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_it_runs_where_there_is_no_torch(tmp_path: Path, predictor: GazePredictor) -> None:
    for name in ("student.onnx", "student.json", "gaze_predictor.py"):
        shutil.copyfile(tiny_export().path.parent / name, tmp_path / name)
    Image.fromarray(noise()).save(tmp_path / "photo.png")
    code = (
        "import sys, json\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'onnx', 'timm', 'students', 'teachers', 'distill'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "try:\n    import torch\nexcept ImportError:\n    print('no torch')\n"
        "from gaze_predictor import GazePredictor\n"
        "found = GazePredictor('student.onnx', threads=1)('photo.png', [(5, 5, 20, 20), (30, 2, 50, 30)])\n"
        "print(json.dumps([[*g.box, *g.point, g.peak, g.inout, float(g.heatmap.sum())] for g in found]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""}, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "no torch"
    here = predictor(noise(), [(5, 5, 20, 20), (30, 2, 50, 30)])
    np.testing.assert_allclose(json.loads(second), [[*g.box, *g.point, g.peak, g.inout, float(g.heatmap.sum())] for g in here], rtol=1e-4)


def test_it_answers_as_evaluation_does(predictor: GazePredictor) -> None:
    exported = ExportedFile(tiny_export().path, threads=1)
    scenes = gate_scenes(tiny_run(), 3).scenes
    for answer in exported.scene_answers(scenes, batch_size=2, workers=1, device="cpu", exif=False):
        found = predictor(answer.scene.picture, answer.scene.boxes(), normalised=True)
        np.testing.assert_allclose([gaze.heatmap for gaze in found], 1 / (1 + np.exp(-answer.heatmap)), atol=1e-5)
        assert answer.inout is not None
        np.testing.assert_allclose([gaze.inout for gaze in found], 1 / (1 + np.exp(-answer.inout)), atol=1e-5)
        width, height = answer.scene.size or (0, 0)
        for gaze, heatmap in zip(found, answer.heatmap, strict=True):
            row, column = divmod(int(heatmap.argmax()), 20)
            assert gaze.point == pytest.approx(((column + 0.5) / 20 * width, (row + 0.5) / 16 * height))


def test_a_file_of_resized_pictures_is_resized_for(tmp_path: Path, predictor: GazePredictor) -> None:
    with already_traced():
        resized = export_run(tiny_run(), tmp_path / "resized.onnx", wanted=Wanted(pixels="float32"), scenes=2)
    (wanted,), (got,) = predictor(noise(), [(5, 5, 20, 20)]), GazePredictor(resized.path, threads=1)(noise(), [(5, 5, 20, 20)])
    np.testing.assert_allclose(got.heatmap, wanted.heatmap, atol=1e-5)


def test_people(predictor: GazePredictor) -> None:
    picture = noise()
    assert predictor(picture, []) == [] and predictor(picture, np.zeros((0, 4))) == []
    hundred = [(number % 10 * 5.0, number // 10 * 3.0, number % 10 * 5.0 + 6, number // 10 * 3.0 + 8) for number in range(100)]
    found = predictor(picture, hundred)
    assert len(found) == 100 and all(np.isfinite(gaze.heatmap).all() for gaze in found)
    # A person's answer does not depend on who else is there, and a box over the edge is clipped.
    (alone,) = predictor(picture, hundred[57:58])
    np.testing.assert_allclose(alone.heatmap, found[57].heatmap, atol=1e-5)
    (over,) = predictor(picture, [(-10, -10, 20, 20)])
    assert over.box == (0.0, 0.0, 20.0, 20.0)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([(5, 5, 5, 20)], "no area"), ([(20, 5, 5, 20)], "no area"), ([(70, 5, 90, 20)], "no area within the picture"),
        ([(5, 5, float("nan"), 20)], "finite"), ([(5, 5, 20)], "shape"), ([(5, 5, 20, 20), (1, 2, 3)], "no table of numbers"), (["head"], "no table"),
    ],
)
def test_boxes_that_are_none(predictor: GazePredictor, boxes: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        predictor(noise(), boxes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (3000, 2)])
def test_tiny_and_narrow_pictures(predictor: GazePredictor, size: tuple[int, int]) -> None:
    (gaze,) = predictor(noise(*size), [(0, 0, size[1], size[0])])
    assert np.isfinite(gaze.heatmap).all() and 0 <= gaze.point[0] <= size[1] and 0 <= gaze.point[1] <= size[0]


def test_kinds_of_pictures(predictor: GazePredictor, tmp_path: Path) -> None:
    box = [(5, 5, 20, 20)]
    grey = noise(channels=1)
    (wanted,) = predictor(np.repeat(grey, 3, axis=2), box)
    for same in (grey, grey[..., 0], Image.fromarray(grey[..., 0]), Image.fromarray(grey[..., 0]).convert("RGBA")):
        np.testing.assert_array_equal(predictor(same, box)[0].heatmap, wanted.heatmap)
    # 16 bits, from memory and from a file: the upper eight. 32 bits have no agreed range.
    deep = Image.fromarray(grey[..., 0].astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    for same in (deep, tmp_path / "deep.png"):
        np.testing.assert_array_equal(predictor(same, box)[0].heatmap, wanted.heatmap)
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match="32 bits"):
            predictor(Image.fromarray(grey[..., 0]).convert(mode), box)
    # What is transparent is seen on white.
    clear = np.concatenate((noise(), np.zeros((40, 60, 1), np.uint8)), axis=2)
    np.testing.assert_array_equal(predictor(clear, box)[0].heatmap, predictor(np.full((40, 60, 3), 255, np.uint8), box)[0].heatmap)
    for wrong in (noise().astype(np.float32), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8)):
        with pytest.raises(ValueError, match="is no picture"):
            predictor(wrong, box)
    with pytest.raises(ValueError, match="a NoneType is no picture"):
        predictor(None, box)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not exist"):
        predictor(tmp_path / "absent.jpg", box)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be decoded"):
        predictor(tmp_path / "text.jpg", box)


def test_a_photograph_is_held_upright(predictor: GazePredictor, tmp_path: Path) -> None:
    upright = Image.fromarray(noise())
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    lying.save(tmp_path / "lying.png", exif=exif)
    (wanted,), (got,) = predictor(upright, [(5, 5, 20, 20)]), predictor(tmp_path / "lying.png", [(5, 5, 20, 20)])
    np.testing.assert_array_equal(got.heatmap, wanted.heatmap)
    assert got.point == wanted.point


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not there"):
        GazePredictor(tmp_path / "student.onnx")
    shutil.copyfile(tiny_export().path, tmp_path / "student.onnx")
    with pytest.raises(ValueError, match=r"student\.json is not there"):
        GazePredictor(tmp_path / "student.onnx")
    (tmp_path / "student.json").write_text("{}")
    with pytest.raises(ValueError, match="does not describe"):
        GazePredictor(tmp_path / "student.onnx")
    described = json.loads(tiny_export().path.with_suffix(".json").read_text())
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [given], [onnx.helper.make_empty_tensor_value_info("y")]),
        opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10,
    )
    for data, message in ((b"no graph", "ONNX Runtime cannot open"), (foreign.SerializeToString(), r"takes x and gives y, student\.json says pictures")):
        (tmp_path / "student.onnx").write_bytes(data)
        (tmp_path / "student.json").write_text(json.dumps({**described, "digest": file_digest(tmp_path / "student.onnx")}))
        with pytest.raises(ValueError, match=message) as caught:
            GazePredictor(tmp_path / "student.onnx")
        assert "\n" not in str(caught.value)
    shutil.copyfile(tiny_export().path, tmp_path / "student.onnx")
    shutil.copyfile(tiny_export().path.with_suffix(".json"), tmp_path / "student.json")
    with (tmp_path / "student.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="damaged"):
        GazePredictor(tmp_path / "student.onnx")
