"""Views: values that are the same in every process, keep what must be kept, and map everything alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.scenes import IN, OUT, UNKNOWN, Head, Scene
from distill.views import IDENTITY, View, ViewPolicy, choose_view

POLICY = ViewPolicy(seed=7)


def make_scene(number: int, *, heads: int = 2, size: tuple[int, int] = (97, 61)) -> Scene:
    """A normalised scene of ``heads`` heads at odd places; every third one looks out, every fourth one's label is unknown."""
    dice = np.random.default_rng([number, heads])
    people = []
    for person in range(heads):
        x, y = dice.uniform(0.2, 0.7, 2).tolist()
        label = OUT if person % 3 == 2 else UNKNOWN if person % 4 == 3 else IN
        points = () if label == OUT else tuple((float(px), float(py)) for px, py in dice.uniform(0.1, 0.95, (2, 2)))
        people.append(Head((x, y, x + 0.08, y + 0.1), points, label, str(person)))
    return Scene(f"scene/{number}", "none.png", tuple(people), size=size)


def geometry() -> list[list[float]]:
    """Views 1 to 3 of a few scenes, as another process computes them too."""
    return [list(POLICY.view(make_scene(number, heads=1 + number % 3), view).to_row()) for number in range(6) for view in (1, 2, 3)]


def test_a_view_is_the_same_in_every_process() -> None:
    code = "import json; from tests.test_views import geometry; print(json.dumps(geometry()))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True, timeout=1800
    )
    assert json.loads(done.stdout) == geometry()
    assert len({tuple(row) for row in geometry()}) > 8


def test_the_views_of_a_scene_never_change() -> None:
    # A cache that was built once is replayed for years: these numbers may not move.
    scene = Scene("train/1.jpg", "1.jpg", (Head((0.25, 0.25, 0.375, 0.5), ((0.625, 0.75),), IN, "0"),), size=(640, 480))
    rows = [ViewPolicy(seed=3).view(scene, number).to_row() for number in range(5)]
    pixels = [(0, 0, 640, 480, 0), (55, 22, 540, 474, 1), (3, 64, 606, 460, 1), (7, 48, 538, 475, 0), (51, 8, 572, 429, 0)]
    assert rows == [(left / 640, top / 480, right / 640, bottom / 480, float(flip)) for left, top, right, bottom, flip in pixels]
    assert [choose_view(3, epoch, "train/1.jpg", 4) for epoch in range(12)] == [3, 0, 2, 1, 1, 3, 0, 2, 2, 3, 0, 1]


