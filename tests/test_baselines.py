"""The rows that no model is needed for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.baselines import FixedBias, HeadPrior, centre_map, gaussian_maps, one_human, random_errors, saliency_map
from distill.datacheck_baselines import score_baselines
from distill.errors import DataError
from distill.metrics import HeadTruth, MetricAccumulator, avg_l2, point_errors, predicted_point
from distill.scenes import IN, Head, Scene, SceneSet


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


def test_random_is_the_mean_over_all_cells() -> None:
    generator = np.random.default_rng(6)
    points = [generator.random((3, 2)), generator.random((1, 2)), np.array([(0.0, 0.0), (1.0, 1.0)])]
    found = random_errors(points)
    cells = [(x / 64, y / 64) for y in range(64) for x in range(64)]
    for index, looks in enumerate(points):
        expected = point_errors(cells, [looks] * len(cells))
        assert found.avg_l2[index] == pytest.approx(expected.avg_l2.mean(), abs=1e-12)
        assert found.avg_l2_mean_of[index] == pytest.approx(expected.avg_l2_mean_of.mean(), abs=1e-12)
        assert found.min_l2[index] == pytest.approx(expected.min_l2.mean(), abs=1e-12)


def test_one_human_is_judged_by_the_others_alone() -> None:
    found = one_human([(0.1, 0.1), (0.1, 0.5), (0.4, 0.1)])
    assert found.avg_l2.tolist() == pytest.approx([np.hypot(0.15, 0.2), np.hypot(0.15, 0.4), np.hypot(0.3, 0.2)])
    assert found.avg_l2_mean_of.tolist() == pytest.approx([0.35, 0.45, 0.4])
    assert found.min_l2.tolist() == pytest.approx([0.3, 0.4, 0.3])
    with pytest.raises(DataError, match="two or more"):
        one_human([(0.1, 0.1)])
    with pytest.raises(DataError, match="no gaze point"):
        random_errors([[]])


def crowd(count: int, annotators: int, reader: str = "gazefollow") -> SceneSet:
    """Scenes of one head each, their pictures only a size; annotators agree within a few hundredths."""
    generator = np.random.default_rng(count)
    scenes = []
    for number in range(count):
        gaze = 0.1 + 0.8 * generator.random(2)
        points = tuple(tuple(point) for point in np.clip(gaze + 0.03 * generator.standard_normal((annotators, 2)), 0, 1).tolist())
        scenes.append(Scene(f"{number:03d}.jpg", f"/nowhere/{number:03d}.jpg", (Head((0.1, 0.1, 0.3, 0.4), points, IN),), size=(320, 240)))  # type: ignore[arg-type]
    return SceneSet(reader, Path("/nowhere"), "test", tuple(scenes))


def test_rows_without_a_model_come_in_order_with_intervals() -> None:
    scored = crowd(12, 5)
    names = ("random", "centre", "fixed bias", "head-position prior", "one human")
    found = score_baselines(scored, crowd(30, 1), {}, (), 1000, only=names, resamples=200)
    assert found is not None and tuple(row.name for row in found.rows) == names
    for row in found.rows:
        assert row.metrics is not None and row.metrics.heads_in == 12
        bounds = row.intervals["avg_l2"]
        assert bounds is not None and bounds.clusters == 12
        assert bounds.low < row.metrics.avg_l2 < bounds.high  # type: ignore[operator]
    rows = {row.name: row.metrics for row in found.rows}
    assert rows["random"] is not None and rows["random"].auc == 0.5
    human = [one_human(head.points) for scene in scored.scenes for head in scene.heads]
    assert rows["one human"] is not None and rows["centre"] is not None
    assert rows["one human"].avg_l2 == pytest.approx(np.mean([each.avg_l2.mean() for each in human]))
    assert rows["one human"].avg_l2_mean_of == pytest.approx(np.mean([each.avg_l2_mean_of.mean() for each in human]))
    # The order of the 2015 table: a human is far ahead of the centre, the centre of chance.
    assert rows["one human"].auc > 0.95 > rows["centre"].auc > 0.5  # type: ignore[operator]
    assert rows["one human"].avg_l2 < 0.1 < rows["centre"].avg_l2 < rows["random"].avg_l2  # type: ignore[operator]
    again = score_baselines(scored, crowd(30, 1), {}, (), 1000, only=names, resamples=200)
    assert again == found


def test_a_lone_annotator_is_no_human_row() -> None:
    found = score_baselines(crowd(3, 1), None, {}, (), 1000, only=("one human", "fixed bias"), resamples=0)
    assert found is not None and [row.reason for row in found.rows] == ["one annotator a head", "no training split apart from the scored one"]
    video = score_baselines(crowd(3, 2, "vat"), None, {}, (), 1000, only=("one human",), protocol="vat", resamples=0)
    assert video is not None and video.rows[0].metrics is None and "one annotator" in video.rows[0].reason
