"""Target heatmaps against a plain transcription of the published function."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill.targets import gaussian_target


def draw_labelmap(image: np.ndarray, point: tuple[int, int], sigma: int) -> np.ndarray:
    """Source: ejcgt/attention-target-detection, ``utils/imutils.py``: a Gaussian patch of 6σ + 1 cells, pasted where it fits."""
    height, width = image.shape
    left, top = point[0] - 3 * sigma, point[1] - 3 * sigma
    right, bottom = point[0] + 3 * sigma + 1, point[1] + 3 * sigma + 1
    if left >= width or top >= height or right < 0 or bottom < 0:
        return image
    side = 6 * sigma + 1
    patch = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            patch[row, column] = math.exp(-((column - side // 2) ** 2 + (row - side // 2) ** 2) / (2 * sigma**2))
    inside_x = max(0, -left), min(right, width) - left
    inside_y = max(0, -top), min(bottom, height) - top
    image[max(0, top) : min(bottom, height), max(0, left) : min(right, width)] += patch[inside_y[0] : inside_y[1], inside_x[0] : inside_x[1]]
    return image / image.max()


BORDERS = [(0.0, 0.0), (0.999, 0.001), (0.001, 0.999), (63.99 / 64, 63.99 / 64), (9 / 64, 54 / 64), (8.99 / 64, 55.01 / 64)]


@pytest.mark.parametrize("point", [(0.5, 0.5), (0.3, 0.77), (31.999 / 64, 32.0 / 64), *BORDERS])
def test_a_target_is_the_published_label_map(point: tuple[float, float]) -> None:
    expected = draw_labelmap(np.zeros((64, 64)), (int(point[0] * 64), int(point[1] * 64)), 3)
    found = gaussian_target([point], (64, 64))
    assert found.dtype == np.float32 and found.shape == (64, 64)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.array_equal(found > 0, expected > 0)


def test_random_points_everywhere() -> None:
    for x, y in np.random.default_rng(0).random((40, 2)).tolist():
        np.testing.assert_allclose(gaussian_target([(x, y)], (64, 64)), draw_labelmap(np.zeros((64, 64)), (int(x * 64), int(y * 64)), 3), atol=1e-6)


def test_exact_values() -> None:
    target = gaussian_target([(20.5 / 64, 40.5 / 64)], (64, 64))
    assert target[40, 20] == 1.0 and np.unravel_index(target.argmax(), target.shape) == (40, 20)
    assert target[40, 23] == pytest.approx(math.exp(-0.5), abs=1e-7)  # one σ to the right
    assert target[34, 20] == pytest.approx(math.exp(-2.0), abs=1e-7)  # two σ up
    assert target[49, 29] == pytest.approx(math.exp(-9.0), abs=1e-7)  # the corner of the 3σ box is in it
    assert target[50, 20] == 0.0 and target[40, 30] == 0.0 and np.count_nonzero(target) == 19 * 19


def test_the_far_edge_belongs_to_the_last_cell() -> None:
    # The published function would place it outside the map; a clamped annotation may well lie there.
    assert np.array_equal(gaussian_target([(1.0, 1.0)], (64, 64)), gaussian_target([(0.999, 0.999)], (64, 64)))
    assert gaussian_target([(1.0, 0.5)], (64, 64))[32, 63] == 1.0


def test_sigma_is_a_share_of_each_side() -> None:
    # σ is 1.5 cells of 32 and 3 of 64: the box ends at ±4 and ±9 cells.
    target = gaussian_target([(0.5, 0.5)], (32, 64))
    assert target[16, 32] == 1.0
    assert target[19, 32] == pytest.approx(math.exp(-(3**2) / (2 * 1.5**2)), abs=1e-7)
    assert target[16, 35] == pytest.approx(math.exp(-0.5), abs=1e-7)
    assert np.count_nonzero(target[:, 32]) == 9 and np.count_nonzero(target[16]) == 19
    assert np.count_nonzero(gaussian_target([(0.5, 0.5)], (64, 64), 1 / 64)) == 49


def test_several_annotators_give_their_mean_at_height_one() -> None:
    points = [(0.2, 0.2), (0.25, 0.2), (0.8, 0.6)]
    total = sum(draw_labelmap(np.zeros((64, 64)), (int(x * 64), int(y * 64)), 3) for x, y in points)
    np.testing.assert_allclose(gaussian_target(points, (64, 64)), total / total.max(), atol=1e-6)
    apart = gaussian_target([(0.2, 0.2), (0.8, 0.6)], (64, 64))
    assert apart[12, 12] == apart[38, 51] == 1.0
    # In which order they answered does not matter, nor does a repeated answer of all.
    np.testing.assert_allclose(gaussian_target(points[::-1], (64, 64)), gaussian_target(points, (64, 64)), atol=1e-6)
    np.testing.assert_allclose(gaussian_target(points * 2, (64, 64)), gaussian_target(points, (64, 64)), atol=1e-6)


def test_without_annotators_the_map_is_empty() -> None:
    assert gaussian_target([], (5, 7)).shape == (5, 7) and not gaussian_target([], (5, 7)).any()
