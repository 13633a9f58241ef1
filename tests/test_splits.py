"""The carved validation split: deterministic, by scene for pictures and by show for video."""

from __future__ import annotations

import random

import pytest

from distill.errors import DataError
from distill.scenes import Scene
from distill.splits import carve, fraction


def _scenes(count: int, group: str = "") -> list[Scene]:
    return [Scene(f"{group}{number:05d}.jpg", "p.jpg", (), group=group) for number in range(count)]


def test_fraction_is_fixed() -> None:
    # Changing this moves scenes between the splits of everybody's data sets and caches.
    assert fraction("train/00000000/00000318.jpg") == pytest.approx(0.1848074958, abs=1e-9)


def test_pictures_are_held_out_by_key_alone() -> None:
    scenes = _scenes(4000)
    train, val = carve(scenes)
    assert 0.085 < len(val) / 4000 < 0.115
    assert {s.key for s in val} == {s.key for s in scenes if fraction(s.key) < 0.1}
    assert sorted([*train, *val], key=lambda s: s.key) == scenes
    half_train, half_val = carve(scenes[:2000])
    assert half_train == [s for s in train if s.key < "02000"]
    assert half_val == [s for s in val if s.key < "02000"]


def test_order_of_scenes_does_not_matter_and_is_kept() -> None:
    scenes = _scenes(300)
    shuffled = random.Random(1).sample(scenes, len(scenes))
    _, val = carve(scenes)
    _, other = carve(shuffled)
    assert set(other) == set(val)
    assert val == [s for s in scenes if s in set(val)]
    assert other == [s for s in shuffled if s in set(val)]


def test_video_is_held_out_by_show_near_the_share() -> None:
    scenes = [scene for show in range(40) for scene in _scenes(20 + 7 * (show % 5), f"show {show}")]
    train, val = carve(scenes)
    assert not {s.group for s in train} & {s.group for s in val}
    assert len(train) + len(val) == len(scenes)
    assert abs(len(val) - 0.1 * len(scenes)) <= 24


def test_tiny_sets_leave_neither_side_empty() -> None:
    for count in range(2, 12):
        train, val = carve(_scenes(count))
        assert train and val and len(train) + len(val) == count
    train, val = carve([*_scenes(50, "a"), *_scenes(3, "b")])
    assert {s.group for s in val} == {"b"}
    train, val = carve(_scenes(5, "only"))
    assert (len(train), len(val)) == (5, 0)
    assert carve([]) == ([], [])


def test_everything_below_the_share_keeps_one_for_training() -> None:
    train, val = carve(_scenes(6), share=0.999999)
    assert len(train) == 1 and len(val) == 5


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_bad_share_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        carve(_scenes(3), share)
