"""Rows that no model is needed for: what a number on a data set is worth is seen beside them.

=================  =====================================================================================================
``random_errors``  any cell of the map, each as likely
``centre_map``     everybody looks at the middle of the picture
``HeadPrior``      the mean gaze of the 50 training heads whose centres are nearest
``FixedBias``      where the training set's people look, whatever the picture and the head
``saliency_map``   what stands out in the picture, whoever looks (spectral residual)
``one_human``      one annotator, judged by the others
=================  =====================================================================================================

Those in between give heatmaps ``[N,64,64]`` of logits, so that they are scored by the same code as a model. Peaks lie on cell
``int(64·x)``, as in training targets. A map's argmax thus stands up to a cell from its point (0.012 on average with the
published argmax/64); where the point itself is known (``HeadPrior.predict_points``) the distances of a table come from
:func:`distill.metrics.point_errors` of the exact points, the AUC from the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from distill.errors import DataError
from distill.metrics import PointErrors, point_errors

GRID = 64
SIGMA = 3.0
NEIGHBOURS = 50


def gaussian_maps(points: ArrayLike, sigma: float = SIGMA) -> np.ndarray:
    """Maps ``[N,64,64]`` float32 with a Gaussian of ``sigma`` cells on the cell of each of ``points [N,2]`` in [0,1].

    The logit is the Gaussian's logarithm, −d²/2σ²: highest on the point's cell, never tied with it, never underflowing.
    """
    cells = _cells(_points(points, "points"))
    axis = np.arange(GRID)
    x = (axis[None] - cells[:, :1]) ** 2
    y = (axis[None] - cells[:, 1:]) ** 2
    return (-(y[:, :, None] + x[:, None, :]) / (2.0 * sigma**2)).astype(np.float32)


def random_errors(points: Sequence[ArrayLike]) -> PointErrors:
    """Expected distances ``[N]`` of a prediction that is any of the 64×64 cells with equal chance, to N × ``[A,2]`` annotations.

    The mean over all cells instead of a draw, so that the row is the same every time. The AUC of a map of noise is ½ on average, and is
    not computed.
    """
    axis = np.arange(GRID) / GRID
    cells = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    columns = np.empty((3, len(points)))
    for index, given in enumerate(points):
        looks = _points(given, "gaze points")
        if len(looks) == 0:
            raise DataError(f"head {index} has no gaze point; leave such heads out of the random row")
        each = np.sqrt(((cells[None] - looks[:, None]) ** 2).sum(axis=2))
        to_mean = np.sqrt(((cells - looks.mean(axis=0)) ** 2).sum(axis=1))
        columns[:, index] = to_mean.mean(), each.mean(), each.min(axis=0).mean()
    return PointErrors(*columns)


def one_human(points: ArrayLike) -> PointErrors:
    """Distances ``[A]`` of each of one head's annotations ``[A,2]`` to the A − 1 others; raises DataError for a lone annotator."""
    looks = _points(points, "gaze points")
    if len(looks) < 2:
        raise DataError(f"{len(looks)} annotations cannot be judged by one another; the human row needs two or more a head")
    return point_errors(looks, [np.delete(looks, index, axis=0) for index in range(len(looks))])


def centre_map(count: int) -> np.ndarray:
    """The centre baseline for ``count`` heads: ``[count,64,64]`` logits, predicted point exactly (0.5, 0.5)."""
    return np.repeat(gaussian_maps([(0.5, 0.5)]), count, axis=0)


@dataclass(frozen=True)
class HeadPrior:
    """The head-position prior: the mean gaze of the training heads nearest in head centre.

    ``centres [M,2]`` and ``gazes [M,2]`` in [0,1] are of in-frame training heads. This is what a head's place in the
    picture tells without looking at it. The "fixed bias" row of Recasens et al. (2015) is akin: the average of training
    fixations of heads in similar locations.
    """

    centres: np.ndarray
    gazes: np.ndarray
    neighbours: int = NEIGHBOURS

    @classmethod
    def fit(cls, centres: ArrayLike, gazes: ArrayLike, neighbours: int = NEIGHBOURS) -> HeadPrior:
        """Raises DataError without heads, for counts that differ and for points that are not finite."""
        heads, looks = _points(centres, "head centres"), _points(gazes, "gaze points")
        if len(heads) == 0 or len(heads) != len(looks):
            raise DataError(
                f"the head-position prior needs one gaze point for each in-frame training head, "
                f"not {len(looks)} for {len(heads)}; use a training split that has in-frame heads"
            )
        if neighbours < 1:
            raise DataError(f"the head-position prior needs at least 1 neighbour, not {neighbours}")
        return cls(heads, looks, neighbours)

    def predict_points(self, centres: ArrayLike) -> np.ndarray:
        """Mean gaze points ``[N,2]`` for head ``centres [N,2]``.

        Of heads equally far the first in training order are taken; with fewer than ``neighbours`` heads, all of them.
        """
        heads = _points(centres, "head centres")
        count = min(self.neighbours, len(self.centres))
        result = np.empty((len(heads), 2))
        for index, head in enumerate(heads):
            far = ((self.centres - head) ** 2).sum(axis=1)
            limit = np.partition(far, count - 1)[count - 1]
            nearer = np.flatnonzero(far < limit)
            tied = np.flatnonzero(far == limit)[: count - len(nearer)]
            result[index] = self.gazes[np.concatenate((nearer, tied))].mean(axis=0)
        return result

    def predict(self, centres: ArrayLike) -> np.ndarray:
        """Maps ``[N,64,64]`` of logits: a Gaussian at :meth:`predict_points`."""
        return gaussian_maps(self.predict_points(centres))


