"""The rows that no model is needed for."""

from __future__ import annotations

import numpy as np
import pytest

from distill.baselines import FixedBias, HeadPrior, centre_map, gaussian_maps, saliency_map
from distill.errors import DataError
from distill.metrics import HeadTruth, MetricAccumulator, avg_l2, point_errors, predicted_point


def test_centre_map_predicts_the_centre_exactly() -> None:
    maps = centre_map(3)
    assert maps.shape == (3, 64, 64) and maps.dtype == np.float32
    np.testing.assert_array_equal(predicted_point(maps), np.full((3, 2), 0.5))
    assert (maps == maps.max()).sum() == 3
    accumulator = MetricAccumulator()
    accumulator.add(maps[:2], None, [HeadTruth([(0.5, 0.9)], 1, 99, 50), HeadTruth([(0.2, 0.5)], 1, 640, 480)])
    assert accumulator.result().avg_l2 == pytest.approx((0.4 + 0.3) / 2)


def test_gaussian_maps_peak_on_the_points_cell() -> None:
    points = np.array([(0.0, 0.0), (1.0, 1.0), (0.51, 0.249), (0.999, 0.0)])
    maps = gaussian_maps(points)
    np.testing.assert_array_equal(predicted_point(maps) * 64, [(0, 0), (63, 63), (32, 15), (63, 0)])
    for index, (column, row) in enumerate([(0, 0), (63, 63), (32, 15), (63, 0)]):
        assert maps[index, row, column] == 0.0
        # One cell away along an axis, and three by four cells away, at σ = 3.
        assert maps[index, row, abs(column - 1)] == pytest.approx(-1 / 18)
        assert maps[index, abs(row - 3), abs(column - 4)] == pytest.approx(-25 / 18)
    assert np.isfinite(maps).all()


def test_head_prior_is_the_mean_gaze_of_the_nearest() -> None:
    generator = np.random.default_rng(1)
    centres, gazes = generator.random((300, 2)), generator.random((300, 2))
    queries = generator.random((20, 2))
    prior = HeadPrior.fit(centres, gazes)
    for query, predicted in zip(queries, prior.predict_points(queries), strict=True):
        order = sorted(range(300), key=lambda k: (float(((centres[k] - query) ** 2).sum()), k))[:50]
        np.testing.assert_allclose(predicted, np.mean([gazes[k] for k in order], axis=0), atol=1e-12)
    maps = prior.predict(queries)
    np.testing.assert_array_equal(predicted_point(maps), np.floor(prior.predict_points(queries) * 64) / 64)
    floor = predicted_point(maps) - prior.predict_points(queries)
    assert (floor <= 0).all() and (floor > -1 / 64).all()


def test_head_prior_with_ties_and_few_heads() -> None:
    gazes = np.array([(0.1, 0.1), (0.3, 0.3), (0.9, 0.9), (0.5, 0.7)])
    tied = HeadPrior.fit(np.full((4, 2), 0.5), gazes, neighbours=2)
    np.testing.assert_allclose(tied.predict_points([(0.2, 0.9)]), [(0.2, 0.2)])
    few = HeadPrior.fit(np.full((4, 2), 0.5), gazes)
    np.testing.assert_allclose(few.predict_points([(0.0, 0.0)]), [gazes.mean(axis=0)])
    assert few.predict_points(np.empty((0, 2))).shape == (0, 2)
    exact = point_errors(few.predict_points([(0.0, 0.0)]), [[(0.45, 0.5)]])
    assert exact.avg_l2[0] == pytest.approx(0.0, abs=1e-12)


def test_fixed_bias_is_the_mean_of_the_training_gaussians() -> None:
    generator = np.random.default_rng(2)
    gazes = 0.2 + 0.3 * generator.random((40, 2))
    bias = FixedBias.fit(gazes)
    expected = np.log(np.exp(gaussian_maps(gazes).astype(np.float64)).mean(axis=0))
    np.testing.assert_allclose(bias.heatmap, expected, rtol=1e-5)
    assert bias.predict(3).shape == (3, 64, 64)
    assert avg_l2(predicted_point(bias.predict(1)), [gazes])[0] < 0.1
    assert np.isfinite(FixedBias.fit([(0.0, 0.0)], sigma=0.5).heatmap).all()


def test_saliency_finds_what_stands_out() -> None:
    generator = np.random.default_rng(3)
    for x, y in ((60, 40), (220, 150), (150, 60)):
        picture = (120 + 8 * generator.standard_normal((200, 300, 3))).clip(0, 255).astype(np.uint8)
        picture[y - 8 : y + 8, x - 8 : x + 8] = (250, 240, 90)
        heatmap = saliency_map(picture)
        assert heatmap.shape == (64, 64) and heatmap.dtype == np.float32 and heatmap.max() == 0.0
        assert avg_l2(predicted_point(heatmap[None]), [[(x / 300, y / 200)]])[0] < 0.05
        accumulator = MetricAccumulator()
        accumulator.add(heatmap[None], None, [HeadTruth([(x / 300, y / 200)], 1, 300, 200)])
        assert accumulator.result().auc > 0.95  # type: ignore[operator]


def test_saliency_is_the_paper_s_formula() -> None:
    """Written out with loops and a full transform, for a picture that needs no resampling."""
    picture = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    grey = picture @ np.array([0.299, 0.587, 0.114])
    basis = np.exp(-2j * np.pi * np.outer(np.arange(64), np.arange(64)) / 64)
    spectrum = basis @ grey @ basis
    log_amplitude = np.log(np.abs(spectrum))
    residual = np.empty((64, 64))
    for row in range(64):
        for column in range(64):
            around = [log_amplitude[(row + dy) % 64, (column + dx) % 64] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            residual[row, column] = log_amplitude[row, column] - sum(around) / 9
    inverse = np.conj(basis) / 64
    energy = np.abs(inverse @ np.exp(residual + 1j * np.angle(spectrum)) @ inverse) ** 2
    smooth = np.empty((64, 64))
    axis = np.arange(64)
    for row in range(64):
        for column in range(64):
            weight = np.exp(-((axis[:, None] - row) ** 2 + (axis - column) ** 2) / (2 * 2.5**2))
            smooth[row, column] = (weight * energy).sum() / weight.sum()
    np.testing.assert_allclose(np.exp(saliency_map(picture)), smooth / smooth.max(), rtol=1e-4)


def test_saliency_of_any_size_and_of_one_colour() -> None:
    generator = np.random.default_rng(5)
    for height, width in ((1, 1), (20, 500), (64, 64), (301, 77)):
        heatmap = saliency_map(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert heatmap.shape == (64, 64) and np.isfinite(heatmap).all()
    assert (saliency_map(np.full((50, 70, 3), 93, dtype=np.uint8)) == 0.0).all()


def test_bad_input_is_refused() -> None:
    for call in (
        lambda: HeadPrior.fit([], []),
        lambda: HeadPrior.fit([(0.5, 0.5)], [(0.5, 0.5), (0.1, 0.1)]),
        lambda: HeadPrior.fit([(0.5, 0.5)], [(np.nan, 0.5)]),
        lambda: HeadPrior.fit([(0.5, 0.5)], [(0.5, 0.5)], neighbours=0),
        lambda: FixedBias.fit([]),
        lambda: gaussian_maps([(np.inf, 0.0)]),
        lambda: saliency_map(np.zeros((4, 4), dtype=np.uint8)),
        lambda: saliency_map(np.zeros((4, 4, 3), dtype=np.float32)),
    ):
        with pytest.raises(DataError):
            call()
