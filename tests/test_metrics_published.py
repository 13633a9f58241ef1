"""The metrics against plain transcriptions of the published evaluations, from their formulas, with scikit-learn: random and degenerate maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distill.metrics import HeadTruth, MetricAccumulator, average_precision, gazefollow_auc, gazefollow_auc_64, vat_auc

WIDTH, HEIGHT = 130, 90


@pytest.fixture(scope="module")
def sklearn() -> Any:
    """Imported by who runs these tests, and not by who but collects them."""
    return pytest.importorskip("sklearn.metrics")


MAPS = {
    "smooth": lambda g: np.exp(-((np.mgrid[0:64, 0:64] - g.integers(0, 64, (2, 1, 1))) ** 2).sum(axis=0) / 200.0),
    "noise": lambda g: g.random((64, 64)),
    "constant": lambda g: np.full((64, 64), 0.25),
    "ties": lambda g: g.integers(0, 3, (64, 64)) / 2.0,
}
POINTS = {
    "several annotators": lambda g: g.random((8, 2)),
    "one annotator": lambda g: g.random((1, 2)),
    "all on one pixel": lambda g: np.repeat(g.random((1, 2)), 6, axis=0),
    "on the border": lambda g: np.array([(0.0, 0.0), (1.0, 1.0), (1.0, 0.3)]),
}
CASES = [(kind, where) for kind in MAPS for where in POINTS]


def case(kind: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(sum(map(ord, kind + where)))
    return MAPS[kind](generator), POINTS[where](generator)


def targets(points: np.ndarray, width: int, height: int) -> np.ndarray:
    found = np.zeros((height, width))
    for x, y in points:
        found[min(int(y * height), height - 1), min(int(x * width), width - 1)] = 1
    return found.ravel()


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_gazefollow_auc_in_both_sizes(kind: str, where: str, sklearn: Any) -> None:
    heatmap, points = case(kind, where)
    resized = torch.nn.functional.interpolate(torch.from_numpy(heatmap)[None, None], (HEIGHT, WIDTH), mode="bilinear")[0, 0].numpy()
    if kind == "ties":  # torch's own rounding breaks some ties of a plateau, which here stay ties
        resized = np.round(resized, 13)
    expected = sklearn.roc_auc_score(targets(points, WIDTH, HEIGHT), resized.ravel())
    assert gazefollow_auc(heatmap, points, WIDTH, HEIGHT) == pytest.approx(expected, abs=1e-9 if kind != "ties" else 1e-4)
    expected = sklearn.roc_auc_score(targets(points, 64, 64), heatmap.ravel())
    assert gazefollow_auc_64(heatmap[None], [points])[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_vat_auc(kind: str, where: str, sklearn: Any) -> None:
    heatmap, points = case(kind, where)
    x, y = points[0] * 64
    box = np.zeros((64, 64))
    # The Gaussian's support of ±3σ, σ = 3, cut to the map; its upper end is exclusive and at most 63.
    box[max(0, int(y - 9)) : min(int(y + 10), 63), max(0, int(x - 9)) : min(int(x + 10), 63)] = 1
    assert vat_auc(heatmap, points[0]) == pytest.approx(sklearn.roc_auc_score(box.ravel(), heatmap.ravel()), abs=1e-12)


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_distances_and_angle_of_a_head(kind: str, where: str) -> None:
    heatmap, points = case(kind, where)
    row, column = divmod(int(heatmap.argmax()), 64)
    px, py = column / 64, row / 64
    each = [((px - x) ** 2 + (py - y) ** 2) ** 0.5 for x, y in points]
    mean = points.mean(axis=0)
    box = (0.4, 0.1, 0.6, 0.3)
    one, two = np.arctan2(py - 0.2, px - 0.5), np.arctan2(mean[1] - 0.2, mean[0] - 0.5)
    turned = np.degrees(abs((one - two + np.pi) % (2 * np.pi) - np.pi))
    accumulator = MetricAccumulator("gazefollow64")
    accumulator.add(heatmap[None], None, [HeadTruth(points, 1, WIDTH, HEIGHT, box=box, people=3)])
    found, rows = accumulator.result(), accumulator.rows()
    assert found.avg_l2 == pytest.approx(((px - mean[0]) ** 2 + (py - mean[1]) ** 2) ** 0.5, abs=1e-12)
    assert found.avg_l2_mean_of == pytest.approx(sum(each) / len(each), abs=1e-12)
    assert found.min_l2 == pytest.approx(min(each), abs=1e-12)
    assert found.angle == pytest.approx(turned, abs=1e-9)
    assert rows.head_size[0] == pytest.approx(0.2) and rows.people[0] == 3
    assert rows.distance[0] == pytest.approx(np.hypot(mean[0] - 0.5, mean[1] - 0.2))
    assert rows.constant[0] == (kind == "constant")


def test_inout_average_precision(sklearn: Any) -> None:
    generator = np.random.default_rng(3)
    labels = (generator.random(300) < 0.65).astype(int)
    for scores in (generator.standard_normal(300) + labels, np.zeros(300), generator.integers(0, 4, 300)):
        assert average_precision(scores, labels) == pytest.approx(sklearn.average_precision_score(labels, scores), abs=1e-12)
