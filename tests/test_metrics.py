"""Metrics against brute force, against transcriptions of the published functions, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.errors import MetricError
from distill.metrics import (
    HeadTruth,
    MetricAccumulator,
    angular_error,
    average_precision,
    avg_l2,
    avg_l2_mean_of,
    gazefollow_auc,
    gazefollow_auc_64,
    min_l2,
    point_errors,
    predicted_point,
    prevalence,
    resize_bilinear,
    roc_auc,
    roc_aucs,
    vat_auc,
    vat_aucs,
)


def pairwise_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Every positive against every negative, one by one."""
    found, others = scores[positive], scores[~positive]
    wins = (found[:, None] > others).sum() + 0.5 * (found[:, None] == others).sum()
    return float(wins / (found.size * others.size))


def published_pixels(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """The target map of the published evaluation."""
    target = np.zeros((height, width), dtype=bool)
    for px, py in points:
        target[min(int(py * height), height - 1), min(int(px * width), width - 1)] = True
    return target


def torch_resize(heatmap: np.ndarray, width: int, height: int, dtype: torch.dtype) -> np.ndarray:
    tensor = torch.from_numpy(heatmap).to(dtype)[None, None]
    return torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear")[0, 0].numpy()


def blob(generator: np.random.Generator, size: int = 64, sharpness: float = 8.0) -> np.ndarray:
    """A smooth probability map with a few peaks, as a model gives it."""
    y, x = np.mgrid[0:size, 0:size] / size
    logits = np.full((size, size), -6.0)
    for _ in range(3):
        cx, cy, s, a = *generator.random(2), 0.05 + 0.2 * generator.random(), sharpness * generator.random()
        logits += a * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * s * s))
    return 1 / (1 + np.exp(-logits - 0.05 * generator.standard_normal((size, size))))


MAPS = {
    "smooth": lambda g: blob(g),
    "noise": lambda g: g.random((64, 64)),
    "constant": lambda g: np.full((64, 64), 0.3),
    "two values": lambda g: (g.random((64, 64)) < 0.1).astype(float),
    "few values": lambda g: g.integers(0, 4, (64, 64)) / 3.0,
    "plateau": lambda g: np.maximum(blob(g), 0.02),
    "one peak": lambda g: np.eye(1, 4096, 2000).reshape(64, 64),
    "ramp": lambda g: np.tile(np.arange(64) / 64.0, (64, 1)),
    "not square": lambda g: g.random((24, 40)),
    "one cell": lambda g: np.array([[0.7]]),
}
POINTS = {
    "ten annotators": lambda g: g.random((10, 2)),
    "one annotator": lambda g: g.random((1, 2)),
    "one pixel": lambda g: np.repeat(g.random((1, 2)), 7, axis=0),
    "corners": lambda g: np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]),
    "beyond the border": lambda g: np.array([[1.02, 0.5], [0.5, 1.0]]),
}
SIZES = [(97, 61), (160, 120), (64, 64), (31, 45), (200, 17), (1, 9)]


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("kind", MAPS)
def test_gazefollow_auc_is_the_rank_auc_of_the_resized_map(kind: str, points: str) -> None:
    generator = np.random.default_rng(len(kind) * 100 + len(points))
    for width, height in SIZES:
        heatmap, annotations = MAPS[kind](generator), POINTS[points](generator)
        target = published_pixels(annotations, width, height)
        expected = pairwise_auc(resize_bilinear(heatmap, width, height), target)
        assert gazefollow_auc(heatmap, annotations, width, height) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("width", "height"), [*SIZES, (640, 480)])
def test_resize_is_torchs(width: int, height: int) -> None:
    generator = np.random.default_rng(3)
    for shape in ((64, 64), (16, 24), (1, 1)):
        heatmap = generator.standard_normal(shape)
        expected = torch_resize(heatmap, width, height, torch.float64)
        np.testing.assert_allclose(resize_bilinear(heatmap, width, height), expected, rtol=0, atol=1e-12)


def test_gazefollow_auc_is_the_published_function() -> None:
    """A plain transcription with scikit-learn, in the published single precision; a few pixels may change places."""
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(5)
    for width, height in ((640, 480), (500, 333)):
        heatmap = blob(generator).astype(np.float32)
        points = generator.random((10, 2))
        target = published_pixels(points, width, height)
        double = metrics.roc_auc_score(target.ravel(), torch_resize(heatmap, width, height, torch.float64).ravel())
        single = metrics.roc_auc_score(target.ravel(), torch_resize(heatmap, width, height, torch.float32).ravel())
        score = gazefollow_auc(heatmap, points, width, height)
        assert score == pytest.approx(double, abs=1e-9)
        assert score == pytest.approx(single, abs=2e-5)


