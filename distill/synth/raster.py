"""A small ray caster: solids onto a supersampled canvas with a depth buffer, one patch a solid.

A pixel's ray is (x, y, 1) from the camera with x, y affine in the pixel, so the discriminant of any quadric is a second-degree
polynomial of the pixel and is evaluated for a whole patch with three operations; only pixels that are hit and not hidden are
shaded. Arrays of hits are kept `[3,n]`, as sums along contiguous rows are several times faster than along short columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distill.synth.camera import NEAR, Array, Camera
from distill.synth.solids import BOX, ELLIPSOID, FRUSTUM, Solid, corners

BACKDROP = -1
"""Owner of pixels that show no solid."""


@dataclass(frozen=True)
class Light:
    """One soft key light and the light of the surroundings, as factors on the paint."""

    towards: Array
    """Unit vector `[3]` from the scene to the key light."""
    key: float
    """What the key light adds where it falls squarely."""
    ambient: float
    """The light from all sides."""


class Canvas:
    """Solids in the making, `scale` times finer than the camera's pixels on each side."""

    def __init__(self, camera: Camera, light: Light, scale: float) -> None:
        self.camera = camera
        self.light = light
        self.scale = scale
        self.height, self.width = round(camera.height * scale), round(camera.width * scale)
        pixels = self.height * self.width
        self.colour = np.zeros(pixels, dtype=np.uint32)
        """Red, green, blue and cover (255 or 0) of each pixel `[height*width]` from the low byte up; one number, so one scatter."""
        self.depth = np.full(pixels, 1e9, dtype=np.float32)
        self.owner = np.full(pixels, BACKDROP, dtype=np.int16)
        self._x = ((np.arange(self.width) + 0.5) / scale - camera.cx) / camera.focal
        self._y = (camera.cy - (np.arange(self.height) + 0.5) / scale) / camera.focal
        self._index, self._all_x, self._all_y = _grids(
            self.height, self.width, scale, camera.focal, camera.cx, camera.cy
        )
        between = light.towards - np.array([0.0, 0.0, 1.0])
        # key light wrapped around forms, light from above, darker edges where forms turn away, highlight; the first two in [0,255]
        self._lamps = np.array(
            [
                light.towards * (255 * light.key / 1.3),
                (0.0, 255 * 0.16 * light.ambient, 0.0),
                (0.0, 0.0, -0.20),
                between / np.sqrt(between @ between),
            ]
        )
        self._lamp_base = np.array(
            [255 * light.key * 0.3 / 1.3, 255 * 0.84 * light.ambient, 0.80, 0.0], dtype=np.float32
        )[:, None]

    def draw(self, solids: Iterable[tuple[Solid, int]]) -> None:
        """Draw solids with the owner number of each, nearest first so that hidden parts are not shaded."""
        todo = list(solids)
        if not todo:
            return
        boxes = corners([s for s, _ in todo])
        near = boxes[..., 2].min(axis=1)
        pixels = self.camera.project(boxes) * self.scale
        low = np.maximum(np.floor(pixels.min(axis=1)), 0).astype(int).tolist()
        high = np.minimum(np.ceil(pixels.max(axis=1)) + 1, (self.width, self.height)).astype(int).tolist()
        rays = _Quadrics.of([s for s, _ in todo], self.camera.origin, self._lamps)
        for i in np.argsort(near, kind="stable").tolist():
            (x0, y0), (x1, y1) = low[i], high[i]
            if near[i] >= NEAR and x0 < x1 and y0 < y1:
                self._draw(todo[i][0], todo[i][1], rays.at(i), x0, y0, x1, y1)

    def owner_at(self, u: float, v: float) -> int:
        """Owner of the camera pixel (u, v)."""
        x = min(self.width - 1, max(0, int(u * self.scale)))
        y = min(self.height - 1, max(0, int(v * self.scale)))
        return int(self.owner[y * self.width + x])

    def _draw(self, solid: Solid, owner: int, rays: _Rays, x0: int, y0: int, x1: int, y1: int) -> None:
        patch = _Patch(
            rays, self._x[x0:x1], self._y[y0:y1], self._index[y0:y1, x0:x1], self._all_x, self._all_y, self.depth
        )
        hit = _CASTERS[solid.shape](solid, patch)
        if hit is None:
            return
        flat, depth, local, normal = hit
        if solid.cut is not None:
            kept = np.flatnonzero(solid.cut(local))
            if kept.size == 0:
                return
            if kept.size < flat.size:
                same = normal is local
                flat, depth, local = flat.take(kept), depth.take(kept), local.take(kept, axis=1)
                normal = local if same else normal.take(kept, axis=1)
        self.depth[flat] = depth
        self.owner[flat] = owner
        self.colour[flat] = self._shade(solid, rays, local, normal)

    def _shade(self, solid: Solid, rays: _Rays, local: Array, normal: Array) -> NDArray[np.uint32]:
        """Packed colours `[n]` of hits at `local` `[3,n]` with gradient `normal` `[3,n]`, both in the unit frame."""
        paint = solid.paint(local) if callable(solid.paint) else solid.paint.astype(np.float32)[:, None]
        if solid.glow >= 1.0:
            return _pack(np.broadcast_to(paint * np.float32(255), local.shape))
        unit = normal * rays.inverse_half  # the gradient in turned metres: the surface normal
        squares = unit * unit
        unit /= np.sqrt(squares[0] + squares[1] + squares[2] + np.float32(1e-12))
        key, sky, edge, shine = (
            self._lamp_base + rays.lamps[0] * unit[0] + rays.lamps[1] * unit[1] + rays.lamps[2] * unit[2]
        )
        np.maximum(key, _ZERO, out=key)
        key += sky
        key *= np.maximum(edge, _EDGE, out=edge)
        if solid.glow > 0.0:
            key *= np.float32(1.0 - solid.glow)
            key += np.float32(255.0 * solid.glow)
        colour = paint * key
        if solid.gloss > 0.0:
            np.maximum(shine, _ZERO, out=shine)
            for _ in range(5):
                shine *= shine
            shine *= np.float32(255.0 * solid.gloss)
            colour += shine
        return _pack(colour)


