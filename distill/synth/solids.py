"""Solids that everything but the backdrop is built from: ellipsoids, boxes and frustums, placed in the world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Paint = Callable[[Array], Array]
"""Maps hit points in the solid's own unit frame `[3,n]` (each in [-1,1]) to colours `[3,n]` in [0,1]."""
Cut = Callable[[Array], NDArray[np.bool_]]
"""Maps hit points in the unit frame `[3,n]` to the ones that exist `[n]`; the rest is a hole."""

ELLIPSOID, BOX, FRUSTUM = "ellipsoid", "box", "frustum"
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)


@dataclass(frozen=True)
class Solid:
    """One solid: unit shape stretched by `half` (metres), turned by `turn` (columns are its axes), moved to `centre`.

    A frustum stands on its y axis; `radii` are its bottom and top radius as fractions of `half` x and z.
    """

    shape: str
    centre: Array
    half: Array
    turn: Array
    paint: Paint | Array
    gloss: float = 0.0
    glow: float = 0.0
    cut: Cut | None = None
    radii: tuple[float, float] = (1.0, 1.0)

    def moved(self, turn: Array, origin: Array, factor: float = 1.0) -> Solid:
        """The same solid grown by `factor` and turned by `turn` `[3,3]` about the origin, then moved by `origin` `[3]`."""
        return Solid(
            self.shape,
            origin + turn @ (self.centre * factor),
            self.half * factor,
            turn @ self.turn,
            self.paint,
            self.gloss,
            self.glow,
            self.cut,
            self.radii,
        )

    def shifted(self, origin: Array) -> Solid:
        """The same solid moved by `origin` `[3]`."""
        return Solid(
            self.shape,
            origin + self.centre,
            self.half,
            self.turn,
            self.paint,
            self.gloss,
            self.glow,
            self.cut,
            self.radii,
        )


def corners(solids: Sequence[Solid]) -> Array:
    """Corners `[n,8,3]` in the world of a box around each solid; the box of an ellipsoid follows the world's axes."""
    centres = np.array([s.centre for s in solids])
    edges = np.array([s.turn * s.half for s in solids])
    round_ones = np.array([s.shape == ELLIPSOID for s in solids])
    reach = np.sqrt((edges * edges).sum(axis=2))
    edges[round_ones] = reach[round_ones][:, :, None] * IDENTITY
    return centres[:, None, :] + np.einsum("kj,nij->nki", _CORNERS, edges)


def cross(a: Array, b: Array) -> Array:
    """Cross product of two `[3]` vectors; numpy's own takes fifty times as long for so few numbers."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


IDENTITY = np.eye(3)


def _vector(values: Iterable[float]) -> Array:
    return np.array(list(values), dtype=np.float64)


def ellipsoid(
    centre: Iterable[float],
    half: Iterable[float],
    paint: Paint | Array,
    turn: Array = IDENTITY,
    gloss: float = 0.0,
    glow: float = 0.0,
    cut: Cut | None = None,
) -> Solid:
    """An ellipsoid with half axes `half` in metres."""
    return Solid(ELLIPSOID, _vector(centre), _vector(half), turn, paint, gloss, glow, cut)


def box(
    centre: Iterable[float],
    half: Iterable[float],
    paint: Paint | Array,
    turn: Array = IDENTITY,
    gloss: float = 0.0,
    glow: float = 0.0,
) -> Solid:
    """A box with half sides `half` in metres."""
    return Solid(BOX, _vector(centre), _vector(half), turn, paint, gloss, glow)


def frustum(
    centre: Iterable[float],
    radius: float,
    half_height: float,
    paint: Paint | Array,
    turn: Array = IDENTITY,
    bottom: float = 1.0,
    top: float = 1.0,
    gloss: float = 0.0,
    glow: float = 0.0,
    cut: Cut | None = None,
) -> Solid:
    """A capped cone or cylinder about its own y axis; `bottom` and `top` scale `radius`."""
    return Solid(
        FRUSTUM, _vector(centre), _vector((radius, half_height, radius)), turn, paint, gloss, glow, cut, (bottom, top)
    )


def limb(start: Array, end: Array, radius: float, paint: Paint | Array) -> Solid:
    """An ellipsoid drawn out from `start` to `end`, a little beyond both, as an arm or a leg."""
    along = end - start
    length = float(np.linalg.norm(along))
    return Solid(
        ELLIPSOID, (start + end) / 2, _vector((radius, length / 2 + 0.6 * radius, radius)), axis_turn(along), paint
    )


def rod(start: Array, end: Array, radius: float, paint: Paint | Array, end_scale: float = 1.0) -> Solid:
    """A cylinder from `start` to `end`, its radius scaled by `end_scale` at the end."""
    along = end - start
    scale = max(1.0, end_scale)
    return Solid(
        FRUSTUM,
        (start + end) / 2,
        _vector((radius * scale, float(np.linalg.norm(along)) / 2, radius * scale)),
        axis_turn(along),
        paint,
        radii=(1.0 / scale, end_scale / scale),
    )


def axis_turn(along: Array) -> Array:
    """A rotation `[3,3]` whose y axis points along `along`."""
    y = along / np.sqrt(along @ along)
    z = np.array([0.0, -y[2], y[1]]) if abs(y[0]) < 0.9 else np.array([-y[1], y[0], 0.0])
    z /= np.sqrt(z @ z)
    return np.array([cross(y, z), y, z]).T


def yaw_turn(angle: float) -> Array:
    """Rotation about the upright axis by `angle` radians; 0 keeps +z, pi/2 turns +z to +x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def tilt_turn(angle: float) -> Array:
    """Rotation about the x axis by `angle` radians: positive tips +y towards +z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def roll_turn(angle: float) -> Array:
    """Rotation about the z axis by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def place(solids: Iterable[Solid], turn: Array, origin: Array, factor: float = 1.0) -> list[Solid]:
    """The same solids grown by `factor` and turned about their common origin, which moves to `origin` in the world."""
    return [s.moved(turn, origin, factor) for s in solids]
