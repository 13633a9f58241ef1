"""Building: rows as the live teacher gives them, growth, parts, skipped scenes, refusals, a full disk."""

from __future__ import annotations

import pickle
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_world import TinyTeacher, build, make_scenes, make_source, shard_files

from distill.errors import PictureError
from distill.scenes import SceneSet
from distill.source import SceneSource
from distill.views import View
from teachers.build_plan import plan_build
from teachers.cache.ensemble import CacheEnsemble, average, open_caches
from teachers.cache.reader import CacheReader
from teachers.cache.verify import verify_rows
from teachers.errors import CacheError
from teachers.runner import BuildRecord
from teachers.shard_draft import answer


def inodes(cache: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (cache / "shards").iterdir()}


def live(source: SceneSource, key: str, view: int) -> tuple[np.ndarray, np.ndarray | None]:
    loaded = source.load(list(source.keys).index(key), [view], (32, 32))
    return answer(TinyTeacher(), loaded.images, loaded.boxes[0], np.zeros(len(loaded.boxes[0]), np.int64))


@pytest.mark.parametrize("codec", ["fp16", "q8"])
def test_a_row_is_what_the_live_teacher_gives_for_that_view(tmp_path: Path, codec: str) -> None:
    scenes = make_scenes(tmp_path / "pictures", 11)
    source, teacher = make_source(scenes), TinyTeacher()
    records: list[BuildRecord] = []
    summary = build(tmp_path / "cache", source, teacher, codec=codec, report=records.append)
    reader = CacheReader(tmp_path / "cache")
    assert (reader.scenes, reader.views, reader.heatmap_size, reader.has_inout) == (11, 3, (16, 16), True)
    assert reader.covers([*source.keys, "stranger"]) == (["stranger"], [])
    flipped = 0
    for number, scene in enumerate(scenes):
        for view in range(3):
            cached = reader.read(scene.key, view)
            assert cached.heatmap.dtype == np.float32 and len(cached.heatmap) == len(scene.heads) == source.heads(
                number
            )
            drawn = source.draw(number, [view], 56, 40 + number % 3)[1][0]
            assert tuple(cached.geometry) == drawn.to_row()
            assert np.array_equal(cached.boxes, drawn.boxes(scene.boxes()).astype(np.float32))
            if not scene.heads:
                continue
            flipped += drawn.flip
            heatmap, inout = live(source, scene.key, view)
            peak = np.abs(heatmap).max(axis=(1, 2))
            span = heatmap.max(axis=(1, 2)) - heatmap.min(axis=(1, 2))
            bound = peak * 2.0**-11 if codec == "fp16" else span / 510 * 1.001
            assert (np.abs(cached.heatmap - heatmap).max(axis=(1, 2)) <= bound + 1e-6 * peak).all()
            assert np.allclose(cached.inout, inout, atol=1e-6)
    assert flipped >= 2
    rows = 3 * sum(len(scene.heads) for scene in scenes)
    assert (summary.rows, summary.shards_written, summary.complete) == (rows, 3, True)
    # One pass a view, however many heads; none for scenes without heads; batches never cross a shard.
    assert teacher.images == 3 * sum(1 for scene in scenes if scene.heads)
    assert teacher.batches == [5, 1, 5, 4, 5, 1]
    assert records[-1].views == records[-1].views_total == 33 and records[-1].scenes == records[-1].scenes_total == 11
    assert records[-1].rows == rows and records[-1].bytes == summary.bytes
    assert [record.rows for record in records] == sorted(record.rows for record in records)
    with pytest.raises(CacheError, match=r"has 3 views, view 3 was asked for"):
        reader.read(scenes[1].key, 3)
    with pytest.raises(CacheError, match="'stranger' is not in cache"):
        reader.read("stranger", 0)


def test_a_mirrored_map_is_not_the_map_of_the_mirrored_picture(tmp_path: Path) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 3), flip=1.0, crop=0.0)
    build(tmp_path / "cache", source, views=2)
    reader = CacheReader(tmp_path / "cache")
    key = source.keys[2]
    straight, mirrored = reader.read(key, 0), reader.read(key, 1)
    assert tuple(mirrored.geometry) == View(flip=True).to_row()
    assert np.abs(mirrored.heatmap - straight.heatmap[:, :, ::-1]).max() > 1.0
    assert np.abs(mirrored.heatmap - live(source, key, 1)[0]).max() < 0.05