def test_auc_by_hand() -> None:
    heatmap = np.array([[0.0, 1.0], [2.0, 2.0]])
    # 2×2 picture: no resize. The positive is 2, the negatives 0, 1, 2: (1 + 1 + ½) / 3.
    assert gazefollow_auc(heatmap, [(0.0, 0.9)], 2, 2) == pytest.approx(2.5 / 3)
    # Both annotators on that pixel change nothing; a second pixel does: positives 2 and 1, negatives 0 and 2.
    assert gazefollow_auc(heatmap, [(0.0, 0.9), (0.2, 0.6)], 2, 2) == pytest.approx(2.5 / 3)
    assert gazefollow_auc(heatmap, [(0.0, 0.9), (0.9, 0.0)], 2, 2) == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert gazefollow_auc(np.full((64, 64), 0.1), [(0.3, 0.7)], 321, 123) == 0.5
    assert gazefollow_auc_64(heatmap[None], [[(0.0, 0.9)]])[0] == pytest.approx(2.5 / 3)


def test_probabilities_are_resized_not_logits() -> None:
    """The order after a bilinear mean depends on it, so the accumulator must take the published one."""
    generator = np.random.default_rng(11)
    logits = (4 * generator.standard_normal((64, 64))).astype(np.float32)
    points = generator.random((3, 2))
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    target = published_pixels(points, 200, 150)
    expected = pairwise_auc(torch_resize(probabilities, 200, 150, torch.float64), target)
    assert abs(gazefollow_auc(logits, points, 200, 150) - expected) > 1e-4
    accumulator = MetricAccumulator()
    accumulator.add(logits[None], None, [HeadTruth(points, 1, 200, 150)])
    assert accumulator.result().auc == pytest.approx(expected, abs=1e-9)


def test_gazefollow_auc_64_is_brute_force_on_its_own_grid() -> None:
    generator = np.random.default_rng(7)
    maps = np.stack([MAPS[kind](generator) for kind in ("smooth", "noise", "constant", "few values")])
    points = [POINTS[kind](generator) for kind in ("ten annotators", "one pixel", "corners", "beyond the border")]
    expected = [pairwise_auc(m, published_pixels(p, 64, 64)) for m, p in zip(maps, points, strict=True)]
    np.testing.assert_allclose(gazefollow_auc_64(maps, points), expected, rtol=0, atol=1e-12)
    assert gazefollow_auc_64(np.empty((0, 64, 64)), []).shape == (0,)


@pytest.mark.parametrize("kind", ["smooth", "noise", "constant", "two values", "few values", "ramp"])
def test_vat_auc_is_brute_force_over_the_published_box(kind: str) -> None:
    generator = np.random.default_rng(13)
    places = [*generator.random((6, 2)), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.999, 0.14), (0.5, 0.5)]
    for x, y in places:
        heatmap = MAPS[kind](generator)
        positive = np.zeros((64, 64), dtype=bool)
        for row in range(64):
            for column in range(64):
                # int(64x) ± 9, within 0..62: the published upper cut at 63 is exclusive.
                positive[row, column] = (
                    abs(column - int(64 * x)) <= 9 and abs(row - int(64 * y)) <= 9 and column < 63 and row < 63
                )
        assert vat_auc(heatmap, (x, y)) == pytest.approx(pairwise_auc(heatmap, positive), abs=1e-12)


