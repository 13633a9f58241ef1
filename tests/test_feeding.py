"""Feeding: what a batch holds, in which order, and that nothing of it depends on who asks, when, or how often."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.augment import Augment
from distill.errors import DataError, PictureError
from distill.feeding import AHEAD, SceneBatches
from distill.pictures import digest_bytes, load_picture
from distill.scenes import IN, OUT, UNKNOWN, Head, Scene
from distill.targets import gaussian_target
from distill.views import View, ViewPolicy, choose_view
from students.batch import Batch
from teachers.cache.records import CachedView
from teachers.errors import CacheError
from tests.cache_world import TinyTeacher, build, make_scenes, make_source

POLICY = ViewPolicy(seed=3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    return make_scenes(tmp_path_factory.mktemp("pictures"), 11)


def make_batches(scenes: list[Scene], **options: Any) -> SceneBatches:
    settings: dict[str, Any] = {"policy": POLICY, "input_size": (16, 24), "heatmap_size": (8, 8), "batch_size": 3, "seed": 5, "lineage": {"data": "x"}}
    return SceneBatches(scenes, **{**settings, **options})


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, item.name), getattr(other, item.name)) for item in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


class FakeCache:
    """A cache that answers from memory: for each scene and view a geometry of its own and maps that name their place."""

    def __init__(self, scenes: list[Scene], views: int = 3, *, size: int = 8, inout: bool = True) -> None:
        self.views, self.size, self.inout = views, size, inout
        self.heads = {scene.key: len(scene.heads) for scene in scenes}
        self.pictures = {scene.key: digest_bytes(scene.picture.read_bytes()) for scene in scenes}
        self.asked: list[tuple[str, int]] = []

    def view(self, key: str, number: int) -> View:
        return View(0.125 * number, 0.0, 1.0, 1.0 - 0.125 * int(key[:3]) % 0.5, number == 2)

    def picture_digest(self, key: str, view: int) -> bytes:
        return self.pictures[key]

    def read(self, key: str, view: int) -> CachedView:
        self.asked.append((key, view))
        count = self.heads[key]
        base = 100.0 * int(key[:3]) + 10.0 * view
        heatmap = np.stack([np.full((self.size, self.size), base + head, np.float32) for head in range(count)]) if count else np.zeros((0, self.size, self.size), np.float32)
        logits = np.arange(count, dtype=np.float32) + base if self.inout else None
        return CachedView(heatmap, logits, np.zeros((count, 4), np.float32), np.array(self.view(key, view).to_row()))


def test_a_batch_holds_each_scenes_view_with_its_heads_and_labels(scenes: list[Scene]) -> None:
    for epoch in (0, 2):
        for batch in make_batches(scenes).batches(epoch, 0):
            first = 0
            assert batch.images.shape == (3, 3, 16, 24) and batch.images.dtype == torch.float32
            for place, key in enumerate(batch.scenes):
                scene = next(scene for scene in scenes if scene.key == key)
                pixels = load_picture(scene.picture)
                flat = scene.normalised(pixels.shape[1], pixels.shape[0])
                view = POLICY.view(flat, epoch)  # without a cache, a new view at every epoch
                rows = slice(first, first + len(scene.heads))
                first += len(scene.heads)
                assert torch.equal(batch.images[place], view.picture(pixels, (16, 24)))
                assert batch.image_index[rows].tolist() == [place] * len(scene.heads)
                assert torch.equal(batch.boxes[rows], torch.from_numpy(view.boxes(flat.boxes()).astype(np.float32)))
                for number, head in enumerate(flat.heads):
                    row = rows.start + number
                    seen = head.inout == IN
                    assert (batch.inout[row], batch.has_target[row]) == (head.inout, seen)
                    points = [tuple(view.points(np.array(point))) for point in head.points]
                    assert np.array_equal(batch.target[row].numpy(), gaussian_target(points, (8, 8)) if seen else np.zeros((8, 8)))
            assert first == len(batch.boxes) == len(batch.target)
            assert batch.teacher_heatmap is None and batch.teacher_inout is None


def test_unknown_and_out_heads_have_no_target(scenes: list[Scene]) -> None:
    boxes = [(0.1 * n, 0.1, 0.1 * n + 0.1, 0.3) for n in range(4)]
    heads = (
        Head(boxes[0], ((0.5, 0.5), (0.6, 0.5)), IN), Head(boxes[1], ((0.5, 0.5),), OUT), Head(boxes[2], (), UNKNOWN), Head(boxes[3], ((0.25, 0.5),), UNKNOWN)
    )
    batch = next(make_batches([replace(scenes[0], heads=heads)], batch_size=1).batches(0, 0))
    assert batch.inout.tolist() == [1, 0, -1, -1] and batch.has_target.tolist() == [True, False, False, False]
    assert batch.target[0].max() == 1 and not batch.target[1:3].any()
    np.testing.assert_array_equal(batch.target[0].numpy(), gaussian_target([(0.5, 0.5), (0.6, 0.5)], (8, 8)))


def test_an_epoch_shows_whole_batches_of_every_scene_at_most_once(scenes: list[Scene]) -> None:
    source = make_batches(scenes)
    assert source.steps_per_epoch == 3 and source.lineage == {"data": "x"}
    shown = [key for batch in source.batches(1, 0) for key in batch.scenes]
    assert len(shown) == len(set(shown)) == 9
    orders = {tuple(source.order(epoch)) for epoch in range(6)}
    assert len(orders) == 6 and all(sorted(order) == list(range(11)) for order in orders)
    assert make_batches(scenes, batch_size=50).steps_per_epoch == 1


def test_the_order_is_a_function_of_seed_and_epoch(scenes: list[Scene]) -> None:
    source = make_batches(scenes)
    torch.manual_seed(99)
    first = source.order(4)
    torch.rand(10)
    assert make_batches(scenes).order(4) == first == source.order(4)
    assert make_batches(scenes, seed=6).order(4) != first
    assert [scenes[i].key for i in first[:3]] == list(next(source.batches(4, 0)).scenes)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_going_on_in_the_middle_gives_what_was_left(scenes: list[Scene], start: int) -> None:
    cache = FakeCache(scenes)
    whole = list(make_batches(scenes, augment=Augment(), cache=cache).batches(2, 0))
    rest = list(make_batches(scenes, augment=Augment(), cache=cache, workers=1).batches(2, start))
    assert len(rest) == 3 - start
    assert all(same(one, other) for one, other in zip(whole[start:], rest, strict=True))


def test_processes_share_each_batch(scenes: list[Scene]) -> None:
    options: dict[str, Any] = {"batch_size": 5, "cache": FakeCache(scenes), "augment": Augment()}
    together = list(make_batches(scenes, **options).batches(1, 0))
    apart = [list(make_batches(scenes, rank=rank, world=2, **options).batches(1, 0)) for rank in range(2)]
    assert [len(part) for part in apart] == [2, 2]
    for step, batch in enumerate(together):
        assert [len(part[step].scenes) for part in apart] == [3, 2]
        assert apart[0][step].scenes == batch.scenes[0::2] and apart[1][step].scenes == batch.scenes[1::2]
        for rank in range(2):
            mine = apart[rank][step]
            assert torch.equal(mine.images, batch.images[rank::2])
            heads = torch.isin(batch.image_index, torch.arange(rank, 5, 2))
            for name in ("boxes", "target", "has_target", "inout", "teacher_heatmap", "teacher_inout"):
                assert torch.equal(getattr(mine, name), getattr(batch, name)[heads]), name


def test_fewer_pictures_than_processes_are_refused(scenes: list[Scene]) -> None:
    with pytest.raises(DataError, match="a batch of 1 pictures cannot be shared by 2 processes; raise --batch-size"):
        make_batches(scenes, batch_size=1, world=2)
    with pytest.raises(DataError, match="there are 3 scenes"):
        make_batches(scenes[:3], batch_size=8, world=4)
    with pytest.raises(DataError, match="no scene to train on"):
        make_batches([])


def test_a_cache_is_replayed_view_by_view(scenes: list[Scene]) -> None:
    cache = FakeCache(scenes)
    source = make_batches(scenes, cache=cache)
    expected = {(scene.key, choose_view(5, epoch, scene.key, 3)) for epoch in (3, 4) for scene in scenes}
    for epoch in (3, 4):
        for batch in source.batches(epoch, 0):
            assert batch.teacher_heatmap is not None and batch.teacher_inout is not None
            first = 0
            for place, key in enumerate(batch.scenes):
                scene = next(scene for scene in scenes if scene.key == key)
                number = choose_view(5, epoch, key, 3)
                view, pixels = cache.view(key, number), load_picture(scene.picture)
                assert torch.equal(batch.images[place], view.picture(pixels, (16, 24)))  # the cache's geometry, not the policy's
                for head in range(len(scene.heads)):
                    value = 100.0 * int(key[:3]) + 10.0 * number + head
                    assert batch.teacher_heatmap[first + head].unique().tolist() == [value]
                    assert batch.teacher_inout[first + head] == value
                    box = view.boxes(np.array([scene.heads[head].box]))[0].astype(np.float32)
                    assert np.array_equal(batch.boxes[first + head].numpy(), box)
                first += len(scene.heads)
    assert set(cache.asked) <= expected and len(cache.asked) == 18


def test_a_real_cache_holds_what_the_teacher_says_of_the_fed_pictures(scenes: list[Scene], tmp_path: Path) -> None:
    from teachers.cache.reader import CacheReader

    teacher = TinyTeacher()
    build(tmp_path / "cache", make_source(scenes), teacher, codec="fp16")
    source = make_batches(scenes, policy=ViewPolicy(), cache=CacheReader(tmp_path / "cache"), input_size=(32, 32), heatmap_size=(16, 16))
    seen = 0
    for epoch in range(3):
        for batch in source.batches(epoch, 0):
            assert batch.teacher_heatmap is not None and batch.teacher_inout is not None
            if not len(batch.boxes):
                continue
            with torch.no_grad():
                live = teacher(batch.images, batch.boxes, batch.image_index)
            bound = 2.0**-11 * float(live.heatmap.abs().max()) + 1e-5
            assert float((batch.teacher_heatmap - live.heatmap).abs().max()) <= bound
            torch.testing.assert_close(batch.teacher_inout, live.inout, atol=5e-3, rtol=2e-3)
            seen += len(batch.boxes)
    assert seen > 15


def test_a_teacher_without_inout_gives_maps_alone(scenes: list[Scene]) -> None:
    batch = next(make_batches(scenes, cache=FakeCache(scenes, inout=False)).batches(0, 0))
    assert batch.teacher_heatmap is not None and batch.teacher_inout is None


def test_a_changed_annotation_is_refused(scenes: list[Scene]) -> None:
    cache = FakeCache(scenes)
    cache.heads[scenes[4].key] += 1
    with pytest.raises(CacheError, match=r"scene 004\.png has 1 heads, the cache 2: .* `distill cache build`"):
        list(make_batches(scenes, cache=cache, batch_size=11).batches(0, 0))


def test_a_picture_that_was_replaced_after_the_cache_was_built_is_refused(tmp_path: Path) -> None:
    from teachers.cache.ensemble import open_caches

    here = make_scenes(tmp_path / "pictures", 5)
    for name in "ab":
        build(tmp_path / name, make_source(here))
    whole = here[3].picture.read_bytes()
    pixels = load_picture(here[3].picture)
    Image.fromarray(pixels).save(here[3].picture, compress_level=0)  # the same pixels, another file
    changed = here[3].picture.read_bytes()
    told = rf"picture of scene '003\.png' has changed: .* {digest_bytes(whole).hex()}, .*003\.png is now {digest_bytes(changed).hex()}; .*`distill cache build"
    for specs in ([f"{tmp_path}/a"], [f"{tmp_path}/a:2", f"{tmp_path}/b"]):
        source = make_batches(here, policy=ViewPolicy(), cache=open_caches(specs), batch_size=5)
        with pytest.raises(CacheError, match=told):
            list(source.batches(0, 0))
        here[3].picture.write_bytes(whole)
        assert len(list(source.batches(0, 0))) == 1
        here[3].picture.write_bytes(changed)
    build(tmp_path / "new", make_source(here))
    mixed = open_caches([f"{tmp_path}/a", f"{tmp_path}/new"])
    assert mixed.picture_digest("002.png", 1) == digest_bytes(here[2].picture.read_bytes())
    with pytest.raises(CacheError, match=rf"'003\.png' is not the same in caches .*a \({digest_bytes(whole).hex()}\) and .*new"):
        mixed.picture_digest("003.png", 1)
    with pytest.raises(CacheError, match="'stranger' is not in cache"):
        mixed.picture_digest("stranger", 1)


@pytest.mark.parametrize("cached", [False, True])
def test_a_box_outside_its_picture_is_refused(scenes: list[Scene], cached: bool) -> None:
    outside = replace(scenes[2], heads=(Head((1.2, 0.1, 1.4, 0.3)), *scenes[2].heads[1:]))
    source = make_batches([outside], batch_size=1, cache=FakeCache(scenes) if cached else None)
    with pytest.raises(DataError, match=r"scene 002\.png: .* box 1\.2, 0\.1, 1\.4, 0\.3 lies outside .*`distill cache build --on-error skip`"):
        next(source.batches(0, 0))


def test_maps_of_another_size_are_resampled_bilinearly_as_logits(scenes: list[Scene]) -> None:
    class Ramp(FakeCache):
        def read(self, key: str, view: int) -> CachedView:
            cached = super().read(key, view)
            line = np.arange(4, dtype=np.float32) * 10
            return cached._replace(heatmap=np.broadcast_to(line, (len(cached.heatmap), 4, 4)).copy())

    wide = next(make_batches(scenes, cache=Ramp(scenes)).batches(0, 0)).teacher_heatmap
    narrow = next(make_batches(scenes, cache=Ramp(scenes), heatmap_size=(2, 2)).batches(0, 0)).teacher_heatmap
    assert wide is not None and narrow is not None and wide.shape[1:] == (8, 8) and len(wide)
    assert wide[0, 0].tolist() == [0.0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30.0] and torch.equal(wide[0, 0], wide[0, 7])
    assert narrow[0].tolist() == [[5.0, 25.0], [5.0, 25.0]]


def test_augmentation_is_a_function_of_seed_epoch_and_scene(scenes: list[Scene]) -> None:
    cache = FakeCache(scenes, views=1)  # the same view at every epoch: only augmentation differs

    def images(seed: int, epoch: int) -> dict[str, Tensor]:
        source = make_batches(scenes, cache=cache, augment=Augment(), batch_size=11, seed=seed)
        return {key: batch.images[place] for batch in source.batches(epoch, 0) for place, key in enumerate(batch.scenes)}

    base = images(1, 1)
    torch.manual_seed(7)
    assert all(torch.equal(image, base[key]) for key, image in images(1, 1).items())
    for other in (images(2, 1), images(1, 2)):
        assert not any(torch.equal(image, base[key]) for key, image in other.items())
    assert all(float(image.min()) >= 0.0 and float(image.max()) <= 1.0 for image in base.values())


def test_augmentation_touches_neither_targets_nor_the_teachers_maps(scenes: list[Scene]) -> None:
    cache = FakeCache(scenes)
    plain = next(make_batches(scenes, cache=cache).batches(2, 0))
    changed = next(make_batches(scenes, cache=cache, augment=Augment()).batches(2, 0))
    for name in ("target", "has_target", "inout", "teacher_heatmap", "teacher_inout", "image_index", "scenes"):
        one, other = getattr(plain, name), getattr(changed, name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert not torch.equal(plain.images, changed.images) and not torch.equal(plain.boxes, changed.boxes)


def test_jittered_boxes_stay_within_their_strength() -> None:
    boxes = torch.tensor([[0.2, 0.3, 0.4, 0.7], [0.0, 0.0, 1.0, 0.5]]).repeat(100, 1)
    augment = Augment(box=0.05)
    moved = augment.boxes(boxes, augment.generator(0, 0, "a"))
    sides = torch.tensor([[0.2, 0.4, 0.2, 0.4], [1.0, 0.5, 1.0, 0.5]]).repeat(100, 1)
    shift = (moved - boxes).abs() / sides
    assert float(shift.max()) <= 0.05 + 1e-6 and float(shift[0::2].max()) > 0.045
    assert float(moved.min()) >= 0.0 and float(moved.max()) <= 1.0 and bool((moved[:, :2] < moved[:, 2:]).all())
    assert Augment(box=0.0).boxes(boxes, augment.generator(0, 0, "a")) is boxes


def test_strength_zero_leaves_a_picture_as_it_is() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    off = Augment(0.0, 0.0, 0.0, 0.0, 0.0)
    torch.testing.assert_close(off.picture(image, off.generator(0, 0, "a")), image, atol=1e-6, rtol=0)
    grey = Augment(0.0, 0.0, 0.0, 1.0, 0.0)
    found = grey.picture(image, grey.generator(0, 0, "a"))
    torch.testing.assert_close(found, image.mean(dim=0, keepdim=True).expand(3, 8, 8), atol=1e-6, rtol=0)


def test_photometric_changes_follow_their_factors() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    augment = Augment(0.1, 0.2, 0.3, 0.0, 0.0)
    for key in "abcdef":
        roll = (torch.rand(4, generator=augment.generator(1, 2, key)) * 2 - 1).tolist()
        grey = image.mean(dim=0, keepdim=True)
        coloured = grey + (image - grey) * (1 + 0.3 * roll[2])
        mean = coloured.mean()
        expected = ((coloured - mean) * (1 + 0.2 * roll[1]) + mean * (1 + 0.1 * roll[0])).clamp(0, 1)
        torch.testing.assert_close(augment.picture(image, augment.generator(1, 2, key)), expected, atol=1e-6, rtol=1e-5)


def feeding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feeding")]


def test_a_consumer_that_stops_early_leaves_no_thread_behind(scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, closing = ThreadPoolExecutor.shutdown, threading.Event()

    class Slow(FakeCache):
        def read(self, key: str, view: int) -> CachedView:
            if len(self.asked) == 3:
                closing.wait(600)  # behind the first batch, until nobody waits any more
            return super().read(key, view)

    def shutdown(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        plain(pool, wait=False, cancel_futures=cancel_futures)
        closing.set()
        plain(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)

    cache = Slow(scenes)
    source = make_batches(scenes, cache=cache, workers=1)
    batches = source.batches(0, 0)
    assert len(next(batches).scenes) == 3 and feeding_threads()
    batches.close()  # type: ignore[attr-defined]
    assert feeding_threads() == []
    assert len(cache.asked) in (3, 4) and 3 * min(AHEAD, source.steps_per_epoch) == 9, "pictures were prepared that nobody waits for"
    abandoned = source.batches(0, 0)
    next(abandoned)
    del abandoned
    assert feeding_threads() == []
    list(source.batches(0, 0))
    assert feeding_threads() == []


def test_a_broken_picture_stops_the_epoch_and_is_named(scenes: list[Scene], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(scenes[5].picture.read_bytes()[:200])
    changed = [*scenes[:5], replace(scenes[5], file=str(broken)), *scenes[6:]]
    with pytest.raises(PictureError, match=r"broken\.png cannot be decoded"):
        list(make_batches(changed, batch_size=11).batches(0, 0))
    assert feeding_threads() == []


def test_a_users_photographs_are_fed_upright(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:5] = 255  # the stored picture's top; turned by 90 degrees, it is the right side of a tall one
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    scene = Scene("turned.png", str(tmp_path / "turned.png"), (Head((0.1, 0.1, 0.3, 0.3)),))
    upright = next(make_batches([scene], batch_size=1, input_size=(30, 20), exif=True).batches(0, 0)).images[0]
    stored = next(make_batches([scene], batch_size=1, input_size=(20, 30)).batches(0, 0)).images[0]
    assert upright[0, :, -5:].unique().tolist() == [1.0] and upright[0, :, :-5].unique().tolist() == [0.0]
    assert torch.equal(stored, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_a_batch_moves_as_a_whole(scenes: list[Scene]) -> None:
    batch = next(make_batches(scenes, cache=FakeCache(scenes)).batches(0, 0))
    assert same(batch.to(torch.device("cpu")), batch)
    elsewhere = batch.to(torch.device("meta"))
    assert all(value.device.type == "meta" for item in fields(Batch) if isinstance(value := getattr(elsewhere, item.name), Tensor))
    assert elsewhere.scenes == batch.scenes
