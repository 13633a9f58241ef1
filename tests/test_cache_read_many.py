"""Many rows at a time: the very numbers of reading one by one, in one array, with the same refusals."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_world import TinyTeacher, build, make_scenes, make_source

from teachers.cache.ensemble import CacheEnsemble
from teachers.cache.reader import CacheReader
from teachers.cache.records import CachedRows, CachedView
from teachers.errors import CacheError

COUNT = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches ``fp16`` and ``q8`` (grown: three segments), ``mute`` (without in/out, q8) and ``other`` (another teacher)."""
    folder = tmp_path_factory.mktemp("many")
    scenes = make_scenes(folder / "pictures", COUNT)
    for codec in ("fp16", "q8"):
        build(folder / codec, make_source(scenes[:6]), codec=codec, views=2)
        build(folder / codec, make_source(scenes), codec=codec, views=3)
    build(folder / "mute", make_source(scenes), TinyTeacher(1, has_inout=False), codec="q8")
    build(folder / "other", make_source(scenes), TinyTeacher(2))
    return folder


def pairs(seed: int, count: int = 40) -> list[tuple[str, int]]:
    dice = random.Random(seed)
    return [(f"{dice.randrange(COUNT):03d}.png", dice.randrange(3)) for _ in range(count)]


def assert_same(many: CachedRows, single: list[CachedView]) -> None:
    assert many.heatmap.dtype == np.float32 and many.offsets.tolist() == [0, *np.cumsum([len(one.boxes) for one in single])]
    assert np.array_equal(many.heatmap, np.concatenate([one.heatmap for one in single]))
    assert np.array_equal(many.boxes, np.concatenate([one.boxes for one in single]))
    assert np.array_equal(many.geometry, np.stack([one.geometry for one in single]))
    voices = [one.inout for one in single if one.inout is not None]
    assert (many.inout is None) == (not voices)
    if many.inout is not None:
        assert np.array_equal(many.inout, np.concatenate(voices))


@pytest.mark.parametrize("name", ["fp16", "q8", "mute"])
def test_many_rows_are_the_rows_one_by_one(folder: Path, name: str) -> None:
    reader, wanted = CacheReader(folder / name, open_shards=2), pairs(1)
    single = [CacheReader(folder / name).read(key, view) for key, view in wanted]
    assert_same(reader.read_many(wanted), single)
    assert_same(reader.read_many(wanted[:1]), single[:1])
    nobody = reader.read_many([("000.png", 0), ("000.png", 2)])
    assert nobody.heatmap.shape == (0, 16, 16) and nobody.geometry.shape == (2, 5) and nobody.offsets.tolist() == [0, 0, 0]
    none = reader.read_many([])
    assert none.heatmap.shape == (0, 16, 16) and none.boxes.shape == (0, 4) and (none.inout is None) == (name == "mute")


def test_maps_are_decoded_into_a_tensor_that_is_given(folder: Path) -> None:
    reader, wanted = CacheReader(folder / "q8"), pairs(2)
    expected = reader.read_many(wanted)
    kept = torch.full((len(expected.heatmap) + 3, 16, 16), 7.0)
    given = reader.read_many(wanted, out=kept.numpy())
    assert np.shares_memory(given.heatmap, kept.numpy())
    assert torch.equal(kept[:-3], torch.from_numpy(expected.heatmap)) and bool((kept[-3:] == 7.0).all())
    # What is given out is the caller's: changing it changes nothing in the cache.
    given.heatmap[:], given.boxes[:] = 0.0, 0.0
    assert_same(reader.read_many(wanted), [reader.read(*pair) for pair in wanted])
    for wrong in (np.empty((3, 16, 16), np.float32), np.empty((99, 16, 8), np.float32), np.empty((99, 16, 16))):
        with pytest.raises(CacheError, match=r"maps of \(16, 16\) do not fit into an array"):
            reader.read_many(wanted, out=wrong)


def test_refusals_are_those_of_reading_one(folder: Path, tmp_path: Path) -> None:
    reader = CacheReader(folder / "q8")
    for pair in (("stranger", 0), ("001.png", 3), ("001.png", -1)):
        with pytest.raises(CacheError) as one:
            reader.read(*pair)
        with pytest.raises(CacheError) as many:
            reader.read_many([("002.png", 1), pair, ("004.png", 0)])
        assert str(many.value) == str(one.value)
    scenes = make_scenes(tmp_path / "pictures", 6)
    scenes[5].picture.write_bytes(b"no picture")
    build(tmp_path / "cache", make_source(scenes), on_error="skip")
    with pytest.raises(CacheError, match=r"scene '005.png' was skipped"):
        CacheReader(tmp_path / "cache").read_many([("004.png", 0), ("005.png", 0)])


def test_a_payload_is_checked_at_a_process_first_read_of_many(folder: Path, tmp_path: Path) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 6))
    build(tmp_path / "cache", source, codec="q8")
    path = tmp_path / "cache/shards/00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-200] ^= 8
    path.write_bytes(data)
    reader = CacheReader(tmp_path / "cache")
    reader.covers(source.keys)  # opens the shard, and looks at its small tensors alone
    for _ in range(2):
        with pytest.raises(CacheError, match=r"00001.safetensors is damaged: its (payload|index)"):
            reader.read_many([("001.png", 0), ("004.png", 1)])
    assert len(reader.read_many([("001.png", 0), ("002.png", 1)]).heatmap) == 3


def test_threads_share_a_reader_of_many(folder: Path) -> None:
    reader = CacheReader(folder / "fp16", open_shards=2)
    expected = {seed: CacheReader(folder / "fp16").read_many(pairs(seed)).heatmap for seed in range(8)}

    def same(turn: int) -> bool:
        return np.array_equal(reader.read_many(pairs(turn % 8)).heatmap, expected[turn % 8])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(160)))
    held = reader._table.process
    assert len(held.open) == 2 and set(held.rows) <= set(held.open)


@pytest.mark.parametrize("space", ["logit", "probability"])
def test_an_ensemble_reads_many_as_it_reads_one(folder: Path, space: str) -> None:
    members = [(CacheReader(folder / name), weight) for name, weight in (("fp16", 0.5), ("mute", 0.3), ("other", 0.2))]
    mixed, wanted = CacheEnsemble(members, space=space), pairs(3)  # type: ignore[arg-type]
    assert_same(mixed.read_many(wanted), [mixed.read(*pair) for pair in wanted])
