"""Rays against solids: which pixels of a canvas each solid covers, how deep, and where on the solid.

A pixel's ray is (x, y, 1) from the camera with x, y affine in the pixel, so everything about a quadric along a ray is a
second-degree polynomial of the pixel. Its terms in x alone and in y alone are tabled for all solids at once, and a patch of
pixels costs a handful of sums of a row and a column; only pixels that are hit and not hidden go on. Arrays of hits are kept
`[3,n]`, as sums along contiguous rows are several times faster than along short columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.synth.camera import NEAR, Array, Camera
from distill.synth.solids import BOX, ELLIPSOID, FRUSTUM, Solid, corners

_HIDDEN = 0.02
"""Metres by which a solid must lie behind what is drawn to be skipped; depths of far, thin solids are good to a millimetre."""


@dataclass(frozen=True)
class Hit:
    """The pixels of a patch that show a solid."""

    row: NDArray[np.intp]
    """Rows and columns of the canvas `[n]`."""
    column: NDArray[np.intp]
    depth: Array
    """Metres `[n]` float32."""
    local: Array
    """Points hit `[3,n]` float32 in the unit frame."""
    normal: Array
    """Gradient there `[3,n]`; the same array as `local` for ellipsoids."""

    def where(self, kept: NDArray[np.intp]) -> Hit:
        """The hits numbered `kept`."""
        local = self.local.take(kept, axis=1)
        normal = local if self.normal is self.local else self.normal.take(kept, axis=1)
        return Hit(self.row.take(kept), self.column.take(kept), self.depth.take(kept), local, normal)


class Caster:
    """Many solids seen by one camera; doing their arithmetic at once costs hardly more than one solid's.

    The quadric is sum(signs*q^2) - (base + slope*q_y)^2 in a solid's unit frame (unused for boxes), rays there are
    start + depth * (into @ r) with r = (x, y, 1). Along a ray its second-degree coefficient is r @ a @ r, half the
    first-degree one b @ r, and the discriminant r @ disc @ r.
    """

    def __init__(self, solids: Sequence[Solid], camera: Camera, x: Array, y: Array, scale: float) -> None:
        """`x` `[width]` and `y` `[height]` are the rays of the columns and rows of a canvas `scale` times as fine as the picture."""
        self.solids = solids
        turn, half = np.array([s.turn for s in solids]), np.array([s.half for s in solids])
        radii = np.array([s.radii if s.shape == FRUSTUM else (1.0, 1.0) for s in solids])
        slope, base = (radii[:, 1] - radii[:, 0]) / 2, (radii[:, 1] + radii[:, 0]) / 2
        into = turn.transpose(0, 2, 1) / half[:, :, None]
        start = np.einsum("nij,nj->ni", into, camera.origin - np.array([s.centre for s in solids]))
        signs = np.ones((len(solids), 3))
        signs[:, 1] = np.where([s.shape == FRUSTUM for s in solids], -slope * slope, 1.0)
        bent = signs * start
        bent[:, 1] -= slope * base
        c = (signs * start * start).sum(axis=1) - base * base - 2 * slope * base * start[:, 1]
        b = np.einsum("ni,nij->nj", bent, into)
        a = np.einsum("nki,nk,nkj->nij", into, signs, into)
        disc = b[:, :, None] * b[:, None, :] - c[:, None, None] * a
        self._x, self._y = x.astype(np.float32), y.astype(np.float32)
        self._start = start
        self._into, self._start32 = into.astype(np.float32), start.astype(np.float32)[..., None]
        self._table_disc(disc, x, y)
        self._table_root(-a.astype(np.float32), b.astype(np.float32))
        self._frame(camera, scale, disc, (y.size, x.size))

    def _table_disc(self, m: Array, x: Array, y: Array) -> None:
        m = m[..., None]
        self._disc_x = ((m[:, 0, 0] * x + 2 * m[:, 0, 2]) * x + m[:, 2, 2]).astype(np.float32)
        self._disc_y = ((m[:, 1, 1] * y + 2 * m[:, 1, 2]) * y).astype(np.float32)
        self._disc_xy = (2 * m[:, 0, 1] * x).astype(np.float32)

    def _table_root(self, a: Array, b: Array) -> None:
        """Terms of the nearer root (b @ r + sqrt(discriminant)) / (r @ a @ r); `a` comes negated."""
        a, b = a[..., None], b[..., None]
        self._quad_x, self._quad_y = a[:, 0, 0] * self._x, (2 * a[:, 0, 1]) * self._y
        self._quad_1 = (2 * a[:, 0, 2]).ravel()
        self._rest_y = (a[:, 1, 1] * self._y + 2 * a[:, 1, 2]) * self._y
        self._rest_1 = a[:, 2, 2].ravel()
        self._line_x, self._line_y, self._line_1 = b[:, 0] * self._x, b[:, 1] * self._y, b[:, 2].ravel()

    def _frame(self, camera: Camera, scale: float, disc: Array, size: tuple[int, int]) -> None:
        """Find the patch of pixels that each solid can cover, and the order nearest first."""
        boxes = corners(self.solids)
        near = boxes[..., 2].min(axis=1)
        pixels = camera.project(boxes) * scale
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        low, high = np.floor(low), np.ceil(high) + 1
        for axis, centre, pitch in ((0, camera.cx, camera.focal), (1, camera.cy, -camera.focal)):
            first, last = _outline(disc, axis)
            u, v = (first * pitch + centre) * scale, (last * pitch + centre) * scale
            rounded = np.isfinite(u) & np.isfinite(v) & np.array([s.shape == ELLIPSOID for s in self.solids])
            # two pixels for the rounding of the discriminant
            low[rounded, axis] = np.maximum(low[:, axis], np.floor(np.minimum(u, v)) - 2)[rounded]
            high[rounded, axis] = np.minimum(high[:, axis], np.ceil(np.maximum(u, v)) + 2)[rounded]
        low = np.maximum(low, 0).astype(int)
        high = np.minimum(high, (size[1], size[0])).astype(int)
        shown = (near >= NEAR) & (low < high).all(axis=1)
        order = np.argsort(near, kind="stable")
        self.order: list[int] = order[shown[order]].tolist()
        """Numbers of the solids that can be in the picture, nearest first."""
        self._near: list[float] = (near - _HIDDEN).tolist()
        self._low: list[list[int]] = low.tolist()
        self._high: list[list[int]] = high.tolist()

    def cast(self, i: int, depth: Array) -> Hit | None:
        """What shows of solid i before what is at `depth` `[height,width]`; None for nothing.

        To be called where numpy does not warn of divisions and roots: pixels beside the solid have none.
        """
        (x0, y0), (x1, y1) = self._low[i], self._high[i]
        drawn = depth[y0:y1, x0:x1]
        if self._near[i] > drawn.max():
            return None
        return _CASTERS[self.solids[i].shape](self, i, slice(x0, x1), slice(y0, y1), drawn)

    def _roots(self, i: int, xs: slice, ys: slice) -> tuple[Array, NDArray[np.bool_]]:
        """Depth `[h,w]` of the nearer root of solid i's quadric, and where there is one."""
        disc = self._y[ys, None] * self._disc_xy[i, xs]
        disc += self._disc_x[i, xs]
        disc += self._disc_y[i, ys, None]
        quad = self._quad_y[i, ys, None] + self._quad_x[i, xs]
        quad += self._quad_1[i]
        quad *= self._x[xs]
        quad += self._rest_y[i, ys, None]
        quad += self._rest_1[i]
        depth = self._line_y[i, ys, None] + self._line_x[i, xs]
        depth += self._line_1[i]
        hit = disc > 0
        depth += np.sqrt(disc, out=disc)
        depth /= quad
        return depth, hit

    def _rays(self, seen: NDArray[np.intp], xs: slice, ys: slice) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the canvas of the pixels that are numbered `seen` in a patch."""
        width = xs.stop - xs.start
        row = seen // width
        column = seen - row * width
        row += ys.start
        column += xs.start
        return row, column

    def _local(self, i: int, x: Array, y: Array, depth: Array) -> Array:
        """Unit-frame points `[3,n]` at `depth` along the rays (x, y, 1)."""
        into = self._into[i]
        out = into[:, :1] * x
        out += into[:, 1:2] * y
        out += into[:, 2:]
        out *= depth
        out += self._start32[i]
        return out

    def _ellipsoid(self, i: int, xs: slice, ys: slice, drawn: Array) -> Hit | None:
        depth, hit = self._roots(i, xs, ys)
        hit &= depth < drawn
        seen = hit.ravel().nonzero()[0]
        if seen.size == 0:
            return None
        row, column = self._rays(seen, xs, ys)
        reach = depth.ravel().take(seen)
        local = self._local(i, self._x.take(column), self._y.take(row), reach)
        return Hit(row, column, reach, local, local)

    def _frustum(self, i: int, xs: slice, ys: slice, drawn: Array) -> Hit | None:
        low, high = self.solids[i].radii
        slope, base = (high - low) / 2, (high + low) / 2
        roots, hit = self._roots(i, xs, ys)
        found = hit.ravel().nonzero()[0]
        if found.size == 0:
            return None
        row, column = self._rays(found, xs, ys)
        depth, x, y = roots.ravel().take(found), self._x.take(column), self._y.take(row)
        local = self._local(i, x, y, depth)
        kept = (np.abs(local[1]) <= 1.0) & (depth > 0)
        line = local[1] * np.float32(slope) + np.float32(base)
        normal = np.stack([local[0], line * np.float32(-slope), local[2]])
        start = self._start[i, 1]
        if abs(start) > 1.0:  # one cap faces the camera
            cap = 1.0 if start > 0 else -1.0
            a, b, c = self._into[i, 1]
            slant = a * x + b * y + c
            slant[np.abs(slant) < 1e-9] = 1e-9
            reach = np.float32(cap - start) / slant
            at = self._local(i, x, y, reach)
            on_cap = (at[0] ** 2 + at[2] ** 2 <= (base + slope * cap) ** 2) & (reach > 0) & (~kept | (reach < depth))
            depth = np.where(on_cap, reach, depth)
            local = np.where(on_cap, at, local)
            normal[:, on_cap] = np.array([0.0, cap, 0.0], dtype=np.float32)[:, None]
            kept |= on_cap
        kept &= depth < drawn.ravel().take(found)
        seen = kept.nonzero()[0]
        if seen.size == 0:
            return None
        return Hit(row, column, depth, local, normal).where(seen)

    def _box(self, i: int, xs: slice, ys: slice, drawn: Array) -> Hit | None:
        start = self._start[i]
        depth: Array | None = None
        for axis in range(3):
            if abs(start[axis]) <= 1.0:
                continue
            a, b, c = self._into[i, axis]
            slant = (a * self._x[xs] + c) + (b * self._y[ys])[:, None]
            reach = np.float32(np.sign(start[axis]) - start[axis]) / slant
            depth = reach if depth is None else np.maximum(depth, reach)
        if depth is None:
            return None
        found = ((depth > 0) & (depth < drawn)).ravel().nonzero()[0]
        if found.size == 0:
            return None
        row, column = self._rays(found, xs, ys)
        reach = depth.ravel().take(found)
        local = self._local(i, self._x.take(column), self._y.take(row), reach)
        size = np.abs(local)
        seen = ((size[0] <= 1.0005) & (size[1] <= 1.0005) & (size[2] <= 1.0005)).nonzero()[0]
        if seen.size == 0:
            return None
        size = size.take(seen, axis=1)
        outside = np.abs(start) > 1.0
        size[~outside] = 0.0
        side = size.argmax(axis=0)
        normal = np.zeros_like(size)
        for facing in np.flatnonzero(outside).tolist():
            normal[facing, side == facing] = np.sign(start[facing])
        return Hit(row.take(seen), column.take(seen), reach.take(seen), local.take(seen, axis=1), normal)


_CASTERS = {ELLIPSOID: Caster._ellipsoid, BOX: Caster._box, FRUSTUM: Caster._frustum}


def _outline(disc: Array, axis: int) -> tuple[Array, Array]:
    """Least and greatest ray x (`axis` 0) or y (1) `[n]` at which the conics r @ disc @ r = 0 have a point; not finite for none."""
    other = 1 - axis
    with np.errstate(invalid="ignore", divide="ignore"):
        pivot = disc[:, other, other]
        second = disc[:, axis, axis] - disc[:, axis, other] ** 2 / pivot
        first = disc[:, axis, 2] - disc[:, axis, other] * disc[:, other, 2] / pivot
        zeroth = disc[:, 2, 2] - disc[:, other, 2] ** 2 / pivot
        root = np.where((pivot < 0) & (second < 0), np.sqrt(first * first - second * zeroth), np.nan)
        return (-first - root) / second, (-first + root) / second