def test_roc_auc_and_average_precision_against_brute_force() -> None:
    generator = np.random.default_rng(17)
    for levels in (1, 2, 3, 5, 1000):
        for _ in range(20):
            count = int(generator.integers(2, 40))
            scores = generator.integers(0, levels, count) - 1.5
            labels = generator.integers(0, 2, count)
            labels[0], labels[1] = 0, 1
            assert roc_auc(scores, labels) == pytest.approx(pairwise_auc(scores, labels == 1), abs=1e-12)
            expected, recall_before = 0.0, 0.0
            for threshold in sorted(set(scores), reverse=True):
                taken = scores >= threshold
                hits = int(labels[taken].sum())
                recall = hits / int(labels.sum())
                expected += (recall - recall_before) * hits / int(taken.sum())
                recall_before = recall
            assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_many_heads_at_once_are_each_by_itself() -> None:
    generator = np.random.default_rng(18)
    scores = np.concatenate([generator.integers(0, levels, (50, 30)) / 3 for levels in (1, 2, 3, 40)])
    scores[scores == 0] *= generator.choice([-1, 1], (scores == 0).sum())  # zeros of either sign are equal
    labels = (generator.random(scores.shape) < generator.random((200, 1))).astype(int)
    labels[:, 0], labels[:, 1] = 0, 1
    assert roc_aucs(scores, labels).tolist() == [roc_auc(row, marks) for row, marks in zip(scores, labels, strict=True)]
    assert roc_aucs(scores, labels)[:50].tolist() == [0.5] * 50 and roc_aucs(np.empty((0, 9)), np.empty((0, 9))).shape == (0,)
    maps = np.stack([MAPS[kind](generator) for kind in ("smooth", "noise", "constant", "ramp")])
    places = np.array([(0.0, 1.0), (0.33, 0.08), (1.0, 1.0), (0.999, 0.5)])
    assert vat_aucs(maps, places).tolist() == [vat_auc(heatmap, place) for heatmap, place in zip(maps, places, strict=True)]
    labels[130] = 1
    with pytest.raises(MetricError, match="row 130 has 30 positive and 0 negative"):
        roc_aucs(scores, labels)
    for call in (lambda: roc_aucs(scores[0], labels[0]), lambda: roc_aucs(scores, labels[1:]), lambda: vat_aucs(maps, places[:3]), lambda: vat_aucs(maps, -places)):
        with pytest.raises(MetricError):
            call()


def test_the_scene_of_a_head_that_cannot_be_scored_is_named() -> None:
    heads = [HeadTruth([(0.5, 0.5)], 1, 64, 48, f"{name}.jpg") for name in "abc"]
    heads[1] = HeadTruth([(0.5, 0.5), (0.1, 0.1)], 1, 64, 48, "b.jpg")
    with pytest.raises(MetricError, match=r"^b\.jpg: VideoAttentionTarget's AUC is of one annotator a head, not 2; use"):
        MetricAccumulator("vat").add(np.zeros((3, 64, 64)), None, heads)
    heads[1] = HeadTruth([(-0.2, 0.5)], 1, 64, 48, "b.jpg")
    for protocol in ("vat", "gazefollow", "gazefollow64"):
        with pytest.raises(MetricError, match=r"^b\.jpg: "):
            MetricAccumulator(protocol).add(np.zeros((3, 64, 64)), None, heads)  # type: ignore[arg-type]


