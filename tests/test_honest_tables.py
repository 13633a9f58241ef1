"""Intervals, paired differences, slices, reliability and flags: against brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distill.errors import MetricError
from distill.metrics import HeadRows
from distill.metrics.bootstrap import METRICS, Difference, Interval, _weights, intervals, paired
from distill.metrics.flags import flags
from distill.metrics.reliability import reliability
from distill.metrics.slices import slices


def made(count: int = 60, clusters: int = 20, seed: int = 0, *, inout: bool = True, lift: float = 1.0) -> HeadRows:
    """Heads in scenes of unequal size; labels are the same for every seed."""
    labels = np.random.default_rng(99)
    owner = labels.integers(0, clusters, count)
    inside = (labels.random(count) < 0.7).astype(np.int8)
    generator = np.random.default_rng(seed)

    def column(scale: float) -> np.ndarray:
        return np.where(inside == 1, scale * generator.random(count), np.nan)

    return HeadRows(
        scene=np.array([f"scene {k}" for k in owner], dtype=object), predicted=generator.random((count, 2)),
        auc=column(1), avg_l2=column(0.5), avg_l2_mean_of=column(0.6), min_l2=column(0.4), inout=inside,
        inout_logit=np.round(generator.standard_normal(count) + lift * inside, 1) if inout else np.full(count, np.nan),
        angle=column(90), head_size=labels.random(count) * 0.5, distance=column(0.8), people=labels.integers(1, 8, count),
        constant=np.zeros(count, dtype=bool),
    )


def changed(rows: HeadRows, **columns: np.ndarray) -> HeadRows:
    return HeadRows(**{**{name: getattr(rows, name) for name in rows.__dataclass_fields__}, **columns})


def test_intervals_are_those_of_resampled_rows() -> None:
    """Brute force: the rows of every drawn scene are copied as often as it was drawn, and the table is made again."""
    rows = made()
    names, owner = np.unique(rows.scene.astype(str), return_inverse=True)
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for weights in np.concatenate(list(_weights(len(names), 200, seed=5))):
        copies = np.concatenate([np.flatnonzero(owner == k) for k, times in enumerate(weights) for _ in range(int(times))])
        table = rows.take(copies).metrics()
        for name in METRICS:
            values[name].append(getattr(table, name))
    for name, found in intervals(rows, resamples=200, seed=5).items():
        carrying = rows.labelled if name == "ap" else rows.scored
        assert found is not None and found.clusters == len(np.unique(owner[carrying]))
        np.testing.assert_allclose((found.low, found.high), np.quantile(values[name], (0.025, 0.975)), rtol=0, atol=1e-12)


def test_every_resample_draws_as_many_scenes_as_there_are_and_a_seed_repeats() -> None:
    drawn = np.concatenate(list(_weights(7, 50, seed=1)))
    assert drawn.shape == (50, 7) and (drawn.sum(axis=1) == 7).all() and len(np.unique(drawn, axis=0)) > 40
    rows = made()
    assert intervals(rows, resamples=100, seed=3) == intervals(rows, resamples=100, seed=3) != intervals(rows, resamples=100, seed=4)


def test_heads_of_one_scene_are_drawn_together() -> None:
    """Thirty copies of each scene's one value tell no more than one of them: the interval must not shrink."""
    rows = made(40, 8)
    alone = rows.take(np.unique(rows.scene.astype(str), return_index=True)[1])
    alone = changed(alone, auc=np.arange(8) / 8.0, avg_l2=np.ones(8), avg_l2_mean_of=np.ones(8), min_l2=np.ones(8), inout=np.ones(8, np.int8))
    assert intervals(alone)["auc"] == intervals(alone.take(np.repeat(np.arange(8), 30)))["auc"]


def test_what_is_undefined_has_no_interval() -> None:
    rows = made(inout=False)
    found = intervals(rows, resamples=100)
    assert found["ap"] is None and found["auc"] is not None
    one = changed(rows, scene=np.array(["all"] * len(rows), dtype=object))
    assert set(intervals(one, resamples=100).values()) == {None}
    assert set(intervals(HeadRows.empty(), resamples=100).values()) == {None}
    with pytest.raises(MetricError, match="0 resamples"):
        intervals(rows, resamples=0)


def test_a_paired_difference_is_the_interval_of_the_differences() -> None:
    first, second = made(seed=1), made(seed=2)
    found = paired(first, second, resamples=300)["avg_l2"]
    assert found is not None
    # The mean of differences is the difference of the means: one column of differences has the same interval.
    same = intervals(changed(first, avg_l2=first.avg_l2 - second.avg_l2), resamples=300)["avg_l2"]
    assert same is not None
    assert (found.low, found.high) == pytest.approx((same.low, same.high), abs=1e-12)
    assert found.value == pytest.approx(first.metrics().avg_l2 - second.metrics().avg_l2)  # type: ignore[operator]


