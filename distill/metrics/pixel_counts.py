"""How many pixels of a resized heatmap lie below given values, and how many equal them.

The GazeFollow AUC needs no more than this: the ranks of the few positive pixels. Between two neighbouring columns of cells a row
of the picture is *linear*, so the pixels of such a piece (about ten) that lie below a value are told by where the line crosses
it, and no pixel is computed. Three steps, together exact:

1. Each piece's line, moved and scaled by the range of its own four cells, is held in single precision: a flat map, a steep one and
   a plateau far from zero are all alike at this scale. Patches with all pixels on one side of every value are left out first.
2. Where a pixel lies at the crossing, or a level piece at the value, within single precision's error, the count is in doubt.
3. Pixels in doubt, about one beside the value's own, are computed in double precision by the formula of the full resize, bit for
   bit, and compared exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from distill.errors import MetricError
from distill.metrics.resampling import Axis, axis, patches

_CHUNK = 40_000  # pieces held at once: a few arrays of them stay in a core's own cache
_MOST = 0.7  # share of patches with pixels on both sides of a value from which all are looked into: choosing costs as well
_DOUBTS = 20_000  # pieces computed at once, ten pixels each
_SINGLE = 2.0**-24  # float32's rounding, relative
# In units of the four cells' range: some 25 roundings are reached (the line's start 5, the value 1, slope times place 9, the
# reciprocal and the products with it 6), and double precision's own, of the cells and of the pixel that is compared.
_BAND, _DOUBLE = 48 * _SINGLE, 16 * float(np.finfo(np.float64).eps)
_LEVEL = 64  # bands that a piece must rise from a pixel to the next: less is level, and of more a single pixel is in doubt
_TINY = 1e-290  # a range below it counts as this one: its reciprocal is still a number
_LINE = 16  # float32 of a cache line
_ONE = np.float32(1).view(np.uint32)

_kept = threading.local()


def values_at(grid: np.ndarray, x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
    """Values ``[A]`` of the map ``grid [h,w]`` float64, resized to ``width`` × ``height``, at pixels ``x``, ``y`` ``[A]``."""
    across, down = axis(grid.shape[1], width), axis(grid.shape[0], height)
    row, column = down.span[y], across.span[x]
    corners = np.stack([grid[vertical[row], horizontal[column]] for vertical in (down.low, down.high) for horizontal in (across.low, across.high)])
    return patches(corners, across.weight[x][None], down.weight[y][None])[0, 0]


def pixel_counts(grid: np.ndarray, values: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``below [V]`` and ``equal [V]``, int64, of ``grid [h,w]`` float64 resized to ``width`` × ``height`` pixels.

    ``values [V]`` are distinct. Raises MetricError for a map whose highest value less its lowest is beyond double precision.
    """
    lowest, highest = float(grid.min()), float(grid.max())
    if not np.isfinite(highest - lowest):
        raise MetricError(f"heatmap values from {lowest:g} to {highest:g} cannot be compared; the model that gave it is broken")
    below, equal = np.zeros((2, len(values)), dtype=np.int64)
    every = _Patches.of(grid, _layout(*grid.shape, width, height))
    if every.flat.size:
        cells, area = every.corners[0, every.flat], every.layout.area[every.flat]
        below += (cells < values[:, None]) @ area
        equal += (cells == values[:, None]) @ area
    for some in every.chosen(values, below):
        _Pieces.of(every, some).add_to(below, equal, values)
    return below, equal


@dataclass(frozen=True)
class _Layout:
    """Where the P patches lie that have pixels: spans ``row``, ``column``, how many pixels (``area``, and ``count`` in a row), all ``[P]``.

    ``weight [R,P]`` float32 are the weights of their picture rows, NaN for a row that a patch does not have, ``begin [P]`` that of
    the first pixel across. The last patches fill up P to whole cache lines, from which rows are read twice as fast; they have no
    row.
    """

    across: Axis
    down: Axis
    rows: np.ndarray
    columns: np.ndarray
    row: np.ndarray
    column: np.ndarray
    area: np.ndarray
    count: np.ndarray
    begin: np.ndarray
    weight: np.ndarray