def test_growth_computes_only_what_is_missing(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 10), tmp_path / "cache"
    build(cache, make_source(scenes[:6]), views=2)
    before, teacher = inodes(cache), TinyTeacher()
    grown = build(cache, make_source(scenes), teacher)
    assert {name: inodes(cache)[name] for name in before} == before
    assert (grown.shards_present, grown.shards_written) == (2, 3)
    with_heads = [bool(scene.heads) for scene in scenes]
    assert teacher.images == sum(with_heads[:6]) + 3 * sum(with_heads[6:])
    # The same table as one that was built at once; only the batches differed.
    build(tmp_path / "whole", make_source(scenes))
    one, other = CacheReader(cache), CacheReader(tmp_path / "whole")
    for scene in scenes:
        for view in range(3):
            a, b = one.read(scene.key, view), other.read(scene.key, view)
            assert np.allclose(a.heatmap, b.heatmap, atol=2e-3 * max(1.0, np.abs(a.heatmap).max(initial=0)))
            assert np.array_equal(a.geometry, b.geometry)
    manifest, files = (cache / "cache.json").stat().st_mtime_ns, inodes(cache)
    for asked in (make_source(scenes), make_source(scenes[2:5]), make_source(scenes[::-1])):
        again = build(cache, asked, views=1, scenes_per_shard=2)
        assert (again.shards_written, again.rows) == (0, 0)
    assert (cache / "cache.json").stat().st_mtime_ns == manifest and inodes(cache) == files
    # Fewer views with more scenes: the table stays full.
    build(cache, make_source([*scenes, *make_scenes(tmp_path / "more", 12)[10:]]), views=1)
    assert CacheReader(cache).covers([scene.key for scene in scenes]) == ([], []) and CacheReader(cache).views == 3


def test_growth_that_was_interrupted_does_not_bind_who_asks_for_less(tmp_path: Path) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 8)), tmp_path / "cache"
    build(cache, source, views=2, part=(0, 2))
    build(cache, source, views=5, part=(0, 4))
    summary = build(cache, source, views=2)
    assert (summary.shards_written, summary.shards_elsewhere) == (1, 2)
    assert CacheReader(cache).covers(source.keys, 2) == ([], [])
    assert plan_build(cache, TinyTeacher(), source, views=5, heads=source.heads, trial=False).shards_missing == 2