@lru_cache(maxsize=2)
def _index_and_x(height: int, width: int, scale: float, focal: float, cx: float) -> tuple[NDArray[np.intp], Array]:
    x = (((np.arange(width) + 0.5) / scale - cx) / focal).astype(np.float32)
    return np.arange(height * width).reshape(height, width), np.tile(x, height)


def _grids(
    height: int, width: int, scale: float, focal: float, cx: float, cy: float
) -> tuple[NDArray[np.intp], Array, Array]:
    """Flat number of each pixel `[h,w]`, and ray x and y `[h*w]` of each; all but y are the same for all scenes of a size."""
    index, x = _index_and_x(height, width, scale, focal, cx)
    return index, x, np.repeat(((cy - (np.arange(height) + 0.5) / scale) / focal).astype(np.float32), width)


_ZERO, _EDGE = np.float32(0.0), np.float32(0.80)


def _pack(colour: Array) -> NDArray[np.uint32]:
    """Colours `[3,n]`, at least 0 and full at 255, as the canvas keeps them."""
    levels = np.minimum(colour, np.float32(255.0)).astype(np.int32)
    packed = levels[0]
    packed |= levels[1] << 8
    packed |= levels[2] << 16
    packed |= np.int32(-(1 << 24))
    return packed.view(np.uint32)


@dataclass(frozen=True)
class _Rays:
    """One solid's view of the camera: rays in its unit frame are start + depth * (into @ (x, y, 1))."""

    into: Array
    """`[3,3]` float32."""
    start: Array
    """`[3]`."""
    a: Array
    """`[3,3]` float32: the quadric's second-degree coefficient along a ray is r @ a @ r with r = (x, y, 1)."""
    b: Array
    """`[3]` float32: half the first-degree coefficient is b @ r."""
    disc: Array
    """`[3,3]`: b^2 - ac is r @ disc @ r."""
    lamps: Array
    """`[3,4,1]` float32: what each axis of the solid adds to the four lights when the normal points along it."""
    inverse_half: Array
    """`[3,1]` float32."""


