"""Pictures that change under a finished cache: noticed by a build that has nothing to compute, cheaply, and mended as the message says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cache_world import TinyTeacher, build, make_scenes, make_source, shard_files

import distill.source
from distill.errors import PictureError
from distill.scenes import Scene
from distill.source import SceneSource
from teachers.build_plan import plan_build
from teachers.cache.memo import MEMO
from teachers.cache.reader import CacheReader
from teachers.errors import CacheError
from teachers.picture_check import CheckRecord


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that were written just now have a stamp that can be relied on, as they would in two seconds."""
    monkeypatch.setattr(distill.source, "FRESH_NS", 0)


def reads(source: SceneSource, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that are read from now on to be compared."""
    found: list[str] = []
    digest = source.picture_digest

    def counted(scene: int) -> bytes:
        found.append(source.keys[scene])
        return digest(scene)

    monkeypatch.setattr(source, "picture_digest", counted)
    return found


def overwrite(scene: Scene, other: Scene) -> None:
    scene.picture.write_bytes(other.picture.read_bytes())


def test_a_changed_picture_of_a_finished_cache_is_noticed_and_the_remedy_works(tmp_path: Path) -> None:
    scenes, others = make_scenes(tmp_path / "pictures", 10), make_scenes(tmp_path / "others", 10, seed=9)
    source, cache = make_source(scenes), tmp_path / "cache"
    build(cache, source, views=2)
    build(cache, source, views=3)
    overwrite(scenes[1], others[1])
    overwrite(scenes[9], others[9])
    teacher = TinyTeacher()
    told = r"picture of scene '001.png' has changed: .* [0-9a-f]{32}, it is now [0-9a-f]{32}, and those of 1 more scenes; put .* --rebuild 0,2,3,5`"
    with pytest.raises(CacheError, match=told):
        build(cache, source, teacher, views=3, workers=3)
    with pytest.raises(CacheError, match=told):
        plan_build(cache, teacher, source, views=3, heads=source.heads, trial=False)
    assert teacher.images == 0
    build(cache, source, views=3, rebuild=[0, 2, 3, 5])
    assert build(cache, source, views=3).pictures.pictures == 20, "each scene in two shards"
    build(tmp_path / "fresh", source, views=2)
    build(tmp_path / "fresh", source, views=3)
    assert shard_files(cache) == shard_files(tmp_path / "fresh")


def test_pictures_that_were_not_touched_are_not_read_again(old: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, others = make_scenes(tmp_path / "pictures", 10), make_scenes(tmp_path / "others", 10, seed=9)
    source, cache = make_source(scenes), tmp_path / "cache"
    build(cache, source)
    read = reads(source, monkeypatch)
    records: list[CheckRecord] = []
    check = build(cache, source, report_check=records.append).pictures
    assert (check.pictures, check.read, read) == (10, 0, [])
    assert [(record.pictures, record.pictures_total) for record in records] == [(4, 10), (8, 10), (10, 10)]
    # Touched but the same: read once, and known again.
    os.utime(scenes[4].picture, (1e9, 1e9))
    assert [build(cache, source).pictures.read for _ in range(2)] == [1, 0] and read == ["004.png"]
    # Of another content, but of the size and time of the old one: the time of change tells.
    there = scenes[5].picture.stat()
    scenes[5].picture.write_bytes(others[5].picture.read_bytes()[: there.st_size].ljust(there.st_size))
    os.utime(scenes[5].picture, ns=(there.st_atime_ns, there.st_mtime_ns))
    with pytest.raises(CacheError, match=r"picture of scene '005.png' has changed"):
        build(cache, source)


def test_the_memo_is_only_a_memo(old: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 10)), tmp_path / "cache"
    build(cache, source)
    good = (cache / MEMO).read_bytes()
    assert len(good) == 80 and bytes(8) not in [good[start : start + 8] for start in range(0, 80, 8)]
    for damaged, again in ((good[:21], 8), (good[:16] + b"\1" + good[17:], 1), (b"", 10), (good + b"more", 0)):
        (cache / MEMO).write_bytes(damaged)
        assert build(cache, source).pictures.read == again
        assert (cache / MEMO).read_bytes()[:80] == good
    # A place that takes nothing costs the time alone.
    (cache / MEMO).unlink()
    (cache / MEMO).mkdir()
    assert [build(cache, source).pictures.read for _ in range(2)] == [10, 10]
    assert CacheReader(cache).covers(source.keys) == ([], [])


def test_a_picture_that_was_just_written_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = make_scenes(tmp_path / "pictures", 3)
    source = make_source(scenes)
    # As long as file systems count in steps of, but of any machine's pace.
    assert distill.source.FRESH_NS == 2_000_000_000
    monkeypatch.setattr(distill.source, "FRESH_NS", 10**18)
    assert [source.picture_stamp(scene) for scene in range(3)] == [b""] * 3
    monkeypatch.setattr(distill.source, "FRESH_NS", 0)
    assert len({source.picture_stamp(scene) for scene in range(3)}) == 3
    scenes[0].picture.unlink()
    assert source.picture_stamp(0) == b""


def test_a_picture_that_is_gone_stops_a_build_or_is_listed(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 6), tmp_path / "cache"
    source = make_source(scenes)
    build(cache, source)
    scenes[4].picture.unlink()
    with pytest.raises(PictureError, match=r"004\.png does not exist"):
        build(cache, source)
    check = build(cache, source, on_error="skip").pictures
    assert (check.pictures, [key for key, _ in check.unread]) == (5, ["004.png"])
    # One that was skipped has nothing to be compared with.
    records: list[CheckRecord] = []
    build(tmp_path / "skipped", source, on_error="skip")
    assert build(tmp_path / "skipped", source, report_check=records.append).pictures.pictures == 5
    assert (records[-1].pictures, records[-1].pictures_total) == (5, 5)


def test_each_part_compares_the_pictures_of_its_own_shards(tmp_path: Path) -> None:
    scenes, others = make_scenes(tmp_path / "pictures", 10), make_scenes(tmp_path / "others", 10, seed=9)
    source, cache = make_source(scenes), tmp_path / "cache"
    build(cache, source)
    assert [build(cache, source, part=(index, 2)).pictures.pictures for index in range(2)] == [6, 4]
    overwrite(scenes[5], others[5])
    build(cache, source, part=(0, 2))
    with pytest.raises(CacheError, match=r"--rebuild 1`"):
        build(cache, source, part=(1, 2))
    # Scenes that this request does not name are nobody's to compare.
    assert build(cache, make_source(scenes[:4])).pictures.pictures == 4
