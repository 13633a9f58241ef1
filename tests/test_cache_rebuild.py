"""Shards that are computed again: damaged ones by name, skipped scenes once their pictures are mended, data that has changed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cache_world import TinyTeacher, build, make_scenes, make_source, shard_files

from distill.errors import PictureError
from teachers.build_plan import plan_build
from teachers.cache.reader import CacheReader
from teachers.errors import CacheError


def inodes(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (cache / "shards").iterdir()}


def with_heads(scenes: list) -> int:
    return sum(1 for scene in scenes if scene.heads)


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, list, dict[int, bytes]]:
    """A cache of 14 scenes in four shards whose scenes 5 and 6 (shard 1) and 9 (shard 2) were skipped, and their pictures' bytes."""
    scenes, whole = make_scenes(tmp_path / "pictures", 14), {}
    for number in (5, 6, 9):
        whole[number] = scenes[number].picture.read_bytes()
        scenes[number].picture.write_bytes(whole[number][:60])
    summary = build(tmp_path / "cache", make_source(scenes), on_error="skip")
    assert [key for key, _ in summary.skipped] == ["005.png", "006.png", "009.png"]
    return tmp_path / "cache", scenes, whole


def test_skipped_scenes_stay_skipped_until_they_are_asked_for(broken: tuple[Path, list, dict[int, bytes]], tmp_path: Path) -> None:
    cache, scenes, whole = broken
    source, before = make_source(scenes), inodes(cache)
    again = build(cache, source, retry_skipped=True)
    assert (again.shards_written, again.shards_replaced, again.skipped_before) == (0, 0, 3) and inodes(cache) == before
    scenes[5].picture.write_bytes(whole[5])
    assert build(cache, source).shards_written == 0 and inodes(cache) == before
    teacher = TinyTeacher()
    plan = plan_build(cache, teacher, source, views=3, heads=source.heads, retry_skipped=True, trial=False)
    assert plan.shards_missing == 1 and teacher.images == 0
    # One of the shard's two pictures is mended: it is computed again with the other still skipped, whatever --on-error is.
    half = build(cache, source, teacher, retry_skipped=True)
    assert (half.shards_written, half.shards_replaced, half.complete) == (1, 1, True)
    assert [key for key, _ in half.skipped] == ["006.png"]
    assert teacher.images == 3 * with_heads([scenes[4], scenes[5], scenes[7]])
    assert {name for name, inode in inodes(cache).items() if before[name] != inode} == {"00001.safetensors"}
    assert [(row.key, row.shard) for row in CacheReader(cache).skipped()] == [("006.png", 1), ("009.png", 2)]
    for number in (6, 9):
        scenes[number].picture.write_bytes(whole[number])
    rest = build(cache, source, retry_skipped=True)
    assert (rest.shards_written, rest.skipped) == (2, ())
    build(tmp_path / "fresh", source)
    assert shard_files(cache) == shard_files(tmp_path / "fresh")


def test_parts_divide_what_is_retried(broken: tuple[Path, list, dict[int, bytes]]) -> None:
    cache, scenes, whole = broken
    for number, data in whole.items():
        scenes[number].picture.write_bytes(data)
    written = [build(cache, make_source(scenes), retry_skipped=True, part=(index, 2)).shards_written for index in (0, 1)]
    assert written == [1, 1] and not list(CacheReader(cache).skipped())


def test_a_failure_that_is_new_is_not_passed_over(broken: tuple[Path, list, dict[int, bytes]]) -> None:
    cache, scenes, whole = broken
    before = shard_files(cache)
    scenes[5].picture.write_bytes(whole[5])
    scenes[4].picture.write_bytes(b"no picture any more")
    with pytest.raises(PictureError, match=r"004\.png"):
        build(cache, make_source(scenes), retry_skipped=True)
    assert shard_files(cache) == before, "the shard that could not be replaced is whole"