@dataclass(frozen=True)
class _Quadrics:
    """`_Rays` of many solids at once, which costs hardly more than one."""

    into: Array
    start: Array
    a: Array
    b: Array
    disc: Array
    lamps: Array
    inverse_half: Array

    @classmethod
    def of(cls, solids: list[Solid], origin: Array, lamps: Array) -> _Quadrics:
        """The quadric is sum(signs*q^2) - (base + slope*q_y)^2 in a solid's unit frame (unused for boxes)."""
        turn, half = np.array([s.turn for s in solids]), np.array([s.half for s in solids])
        radii = np.array([s.radii if s.shape == FRUSTUM else (1.0, 1.0) for s in solids])
        slope, base = (radii[:, 1] - radii[:, 0]) / 2, (radii[:, 1] + radii[:, 0]) / 2
        into = turn.transpose(0, 2, 1) / half[:, :, None]
        start = np.einsum("nij,nj->ni", into, origin - np.array([s.centre for s in solids]))
        signs = np.ones((len(solids), 3))
        signs[:, 1] = np.where([s.shape == FRUSTUM for s in solids], -slope * slope, 1.0)
        bent = signs * start
        bent[:, 1] -= slope * base
        c = (signs * start * start).sum(axis=1) - base * base - 2 * slope * base * start[:, 1]
        b = np.einsum("ni,nij->nj", bent, into)
        a = np.einsum("nki,nk,nkj->nij", into, signs, into)
        disc = b[:, :, None] * b[:, None, :] - c[:, None, None] * a
        return cls(
            into.astype(np.float32),
            start,
            a.astype(np.float32),
            b.astype(np.float32),
            disc,
            np.einsum("ck,nka->nac", lamps, turn).astype(np.float32)[..., None],
            (1.0 / half).astype(np.float32)[..., None],
        )

    def at(self, i: int) -> _Rays:
        """Those of solid i."""
        return _Rays(
            self.into[i], self.start[i], self.a[i], self.b[i], self.disc[i], self.lamps[i], self.inverse_half[i]
        )


@dataclass(frozen=True)
class _Patch:
    """What a caster needs: the solid's rays, the patch's pixels, and the depth drawn so far."""

    rays: _Rays
    x: Array
    y: Array
    index: NDArray[np.intp]
    all_x: Array
    all_y: Array
    depth: Array

    def local(self, xs: Array, ys: Array, depth: Array) -> Array:
        """Unit-frame points `[3,n]` at `depth` along the rays (xs, ys, 1)."""
        into = self.rays.into
        out = into[:, :1] * xs
        out += into[:, 1:2] * ys
        out += into[:, 2:]
        out *= depth
        out += self.rays.start.astype(np.float32)[:, None]
        return out


_Hit = tuple[NDArray[np.intp], Array, Array, Array]


def _first_root(patch: _Patch) -> tuple[NDArray[np.intp], Array, Array, Array] | None:
    """Pixels where the quadric has a root, their rays' x and y, and the depth of the nearer root."""
    m, x, y = patch.rays.disc.tolist(), patch.x, patch.y
    in_x = ((m[0][0] * x + 2 * m[0][2]) * x + m[2][2]).astype(np.float32)
    in_y = ((m[1][1] * y + 2 * m[1][2]) * y).astype(np.float32)
    disc = y.astype(np.float32)[:, None] * (2 * m[0][1] * x).astype(np.float32)
    disc += in_x
    disc += in_y[:, None]
    disc = disc.ravel()
    hit = np.flatnonzero(disc > 0)
    if hit.size == 0:
        return None
    flat = patch.index.ravel().take(hit)
    xs, ys = patch.all_x.take(flat), patch.all_y.take(flat)
    a, b = patch.rays.a, patch.rays.b
    quad = a[0, 0] * xs
    quad += (2 * a[0, 1]) * ys
    quad += 2 * a[0, 2]
    quad *= xs
    rest = a[1, 1] * ys
    rest += 2 * a[1, 2]
    rest *= ys
    quad += rest
    quad += a[2, 2]
    depth = b[0] * xs
    depth += b[1] * ys
    depth += b[2]
    depth += np.sqrt(disc.take(hit))
    depth /= quad
    return flat, xs, ys, np.negative(depth, out=depth)


