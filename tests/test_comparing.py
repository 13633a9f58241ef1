"""Scoring and drawing: photographs upright, boxes that are in their pictures, probabilities without overflow."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import write_gazefollow
from PIL import Image
from torch import Tensor

from distill.comparing import Contender, compare, contender, draw, gallery, milliseconds
from distill.errors import DataError
from distill.evaluation import SceneAnswer, answers, evaluate, truths
from distill.gate_scenes import GateScenes, Shown
from distill.metrics import MetricAccumulator, sigmoid
from distill.readers import open_data
from distill.scenes import IN, OUT, Head, Scene, SceneSet
from teachers.contract import GazeOutput


class Watcher:
    """A model that keeps the pictures it is shown, each as its quarter that is white."""

    input_size = (16, 16)

    def __init__(self) -> None:
        self.white: list[str] = []

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        for image in images:
            sides = {"top": image[:, :4], "bottom": image[:, -4:], "left": image[..., :4], "right": image[..., -4:]}
            self.white.append(max(sides, key=lambda side: float(sides[side].mean())))
        return GazeOutput(torch.zeros(len(boxes), 8, 8), None)


@pytest.fixture
def sideways(tmp_path: Path) -> Scene:
    """A photograph whose stored top is white; upright, it is the right side of a tall picture."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:5] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    return Scene("turned.png", str(tmp_path / "turned.png"), (Head((2.0, 22.0, 8.0, 38.0), ((10.0, 20.0),), IN),), box_pixels=True, point_pixels=True)


def test_photographs_are_scored_timed_and_drawn_upright(sideways: Scene) -> None:
    model = Watcher()
    found = evaluate(model, [sideways], exif=True)
    milliseconds(model, [sideways], exif=True)
    items = gallery([sideways], model, model, 1, rows=found.rows, exif=True)
    assert items[0].student_error == items[0].teacher_error == found.metrics.avg_l2
    assert set(model.white) == {"right"} and len(model.white) == 1 + 3 + 1 + 1
    width, height = items[0].truth.size  # type: ignore[union-attr]
    assert height > 1.5 * width
    model.white.clear()
    compare([Contender("watcher", "student", model)], SceneSet("folder", sideways.picture.parent, "all", (sideways,)), training=None)
    assert set(model.white) == {"right"} and len(model.white) == 1 + 3


def test_data_sets_are_scored_as_they_are_stored(sideways: Scene) -> None:
    model = Watcher()
    stored = Scene("turned.png", sideways.file, (Head((0.1, 0.1, 0.3, 0.5), ((0.5, 0.5),), IN),))
    compare([Contender("watcher", "student", model)], SceneSet("gazefollow", sideways.picture.parent, "test", (stored,)), training=None)
    gallery([stored], model, None, 1)
    assert set(model.white) == {"top"} and len(model.white) == 1 + 3 + 1 + 1
    with pytest.raises(DataError, match=r"box 2, 22, 8, 38 lies outside its picture .*\(40 x 20 pixels\)"):
        evaluate(model, [sideways])


def test_a_box_outside_its_picture_is_neither_scored_nor_exported(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    scene = Scene("a.png", str(tmp_path / "a.png"), (Head((0.1, 0.1, 0.3, 0.3)), Head((0.2, -0.5, 0.4, -0.1), person="1")))
    told = r"scene a\.png: head 1 with box 0\.2, -0\.5, 0\.4, -0\.1 lies outside .* \(30 x 20 pixels\); .* \(`distill cache build --on-error skip` leaves"
    with pytest.raises(DataError, match=told):
        list(answers(Watcher(), [scene]))
    with pytest.raises(DataError, match=told):
        list(GateScenes([Shown(scene, "val")], (16, 16)))


def test_large_logits_are_drawn_without_a_warning() -> None:
    scene = Scene("a", "a", (Head((0.1, 0.1, 0.3, 0.3), ((0.5, 0.5),), IN),), size=(40, 30))
    maps = np.full((1, 8, 8), -1000.0, dtype=np.float32)
    maps[0, 2, 3] = 1000.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(np.zeros((30, 40, 3), np.uint8), SceneAnswer(scene, maps, np.array([-1000.0], np.float32)))
        assert drawn.size[0] >= 720
        assert sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]
        assert float(sigmoid(np.float32(-100.0))) == pytest.approx(np.exp(-100.0), rel=1e-12)


def test_scoring_many_heads_at_once_is_scoring_scene_by_scene(tmp_path: Path) -> None:
    """More heads than are scored in one call, a scene without any among them."""

    class Corner:
        input_size = (16, 16)

        def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
            cells = torch.arange(64.0).reshape(1, 8, 8)
            return GazeOutput(torch.sin(cells * (1 + boxes.sum(dim=1)[:, None, None])), boxes[:, 0])

    first = open_data(write_gazefollow(tmp_path, 1), "trainval").scenes[0]
    generator = np.random.default_rng(0)
    scenes = []
    for number in range(30):
        corners = 0.5 * generator.random((number % 4, 2))
        heads = tuple(Head((x, y, x + 0.2, y + 0.3), ((y, x),) if k != 1 else (), IN if k != 1 else OUT) for k, (x, y) in enumerate(corners.tolist()))
        scenes.append(replace(first, key=f"{number}.png", heads=heads, box_pixels=False))
    done: list[int] = []
    found = evaluate(Corner(), scenes, advance=done.append)
    single = MetricAccumulator()
    for answer in answers(Corner(), [scene for scene in scenes if scene.heads]):
        single.add(answer.heatmap, answer.inout, truths(answer.scene))
    assert asdict(found.metrics) == pytest.approx(asdict(single.result()), abs=1e-12) and len(found.rows) == 43 and sum(done) == 30
    assert found.rows.scene.tolist() == single.rows().scene.tolist() and found.metrics.ap is not None
    assert evaluate(Corner(), scenes[:1]).metrics.heads == 0


def test_a_black_box_has_the_size_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "peer.onnx").write_bytes(bytes(1500))
    for spec in (f"{tmp_path}/peer.onnx", f"onnx:{tmp_path}/peer.onnx", f"onnx:{tmp_path}/peer.onnx?adapter=mine"):
        assert contender(spec, "student", Watcher(), "peer").megabytes == pytest.approx(0.0015)
    assert contender(f"{tmp_path}/theirs.npz", "student", Watcher(), "theirs").megabytes is None
