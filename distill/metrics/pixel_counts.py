"""How many pixels of a resized heatmap lie below given values, and how many equal them.

The GazeFollow AUC needs no more than this: the ranks of the few positive pixels. Three steps, together exact:

1. The pixels of a patch (see :mod:`distill.metrics.resampling`) lie between its four cells' values. Where these are all on
   one side of every value, the patch counts as a whole: most of a smooth map.
2. The pixels of the other patches (of the whole map, where most are) are computed in single precision and compared with a
   band around each value that is wider than single precision's error. On the map moved and scaled to [0,1] that error is
   *relative* (sums of products of numbers that are not negative), so the band stays narrow where a map is small, as
   sigmoids are nearly everywhere.
3. What falls into a band, about one pixel beside the value's own, is computed again in double precision by the formula of
   the full resize, bit for bit, and compared exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distill.errors import MetricError
from distill.metrics.resampling import Axis, axis, patches

# Pixels computed at once: few enough to stay in a core's own cache, enough to make the calls worth their while.
_CHUNK = 160_000
_DENSE = 0.4  # share of patches to be computed from which the whole map is cheaper: one matrix product instead of gathering
_ROUNDING = 0.5 * float(np.finfo(np.float32).eps)  # float32, relative
_BAND = 10 * _ROUNDING  # 7 are reached: the map 1, in either direction weight, product and sum 3; and the bound itself 1
_DOUBLE = 32 * float(np.finfo(np.float64).eps)
_TINY = 1e-35  # below it float32 loses digits, and processors their speed

_kept = threading.local()


@dataclass(frozen=True)
class _Resize:
    """A map ``grid [h,w]`` float64 and the two axes that carry it to a picture."""

    grid: np.ndarray
    across: Axis
    down: Axis

    @classmethod
    def of(cls, grid: np.ndarray, width: int, height: int) -> _Resize:
        return cls(grid, axis(grid.shape[1], width), axis(grid.shape[0], height))

    def pixels(self, row: np.ndarray, column: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
        """One pixel ``[K]`` in each of K patches at these weights ``[K]``: operation by operation the full resize."""
        return patches(self.corners(self.grid, row, column), across[None], down[None])[0, 0]

    def corners(self, grid: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The four cells ``[4,K]`` of ``grid`` around K patches."""
        top, bottom = self.down.low[row] * grid.shape[1], self.down.high[row] * grid.shape[1]
        left, right = self.across.low[column], self.across.high[column]
        return grid.take(np.stack((top + left, top + right, bottom + left, bottom + right)))


