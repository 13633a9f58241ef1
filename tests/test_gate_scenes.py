"""Which pictures an export is compared on: whole scenes first, then views, each as training would see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.gate_scenes import GateScenes, Shown, gate_of, gate_scenes
from distill.pictures import load_picture
from distill.readers import open_data
from tests.export_world import tiny_run


@pytest.fixture(scope="module")
def run() -> Path:
    return tiny_run()


def test_batches_cover_every_scene_once_and_again(run: Path) -> None:
    scenes = gate_scenes(run, 14, split="trainval").scenes
    seen: list[int] = []
    source = GateScenes([Shown(scene, "trainval") for scene in scenes], (32, 48), advance=seen.append)
    made = list(source)
    assert [len(entry.names) for entry in made] == seen == [1, 3, 8, 1, 1]
    assert [name for entry in made for name in entry.names] == [scene.key for scene in scenes]
    assert sum(len(entry.boxes) for entry in made) == sum(len(scene.heads) for scene in scenes)
    assert all(entry.images.shape[1:] == (3, 32, 48) for entry in made)
    assert [entry.names for entry in source] == [entry.names for entry in made]


def test_a_gate_is_filled_up_with_training_scenes_and_then_with_views(run: Path) -> None:
    val, train = (len(open_data(str(run.parents[1] / "data"), split).scenes) for split in ("val", "train"))
    gate = gate_of(run, 64)
    assert len(gate.shown) == 64
    assert gate.facts()["scenes"] == {"val": val, "train": train}
    assert gate.facts()["further_views"] == 64 - val - train
    assert [each.split for each in gate.shown[:val]] == ["val"] * val and gate.shown[-1].view > 0
    assert len(gate.calibration) == 64 and {each.split for each in gate.calibration} == {"train"} and min(each.view for each in gate.calibration) == 1
    assert gate_of(run, val).facts()["further_views"] == 0
    # Where a split is named, nothing of another one is used.
    assert {each.split for each in gate_of(run, 64, split="val").shown} == {"val"}


def test_a_view_is_the_picture_and_the_heads_that_training_would_see(run: Path) -> None:
    gate = gate_of(run, 64)
    for each in gate.shown[-5:]:
        (batch,) = GateScenes([each], (32, 48), policy=gate.policy)
        picture = load_picture(each.scene.picture)
        flat = each.scene.normalised(picture.shape[1], picture.shape[0])
        view = gate.policy.view(flat, each.view)
        torch.testing.assert_close(batch.images[0], view.picture(picture, (32, 48)), atol=3e-6, rtol=0)
        np.testing.assert_allclose(batch.boxes.numpy(), view.boxes(flat.boxes()), atol=1e-6)
        for truth, head in zip(batch.labels[0], flat.heads, strict=True):
            np.testing.assert_allclose(truth.points, view.points(np.array(head.points).reshape(-1, 2)))


def test_int8_is_calibrated_on_training_scenes_wherever_the_gate_looks(run: Path) -> None:
    data = gate_of(run, 1).spec
    gate = gate_of(run, 4, data=data, split="val")
    assert {each.split for each in gate.shown} == {"val"} and {each.split for each in gate.calibration} == {"train"}
    assert not {each.scene.key for each in gate.shown} & {each.scene.key for each in gate.calibration}