def test_parts_and_processes_give_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 18))
    build(tmp_path / "one", source)
    first = build(tmp_path / "parts", source, part=(0, 2))
    assert (first.shards_written, first.shards_elsewhere, first.complete) == (3, 2, False)
    assert CacheReader(tmp_path / "parts").covers(source.keys[:5]).missing == [source.keys[4]]
    with pytest.raises(CacheError, match=r"00001.safetensors is missing; run `distill cache build .*--out"):
        CacheReader(tmp_path / "parts").read(source.keys[4], 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert build(tmp_path / "parts", source, part=(1, 2), workers=3).shards_written == 1, rank
    assert shard_files(tmp_path / "parts") == shard_files(tmp_path / "one")
    assert (tmp_path / "parts/cache.json").read_bytes() == (tmp_path / "one/cache.json").read_bytes()
    with pytest.raises(CacheError, match="--part 2/2 does not exist"):
        build(tmp_path / "parts", source, part=(2, 2))


def test_strangers_are_refused_with_both_values(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 4), tmp_path / "cache"
    build(cache, make_source(scenes))
    before = (cache / "cache.json").read_bytes(), inodes(cache)
    reader, source = CacheReader(cache), make_source(scenes)
    reader.check(TinyTeacher().fingerprint, source.identity)
    for teacher, asked, told in (
        (TinyTeacher(seed=1), source, r"teacher.weights: cache seed 0, asked for seed 1"),
        (TinyTeacher(), make_source(scenes, seed=7), r"source.views.seed: cache 0, asked for 7"),
        (TinyTeacher(), make_source(scenes, flip=0.25), r"source.views.flip: cache 0.5, asked for 0.25"),
        (TinyTeacher(), make_source(scenes, split="test"), r"source.split: cache trainval, asked for test"),
    ):
        with pytest.raises(CacheError, match=told):
            build(cache, asked, teacher)
    with pytest.raises(CacheError, match=r"codec: cache fp16, asked for q8; give another --out, or go on with .*: `distill cache build --data .* --out \S+/cache`"):
        build(cache, source, codec="q8")
    with pytest.raises(
        CacheError, match=r"another teacher: weights: cache seed 0, this run seed 1; run `distill cache build"
    ):
        reader.check(TinyTeacher(seed=1).fingerprint)
    with pytest.raises(
        CacheError,
        match=r"another data or views: views.seed: cache 0, this run 7; run `distill cache build --data world:world .*--seed 7",
    ):
        reader.check(source_identity=make_source(scenes, seed=7).identity, mend=make_source(scenes, seed=7).mend)
    assert ((cache / "cache.json").read_bytes(), inodes(cache)) == before
    # The carved splits share the training file's cache.
    reader.check(source_identity=make_source(scenes, split="val").identity)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("years of work")
    with pytest.raises(CacheError, match="is not empty and no cache"):
        build(tmp_path / "full", source)
    with pytest.raises(CacheError, match="no scenes"):
        build(tmp_path / "none", make_source([]))


def test_changed_annotations_and_pictures_are_noticed(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 6), tmp_path / "cache"
    build(cache, make_source(scenes))
    head = scenes[5].heads[0]
    for changed, what in (
        (replace(head, box=(0.31, *head.box[1:])), "boxes"),
        (replace(head, points=((0.9, 0.9),)), "gaze points"),
        (replace(head, inout=-1), "gaze points"),
    ):
        source = make_source([*scenes[:5], replace(scenes[5], heads=(changed, *scenes[5].heads[1:]))])
        with pytest.raises(
            CacheError,
            match=rf"the {what} of scene '005.png' have changed: .* [0-9a-f]{{32}}, now [0-9a-f]{{32}}; run `.* --rebuild 1`",
        ):
            CacheReader(cache).check_annotations(source)
        with pytest.raises(CacheError, match="have changed"):
            build(cache, source)
    make_scenes(tmp_path / "others", 6, seed=9)
    scenes[1].picture.write_bytes((tmp_path / "others/001.png").read_bytes())
    with pytest.raises(CacheError, match=r"picture of scene '001.png' has changed"):
        build(cache, make_source(scenes), views=4)
    with pytest.raises(CacheError, match=r"picture of scene '001.png' has changed"):
        verify_rows(CacheReader(cache), TinyTeacher(), make_source(scenes), 10_000)
    # Growth that did not come to pass leaves the views that are there.
    keys = [scene.key for scene in scenes]
    assert CacheReader(cache).covers(keys).missing == keys and CacheReader(cache).covers(keys, 3) == ([], [])
    assert CacheReader(cache).covers(keys, 5).missing == keys


def test_a_corrupt_picture_stops_or_is_skipped_and_listed(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 10), tmp_path / "cache"
    whole = scenes[5].picture.read_bytes()
    scenes[5].picture.write_bytes(whole[:60])
    source = make_source(scenes)
    with pytest.raises(PictureError, match=r"005.png"):
        build(cache, source)
    assert sorted(shard_files(cache)) == ["00000.safetensors"]
    kept = inodes(cache)
    summary = build(cache, source, on_error="skip")
    assert [key for key, _ in summary.skipped] == ["005.png"] and "cannot be decoded" in summary.skipped[0][1]
    assert inodes(cache)["00000.safetensors"] == kept["00000.safetensors"]
    reader = CacheReader(cache)
    assert reader.covers(source.keys) == ([], ["005.png"])
    assert [(row.key, row.shard) for row in reader.skipped()] == [("005.png", 1)]
    with pytest.raises(CacheError, match=r"'005.png' was skipped .*run `.* --retry-skipped`"):
        reader.read("005.png", 0)
    assert len(reader.read("004.png", 2).heatmap) == 1 and len(reader.read("008.png", 2).heatmap) == 2
    reader.check_annotations(source)
    assert verify_rows(reader, TinyTeacher(), source, 1000).rows == reader.rows()
    # Mended as the message says.
    scenes[5].picture.write_bytes(whole)
    (cache / "shards/00001.safetensors").unlink()
    build(cache, source)
    build(tmp_path / "fresh", source)
    assert shard_files(cache) == shard_files(tmp_path / "fresh")
    with pytest.raises(CacheError, match="--on-error 'ignore' is unknown"):
        build(cache, source, on_error="ignore")


def test_a_map_that_cannot_be_stored_names_its_scene(tmp_path: Path) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 3))
    with pytest.raises(CacheError, match=r"scene '001.png', view 0, head 0: .*--codec q8"):
        build(tmp_path / "cache", source, TinyTeacher(gain=1e6), on_error="skip")
    build(tmp_path / "other", source, TinyTeacher(gain=1e6), codec="q8")


