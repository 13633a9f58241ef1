"""The processes of a launch: the first counts what the others do as the disk shows it, waits for them, and tells of all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from cache_world import build, make_scenes, make_source
from torch import distributed

from teachers import launch as launching
from teachers.cache.reader import CacheReader
from teachers.launch import Launch, OthersWork, joined
from teachers.runner import BuildRecord


@pytest.fixture
def store() -> distributed.Store:
    return distributed.HashStore()


def test_without_a_launcher_there_is_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({}, {"RANK": "0", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}, {"WORLD_SIZE": "x", "TORCHELASTIC_RUN_ID": "x"}):
        for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with joined() as launch:
            assert launch is None


def test_the_first_process_waits_counts_and_tells_of_all(store: distributed.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes as two threads: the second begins when the first has counted, and skips a scene."""
    scenes = make_scenes(tmp_path / "pictures", 20)
    scenes[5].picture.write_bytes(b"no picture")
    source, cache = make_source(scenes), tmp_path / "cache"
    monkeypatch.setattr(launching, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("teachers.runner.process_part", lambda part: (part[0] + part[1] * int(threading.current_thread().name == "second"), part[1] * 2))
    first, second = (Launch(store, rank, 2) for rank in range(2))
    failures: list[BaseException] = []
    told = threading.Event()  # the first process has told that it begins: what the second does from then on, it is to see

    def other() -> None:
        try:
            build(cache, source, on_error="skip", launch=second, report=lambda _: told.wait(600))
        except BaseException as error:
            failures.append(error)
        finally:
            second.end()

    thread = threading.Thread(target=other, name="second")
    thread.start()
    records: list[BuildRecord] = []

    def tell(record: BuildRecord) -> None:
        records.append(record)
        told.set()

    try:
        summary = build(cache, source, launch=first, report=tell)
    finally:
        told.set()
        first.end()
        thread.join()
    assert not failures
    assert (summary.shards_written, summary.complete, summary.skipped) == (3, True, ())
    assert summary.others is not None
    assert (summary.others.processes, summary.others.shards_written, summary.others.silent) == (2, 2, 0)
    assert [key for key, _ in summary.others.skipped] == ["005.png"]
    assert summary.rows + summary.others.rows == CacheReader(cache).rows()
    assert summary.bytes + summary.others.bytes == sum(path.stat().st_size for path in (cache / "shards").iterdir())
    assert {(record.views_total, record.others_views_total) for record in records} == {(36, 24)}
    assert (records[0].views, records[0].others_views) == (0, 0) and (records[-1].views, records[-1].others_views) == (36, 24)


def test_a_process_that_is_silent_for_long_is_not_waited_for(store: distributed.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 8)), tmp_path / "cache"
    monkeypatch.setattr(launching, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr("teachers.runner.process_part", lambda part: (0, 2))
    summary = build(cache, source, launch=Launch(store, 0, 2))
    assert summary.others is not None and not summary.complete
    assert (summary.shards_elsewhere, summary.others.silent, summary.others.shards_written) == (1, 1, 0)


def test_a_shard_that_is_computed_again_counts_when_its_file_is_another(store: distributed.Store, tmp_path: Path) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 8)), tmp_path / "cache"
    build(cache, source)
    reader = CacheReader(cache)
    spans = list(reader.manifest.spans())
    others = OthersWork(cache, spans, frozenset({0, 1}))
    assert not others.look(now=True) and (others.views, others.views_total) == (0, 24)
    build(cache, source, rebuild=[1])
    assert others.look(now=True) and others.views == 12
    launch = Launch(store, 0, 2)
    Launch(store, 1, 2).end()
    assert list(others.wait(launch)) == []
    done = others.summary(reader, launch)
    assert (done.shards_written, done.rows, done.silent, done.failed) == (1, reader.rows_in(1), 0, 0)
    Launch(store, 2, 3).end(failed=True)
    assert others.summary(reader, launch).failed == 1


def test_the_others_begin_when_the_first_has_counted(store: distributed.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "SILENCE_SECONDS", 0.05)
    second = Launch(store, 1, 2)
    with pytest.raises(RuntimeError):
        second.begin()
    Launch(store, 0, 2).begin()
    second.begin()
