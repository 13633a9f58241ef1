"""The camera: a level lens with a shifted centre, so that upright lines stay upright in the picture.

World axes are x to the right, y up from the floor, z away from the camera, in metres of a toy-sized world (people are about
1.3 m tall and a third of that is head). The camera stands at (0, `eye_height`, 0) and looks along +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

NEAR = 0.35
"""Nearest depth in metres at which a point still counts as in front of the camera."""


@dataclass(frozen=True)
class Camera:
    """Pinhole camera; `focal`, `cx`, `cy` in pixels of a `width` x `height` picture."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float
    eye_height: float

    @property
    def origin(self) -> Array:
        """Camera position `[3]`."""
        return np.array([0.0, self.eye_height, 0.0])

    def project(self, points: Array) -> Array:
        """Pixels `[...,2]` (u right, v down) of world points `[...,3]` with z >= NEAR."""
        z = np.maximum(points[..., 2], NEAR)
        u = self.cx + self.focal * points[..., 0] / z
        v = self.cy - self.focal * (points[..., 1] - self.eye_height) / z
        return np.stack([u, v], axis=-1)

    def lift(self, u: float, v: float, z: float) -> Array:
        """World point `[3]` at depth `z` metres behind pixel (u, v)."""
        return np.array([(u - self.cx) * z / self.focal, self.eye_height - (v - self.cy) * z / self.focal, z])

    def contains(self, pixels: Array, margin: float = 0.0) -> NDArray[np.bool_]:
        """Whether pixels `[...,2]` lie inside the picture, `margin` pixels from its edge."""
        u, v = pixels[..., 0], pixels[..., 1]
        return (u >= margin) & (u < self.width - margin) & (v >= margin) & (v < self.height - margin)