def test_any_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 6)), tmp_path / "cache"
    build(cache, source)
    path = cache / "shards/00001.safetensors"
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    dice = np.random.default_rng(0)
    places = [
        *range(12),
        *range(header - 6, header),
        *dice.integers(0, header, 150),
        *dice.integers(header, len(good), 150),
        len(good) - 1,
    ]
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << int(dice.integers(8))
        path.write_bytes(damaged)
        found = dict(CacheReader(cache).check_shards())
        assert found[0] is None
        assert found[1] is not None and "00001.safetensors" in str(found[1]) and "--rebuild 1`" in str(found[1]), place
    for wrong in (b"", good[:-1], good[: header + 40], good + b"\0", good[:5]):
        path.write_bytes(wrong)
        with pytest.raises(CacheError, match=r"00001.safetensors is damaged .*--rebuild 1`: just that shard"):
            CacheReader(cache).read(source.keys[4], 0)
    # A whole shard in another's place is no less a stranger.
    path.write_bytes((cache / "shards/00000.safetensors").read_bytes())
    with pytest.raises(CacheError, match=r"00001.safetensors is not this cache's: .*scenes: manifest 4:6, shard 0:4"):
        CacheReader(cache).read(source.keys[4], 0)
    path.unlink()
    assert build(cache, source).shards_written == 1
    assert path.read_bytes() == good


def test_the_payload_is_checked_at_a_process_first_read(tmp_path: Path) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 6)), tmp_path / "cache"
    build(cache, source)
    path = cache / "shards/00001.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-200] ^= 8
    old = CacheReader(cache)
    old.read(source.keys[4], 0)
    path.write_bytes(damaged)
    fresh = pickle.loads(pickle.dumps(old))
    for reader in (fresh, CacheReader(cache)):
        assert reader.covers(source.keys) in (([], []),)
        for _ in range(2):
            with pytest.raises(CacheError, match=r"damaged: its (payload|index)"):
                reader.read(source.keys[4], 0)
        reader.read(source.keys[2], 0)


def test_few_maps_are_open_and_a_pickled_reader_reads_the_same(tmp_path: Path) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 12)), tmp_path / "cache"
    build(cache, source, scenes_per_shard=1)
    reader = CacheReader(cache, open_shards=3)
    maps = {key: reader.read(key, 1).heatmap for key in source.keys}
    assert len(reader._table.process.open) == 3
    other = pickle.loads(pickle.dumps(reader))
    assert not other._table.process.open
    assert all(np.array_equal(other.read(key, 1).heatmap, maps[key]) for key in reversed(source.keys))
    row = other.read(source.keys[2], 1)
    row.heatmap[:] = 0.0
    assert np.array_equal(other.read(source.keys[2], 1).heatmap, maps[source.keys[2]])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 20), tmp_path / "cache"
    build(cache, make_source(scenes[:3]), scenes_per_shard=1)
    before = inodes(cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
    try:
        with pytest.raises(OSError, match="what was there before is whole"):
            build(cache, make_source(scenes), scenes_per_shard=17)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert inodes(cache) == before
    assert all(error is None for shard, error in CacheReader(cache).check_shards() if shard < 3)
    assert build(cache, make_source(scenes)).shards_written == 1


def test_a_part_of_the_data_does_not_finish_others_shards(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 12), tmp_path / "cache"
    build(cache, make_source(scenes), part=(0, 3))
    assert build(cache, make_source(scenes[:4])).shards_elsewhere == 2
    with pytest.raises(CacheError, match=r"shard 1 of cache .* needs 2 scenes that this data set does not have"):
        build(cache, make_source(scenes[:6]))


def test_a_plan_writes_nothing_and_is_right(tmp_path: Path) -> None:
    scenes, cache = make_scenes(tmp_path / "pictures", 9), tmp_path / "cache"
    source = make_source(scenes)
    plan = plan_build(cache, TinyTeacher(), source, views=3, heads=source.heads, scenes_per_shard=4)
    assert not cache.exists()
    summary = build(cache, source)
    assert (plan.scenes, plan.new_scenes, plan.views, plan.heads, plan.shards_missing) == (9, 9, 3, 9, 3)
    assert plan.rows == summary.rows and summary.bytes <= plan.bytes <= summary.bytes + 3 * 300 and plan.seconds > 0
    more = plan_build(cache, TinyTeacher(), source, views=5, heads=source.heads, scenes_per_shard=4, trial=False)
    assert (more.new_scenes, more.shards, more.shards_missing, more.rows, more.seconds) == (0, 6, 3, 18, 0.0)
    with pytest.raises(CacheError, match="holds something else"):
        plan_build(cache, TinyTeacher(1), source, views=3, heads=source.heads)


def test_verify_tells_a_true_cache_from_a_false_one(tmp_path: Path) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 9)), tmp_path / "cache"
    for codec in ("fp16", "q8"):
        build(tmp_path / codec, source, codec=codec)
        report = verify_rows(CacheReader(tmp_path / codec), TinyTeacher(), source, 8, seed=3)
        assert report.ok and report.rows == 8 and report.shift_max <= 1.5 and 0 < report.kl_max < 1e-3
        assert report.max_error <= report.bound and report.inout_error is not None and report.inout_error < 1e-5

    # No more rows than were asked for, though a view of two heads is run whole; no more than there are; others with another seed.
    reports = [verify_rows(CacheReader(tmp_path / "q8"), TinyTeacher(), source, rows) for rows in (1, 2, 3, 26, 27, 28, 10**9)]
    assert [report.rows for report in reports] == [1, 2, 3, 26, 27, 27, 27]
    assert len({verify_rows(CacheReader(tmp_path / "q8"), TinyTeacher(), source, 1, seed).worst for seed in range(12)}) > 5

    class Liar(TinyTeacher):
        def forward(self, images: torch.Tensor, boxes: torch.Tensor, image_index: torch.Tensor):  # type: ignore[no-untyped-def]
            output = super().forward(images, boxes, image_index)
            return output._replace(heatmap=output.heatmap + 0.1)

    build(cache, source)
    report = verify_rows(CacheReader(cache), Liar(), source, 8)
    assert not report.ok and report.excess > 1 and report.max_error == pytest.approx(0.1, abs=0.02)


