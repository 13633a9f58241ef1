"""The scene generator: determinism, GazeFollow's layout, and looks that are geometrically true."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.synth import SynthConfig, SynthError, draw_scene, write_dataset
from distill.synth.camera import Camera
from distill.synth.develop import box_means
from distill.synth.head import facing
from distill.synth.layout import draw_layout
from distill.synth.raster import BACKDROP, Canvas, Light
from distill.synth.scene import build_person, draw_scene_with_layout
from distill.synth.solids import Solid, box, ellipsoid, frustum, roll_turn, tilt_turn, yaw_turn
from distill.synth.world import Layout

SMALL = SynthConfig(scenes=14, seed=7, test_fraction=0.3, width=160, height=120)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "scenes"
    write_dataset(out, SMALL, processes=1)
    return out


def _files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def layouts() -> list[Layout]:
    drawn = (draw_layout(np.random.default_rng((3, i)), 480, 360) for i in range(130))
    return [layout for layout in drawn if layout is not None]


def test_same_bytes_for_any_number_of_processes(written: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(tmp_path / "two", SMALL, processes=2, progress=lambda done, total: seen.append((done, total)))
    assert _files(tmp_path / "two") == _files(written)
    assert seen == [(i + 1, 14) for i in range(14)]


def test_scene_depends_on_seed_and_index_only() -> None:
    longer = SynthConfig(scenes=99, seed=7, test_fraction=0.0, width=160, height=120)
    first, again = draw_scene(7, 4, SMALL), draw_scene(7, 4, longer)
    assert first.heads == again.heads and first.picture.tobytes() == again.picture.tobytes()
    for seed, index in ((8, 4), (7, 5)):
        assert draw_scene(seed, index, SMALL).picture.tobytes() != first.picture.tobytes()


def test_train_file_is_gazefollows(written: Path) -> None:
    rows = _rows(written / "train_annotations_release.txt")
    assert {row[14] for row in rows} == {"0", "1"}
    for row in rows:
        assert len(row) == 17
        assert Image.open(written / row[0]).size == (160, 120) and row[0].startswith("train/00000000/")
        body, eye, gaze, head = (np.array(row[a:b], dtype=float) for a, b in ((2, 6), (6, 8), (8, 10), (10, 14)))
        assert (body >= 0).all() and (body[:2] + body[2:] <= 1.0001).all()
        assert ((eye > 0) & (eye < 1)).all()
        assert 0 <= head[0] < head[2] <= 160 and 0 <= head[1] < head[3] <= 120
        assert 0.13 < (head[3] - head[1]) / 120 < 0.42
        if row[14] == "0":
            assert gaze.tolist() == [-1.0, -1.0]
        else:
            assert ((gaze >= 0) & (gaze < 1)).all()
    assert [int(row[1]) for row in rows] == list(range(len(rows)))


def test_test_file_has_annotators_and_no_inout_column(written: Path) -> None:
    rows = _rows(written / "test_annotations_release.txt")
    groups: dict[tuple[str, str], list[list[str]]] = {}
    for row in rows:
        assert len(row) == 16 and row[0].startswith("test2/00000000/") and (written / row[0]).is_file()
        groups.setdefault((row[0], row[6]), []).append(row)
    assert groups
    for (path, _), same in groups.items():
        assert 8 <= len(same) <= 10
        assert len({tuple(r[2:8] + r[10:]) for r in same}) == 1  # one head, one box
        points = np.array([r[8:10] for r in same], dtype=float)
        assert ((points >= 0) & (points < 1)).all() and 0 < points.std(axis=0).max() < 0.05
        drawn = draw_scene(SMALL.seed, int(Path(path).stem), SMALL)
        truth = [h.gaze for h in drawn.heads if h.gaze is not None and f"{h.eye[0]:.5f}" == same[0][6]]
        assert len(truth) == 1
        assert np.abs(points.mean(axis=0) - np.array(truth[0])).max() < 0.03


def test_splits_cover_every_scene_once(written: Path) -> None:
    pictures = sorted(int(p.stem) for p in written.rglob("*.jpg"))
    assert pictures == list(range(14))
    assert json.loads((written / "synth.json").read_text()) == {
        "generator": 1,
        "complete": True,
        "config": {"scenes": 14, "seed": 7, "test_fraction": 0.3, "width": 160, "height": 120},
    }


def test_own_output_is_replaced_and_anything_else_refused(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    write_dataset(out, SynthConfig(scenes=3, width=160, height=120, test_fraction=0.0), processes=1)
    summary = write_dataset(out, SynthConfig(scenes=2, seed=1, width=160, height=120, test_fraction=0.0), processes=1)
    assert sorted(p.name for p in out.rglob("*.jpg")) == ["00000000.jpg", "00000001.jpg"]
    assert summary.train_scenes == 2 and summary.train_heads == len(_rows(out / "train_annotations_release.txt"))
    assert _rows(out / "test_annotations_release.txt") == []
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(SynthError, match="not empty"):
        write_dataset(foreign, SMALL, processes=1)
    assert _files(foreign) == {"photo.jpg": b"precious"}
    with pytest.raises(SynthError, match="is a file"):
        write_dataset(foreign / "photo.jpg", SMALL, processes=1)


@pytest.mark.parametrize(
    "values", [{"scenes": 0}, {"seed": -1}, {"test_fraction": 1.5}, {"width": 50}, {"width": 800, "height": 200}]
)
def test_configuration_out_of_range_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(SynthError):
        SynthConfig(**values)


def test_gaze_points_show_the_target() -> None:
    checked = 0
    for index in range(6):
        drawn, layout, canvas = draw_scene_with_layout(11, index, SynthConfig())
        for head, person in zip(drawn.heads, layout.people, strict=True):
            if head.gaze is None:
                assert head.inout == 0 and person.target is None
                continue
            u, v = head.gaze[0] * 480, head.gaze[1] * 360
            assert canvas.owner_at(u, v) == person.target
            assert person.point is not None
            assert np.allclose(layout.camera.project(person.point), (u, v))
            x0, y0, x1, y1 = head.box
            assert x0 < head.eye[0] * 480 < x1 and y0 < head.eye[1] * 360 < y1
            checked += 1
    assert checked >= 5


def _spheres(layout: Layout) -> list[tuple[np.ndarray, float]]:
    return [(t.focus, t.thing.radius) for t in layout.things] + [(p.head, p.radius) for p in layout.people]


def test_target_is_the_first_thing_on_the_look(layouts: list[Layout]) -> None:
    looks = 0
    for layout in layouts[:50]:
        for i, person in enumerate(layout.people):
            if person.point is None:
                continue
            looks += 1
            steps = np.linspace(0, 1, 400)[:, None] * (person.point - person.head) + person.head
            for k, (centre, radius) in enumerate(_spheres(layout)):
                nearest = np.linalg.norm(steps - centre, axis=1).min()
                if k == person.target:
                    assert nearest < radius
                elif k != len(layout.things) + i:
                    assert nearest > radius
    assert looks > 50


def test_out_of_frame_looks_leave_the_frame_and_meet_nothing(layouts: list[Layout]) -> None:
    outs = 0
    for layout in layouts[:50]:
        for i, person in enumerate(layout.people):
            if person.point is not None:
                continue
            outs += 1
            left = False
            for t in np.linspace(0.01, 8.0, 800):
                point = person.head + t * person.gaze
                u, v = layout.camera.project(point)
                if point[2] < 0.36 or not (0 <= u < 480 and 0 <= v < 360):
                    left = True
                    break
                assert point[1] > -0.03 and point[2] < layout.stage.far + 0.03
                for k, (centre, radius) in enumerate(_spheres(layout)):
                    assert k == len(layout.things) + i or np.linalg.norm(point - centre) > radius
            assert left
    assert outs > 6


def test_head_follows_the_look_and_eyes_take_a_small_rest(layouts: list[Layout]) -> None:
    rng, angles = np.random.default_rng(0), []
    for layout in layouts[:20]:
        for person in layout.people:
            turn = build_person(rng, layout, person)[2]
            assert np.allclose(turn.T @ turn, np.eye(3))
            angles.append(np.degrees(np.arccos(np.clip(turn[:, 2] @ person.gaze, -1, 1))))
    assert max(angles) < 25 and 2 < np.mean(angles) < 12


def test_neither_head_position_nor_the_centre_gives_the_look_away(layouts: list[Layout]) -> None:
    eyes, points, outs, heads = [], [], 0, 0
    for layout in layouts:
        for person in layout.people:
            heads += 1
            outs += person.point is None
            if person.point is not None:
                eyes.append(np.array(person.disc[:2]) / (480, 360))
                points.append(layout.camera.project(person.point) / (480, 360))
    head, gaze = np.array(eyes), np.array(points)
    prior = [
        np.linalg.norm(gaze[np.argsort(np.linalg.norm(head - h, axis=1))[1:51]].mean(axis=0) - g)
        for h, g in zip(head, gaze, strict=True)
    ]
    assert np.mean(prior) > 0.24 and np.linalg.norm(gaze - 0.5, axis=1).mean() > 0.24
    assert 0.12 < outs / heads < 0.35
    assert 0.38 < (gaze[:, 0] < head[:, 0]).mean() < 0.62


def _inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    q = ((points - solid.centre) @ solid.turn) / solid.half
    if solid.shape == "box":
        return np.abs(q).max(axis=-1) <= 1
    if solid.shape == "ellipsoid":
        return (q**2).sum(axis=-1) <= 1
    low, high = solid.radii
    radius = (low + high) / 2 + (high - low) / 2 * q[..., 1]
    return (np.abs(q[..., 1]) <= 1) & (q[..., 0] ** 2 + q[..., 2] ** 2 <= radius**2)


@pytest.mark.parametrize(
    "solid",
    [
        ellipsoid((0.2, 1.1, 2.0), (0.3, 0.1, 0.2), np.ones(3), roll_turn(0.5) @ yaw_turn(0.8)),
        box((-0.2, 0.9, 2.2), (0.3, 0.1, 0.2), np.ones(3), tilt_turn(0.4) @ yaw_turn(0.6)),
        frustum((0.0, 0.7, 2.0), 0.3, 0.2, np.ones(3), top=0.4),
        frustum((0.1, 1.2, 2.0), 0.25, 0.1, np.ones(3), tilt_turn(-1.1), bottom=0.8),
    ],
    ids=["ellipsoid", "box", "cone", "disc"],
)
def test_ray_caster_agrees_with_marching_along_rays(solid: Solid) -> None:
    camera = Camera(64, 48, 50.0, 32.0, 24.0, 1.0)
    canvas = Canvas(camera, Light(np.array([0.0, 1.0, 0.0]), 0.5, 0.5), 1.0)
    canvas.draw([(solid, 5)])
    depths = np.arange(1.5, 2.8, 0.002)
    hits = 0
    for v in range(48):
        for u in range(64):
            ray = np.array([(u + 0.5 - 32) / 50, (24 - v - 0.5) / 50, 1.0])
            inside = _inside(solid, camera.origin + depths[:, None] * ray)
            at = v * 64 + u
            if inside.sum() > 3:
                assert canvas.owner[at] == 5
                assert canvas.depth[at] == pytest.approx(depths[inside.argmax()], abs=0.003)
                hits += 1
            elif not inside.any():
                assert canvas.owner[at] == BACKDROP or canvas.depth[at] < 2.8
    assert hits > 40
    assert (canvas.owner == 5).sum() < hits * 1.25 + 4


def test_nearer_solids_hide_farther_ones_in_any_order() -> None:
    camera = Camera(64, 48, 50.0, 32.0, 24.0, 1.0)
    near, far = (
        ellipsoid((0, 1, 1.5), (0.1,) * 3, np.array([1.0, 0, 0])),
        box((0, 1, 2.5), (0.5, 0.5, 0.1), np.array([0, 1.0, 0])),
    )
    for order in ([(near, 1), (far, 2)], [(far, 2), (near, 1)]):
        canvas = Canvas(camera, Light(np.array([0.0, 1.0, 0.0]), 0.5, 0.5), 1.0)
        canvas.draw(order)
        assert canvas.owner_at(32, 24) == 1 and canvas.owner_at(32 + 8, 24) == 2
        assert canvas.owner_at(2, 2) == BACKDROP


def test_facing_turns_the_face_to_the_direction_and_stays_upright() -> None:
    turn = facing(np.array([0.6, 0.0, -0.8]))
    assert np.allclose(turn[:, 2], (0.6, 0.0, -0.8)) and np.allclose(turn[:, 1], (0, 1, 0))
    assert np.linalg.det(turn) == pytest.approx(1.0)


@pytest.mark.parametrize(("width", "height"), [(480, 360), (160, 120), (68, 80), (121, 97)])
def test_box_means_are_pillows(width: int, height: int) -> None:
    shape = (round(height * 4 / 3), round(width * 4 / 3))
    packed = np.random.default_rng(width).integers(0, 2**32, shape, dtype=np.uint32)
    whole = Image.frombuffer("RGBX", shape[::-1], packed.astype("<u4"), "raw", "RGBX", 0, 1)
    expected = np.asarray(whole.resize((width, height), Image.Resampling.BOX))
    bands = [box_means(packed, height, width, slice(top, min(top + 24, height))) for top in range(0, height, 24)]
    assert np.array_equal(np.concatenate(bands).astype("<u4").view(np.uint8).reshape(expected.shape), expected)