def test_view_0_is_the_identity() -> None:
    scene = make_scene(1)
    view = POLICY.view(scene, 0)
    assert view == IDENTITY and view.to_row() == (0.0, 0.0, 1.0, 1.0, 0.0)
    assert np.array_equal(view.boxes(scene.boxes()), scene.boxes())
    assert np.array_equal(view.points(scene.in_frame_points()), scene.in_frame_points())
    pixels = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    assert torch.equal(view.picture(pixels, (61, 97)), torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize(
    "change",
    [
        lambda scene: (replace(POLICY, seed=8), scene, 5),
        lambda scene: (POLICY, replace(scene, key="scene/other"), 5),
        lambda scene: (POLICY, scene, 6),
        lambda scene: (POLICY, replace(scene, heads=(replace(scene.heads[0], box=(0.31, 0.3, 0.4, 0.4)), *scene.heads[1:])), 5),
        lambda scene: (POLICY, replace(scene, heads=(replace(scene.heads[0], points=((0.5, 0.5),)), *scene.heads[1:])), 5),
    ],
)
def test_geometry_depends_on_seed_key_number_boxes_and_points(change) -> None:  # type: ignore[no-untyped-def]
    scenes = [make_scene(number) for number in range(12)]
    before = [POLICY.view(scene, 5) for scene in scenes]
    after = [policy.view(changed, number) for policy, changed, number in map(change, scenes)]
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= 9
    # ... and on nothing else: neither the file's place nor what a person is called.
    elsewhere = [replace(s, file="/moved.png", group="show", heads=tuple(replace(h, person="x") for h in s.heads)) for s in scenes]
    assert [POLICY.view(scene, 5) for scene in elsewhere] == before


def test_crops_keep_heads_and_points_on_whole_pixels() -> None:
    flips = crops = 0
    for number in range(60):
        scene = make_scene(number, heads=1 + number % 5, size=(97 + number, 61))
        assert scene.size is not None
        for shown in range(1, 5):
            view = POLICY.view(scene, shown)
            flips, crops = flips + view.flip, crops + (view.to_row()[:4] != (0.0, 0.0, 1.0, 1.0))
            for edge, side in ((view.left, 0), (view.top, 1), (view.right, 0), (view.bottom, 1)):
                pixels = edge * scene.size[side]
                assert abs(pixels - round(pixels)) < 1e-9 and 0.0 <= edge <= 1.0
            kept = np.concatenate((scene.boxes().reshape(-1, 2), scene.in_frame_points()))
            seen = view.points(kept)
            assert seen.min() >= 0.0 and seen.max() <= 1.0
            # With the margin around them, wherever the picture does not end there.
            low, high = np.maximum(kept.min(axis=0) - 0.02, 0), np.minimum(kept.max(axis=0) + 0.02, 1)
            assert (np.array([view.left, view.top]) <= low + 1e-9).all() and (np.array([view.right, view.bottom]) >= high - 1e-9).all()
    assert 90 < flips < 150 and 150 < crops < 230  # of 240, at chances of 0.5 and 0.8


def test_a_scene_without_heads_is_never_cropped() -> None:
    for number in range(1, 20):
        assert POLICY.view(make_scene(number, heads=0), number).to_row()[:4] == (0.0, 0.0, 1.0, 1.0)


def test_a_scene_of_unknown_size_has_no_views() -> None:
    with pytest.raises(ValueError, match="must be normalised"):
        POLICY.view(replace(make_scene(0), size=None), 1)


@pytest.mark.parametrize("flip", [False, True])
def test_picture_points_and_boxes_move_together(flip: bool) -> None:
    """One bright pixel: where its middle is mapped, it is bright in the view, and nowhere else."""
    view = View(0.125, 0.25, 0.875, 0.75, flip)  # columns 4 to 27 of 32, rows 6 to 17 of 24
    for column, row in ((4, 6), (27, 17), (10, 9), (20, 16), (4, 17)):
        pixels = np.zeros((24, 32, 3), dtype=np.uint8)
        pixels[row, column] = 255
        seen = view.picture(pixels, (12, 24))
        x, y = view.points(np.array([(column + 0.5) / 32, (row + 0.5) / 24]))
        assert seen.shape == (3, 12, 24) and float(seen.sum()) == 3.0
        assert seen[:, int(y * 12), int(x * 24)].tolist() == [1.0, 1.0, 1.0]
        box = view.boxes(np.array([[column / 32, row / 24, (column + 1) / 32, (row + 1) / 24]]))[0]
        assert box.tolist() == pytest.approx([int(x * 24) / 24, int(y * 12) / 12, (int(x * 24) + 1) / 24, (int(y * 12) + 1) / 12], abs=1e-12)


def test_boxes_stay_in_order_and_are_clipped() -> None:
    boxes = np.array([[0.0, 0.1, 0.5, 0.6], [0.4, 0.4, 1.0, 1.0]])
    view = View(0.25, 0.5, 0.75, 1.0, True)
    assert view.boxes(boxes).tolist() == [[0.5, 0.0, 1.0, pytest.approx(0.2)], [0.0, 0.0, pytest.approx(0.7), 1.0]]
    assert view.boxes(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("number", range(1, 6))
def test_scene_points_undo_points(number: int) -> None:
    view = POLICY.view(make_scene(number), number)
    points = np.random.default_rng(0).random((3, 5, 2))
    np.testing.assert_allclose(view.scene_points(view.points(points)), points, atol=1e-12)
    np.testing.assert_allclose(view.points(view.scene_points(points)), points, atol=1e-12)


def test_pictures_are_squashed_with_antialiasing() -> None:
    # A row of 0, 255, 0, 255, ... shrunk eightfold is even grey; without antialiasing it would be pixels picked out.
    pixels = np.zeros((16, 64, 3), dtype=np.uint8)
    pixels[:, ::2] = 255
    seen = IDENTITY.picture(pixels, (4, 8))
    assert float(seen.min()) > 0.4 and float(seen.max()) < 0.6
    crop = View(0.25, 0.0, 1.0, 0.5).picture(np.arange(16 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 64, 3), (5, 7))
    whole = torch.from_numpy(np.arange(16 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 64, 3)).permute(2, 0, 1).float() / 255
    expected = F.interpolate(whole[None, :, :8, 16:], (5, 7), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(crop, expected)
    assert float(crop.min()) >= 0.0 and float(crop.max()) <= 1.0


def test_a_mirrored_view_is_the_mirror_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    plain, mirrored = View(0.2, 0.1, 0.8, 0.9), View(0.2, 0.1, 0.8, 0.9, True)
    assert torch.equal(mirrored.picture(pixels, (8, 8)), plain.picture(pixels, (8, 8)).flip(-1))


@pytest.mark.parametrize("views", [1, 2, 5, 8])
def test_every_view_is_shown_once_in_each_cycle(views: int) -> None:
    orders = Counter()
    for key in ("a", "b", "c", "d"):
        for cycle in range(6):
            shown = tuple(choose_view(3, cycle * views + epoch, key, views) for epoch in range(views))
            assert sorted(shown) == list(range(views))
            orders[shown] += 1
    if views >= 5:
        assert len(orders) > 20, "scenes or cycles share their order"


def test_the_choice_depends_on_seed_and_scene() -> None:
    def shown(seed: int, key: str) -> list[int]:
        return [choose_view(seed, epoch, key, 6) for epoch in range(12)]

    assert shown(1, "a") == shown(1, "a")
    assert len({tuple(shown(seed, key)) for seed in (1, 2) for key in "ab"}) == 4
    assert [choose_view(1, epoch, "a", 0) for epoch in range(3)] == [0, 0, 0]


def test_the_policy_describes_itself_completely() -> None:
    assert ViewPolicy(**POLICY.describe()) == POLICY  # type: ignore[arg-type]
    assert json.loads(json.dumps(POLICY.describe())) == {"name": "crop-flip", "seed": 7, "flip": 0.5, "crop": 0.8, "cut": 0.6, "margin": 0.02}


def test_a_picture_seen_backwards_or_read_only_is_a_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    wanted = View(flip=True).picture(picture, (6, 8))
    backwards = np.ascontiguousarray(picture[..., ::-1])[..., ::-1]
    frozen = picture.copy()
    frozen.flags.writeable = False
    for other in (backwards, frozen):
        assert torch.equal(View(flip=True).picture(other, (6, 8)), wanted)