@dataclass(frozen=True)
class FixedBias:
    """One map for everybody: the mean of the Gaussians of all training gaze points. ``heatmap [64,64]`` logits."""

    heatmap: np.ndarray

    @classmethod
    def fit(cls, gazes: ArrayLike, sigma: float = SIGMA) -> FixedBias:
        """From ``gazes [M,2]`` in [0,1]; raises DataError without any."""
        looks = _points(gazes, "gaze points")
        if len(looks) == 0:
            raise DataError("the fixed bias needs gaze points; use a training split that has in-frame heads")
        cells = _cells(looks)
        seen = np.zeros((GRID, GRID))
        np.add.at(seen, (cells[:, 1], cells[:, 0]), 1.0)
        kernel = _gaussian_kernel(sigma)
        mean = kernel @ seen @ kernel.T / len(looks)
        # Far from every point a narrow Gaussian underflows; a logarithm of zero is no logit.
        return cls(np.log(np.maximum(mean, np.finfo(np.float64).tiny)).astype(np.float32))

    def predict(self, count: int) -> np.ndarray:
        """The map for ``count`` heads, ``[count,64,64]``."""
        return np.repeat(self.heatmap[None], count, axis=0)


def saliency_map(picture: np.ndarray) -> np.ndarray:
    """Spectral-residual saliency of an RGB ``picture [H,W,3]`` uint8: ``[64,64]`` float32 logits, 0 at its peak.

    Hou & Zhang, *Saliency Detection: A Spectral Residual Approach* (CVPR 2007): at 64×64, the log amplitude spectrum
    less its 3×3 mean, transformed back with the phase, squared, smoothed with a Gaussian (σ = 2.5 cells, as in the
    authors' program). The spectrum is periodic, so its mean wraps around; the picture is not, so the smoothing does
    not. A picture of one colour has a flat map. Raises DataError for another shape or type.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise DataError(f"a picture is [H,W,3] uint8, not {list(picture.shape)} {picture.dtype}; decode it as RGB")
    height, width = picture.shape[:2]
    if (picture == picture[0, 0]).all():
        return np.zeros((GRID, GRID), dtype=np.float32)
    grey = picture @ np.array([0.299, 0.587, 0.114])
    small = _area_mean(height) @ grey @ _area_mean(width).T
    spectrum = np.fft.fft2(small)
    amplitude = np.abs(spectrum)
    # A frequency that is wholly absent would have an infinite logarithm.
    log_amplitude = np.log(np.maximum(amplitude, 1e-8 * amplitude.max()))
    mean = sum(np.roll(log_amplitude, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9.0
    back = np.fft.ifft2(np.exp(log_amplitude - mean + 1j * np.angle(spectrum)))
    kernel = _gaussian_kernel(2.5)
    kernel /= kernel.sum(axis=1, keepdims=True)
    salient = kernel @ np.abs(back) ** 2 @ kernel.T
    return np.log(np.maximum(salient / salient.max(), 1e-12)).astype(np.float32)


def _area_mean(size: int) -> np.ndarray:
    """Matrix ``[64,size]`` whose rows average ``size`` samples over 64 equal spans, parts of samples by their share."""
    edges = np.arange(GRID + 1) * (size / GRID)
    sample = np.arange(size)
    overlap = np.minimum(edges[1:, None], sample + 1) - np.maximum(edges[:-1, None], sample)
    return np.maximum(overlap, 0.0) * (GRID / size)


def _gaussian_kernel(sigma: float) -> np.ndarray:
    axis = np.arange(GRID)
    return np.exp(-((axis[:, None] - axis[None]) ** 2) / (2.0 * sigma**2))


def _cells(points: np.ndarray) -> np.ndarray:
    return np.clip((points * GRID).astype(np.int64), 0, GRID - 1)


def _points(points: ArrayLike, what: str) -> np.ndarray:
    places = np.asarray(points, dtype=np.float64)
    if places.size == 0:
        return np.empty((0, 2))
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        raise DataError(f"{what} must be finite [N,2], not {list(places.shape)} with {places.min()}..{places.max()}")
    return places