@lru_cache(maxsize=64)
def _layout(cells_down: int, cells_across: int, width: int, height: int) -> _Layout:
    across, down = axis(cells_across, width), axis(cells_down, height)
    # A picture smaller than the map has no pixel between some of the cells.
    rows, columns = np.flatnonzero(down.counts), np.flatnonzero(across.counts)
    number = len(rows) * len(columns)
    spare = (0, -number % _LINE)
    row, column = np.pad(rows.repeat(len(columns)), spare), np.pad(np.tile(columns, len(rows)), spare)
    weight = down.ladder.astype(np.float32)[:, row]
    weight[:, number:] = np.nan
    area = down.counts[row] * across.counts[column]
    area[number:] = 0
    return _Layout(across, down, rows, columns, row, column, area, across.counts[column].astype(np.float32), across.ladder[0, column], weight)


@dataclass(frozen=True)
class _Patches:
    """The four ``corners [4,P]`` of all patches, and the least and the greatest of them ``[P]``; ``flat [F]`` are those with four equal ones."""

    layout: _Layout
    corners: np.ndarray
    low: np.ndarray
    high: np.ndarray
    flat: np.ndarray

    @classmethod
    def of(cls, grid: np.ndarray, layout: _Layout) -> _Patches:
        rows, columns, across, down = layout.rows, layout.columns, layout.across, layout.down
        number = len(rows) * len(columns)
        corners = np.zeros((4, len(layout.row)))
        sides = grid.take(across.low[columns], axis=1), grid.take(across.high[columns], axis=1)
        for corner, (ends, side) in zip(corners, ((ends, side) for ends in (down.low, down.high) for side in sides), strict=True):
            np.take(side, ends[rows], axis=0, out=corner[:number].reshape(len(rows), -1), mode="clip")  # the default mode would copy
        low = np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))
        high = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
        return cls(layout, corners, low, high, np.flatnonzero(low[:number] == high[:number]))

    def chosen(self, values: np.ndarray, below: np.ndarray) -> Iterator[slice | np.ndarray]:
        """Patches to look into, some at a time; of the others the pixels are added to ``below [V]``, but for flat ones."""
        # Whole numbers add up exactly in single precision as long as the sum, at most a row's pixels of so many patches, is below 2²⁴.
        step = _LINE * max(1, min(_CHUNK // len(self.layout.weight), 2**24 // len(self.layout.across.ladder)) // _LINE)
        # Rounding may carry a pixel past its corners by a few units in the last place.
        slack = np.maximum(-self.low, self.high) * (8 * np.finfo(np.float64).eps) + np.finfo(np.float64).tiny
        low, high = self.low - slack, self.high + slack
        # Every eighth tells well enough whether it is worth while to leave some out; either way the counts are the same.
        if np.count_nonzero(_either_side(low[::8], high[::8], values)) > _MOST * len(low[::8]):
            yield from (slice(first, first + step) for first in range(0, len(low), step))
            return
        mixed = _either_side(low, high, values)
        mixed[self.flat] = True
        whole = np.flatnonzero(~mixed)
        below += (high[whole] < values[:, None]) @ self.layout.area[whole]
        mixed[self.flat] = False
        chosen = np.flatnonzero(mixed)
        yield from (chosen[first : first + step] for first in range(0, len(chosen), step))


def _either_side(low: np.ndarray, high: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which ``[N]`` of the ranges ``low [N]`` to ``high [N]`` hold one of the values or more."""
    held = np.zeros(len(low), dtype=bool)
    for value in values:
        held |= (low <= value) & (value <= high)
    return held


@dataclass(frozen=True)
class _Level:
    """Pieces without a crossing worth the name, of row ``depth [L]`` in patch ``patch [L]``: all pixels ``place`` above the first cell, ± ``reach``."""

    depth: np.ndarray
    patch: np.ndarray
    place: np.ndarray
    reach: np.ndarray


@dataclass(frozen=True)
class _Pieces:
    """The linear pieces ``[R,P]`` of at most R picture rows in each of P patches, in units of the range of a patch's four cells.

    A value ``v`` above a patch's first cell is crossed after ``v·turn − shift`` of the ``count [P]`` pixels of a piece, give or take the
    doubt: ``shift`` is as much less, so that the last whole pixel before it is in doubt when it is nearer than twice the doubt. ``sign`` is
    1 where the line rises and −1 where it falls, ``falling`` the number of pixels of those that fall, ``band [P]`` single precision's
    error. Level pieces, and those of flat patches and of rows that a patch does not have, are NaN, which counts as no pixel.
    """

    layout: _Layout
    corners: np.ndarray
    row: np.ndarray
    column: np.ndarray
    scale: np.ndarray
    count: np.ndarray
    band: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    sign: np.ndarray
    falling: int
    level: _Level

    @classmethod
    def of(cls, every: _Patches, some: slice | np.ndarray) -> _Pieces:
        """The pieces of ``some`` patches."""
        layout, weight = every.layout, every.layout.weight
        if isinstance(some, np.ndarray):
            number = len(some)
            some = np.pad(some, (0, -number % _LINE))
            weight = np.take(weight, some, axis=1, out=_room("weight", np.float32, (len(weight), len(some))), mode="clip")
            weight[:, number:] = np.nan
        else:
            weight = weight[:, some]
        corners, low, high = every.corners[:, some], every.low[some], every.high[some]
        begin, count, step = layout.begin[some], layout.count[some], layout.across.step
        first, second, third, fourth = corners
        extent = high - low
        scale = 1.0 / np.maximum(extent, _TINY)
        right, under = (second - first) * scale, (third - first) * scale
        twist = (fourth - third) * scale - right
        with np.errstate(over="ignore"):
            band = (_BAND + np.minimum((_DOUBLE * scale) * np.maximum(-low, high), 1e30)).astype(np.float32)
        right[extent == 0.0] = np.nan

        shape = weight.shape
        place, slope, turn, shift, sign, spare = (_room(name, np.float32, shape) for name in ("a", "b", "turn", "shift", "sign", "c"))
        np.multiply(weight, (under + begin * twist).astype(np.float32), out=place)
        place += (begin * right).astype(np.float32)
        np.multiply(weight, (step * twist).astype(np.float32), out=slope)
        slope += (step * right).astype(np.float32)
        mild = np.less_equal(np.abs(slope, out=spare), _LEVEL * band, out=_room("mild", bool, shape))
        patch = np.flatnonzero(mild.any(axis=0))
        depth, which = np.nonzero(mild[:, patch])
        patch = patch[which]
        level = _Level(depth, patch, place[depth, patch], band[patch] + spare[depth, patch] * count[patch])
        place[depth, patch] = slope[depth, patch] = np.nan

        np.divide(np.float32(1), slope, out=turn)
        np.multiply(place, turn, out=shift)
        shift -= np.float32(1)
        shift -= _doubt(turn, band, count, spare)
        # Its sign alone, put before a one: copysign takes twice as long.
        np.bitwise_or(np.bitwise_and(slope.view(np.uint32), np.uint32(1 << 31), out=sign.view(np.uint32)), _ONE, out=sign.view(np.uint32))
        falling = int((len(turn) - sign.sum(axis=0)) @ count.astype(np.float64)) // 2
        return cls(layout, corners, layout.row[some], layout.column[some], scale, count, band, turn, shift, sign, falling, level)

    def add_to(self, below: np.ndarray, equal: np.ndarray, values: np.ndarray) -> None:
        """Add the pixels below and equal to each of ``values [V]`` to ``below [V]`` and ``equal [V]``."""
        shape = self.turn.shape
        part, whole, nearest = (_room(name, np.float32, shape) for name in ("a", "b", "c"))
        offsets = _room("offsets", np.float32, (len(values), shape[1]))
        nearest[:] = 1.0
        ends = np.full(shape[1], 0.5, dtype=np.float32), self.count + np.float32(0.5)
        with np.errstate(over="ignore"):  # a value beyond all that single precision holds is as good as infinite
            for number, (value, offset) in enumerate(zip(values, offsets, strict=True)):
                np.multiply(value - self.corners[0], self.scale, out=offset, casting="same_kind")
                _cross(offset, self.turn, self.shift, ends, part, whole)
                # Before the crossing of a line that rises, and behind that of one that falls, the pixels are below.
                below[number] += int((whole[:, None] @ self.sign[:, :, None]).sum(dtype=np.float64)) + self.falling
                np.minimum(nearest, part, out=nearest)
            doubt = _doubt(self.turn, self.band, self.count, whole)
            doubt *= np.float32(2)
            self._settle(np.flatnonzero(np.less_equal(nearest, doubt, out=_room("mild", bool, shape))), offsets, below, equal, values)
        self._settle_level(offsets, below, equal, values)
    def _settle(self, piece: np.ndarray, offsets: np.ndarray, below: np.ndarray, equal: np.ndarray, values: np.ndarray) -> None:
        """Of the pieces ``piece [K]``, each in doubt for some value: the pixel at the crossing, exactly."""
        if not piece.size:
            return
        depth, patch = np.divmod(piece, len(self.count))
        part, whole = np.empty((2, len(values), len(piece)), dtype=np.float32)
        turn, count = self.turn.ravel()[piece], self.count[patch]
        _cross(offsets[:, patch], turn, self.shift.ravel()[piece], (np.float32(0.5), count + np.float32(0.5)), part, whole)
        number, which = np.nonzero(part <= 2 * _doubt(turn, self.band[patch], count, np.empty_like(turn)))
        pixel = whole[number, which].astype(np.int64) - 1  # the last that was counted as one before the crossing
        row, column = self.row[patch[which]], self.column[patch[which]]
        across, down = self.layout.across.ladder[pixel, column], self.layout.down.ladder[depth[which], row]
        exact = patches(self.corners[:, patch[which]], across[None], down[None])[0, 0]
        counted = self.sign.ravel()[piece[which]] > 0
        below += np.bincount(number[exact < values[number]], minlength=len(values)) - np.bincount(number[counted], minlength=len(values))
        equal += np.bincount(number[exact == values[number]], minlength=len(values))

    def _settle_level(self, offsets: np.ndarray, below: np.ndarray, equal: np.ndarray, values: np.ndarray) -> None:
        """Level pieces: as a whole below or above a value, or else each of their pixels exactly."""
        depth, patch = self.level.depth, self.level.patch
        above = offsets.take(patch, axis=1) - self.level.place  # of the value over the piece
        below += ((above > self.level.reach).astype(np.float32) @ self.count[patch]).astype(np.int64)
        numbers, pieces = np.divmod(np.flatnonzero(np.abs(above) <= self.level.reach), len(patch))
        for first in range(0, len(pieces), _DOUBTS):
            number, which = numbers[first : first + _DOUBTS], pieces[first : first + _DOUBTS]
            row, column = self.row[patch[which]], self.column[patch[which]]
            across, down = self.layout.across.ladder[:, column], self.layout.down.ladder[depth[which], row]
            exact = patches(self.corners[:, patch[which]], across, down[None])[0]  # NaN, no pixel, is neither below nor equal
            for count, found in ((below, exact < values[number]), (equal, exact == values[number])):
                count += np.bincount(number, found.sum(axis=0), len(values)).astype(np.int64)


def _cross(
    offset: np.ndarray, turn: np.ndarray, shift: np.ndarray, ends: tuple[np.ndarray | np.float32, np.ndarray], part: np.ndarray, whole: np.ndarray
) -> None:
    """Pixels before the crossing into ``whole``, and into ``part`` how far the crossing is behind the last of them, or ½ at the ``ends``."""
    np.multiply(offset, turn, out=part)
    part -= shift
    np.fmax(part, ends[0], out=part)  # NaN too is no pixel
    np.minimum(part, ends[1], out=part)
    np.floor(part, out=whole)
    part -= whole


def _doubt(turn: np.ndarray, band: np.ndarray, count: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Single precision's error of a crossing, in pixels; NaN where ``turn`` is."""
    np.multiply(np.abs(turn, out=out), band, out=out)
    out += np.float32(4 * _SINGLE) * count
    return out


def _room(name: str, kind: type, shape: tuple[int, int]) -> np.ndarray:
    """An array of this shape whose contents mean nothing, beginning on a cache line: the same memory every time, one a thread.

    A fresh array of this size may be fresh pages from the system, whose faults cost more than the arithmetic on them.
    """
    size, item = shape[0] * shape[1], np.dtype(kind).itemsize
    room = getattr(_kept, name, None)
    if room is None or len(room) < size:
        spare: np.ndarray = np.empty(size + 64 // item, dtype=kind)
        room = spare[-spare.ctypes.data % 64 // item :]
        setattr(_kept, name, room)
    return room[:size].reshape(shape)