def test_average_precision_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(19)
    labels = generator.integers(0, 2, 500)
    for scores in (generator.standard_normal(500), generator.integers(0, 6, 500).astype(float), np.zeros(500)):
        expected = metrics.average_precision_score(labels, scores)
        assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand_and_undefined() -> None:
    # 1, 0, 1 from the top: precision 1 at recall ½, 2/3 at recall 1.
    assert average_precision([3.0, 2.0, 1.0], [1, 0, 1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([0.0] * 4, [1, 0, 0, 0]) == 0.25 == prevalence([1, 0, 0, 0])
    assert average_precision([1.0, 2.0], [1, 1]) is None
    assert average_precision([1.0, 2.0], [0, 0]) is None
    assert average_precision([], []) is None and prevalence([]) is None


def test_predicted_point_is_the_first_highest_cell_over_the_size() -> None:
    maps = np.zeros((3, 4, 8))
    maps[0, 3, 5] = 1.0
    maps[1, 2, 7] = maps[1, 2, 1] = maps[1, 3, 0] = 5.0
    np.testing.assert_array_equal(predicted_point(maps), [(5 / 8, 3 / 4), (1 / 8, 2 / 4), (0.0, 0.0)])
    assert predicted_point(np.empty((0, 64, 64))).shape == (0, 2)


def test_distances_by_hand() -> None:
    predicted = np.array([(0.5, 0.5), (0.0, 0.0)])
    points = [[(0.5, 0.9), (0.5, 0.1), (0.8, 0.5)], [(0.3, 0.4)]]
    np.testing.assert_allclose(avg_l2(predicted, points), [0.1, 0.5], atol=1e-12)
    np.testing.assert_allclose(avg_l2_mean_of(predicted, points), [(0.4 + 0.4 + 0.3) / 3, 0.5], atol=1e-12)
    np.testing.assert_allclose(min_l2(predicted, points), [0.3, 0.5], atol=1e-12)


def test_distances_against_loops() -> None:
    generator = np.random.default_rng(23)
    predicted = generator.random((40, 2))
    points = [generator.random((int(generator.integers(1, 11)), 2)) for _ in range(40)]
    points[3] = np.repeat(points[3][:1], 5, axis=0)
    errors = point_errors(predicted, points)
    for index, (place, given) in enumerate(zip(predicted, points, strict=True)):
        each = [float(np.linalg.norm(place - point)) for point in given]
        assert errors.avg_l2[index] == pytest.approx(np.linalg.norm(place - given.mean(axis=0)), abs=1e-12)
        assert errors.avg_l2_mean_of[index] == pytest.approx(sum(each) / len(each), abs=1e-12)
        assert errors.min_l2[index] == pytest.approx(min(each), abs=1e-12)
    assert (errors.avg_l2 <= errors.avg_l2_mean_of + 1e-12).all()
    assert errors.avg_l2[3] == pytest.approx(errors.min_l2[3], abs=1e-12)


def test_angular_error() -> None:
    eye = np.full((6, 2), 0.5)
    predicted = eye + [(0.1, 0), (0.1, 0), (0.1, 0), (0.1, 0.1), (0, 0), (0.2, 1e-9)]
    gaze = eye + [(0.3, 0), (0, -0.2), (-0.4, 0), (0.2, 0), (0.1, 0.1), (0.2, 0)]
    expected = [0.0, 90.0, 180.0, 45.0, 90.0, np.degrees(5e-9)]
    np.testing.assert_allclose(angular_error(predicted, gaze, eye), expected, atol=1e-12, rtol=1e-6)


def heads_of(generator: np.random.Generator) -> list[HeadTruth]:
    return [
        HeadTruth(generator.random((4, 2)), 1, 160, 120, "a"),
        HeadTruth([], 0, 160, 120, "a"),
        HeadTruth(generator.random((1, 2)), 1, 90, 200, "b"),
        HeadTruth(generator.random((1, 2)), -1, 90, 200, "b"),
        HeadTruth(np.empty((0, 2)), 1, 90, 200, "c"),
    ]


def test_accumulator_is_the_mean_over_in_frame_heads() -> None:
    generator = np.random.default_rng(29)
    heads = heads_of(generator)
    logits = generator.standard_normal((5, 64, 64)).astype(np.float32)
    inout = np.array([0.3, 0.5, -1.0, 9.0, 2.0], dtype=np.float32)
    accumulator = MetricAccumulator()
    accumulator.add(logits[:2], inout[:2], heads[:2])
    accumulator.add(logits[:0], inout[:0], [])
    accumulator.add(logits[2:], inout[2:], heads[2:])
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    aucs = [gazefollow_auc(probabilities[k], heads[k].points, heads[k].width, heads[k].height) for k in (0, 2)]
    errors = point_errors(predicted_point(logits[[0, 2]]), [heads[0].points, heads[2].points])
    result = accumulator.result()
    assert result.auc == pytest.approx(np.mean(aucs), abs=1e-12)
    assert result.avg_l2 == pytest.approx(errors.avg_l2.mean(), abs=1e-12)
    assert result.avg_l2_mean_of == pytest.approx(errors.avg_l2_mean_of.mean(), abs=1e-12)
    assert result.min_l2 == pytest.approx(errors.min_l2.mean(), abs=1e-12)
    # Labelled heads, best first: in (2.0), out (0.5), in (0.3), in (-1.0).
    assert result.ap == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert result.ap_prevalence == 0.75
    assert (result.heads, result.heads_in) == (5, 2)
    rows = accumulator.rows()
    assert rows.scene.tolist() == ["a", "a", "b", "b", "c"]
    assert rows.scored.tolist() == [True, False, True, False, False]
    only = rows.take(np.array([2, 2, 1])).metrics()
    assert only.auc == pytest.approx(aucs[1], abs=1e-12)
    assert (only.heads, only.heads_in) == (3, 2)


def test_accumulator_without_what_a_metric_needs_says_none() -> None:
    empty = MetricAccumulator().result()
    assert (empty.auc, empty.min_l2, empty.ap, empty.ap_prevalence, empty.heads) == (None, None, None, None, 0)
    accumulator = MetricAccumulator("gazefollow64")
    accumulator.add(np.zeros((2, 64, 64)), [0.0, 1.0], [HeadTruth([(0.5, 0.5)], 1, 9, 9)] * 2)
    result = accumulator.result()
    assert result.auc == 0.5 and result.ap is None and result.ap_prevalence == 1.0
    unheard = MetricAccumulator()
    unheard.add(np.zeros((2, 64, 64)), None, [HeadTruth([(0.5, 0.5)], 1, 9, 9), HeadTruth([], 0, 9, 9)])
    assert unheard.result().ap is None and unheard.result().ap_prevalence == 0.5


def test_accumulator_by_the_other_protocols() -> None:
    generator = np.random.default_rng(31)
    logits = generator.standard_normal((1, 64, 64))
    head = HeadTruth([(0.4, 0.8)], 1, 320, 240)
    for protocol, expected in (
        ("gazefollow64", gazefollow_auc_64(logits, [[(0.4, 0.8)]])[0]),
        ("vat", vat_auc(logits[0], (0.4, 0.8))),
    ):
        accumulator = MetricAccumulator(protocol)
        accumulator.add(logits, None, [head])
        assert accumulator.result().auc == pytest.approx(expected, abs=1e-12)
    coarse = MetricAccumulator("vat")
    coarse.add(logits[:, :32, :32], None, [head])
    probabilities = 1 / (1 + np.exp(-logits[0, :32, :32]))
    assert coarse.result().auc == pytest.approx(vat_auc(resize_bilinear(probabilities, 64, 64), (0.4, 0.8)), abs=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_never_scored(value: float) -> None:
    heatmap = np.zeros((64, 64))
    heatmap[5, 6] = value
    for call in (
        lambda: gazefollow_auc(heatmap, [(0.5, 0.5)], 64, 48),
        lambda: gazefollow_auc_64(heatmap[None], [[(0.5, 0.5)]]),
        lambda: vat_auc(heatmap, (0.5, 0.5)),
        lambda: predicted_point(heatmap[None]),
        lambda: resize_bilinear(heatmap, 9, 9),
        lambda: average_precision([0.0, value], [0, 1]),
        lambda: roc_auc([0.0, value], [0, 1]),
        lambda: point_errors([(value, 0.0)], [[(0.5, 0.5)]]),
        lambda: gazefollow_auc(np.zeros((64, 64)), [(value, 0.5)], 64, 48),
    ):
        with pytest.raises(MetricError):
            call()
    accumulator = MetricAccumulator()
    heads = [HeadTruth([(0.5, 0.5)], 1, 64, 48, "good.jpg"), HeadTruth([], 0, 64, 48, "bad.jpg")]
    with pytest.raises(MetricError, match=r"bad\.jpg: heatmap"):
        accumulator.add(np.stack((np.zeros((64, 64)), heatmap)), [0.0, 0.0], heads)
    with pytest.raises(MetricError, match=r"bad\.jpg: in/out"):
        accumulator.add(np.zeros((2, 64, 64)), [0.0, value], heads)
    assert len(accumulator.rows()) == 0


def test_what_does_not_fit_is_refused() -> None:
    heatmap = np.zeros((64, 64))
    head = HeadTruth([(0.5, 0.5)], 1, 64, 48)
    for call in (
        lambda: gazefollow_auc(heatmap, np.empty((0, 2)), 64, 48),
        lambda: gazefollow_auc(heatmap, [(-1 / 64, 0.5)], 64, 48),
        lambda: gazefollow_auc(heatmap, [(0.5, 0.5)], 1, 1),
        lambda: gazefollow_auc(heatmap, [(0.5, 0.5)], 0, 48),
        lambda: gazefollow_auc(heatmap[None], [(0.5, 0.5)], 64, 48),
        lambda: gazefollow_auc_64(heatmap[None], []),
        lambda: vat_auc(heatmap[:32], (0.5, 0.5)),
        lambda: vat_auc(heatmap, (1.2, 0.5)),
        lambda: vat_auc(heatmap, (-1.0, -1.0)),
        lambda: roc_auc([1.0, 2.0], [1, 1]),
        lambda: average_precision([1.0, 2.0], [1, -1]),
        lambda: average_precision([1.0], [1, 0]),
        lambda: point_errors([(0.5, 0.5)], [[]]),
        lambda: point_errors([(0.5, 0.5)], []),
        lambda: angular_error([(0.5, 0.5)], [(0.5, 0.5)], np.zeros((2, 2))),
        lambda: MetricAccumulator("coco"),  # type: ignore[arg-type]
        lambda: MetricAccumulator().add(heatmap[None], None, [head, head]),
        lambda: MetricAccumulator().add(heatmap[None], [0.0, 1.0], [head]),
        lambda: MetricAccumulator().add(heatmap[None], None, [HeadTruth([], 2, 64, 48)]),
    ):
        with pytest.raises(MetricError):
            call()
    accumulator = MetricAccumulator()
    accumulator.add(heatmap[None], [0.0], [head])
    with pytest.raises(MetricError, match="always or never"):
        accumulator.add(heatmap[None], None, [head])