def test_a_reader_reads_what_it_has_mapped_and_checks_what_took_its_place(broken: tuple[Path, list, dict[int, bytes]]) -> None:
    cache, scenes, whole = broken
    reader, narrow = CacheReader(cache), CacheReader(cache, open_shards=1)
    old = reader.read("007.png", 1).heatmap
    assert np.array_equal(narrow.read("007.png", 1).heatmap, old)
    narrow.read("001.png", 0)
    scenes[5].picture.write_bytes(whole[5])
    build(cache, make_source(scenes), retry_skipped=True)
    with pytest.raises(CacheError, match=r"'005.png' was skipped .*`distill cache build .* --retry-skipped`"):
        reader.read("005.png", 0)
    assert np.array_equal(reader.read("007.png", 1).heatmap, old)
    assert len(narrow.read("005.png", 0).heatmap) == 2
    # A file that takes a checked shard's place is no more trusted than any other.
    narrow.read("001.png", 0)
    path = cache / "shards/00001.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    path.unlink()
    path.write_bytes(damaged)
    with pytest.raises(CacheError, match=r"00001.safetensors is damaged: its (payload|index)"):
        narrow.read("007.png", 1)
    with pytest.raises(CacheError, match=r"00001.safetensors is damaged: its (payload|index)"):
        narrow.read_many([("007.png", 1)])


def test_a_damaged_shard_is_rebuilt_by_its_number_alone(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 14), tmp_path / "cache"
    source = make_source(scenes)
    build(cache, source)
    good, before = shard_files(cache), inodes(cache)
    for name in ("00001.safetensors", "00003.safetensors"):
        (cache / "shards" / name).write_bytes(good[name][:-1] + bytes([good[name][-1] ^ 4]))
    (cache / "shards/00002.safetensors").unlink()
    with pytest.raises(CacheError, match=r"00001.safetensors is damaged: .* run `distill cache build .*cache --rebuild 1`: just that shard"):
        CacheReader(cache).read("004.png", 0)
    teacher = TinyTeacher()
    summary = build(cache, source, teacher, rebuild=[1])
    assert (summary.shards_written, summary.shards_replaced, summary.shards_elsewhere) == (1, 1, 1)
    assert teacher.images == 3 * with_heads(scenes[4:8])
    both = build(cache, source, rebuild=[2, 3, 3])
    assert (both.shards_written, both.shards_replaced, both.complete) == (2, 1, True)
    assert shard_files(cache) == good and inodes(cache)["00000.safetensors"] == before["00000.safetensors"]
    with pytest.raises(CacheError, match=r"--rebuild 7: cache .* has no such shard; they are numbered from 0 to 3"):
        build(cache, source, rebuild=[7])
    with pytest.raises(CacheError, match=r"--rebuild 3: the data set has none of that shard's scenes"):
        build(cache, make_source(scenes[:4]), rebuild=[3])


def test_a_shard_too_damaged_to_say_what_it_skipped_is_rebuilt_as_well(broken: tuple[Path, list, dict[int, bytes]]) -> None:
    cache, scenes, _ = broken
    path = cache / "shards/00002.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:50])
    with pytest.raises(PictureError, match=r"009\.png"):
        build(cache, make_source(scenes), rebuild=[2])
    build(cache, make_source(scenes), rebuild=[2], on_error="skip")
    assert path.read_bytes() == good


def test_changed_annotations_name_every_shard_and_the_command_mends_them(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 10), tmp_path / "cache"
    build(cache, make_source(scenes), views=2)
    build(cache, make_source(scenes), views=3)
    changed = list(scenes)
    for number in (1, 8):
        head = scenes[number].heads[0]
        changed[number] = replace(scenes[number], heads=(replace(head, box=(0.31, *head.box[1:])), *scenes[number].heads[1:]))
    source = make_source(changed)
    with pytest.raises(CacheError, match=r"the boxes of scene '001.png' have changed: .* --rebuild 0,2,3,5`: just those shards") as told:
        CacheReader(cache).check_annotations(source)
    numbers = [int(number) for number in re.search(r"--rebuild ([\d,]+)", str(told.value))[1].split(",")]  # type: ignore[index]
    before = inodes(cache)
    build(cache, source, rebuild=numbers)
    CacheReader(cache).check_annotations(source)
    assert {name for name, inode in inodes(cache).items() if before[name] == inode} == {"00001.safetensors", "00004.safetensors"}
    build(tmp_path / "fresh", source, views=2)
    build(tmp_path / "fresh", source, views=3)
    assert shard_files(cache) == shard_files(tmp_path / "fresh")