def _cast_ellipsoid(solid: Solid, patch: _Patch) -> _Hit | None:
    found = _first_root(patch)
    if found is None:
        return None
    flat, xs, ys, depth = found
    seen = np.flatnonzero(depth < patch.depth.take(flat))
    if seen.size == 0:
        return None
    if seen.size < flat.size:
        flat, xs, ys, depth = flat.take(seen), xs.take(seen), ys.take(seen), depth.take(seen)
    local = patch.local(xs, ys, depth)
    return flat, depth, local, local


def _cast_frustum(solid: Solid, patch: _Patch) -> _Hit | None:
    low, high = solid.radii
    slope, base = (high - low) / 2, (high + low) / 2
    found = _first_root(patch)
    if found is None:
        return None
    flat, xs, ys, depth = found
    local = patch.local(xs, ys, depth)
    kept = (np.abs(local[1]) <= 1.0) & (depth > 0)
    line = local[1] * np.float32(slope) + np.float32(base)
    normal = np.stack([local[0], line * np.float32(-slope), local[2]])
    if abs(patch.rays.start[1]) > 1.0:  # one cap faces the camera
        cap = 1.0 if patch.rays.start[1] > 0 else -1.0
        a, b, c = patch.rays.into[1]
        slant = a * xs + b * ys + c
        slant[np.abs(slant) < 1e-9] = 1e-9
        reach = np.float32(cap - patch.rays.start[1]) / slant
        at = patch.local(xs, ys, reach)
        on_cap = (at[0] ** 2 + at[2] ** 2 <= (base + slope * cap) ** 2) & (reach > 0) & (~kept | (reach < depth))
        depth = np.where(on_cap, reach, depth)
        local = np.where(on_cap, at, local)
        normal[:, on_cap] = np.array([0.0, cap, 0.0], dtype=np.float32)[:, None]
        kept |= on_cap
    kept &= depth < patch.depth.take(flat)
    seen = np.flatnonzero(kept)
    if seen.size == 0:
        return None
    return flat.take(seen), depth.take(seen), local.take(seen, axis=1), normal.take(seen, axis=1)


def _cast_box(solid: Solid, patch: _Patch) -> _Hit | None:
    start = patch.rays.start
    x, y = patch.x.astype(np.float32), patch.y.astype(np.float32)
    depth: Array | None = None
    for axis in range(3):
        if abs(start[axis]) <= 1.0:
            continue
        a, b, c = patch.rays.into[axis]
        slant = (a * x + c) + (b * y)[:, None]
        with np.errstate(divide="ignore"):
            reach = np.float32(np.sign(start[axis]) - start[axis]) / slant
        depth = reach if depth is None else np.maximum(depth, reach)
    if depth is None:
        return None
    index = patch.index.ravel()
    reach = depth.ravel()
    hit = np.flatnonzero((reach > 0) & (reach < patch.depth.take(index)))
    if hit.size == 0:
        return None
    flat, found = index.take(hit), reach.take(hit)
    local = patch.local(patch.all_x.take(flat), patch.all_y.take(flat), found)
    size = np.abs(local)
    seen = np.flatnonzero((size[0] <= 1.0005) & (size[1] <= 1.0005) & (size[2] <= 1.0005))
    if seen.size == 0:
        return None
    local, size = local.take(seen, axis=1), size.take(seen, axis=1)
    outside = np.abs(start) > 1.0
    size[~outside] = 0.0
    side = size.argmax(axis=0)
    normal = np.zeros_like(local)
    for facing in np.flatnonzero(outside).tolist():
        normal[facing, side == facing] = np.sign(start[facing])
    return flat.take(seen), found.take(seen), local, normal


_CASTERS = {ELLIPSOID: _cast_ellipsoid, BOX: _cast_box, FRUSTUM: _cast_frustum}