def test_a_shift_of_every_head_is_real_and_a_model_against_itself_is_not() -> None:
    rows = made()
    shifted = changed(rows, avg_l2=rows.avg_l2 - 0.01, auc=rows.auc - 0.01)
    found = paired(shifted, rows, resamples=200)
    better, worse, same = found["avg_l2"], found["auc"], found["min_l2"]
    assert better is not None and worse is not None and same is not None
    assert better.real and (better.low, better.high) == pytest.approx((-0.01, -0.01)) and better.better == 1.0
    assert worse.real and worse.better == 0.0
    assert better.p == worse.p == pytest.approx(2 / 201)
    assert not same.real and (same.value, same.p, same.better) == (0.0, 1.0, 0.0)
    # Unpaired, a hundredth is lost in what scenes differ by.
    alone = intervals(rows, resamples=200)["avg_l2"]
    assert alone is not None and alone.high - alone.low > 0.05


def test_only_the_same_heads_are_paired() -> None:
    rows = made()
    for other in (rows.take(np.arange(30)), rows.take(np.arange(60)[::-1]), changed(rows, inout=1 - rows.inout)):
        with pytest.raises(MetricError, match="same heads"):
            paired(rows, other, resamples=100)


def test_slices_cover_what_is_known_once() -> None:
    rows = made(300)
    found = slices(rows)
    for by in ("head height", "people", "gaze"):
        assert sum(part.metrics.heads for part in found if part.by == by) == 300
    assert sum(part.metrics.heads for part in found if part.by == "distance") == int((rows.inout == 1).sum())
    assert [part.name for part in found if part.by == "people"] == ["1", "2", "3–4", "≥ 5"]
    small = rows.head_size < 0.1
    part = found[0]
    assert (part.by, part.name) == ("head height", "< 0.1") and part.metrics == rows.take(small).metrics()
    inside, outside = (part for part in found if part.by == "gaze")
    assert outside.metrics.auc is None and outside.metrics.heads_in == 0
    assert inside.inout_right == pytest.approx((rows.inout_logit[rows.inout == 1] > 0).mean())
    assert outside.inout_right == pytest.approx((rows.inout_logit[rows.inout == 0] <= 0).mean())
    unknown = changed(rows, head_size=np.full(300, np.nan), people=np.zeros(300, np.int64), distance=np.full(300, np.nan))
    assert {part.by for part in slices(unknown)} == {"gaze"}


def test_reliability_by_hand() -> None:
    logits = np.log(np.array([0.05, 0.05, 0.85, 0.85, 0.85, 0.85, 0.95]) / np.array([0.95, 0.95, 0.15, 0.15, 0.15, 0.15, 0.05]))
    rows = changed(made(7), inout_logit=logits, inout=np.array([0, 1, 1, 1, 1, 0, -1], dtype=np.int8))
    found = reliability(rows)
    assert found is not None and found.heads == 6
    assert [(b.heads, b.share_in) for b in found.bins if b.heads] == [(2, 0.5), (4, 0.75)]
    assert found.bins[8].score == pytest.approx(0.85) and found.bins[3].score is None
    assert found.ece == pytest.approx(2 / 6 * 0.45 + 4 / 6 * 0.10)
    assert found.brier == pytest.approx((0.05**2 + 0.95**2 + 3 * 0.15**2 + 0.85**2) / 6)
    assert reliability(made(inout=False)) is None


def test_a_collapsed_inout_head_is_flagged() -> None:
    sound = made(400, 100, lift=2.0)
    assert flags(sound, intervals(sound, resamples=100)["ap"]) == []
    blind = made(4000, 1000, lift=0.0)
    assert [line.partition(":")[0] for line in flags(blind)] == ["in/out collapsed"]
    # With few scenes an AP above the prevalence may still be chance.
    few = made(30, 6, lift=1.0)
    metrics = few.metrics()
    assert metrics.ap is not None and metrics.ap_prevalence is not None and metrics.ap > metrics.ap_prevalence + 0.03
    told = flags(few, Interval(metrics.ap_prevalence - 0.01, 1.0, 6))
    assert len(told) == 1 and told[0].startswith("in/out not shown")


def test_constant_answers_are_flagged() -> None:
    rows = made(50, lift=2.0)
    assert any(line.startswith("constant in/out") for line in flags(changed(rows, inout_logit=np.full(50, 0.3))))
    assert flags(changed(rows, constant=np.arange(50) < 3)) == [
        "constant heatmaps: all cells are equal for 3 of 50 heads, whose predicted point means nothing"
    ]
    same = rows.predicted.copy()
    same[:46] = 0.5
    assert flags(changed(rows, predicted=same)) == ["one point for nearly everybody: 92% of 50 heads have the same predicted point"]
    same[44:] = rows.predicted[44:]
    assert flags(changed(rows, predicted=same)) == []


def test_a_difference_on_the_edge_is_not_called_real() -> None:
    edge = Difference(value=-0.04, low=-0.09, high=-1e-4, p=2 * 26 / 1001, better=0.975, clusters=10)
    assert not edge.real and Difference(**{**vars(edge), "p": 2 * 24 / 1001}).real and not Difference(**{**vars(edge), "high": 0.0, "p": 0.01}).real