def test_more_stale_shards_than_a_command_line_holds_ask_for_another_cache(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 63), tmp_path / "cache"
    build(cache, make_source(scenes), views=1, scenes_per_shard=1)
    heads = [[replace(head, inout=-1) for head in scene.heads] for scene in scenes]
    changed = [replace(scene, heads=tuple(mine)) for scene, mine in zip(scenes, heads, strict=True)]
    with pytest.raises(CacheError, match=r"42 shards are affected: build another cache with `distill cache build .* --out OTHER_PATH`"):
        CacheReader(cache).check_annotations(make_source(changed))


def test_a_changed_picture_is_refused_beside_its_old_views_and_mended_with_them(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 6), tmp_path / "cache"
    source = make_source(scenes)
    build(cache, source, views=2)
    make_scenes(tmp_path / "others", 6, seed=9)
    scenes[1].picture.write_bytes((tmp_path / "others/001.png").read_bytes())
    with pytest.raises(CacheError, match=r"picture of scene '001.png' has changed: .* put the old picture back, or run `.* --rebuild 0`"):
        build(cache, source, views=3)
    build(cache, source, views=3, rebuild=[0])
    build(cache, source, views=3)
    # And now the other way round: the views that are there last were built of what is no more.
    scenes[2].picture.write_bytes((tmp_path / "others/002.png").read_bytes())
    with pytest.raises(CacheError, match=r"picture of scene '002.png' has changed: .* --rebuild 0,2`"):
        build(cache, source, views=3, rebuild=[0])
    # All shards that hold it are named at once, so that the command works as it is.
    with pytest.raises(CacheError, match=r"picture of scene '002.png' has changed: .* --rebuild 0,2`"):
        build(cache, source, views=4)
    build(cache, source, views=3, rebuild=[0, 2])
    build(cache, source, views=4)
    for views in (2, 3, 4):
        build(tmp_path / "fresh", source, views=views)
    assert shard_files(cache) == shard_files(tmp_path / "fresh")


def test_a_picture_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source, reads = make_source(make_scenes(tmp_path / "pictures", 3)), []
    plain = source.picture

    def restless(scene: int) -> tuple[np.ndarray, bytes]:
        pixels, digest = plain(scene)
        reads.append(scene)
        return pixels, digest if scene != 2 or reads.count(2) == 1 else bytes(16)

    source.picture = restless  # type: ignore[method-assign]
    with pytest.raises(CacheError, match=r"picture of scene '002.png' changed while it was read"):
        build(tmp_path / "cache", source, batch_images=2)
    assert not shard_files(tmp_path / "cache")


def test_a_rebuild_of_no_cache_begins_none(tmp_path: Path) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 3))
    with pytest.raises(CacheError, match=r"--rebuild 0: .*typo is no cache yet; check --out"):
        build(tmp_path / "typo", source, rebuild=[0])
    with pytest.raises(CacheError, match="is no cache yet"):
        plan_build(tmp_path / "typo", TinyTeacher(), source, views=1, heads=lambda _: 1, rebuild=[0])
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(("rank", "world"), [("3", None), ("2", "2"), ("x", "2")])
def test_a_rank_outside_of_its_launch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, world: str | None) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(CacheError, match=f"RANK={rank} and WORLD_SIZE={world or 1}, which no launcher sets"):
        build(tmp_path / "cache", make_source(make_scenes(tmp_path / "pictures", 2)))
