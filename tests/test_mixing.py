"""Batches of labelled and unlabelled scenes: what is in them, and that nothing depends on who asks, when, or how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.augment import Augment
from distill.errors import ConfigurationError, DataError
from distill.feeding import Pool, SceneBatches
from distill.mixing import Draw, Mixture, Walk, parts_of, spread
from distill.pictures import load_picture
from distill.scenes import UNKNOWN
from distill.views import ViewPolicy, choose_view
from students.losses import HeadCounts, LossWeights, gaze_losses
from students.trainer import split
from teachers.contract import GazeOutput
from tests.cache_world import make_scenes
from tests.test_feeding import FakeCache, same

POLICY = ViewPolicy(seed=3)


@pytest.mark.parametrize(
    ("batch", "share", "labelled", "unlabelled", "expected"),
    [
        (16, 0.5, 80, 400, (8, 8)),
        (16, 0.9, 80, 400, (2, 14)),
        (16, 0.999, 80, 400, (1, 15)),
        (16, 0.001, 80, 400, (15, 1)),
        (16, 0.5, 3, 400, (3, 13)),  # few labelled: the others take their place
        (16, 0.5, 80, 5, (11, 5)),
        (16, 0.5, 3, 5, (3, 5)),
        (16, 0.5, 80, 0, (16, 0)),
        (16, 0.5, 0, 7, (0, 7)),
        (2, 0.1, 9, 9, (1, 1)),
    ],
)
def test_the_parts_of_a_batch(batch: int, share: float, labelled: int, unlabelled: int, expected: tuple[int, int]) -> None:
    assert parts_of(batch, share, labelled, unlabelled) == expected


def test_one_picture_is_not_of_both_kinds() -> None:
    with pytest.raises(ConfigurationError, match=r"a batch of 1 picture cannot hold .*--batch-size 2"):
        parts_of(1, 0.5, 9, 9)


def test_an_epoch_is_a_pass_over_the_labelled_and_the_others_are_walked_beside_it() -> None:
    mixture = Mixture(labelled=9, unlabelled=20, batch_size=6, share=0.5, seed=4)
    assert (mixture.parts, mixture.steps_per_epoch) == ((3, 3), 3)
    shown = [[Walk(mixture, epoch).batch(number) for number in range(3)] for epoch in range(4)]
    for epoch, batches in enumerate(shown):
        labelled = [draw for batch in batches for draw in batch if not draw.unlabelled]
        assert sorted(draw.scene for draw in labelled) == list(range(9)) and {draw.turn for draw in labelled} == {epoch}
    beside = [draw for batches in shown for batch in batches for draw in batch if draw.unlabelled]
    # 36 places, passes of 6 batches of 3: two whole ones, two of twenty scenes left out of each.
    assert [draw.turn for draw in beside] == [0] * 18 + [1] * 18
    first, second = ([draw.scene for draw in beside if draw.turn == turn] for turn in (0, 1))
    assert len(set(first)) == len(set(second)) == 18 and first != second
    assert mixture.passes(3) == 0.5
    assert [draw.scene for draw in beside[:6]] == mixture.beside(0)[:6]


def test_labelled_scenes_come_in_the_order_that_they_have_alone() -> None:
    alone, mixed = Mixture(9, 0, 3, 0.5, 4), Mixture(9, 20, 6, 0.5, 4)
    assert alone.order(2) == mixed.order(2) == [draw.scene for number in range(3) for draw in Walk(mixed, 2).batch(number) if not draw.unlabelled]
    assert Walk(alone, 2).batch(1) == [Draw(False, scene, 2) for scene in alone.order(2)[3:6]]
    pure = Mixture(0, 9, 3, 0.5, 4)
    assert pure.steps_per_epoch == 3 and Walk(pure, 2).batch(1) == [Draw(True, scene, 2) for scene in alone.order(2)[3:6]]


def test_another_seed_is_another_walk() -> None:
    one, other = (Mixture(9, 20, 6, 0.5, seed) for seed in (1, 2))
    assert one.beside(0) != other.beside(0) and one.beside(0) != one.beside(1)
    assert one.beside(3) == Mixture(9, 20, 6, 0.5, 1).beside(3)


def test_spreading_keeps_both_orders() -> None:
    draws = [Draw(False, n, 0) for n in range(4)] + [Draw(True, n, 1) for n in range(4)]
    assert [draw.unlabelled for draw in spread(draws)] == [False, True] * 4
    assert sorted(spread(draws)) == sorted(draws)
    assert [draw.scene for draw in spread(draws)] == [0, 0, 1, 1, 2, 2, 3, 3]
    few = [Draw(False, n, 0) for n in range(6)] + [Draw(True, 0, 0), Draw(True, 1, 0)]
    assert [draw.unlabelled for draw in spread(few)] == [False, False, True, False, False, False, True, False]


# -- batches ------------------------------------------------------------------------------------------------------------


class Mixed:
    """Seven labelled and thirteen unlabelled scenes of two origins, each with a cache that answers from memory."""

    def __init__(self, folder: Path) -> None:
        self.scenes = make_scenes(folder / "labelled", 9)[2:]
        other = [replace(scene, heads=tuple(replace(head, points=(), inout=UNKNOWN) for head in scene.heads)) for scene in make_scenes(folder / "own", 22, seed=1)]
        other = [scene for scene in other if scene.heads]
        self.cache, self.own, self.more = FakeCache(self.scenes), FakeCache(other[:8], 2), FakeCache(other[8:13], 2, size=4)
        self.pools = (Pool(other[:8], POLICY, self.own, name="own"), Pool(other[8:13], POLICY, self.more, name="more"))  # type: ignore[arg-type]

    def __call__(self, **options: Any) -> SceneBatches:
        settings: dict[str, Any] = {
            "policy": POLICY, "input_size": (16, 24), "heatmap_size": (8, 8), "batch_size": 5, "seed": 5, "lineage": {}, "cache": self.cache,
            "augment": Augment(), "unlabelled": self.pools, "unlabelled_share": 0.6,
        }
        return SceneBatches(options.pop("scenes", self.scenes), **{**settings, **options})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    return Mixed(tmp_path_factory.mktemp("mixed"))


def test_every_batch_holds_its_share_with_the_right_answers(mixed: Mixed) -> None:
    scenes = {pool.key(scene): (pool, scene) for pool in mixed.pools for scene in pool.scenes}
    scenes |= {scene.key: (Pool(mixed.scenes, POLICY, mixed.cache), scene) for scene in mixed.scenes}  # type: ignore[arg-type]
    source = mixed(augment=None)
    assert source.steps_per_epoch == 3  # of the seven labelled, two a batch
    seen: Counter[str] = Counter()
    step = 0
    for epoch in range(4):
        for batch in source.batches(epoch, 0):
            names = [key.partition(": ")[0] if ": " in key else "" for key in batch.scenes]
            assert len(set(batch.scenes)) == 5 and names.count("") == 2
            assert batch.teacher_heatmap is not None and batch.teacher_heatmap.shape[1:] == (8, 8) and batch.teacher_inout is not None
            first, turn = 0, step // 4  # four batches of three are a pass over the thirteen
            for place, key in enumerate(batch.scenes):
                pool, scene = scenes[key]
                cache: Any = pool.cache
                number = choose_view(5, turn if pool.name else epoch, scene.key, cache.views)
                view, rows = cache.view(scene.key, number), slice(first, first + len(scene.heads))
                first += len(scene.heads)
                assert torch.equal(batch.images[place], view.picture(load_picture(scene.picture), (16, 24)))
                value = [100.0 * int(scene.key[:3]) + 10.0 * number + head for head in range(len(scene.heads))]
                assert batch.teacher_heatmap[rows].flatten(1).mean(dim=1).tolist() == value == batch.teacher_inout[rows].tolist()
                if pool.name:
                    assert not batch.has_target[rows].any() and (batch.inout[rows] == UNKNOWN).all() and not batch.target[rows].any()
                seen[pool.name] += 1
            step += 1
    assert seen[""] == 24 and seen["own"] + seen["more"] == 36 and min(seen["own"], seen["more"]) > 10


@pytest.mark.parametrize("start", [0, 1, 2])
def test_going_on_in_the_middle_gives_what_was_left(mixed: Mixed, start: int) -> None:
    for epoch in (1, 3):  # the passes of the unlabelled do not end where the epochs do
        whole = list(mixed().batches(epoch, 0))
        rest = list(mixed(workers=1).batches(epoch, start))
        assert len(rest) == 3 - start and all(same(one, other) for one, other in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch_without_overlap(mixed: Mixed, world: int) -> None:
    together = list(mixed().batches(2, 0))
    apart = [list(mixed(rank=rank, world=world).batches(2, 0)) for rank in range(world)]
    for step, batch in enumerate(together):
        shares = [part[step].scenes for part in apart]
        assert sorted(key for share in shares for key in share) == sorted(batch.scenes)
        if world == 2:
            assert all(any(": " in key for key in share) and any(": " not in key for key in share) for share in shares), "both kinds everywhere"
        for part in apart:
            for place, key in enumerate(part[step].scenes):
                assert torch.equal(part[step].images[place], batch.images[batch.scenes.index(key)])


def test_unlabelled_scenes_alone_are_all_walked(mixed: Mixed) -> None:
    source = mixed(scenes=(), cache=None, batch_size=3)
    assert source.steps_per_epoch == 4
    batches = list(source.batches(0, 0))
    keys = [key for batch in batches for key in batch.scenes]
    assert len(set(keys)) == 12 and {key.partition(":")[0] for key in keys} == {"own", "more"}
    assert all(not batch.has_target.any() and batch.teacher_heatmap is not None for batch in batches)
    rest = list(source.batches(0, 2))
    assert same(rest[0], batches[2]) and same(rest[1], batches[3])


def test_answers_for_one_kind_only_are_refused(mixed: Mixed) -> None:
    with pytest.raises(DataError, match="only if a teacher's cache answers for both"):
        mixed(cache=None)
    with pytest.raises(DataError, match="there is no scene to train on"):
        mixed(scenes=(), unlabelled=())
    with pytest.raises(DataError, match="a batch of 5 pictures cannot be shared by 6 processes"):
        mixed(world=6)


def test_task_losses_are_means_over_labelled_heads_and_distillation_over_all(mixed: Mixed) -> None:
    batch = next(mixed(augment=None).batches(0, 0))
    heads = len(batch.inout)
    generator = torch.Generator().manual_seed(0)
    output = GazeOutput(torch.randn(heads, 8, 8, generator=generator), torch.randn(heads, generator=generator))

    def terms(part: Any, out: GazeOutput, counts: HeadCounts) -> Any:
        return gaze_losses(out, part, counts, LossWeights(softmax=1.0), distill_weight=1.0, temperature=2.0)

    counts = HeadCounts.of(batch)
    labelled = batch.inout >= 0
    assert 0 < int(labelled.sum()) < heads
    found = terms(batch, output, counts)
    # Alone, the labelled heads have the same task terms: the others are not in the mean.
    alone = replace(
        batch, boxes=batch.boxes[labelled], target=batch.target[labelled], has_target=batch.has_target[labelled], inout=batch.inout[labelled],
        image_index=batch.image_index[labelled], teacher_heatmap=batch.teacher_heatmap[labelled], teacher_inout=batch.teacher_inout[labelled],  # type: ignore[index]
    )
    of_labelled = terms(alone, GazeOutput(output.heatmap[labelled], output.inout[labelled]), HeadCounts.of(alone))  # type: ignore[index]
    for name in ("heatmap", "spatial", "inout"):
        torch.testing.assert_close(getattr(found, name), getattr(of_labelled, name), atol=1e-6, rtol=1e-6)
    assert abs(float(found.kd_heatmap - of_labelled.kd_heatmap)) > 1e-3
    # Divided over processes or micro-batches, the parts add up to the whole.
    total, first = 0.0, 0
    for part in split(batch, 3):
        rows = slice(first, first + len(part.inout))
        first = rows.stop
        total += float(terms(part, GazeOutput(output.heatmap[rows], output.inout[rows]), counts).total)  # type: ignore[index]
    assert total == pytest.approx(float(found.total), abs=1e-4)
    for field in ("heatmap", "spatial", "inout"):
        assert float(getattr(found, field)) > 0
    none = replace(batch, has_target=torch.zeros_like(batch.has_target), inout=torch.full_like(batch.inout, UNKNOWN))
    bare = terms(none, output, HeadCounts.of(none))
    assert (float(bare.heatmap), float(bare.spatial), float(bare.inout)) == (0.0, 0.0, 0.0) and float(bare.kd_heatmap) > 0
    assert np.isfinite(float(bare.total))