def values_at(grid: np.ndarray, x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
    """Values ``[A]`` of the map ``grid [h,w]`` float64, resized to ``width`` × ``height``, at pixels ``x``, ``y`` ``[A]``."""
    resize = _Resize.of(grid, width, height)
    across, down = resize.across, resize.down
    return resize.pixels(down.span[y], across.span[x], down.weight[y], across.weight[x])


def pixel_counts(grid: np.ndarray, values: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``below [V]`` and ``equal [V]``, int64, of ``grid [h,w]`` float64 resized to ``width`` × ``height`` pixels.

    ``values [V]`` are distinct. Raises MetricError for a map whose highest value less its lowest is beyond double precision.
    """
    resize = _Resize.of(grid, width, height)
    across, down = resize.across, resize.down
    lowest, highest = float(grid.min()), float(grid.max())
    if not np.isfinite(highest - lowest):
        raise MetricError(f"heatmap values from {lowest:g} to {highest:g} cannot be compared; the model that gave it is broken")
    below, equal = np.zeros((2, len(values)), dtype=np.int64)
    # Border patches lie between a border cell and itself.
    wide = grid[np.append(down.low, down.high[-1])][:, np.append(across.low, across.high[-1])]
    # Every fourth row of patches tells well enough whether most are to be computed; either way the counts are the same.
    _, touched, mixed = _sorted_out(wide[np.arange(len(wide)) % 4 < 2], values)
    if np.count_nonzero(mixed[::2]) > _DENSE * mixed[::2].size and not touched[:, ~mixed].any():
        _count(resize, values, below, equal, _whole(resize, _unit(grid)))
        return below, equal
    under, touched, mixed = _sorted_out(wide, values)
    held = bool(touched[:, ~mixed].any())
    area = np.outer(down.counts, across.counts)
    area[mixed] = 0
    area = area.astype(np.float64).ravel()
    below += np.rint(under.reshape(len(values), -1) @ area).astype(np.int64)
    if held:  # of patches that are not mixed, a flat one's pixels alone can be equal to a value
        equal += np.rint(touched.reshape(len(values), -1) @ area).astype(np.int64)
    rows, columns = np.nonzero(mixed)
    if len(rows):
        _count(resize, values, below, equal, _chosen(resize, _unit(grid), rows, columns))
    return below, equal


@dataclass(frozen=True)
class _Chunk:
    """Pixels ``[P]`` float32: whole rows of the picture from its pixel ``first`` on, or ``[R,C,K]`` of the patches given."""

    pixel: np.ndarray
    first: int = 0
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def exactly(self, resize: _Resize, found: np.ndarray) -> np.ndarray:
        """The pixels ``found [F]`` of this chunk in double precision."""
        across, down = resize.across, resize.down
        if self.rows is None or self.columns is None:
            y, x = np.divmod(found + self.first, len(across.span))
            return resize.pixels(down.span[y], across.span[x], down.weight[y], across.weight[x])
        rest, patch = np.divmod(found, len(self.rows))
        y, x = np.divmod(rest, across.ladder.shape[0])
        row, column = self.rows[patch], self.columns[patch]
        return resize.pixels(row, column, down.ladder[y, row], across.ladder[x, column])


def _count(resize: _Resize, values: np.ndarray, below: np.ndarray, equal: np.ndarray, chunks: Iterator[_Chunk]) -> None:
    """Add the pixels of ``chunks`` to ``below`` and ``equal``."""
    lowest, highest = float(resize.grid.min()), float(resize.grid.max())
    span = highest - lowest
    bounds = (values - lowest) / span
    error = _BAND * bounds + (_DOUBLE * max(abs(lowest), abs(highest)) / span + 2 * _TINY)
    starts, ends = (bounds - error).astype(np.float32), (bounds + error).astype(np.float32)
    for chunk in chunks:
        size = chunk.pixel.size
        marks = _room("marks", bool, 2 * (size + -size % 8)).reshape(2, -1)
        marks[:, size:] = False
        eights = marks.view(np.uint64)  # eight marks at once, where all that matters is whether the two are the same
        unsure: list[tuple[int, np.ndarray]] = []
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            # NaN, in place of a pixel that a patch does not have, is neither.
            below[number] += np.count_nonzero(np.less(chunk.pixel, start, out=marks[0, :size]))
            np.less_equal(chunk.pixel, end, out=marks[1, :size])
            block = np.flatnonzero(eights[0] != eights[1])
            if block.size:
                which, place = np.nonzero(marks[0].reshape(-1, 8)[block] != marks[1].reshape(-1, 8)[block])
                unsure.append((number, 8 * block[which] + place))
        if unsure:
            limit = np.repeat([number for number, _ in unsure], [found.size for _, found in unsure])
            exact = chunk.exactly(resize, np.concatenate([found for _, found in unsure]))
            below += np.bincount(limit[exact < values[limit]], minlength=len(values))
            equal += np.bincount(limit[exact == values[limit]], minlength=len(values))


def _unit(grid: np.ndarray) -> np.ndarray:
    """The map moved and scaled to [0,1], float32."""
    lowest = grid.min()
    unit = ((grid - lowest) / (grid.max() - lowest)).astype(np.float32)
    unit[unit < _TINY] = 0.0
    return unit


def _whole(resize: _Resize, unit: np.ndarray) -> Iterator[_Chunk]:
    """All pixels, some rows at a time."""
    across, down = resize.across, resize.down
    width, height = len(across.span), len(down.span)
    lines = unit @ across.matrix.T
    step = max(1, _CHUNK // width)
    for first in range(0, height, step):
        count = min(step, height - first)
        pixel = _room("pixels", np.float32, count * width).reshape(count, width)
        # The cells that these rows lie between; the weights of all others are zero.
        start, end = down.low[down.span[first]], down.high[down.span[first + count - 1]] + 1
        np.matmul(down.matrix[first : first + count, start:end], lines[start:end], out=pixel)
        yield _Chunk(pixel.ravel(), first * width)


def _chosen(resize: _Resize, unit: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Iterator[_Chunk]:
    """The pixels of the patches at ``rows``, ``columns``, laid out ``[R,C,K]``: some patches at a time."""
    across, down = resize.across, resize.down
    each = down.single.shape[0], across.single.shape[0]
    step = max(1, _CHUNK // (each[0] * each[1]))
    for first in range(0, len(rows), step):
        row, column = rows[first : first + step], columns[first : first + step]
        corners = resize.corners(unit, row, column)
        # take, not an index: that would lay the patches out first, and every pass over the pixels would take ten times as long.
        weight, rest = across.single.take(column, axis=1), across.rest.take(column, axis=1)
        upper = rest * corners[0] + weight * corners[1]
        lower = rest * corners[2] + weight * corners[3]
        pixel, spare = _room("pixels", np.float32, 2 * each[0] * each[1] * len(row)).reshape(2, *each, len(row))
        np.multiply(down.rest.take(row, axis=1)[:, None], upper, out=pixel)
        pixel += np.multiply(down.single.take(row, axis=1)[:, None], lower, out=spare)
        yield _Chunk(pixel.ravel(), rows=row, columns=column)


def _sorted_out(wide: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the patches between the cells ``wide [h+1,w+1]``: which lie under each value, which may hold a pixel of that value, both
    ``[V,h,w]``, and which ``[h,w]`` have pixels on both sides of one."""
    low, high = _neighbours(wide, np.minimum), _neighbours(wide, np.maximum)
    flat = low == high
    # Rounding may carry a pixel past its corners by a few units in the last place.
    slack = np.maximum(-low, high) * (8 * np.finfo(np.float64).eps) + np.finfo(np.float64).tiny
    slack[flat] = 0.0
    under = high + slack < values[:, None, None]
    touched = (low - slack <= values[:, None, None]) & ~under
    return under, touched, touched.any(axis=0) & ~flat


def _neighbours(wide: np.ndarray, choose: np.ufunc) -> np.ndarray:
    """The least or the greatest ``[h-1,w-1]`` of each 2×2 cells of ``wide [h,w]``."""
    pairs = choose(wide[:-1], wide[1:])
    return choose(pairs[:, :-1], pairs[:, 1:])


def _room(name: str, kind: type, size: int) -> np.ndarray:
    """An array ``[size]`` whose contents mean nothing: the same memory every time, one a thread.

    A fresh array of this size is fresh pages from the system, whose faults cost more than the arithmetic on them.
    """
    room = getattr(_kept, name, None)
    if room is None or len(room) < size:
        room = np.empty(size, dtype=kind)
        setattr(_kept, name, room)
    return room[:size]
