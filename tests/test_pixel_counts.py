"""Counting pixels without the resized map: bit for bit the counts of the whole map in double precision, however near the values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from distill.baselines import gaussian_maps
from distill.errors import MetricError
from distill.metrics import resize_bilinear, sigmoid
from distill.metrics.pixel_counts import pixel_counts, values_at

Maker = Callable[[np.random.Generator], np.ndarray]
MAPS: dict[str, Maker] = {
    "noise": lambda g: g.random((64, 64)),
    "sharp noise": lambda g: sigmoid(6 * g.standard_normal((64, 64)) - 5),
    "beyond single precision": lambda g: sigmoid(60 * g.standard_normal((64, 64)) - 100),
    "negative": lambda g: g.standard_normal((64, 64)) * 1e3,
    "nearly flat": lambda g: 0.3 + 1e-12 * g.random((64, 64)),
    "last places": lambda g: np.nextafter(0.3, 1) + np.spacing(0.3) * g.integers(0, 3, (64, 64)),
    "huge offset": lambda g: 1e9 + g.random((64, 64)),
    "one peak": lambda g: sigmoid(gaussian_maps(g.random((1, 2)), 1.0)[0]),
    "zeros": lambda g: np.where(g.random((64, 64)) < 0.03, g.random((64, 64)), 0.0),
    "few values": lambda g: g.integers(0, 3, (64, 64)) / 2.0,
    "half flat": lambda g: np.where(np.arange(64) < 32, g.random((64, 64)), 0.5),
    "all columns alike": lambda g: np.repeat(g.random((64, 1)), 64, axis=1),
    "all rows alike": lambda g: np.repeat(g.random((1, 64)), 64, axis=0),
    "columns alike but for the last places": lambda g: np.repeat(g.random((64, 1)), 64, axis=1) * (1 + 1e-7 * g.random((64, 64))),
    "a plateau at one": lambda g: sigmoid(40 * g.standard_normal((64, 64)) + 30),
    "slopes": lambda g: np.add.outer(g.integers(0, 5, 64), g.integers(0, 5, 64)) / 8.0,
    "subnormal": lambda g: 1e-310 * g.random((64, 64)),
    "huge": lambda g: 1e300 * g.random((64, 64)),
    "flat": lambda g: np.full((64, 64), 0.7),
    "not square": lambda g: g.random((9, 31)),
}


@pytest.mark.parametrize("size", [(200, 150), (64, 64), (37, 300), (3, 5)], ids=str)
@pytest.mark.parametrize("kind", MAPS)
def test_counts_are_those_of_the_whole_map(kind: str, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(sum(map(ord, kind)) + size[0])
    grid = MAPS[kind](generator)
    whole = resize_bilinear(grid, *size)
    x, y = generator.integers(0, size[0], 12), generator.integers(0, size[1], 12)
    own = values_at(grid, x, y, *size)
    np.testing.assert_array_equal(own, whole[y, x])
    # Values that a pixel has, their neighbours in the last place, and values between and beyond all pixels.
    others = [whole.min() - 1, whole.max() + 1, whole.mean(), *whole.ravel()[:3]]
    values = np.unique([*own, *np.nextafter(own, np.inf), *np.nextafter(own, -np.inf), *others])
    below, equal = pixel_counts(grid, values, *size)
    assert below.tolist() == [int((whole < value).sum()) for value in values]
    assert equal.tolist() == [int((whole == value).sum()) for value in values]


def test_counts_of_a_large_picture_in_several_steps() -> None:
    generator = np.random.default_rng(7)
    rough = sigmoid(gaussian_maps([(0.3, 0.4)])[0] + 0.1 * generator.standard_normal((64, 64)))
    # The last leaves patches out and still takes two steps.
    for grid, count in ((generator.random((64, 64)), 5), (rough, 5), (gaussian_maps([(0.3, 0.4)], 20.0)[0].astype(np.float64), 40)):
        whole = resize_bilinear(grid, 801, 1603)
        values = np.unique(whole.ravel()[generator.integers(0, whole.size, count)])
        below, equal = pixel_counts(grid, values, 801, 1603)
        assert below.tolist() == [int((whole < value).sum()) for value in values]
        assert equal.tolist() == [int((whole == value).sum()) for value in values]


def test_a_map_beyond_double_precision_is_refused() -> None:
    grid = np.array([[-1.5e308, 1.5e308], [0.0, 0.0]])
    with pytest.raises(MetricError, match="cannot be compared"):
        pixel_counts(grid, np.array([0.0]), 4, 4)