def test_an_ensemble_averages_in_log_odds_or_probability(tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path / "pictures", 6)
    source = make_source(scenes)
    build(tmp_path / "a", source, TinyTeacher(0))
    build(tmp_path / "b", source, TinyTeacher(1, has_inout=False), codec="q8")
    a, b = CacheReader(tmp_path / "a"), CacheReader(tmp_path / "b")
    key = source.keys[2]
    x, y = a.read(key, 1).heatmap.astype(np.float64), b.read(key, 1).heatmap.astype(np.float64)
    mixed = open_caches([f"{tmp_path}/a:3", f"{tmp_path}/b:1"])
    assert isinstance(mixed, CacheEnsemble) and mixed.has_inout and mixed.views == 3
    assert np.allclose(mixed.read(key, 1).heatmap, 0.75 * x + 0.25 * y, atol=1e-5)
    assert np.allclose(mixed.read(key, 1).inout, a.read(key, 1).inout)
    p = 0.75 / (1 + np.exp(-x)) + 0.25 / (1 + np.exp(-y))
    other = CacheEnsemble([(a, 3), (b, 1)], space="probability")
    assert np.allclose(other.read(key, 1).heatmap, np.log(p / (1 - p)), atol=1e-3)
    assert np.isfinite(average([np.full(1, 900.0), np.full(1, 800.0)], [0.5, 0.5], "probability")).all()
    assert isinstance(open_caches([f"{tmp_path}/a"]), CacheReader)
    assert mixed.covers([*source.keys, "x"]) == (["x"], [])
    build(tmp_path / "c", make_source(scenes, seed=5))
    with pytest.raises(CacheError, match=r"cannot be averaged: views.seed: first 0, second 5"):
        CacheEnsemble([(a, 1.0), (CacheReader(tmp_path / "c"), 1.0)])
    for bad, told in (
        ([f"{tmp_path}/a:x"], "weight 'x' is no number"),
        ([f"{tmp_path}/a:0", f"{tmp_path}/b:1"], "weight 0 is not a finite number above 0"),
        ([f"{tmp_path}/a:inf", f"{tmp_path}/b:1"], "weight inf is not a finite"),
        ([f"{tmp_path}/a:nan"], "weight nan is not a finite"),
        ([f"{tmp_path}/a:-1"], "weight -1 is not a finite"),
        ([], "no cache"),
    ):
        with pytest.raises(CacheError, match=told):
            open_caches(bad)
    with pytest.raises(CacheError, match="finite weights above 0"):
        CacheEnsemble([(a, float("inf")), (b, 1.0)])


def test_a_source_is_known_by_reader_split_and_policy_not_by_its_folder(tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path / "pictures", 3)
    here = SceneSource(
        SceneSet("world", Path("a"), "train", tuple(scenes)), make_source(scenes).policy, spec="world:a b"
    )
    assert here.identity == make_source(scenes[:1]).identity
    assert here.mend == "distill cache build --data 'world:a b' --split trainval --seed 0"
    scenes[1].picture.unlink()
    with pytest.raises(PictureError, match=r"001.png does not exist"):
        here.load(1, [0], (32, 32))
    loaded = here.load(2, [0, 1, 2], (32, 24))
    assert loaded.images.shape == (3, 3, 32, 24) and loaded.boxes.shape == (3, 2, 4) and loaded.geometry.shape == (3, 5)
