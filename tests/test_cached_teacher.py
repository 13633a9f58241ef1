"""The teacher as a run hears it: views that stay as they were, ensembles, and what is said of what is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cache_world import TinyTeacher, build, make_scenes, make_source

from distill.cached_teacher import open_cached_teacher, specs_of
from distill.scenes import SceneSet
from students.errors import RunError
from teachers.cache.reader import CacheReader
from teachers.errors import CacheError

SIZE = (16, 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SceneSet]:
    folder = tmp_path_factory.mktemp("taught")
    source = make_source(make_scenes(folder / "pictures", 7))
    build(folder / "a", source, TinyTeacher(0))
    build(folder / "b", source, TinyTeacher(1, has_inout=False))
    return folder, source.scenes


def test_a_run_replays_the_views_it_was_started_with(world: tuple[Path, SceneSet]) -> None:
    folder, scenes = world
    assert open_cached_teacher(str(folder / "a"), scenes, SIZE).views == 3
    fewer = open_cached_teacher(str(folder / "a"), scenes, SIZE, views=2)
    assert (fewer.views, len(fewer.scenes), fewer.notes) == (2, 7, ())
    assert fewer.lineage()["views"] == 2


def test_more_views_than_there_are_name_the_command(world: tuple[Path, SceneSet]) -> None:
    folder, scenes = world
    with pytest.raises(RunError, match=r"lacks 5 views of 7 of 7 .*run `distill cache build [^`]* --out \S+/a --views 5` again"):
        open_cached_teacher(str(folder / "a"), scenes, SIZE, views=5)


def test_the_command_for_other_data_has_the_teacher_of_the_cache(tmp_path: Path) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 3))
    command = "distill cache build --data 'world:a b' --split all --teacher 'my teachers/b' --views 3 --codec q8 --seed 0 --precision bf16 --batch 5"
    build(tmp_path / "cache", source, codec="q8", command=command)
    other = make_source(source.scenes.scenes, seed=7)
    with pytest.raises(CacheError) as caught:
        CacheReader(tmp_path / "cache").check(source_identity=other.identity, mend=other.mend)
    assert f"`{other.mend} --teacher 'my teachers/b' --views 3 --codec q8 --precision bf16 --batch 5 --out OTHER_PATH`" in str(caught.value)


def test_several_caches_average_by_their_weights(world: tuple[Path, SceneSet]) -> None:
    folder, scenes = world
    both = open_cached_teacher(f"{folder / 'a'}:3, {folder / 'b'}:1", scenes, SIZE)
    one, other = (open_cached_teacher(str(folder / name), scenes, SIZE) for name in "ab")
    key = scenes.scenes[2].key
    expected = 0.75 * one.read(key, 1).heatmap + 0.25 * other.read(key, 1).heatmap
    np.testing.assert_allclose(both.read(key, 1).heatmap, expected, atol=1e-5)
    members = both.lineage()["teacher"]["members"]
    assert [member["weight"] for member in members] == [0.75, 0.25]
    assert both.picture_digest(key, 1) == one.picture_digest(key, 1)


def test_what_is_not_there_is_said(world: tuple[Path, SceneSet]) -> None:
    folder, scenes = world
    notes = open_cached_teacher(str(folder / "b"), scenes, (64, 64)).notes
    assert len(notes) == 2
    assert "16×16" in notes[0]
    assert "64×64" in notes[0]
    assert "no in/out head" in notes[1]


def test_a_weight_that_is_no_number_is_refused(world: tuple[Path, SceneSet]) -> None:
    folder, scenes = world
    with pytest.raises(CacheError, match="is no number"):
        open_cached_teacher(f"{folder / 'a'}:much,{folder / 'b'}:1", scenes, SIZE)


def test_specs_are_separated_by_commas() -> None:
    assert specs_of(" a:0.6, b ,") == ["a:0.6", "b"]
