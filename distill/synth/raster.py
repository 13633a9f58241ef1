"""The canvas: solids drawn by ray casting, supersampled, with a depth buffer, nearest first and each lit as it is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.synth.camera import Array, Camera
from distill.synth.casting import Caster
from distill.synth.solids import Solid

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
        bare = [solid for solid, _ in todo]
        caster = Caster(bare, self.camera, self._x, self._y, self.scale)
        lamps = np.einsum("ck,nka->nac", self._lamps, np.array([s.turn for s in bare])).astype(np.float32)[..., None]
        inverse_half = (1.0 / np.array([s.half for s in bare])).astype(np.float32)[..., None]
        depth = self.depth.reshape(self.height, self.width)
        with np.errstate(divide="ignore", invalid="ignore"):
            for i in caster.order:
                solid, owner = todo[i]
                hit = caster.cast(i, depth)
                if hit is not None and solid.cut is not None:
                    kept = solid.cut(hit.local).nonzero()[0]
                    hit = hit if kept.size == hit.depth.size else hit.where(kept) if kept.size else None
                if hit is None:
                    continue
                flat = hit.row * self.width
                flat += hit.column
                self.depth[flat] = hit.depth
                self.owner[flat] = owner
                self.colour[flat] = self._shade(solid, lamps[i], inverse_half[i], hit.local, hit.normal)

    def owner_at(self, u: float, v: float) -> int:
        """Owner of the camera pixel (u, v)."""
        x = min(self.width - 1, max(0, int(u * self.scale)))
        y = min(self.height - 1, max(0, int(v * self.scale)))
        return int(self.owner[y * self.width + x])

    def _shade(
        self, solid: Solid, lamps: Array, inverse_half: Array, local: Array, normal: Array
    ) -> NDArray[np.uint32]:
        """Packed colours `[n]` of hits at `local` `[3,n]` with gradient `normal` `[3,n]`, both in the unit frame.

        `lamps` `[3,4,1]`: what each axis of the solid adds to the four lights when the normal points along it.
        """
        paint = solid.paint(local) if callable(solid.paint) else solid.paint.astype(np.float32)[:, None]
        if solid.glow >= 1.0:
            return _pack(np.broadcast_to(paint * np.float32(255), local.shape))
        unit = normal * inverse_half  # the gradient in turned metres: the surface normal
        squares = unit * unit
        length = squares[0] + squares[1]
        length += squares[2]
        length += _TINY
        unit /= np.sqrt(length, out=length)
        used = 4 if solid.gloss > 0.0 else 3  # the last light is the highlight
        beams = lamps[:, :used] * unit[:, None]
        lights = self._lamp_base[:used] + beams[0]
        lights += beams[1]
        lights += beams[2]
        key, sky, edge = lights[:3]
        np.maximum(key, _ZERO, out=key)
        key += sky
        key *= np.maximum(edge, _EDGE, out=edge)
        if solid.glow > 0.0:
            key *= np.float32(1.0 - solid.glow)
            key += np.float32(255.0 * solid.glow)
        colour = paint * key
        if solid.gloss > 0.0:
            shine = np.maximum(lights[3], _ZERO)
            for _ in range(5):
                shine *= shine
            shine *= np.float32(255.0 * solid.gloss)
            colour += shine
        return _pack(colour)


_ZERO, _EDGE, _TINY = np.float32(0.0), np.float32(0.80), np.float32(1e-12)
_COVERED = np.int32(-(1 << 24))


def _pack(colour: Array) -> NDArray[np.uint32]:
    """Colours `[3,n]`, at least 0 and full at 255, as the canvas keeps them."""
    levels = colour.astype(np.int32)
    np.minimum(levels, 255, out=levels)
    packed, green, blue = levels
    green <<= 8
    packed |= green
    blue <<= 16
    packed |= blue
    packed |= _COVERED
    return packed.view(np.uint32)
