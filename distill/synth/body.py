"""Bodies: standing or sitting, in varied clothes, all rounded solids in proportion to the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.synth.camera import Array
from distill.synth.colours import Palette, filled, mix, rgb
from distill.synth.solids import Paint, Solid, box, ellipsoid, frustum, limb, place, rod, tilt_turn

HEAD_RADIUS = 0.172
"""Half height of the head of a person of scale 1, metres."""
STANDING, SITTING = 1.08, 0.92
"""Height of the head's centre above the floor at scale 1, metres."""


@dataclass(frozen=True)
class Clothes:
    """What a body wears and how it holds its arms."""

    skin: Array
    top: Array
    second: Array
    bottom: Array
    shoes: Array
    pattern: int
    long_sleeves: bool
    skirt: bool
    arms: tuple[tuple[float, float], tuple[float, float]]
    seat: Array


def draw_clothes(rng: np.random.Generator, palette: Palette, skin: Array) -> Clothes:
    """Draw clothes from the scene's palette; the top never has the colour of the skin."""
    top = palette.accent(rng)
    while float(np.abs(top - skin).sum()) < 0.35:
        top = palette.accent(rng)
    bottom = rgb(("#34415e", "#4b4b52", "#6b5b4b", "#2f3b3a", "#7d6f5d", "#3f4a63")[int(rng.integers(6))])
    swing = rng.uniform(-0.10, 0.14, size=(2, 2))
    return Clothes(
        skin=skin,
        top=top,
        second=palette.accent(rng),
        bottom=bottom,
        shoes=rgb(("#2b2622", "#efe9df", "#7a4b2a", "#913a3a")[int(rng.integers(4))]),
        pattern=int(rng.integers(4)),
        long_sleeves=bool(rng.random() < 0.6),
        skirt=bool(rng.random() < 0.2),
        arms=((float(swing[0, 0]), float(swing[0, 1])), (float(swing[1, 0]), float(swing[1, 1]))),
        seat=mix(palette.wood, rgb("#3a2a20"), 0.2),
    )


def build_body(clothes: Clothes, foot: Array, turn: Array, scale: float, sitting: bool) -> list[Solid]:
    """Solids of a body whose feet stand at `foot` `[3]` on the floor, facing the z axis of `turn`."""
    drop = STANDING - SITTING if sitting else 0.0
    top, skin = clothes.top, clothes.skin
    sleeve = top if clothes.long_sleeves else skin
    parts = [
        ellipsoid((0, 0.92 - drop, -0.01), (0.070, 0.12, 0.070), mix(skin, rgb("#5a2318"), 0.2)),
        ellipsoid((0, 0.73 - drop, 0), (0.200, 0.165, 0.116), _fabric(clothes, 0.73, 0.165)),
        ellipsoid((0, 0.60 - drop, 0.006), (0.180, 0.225, 0.122), _fabric(clothes, 0.60, 0.225)),
        ellipsoid((0, 0.46 - drop, 0), (0.168, 0.12, 0.125), clothes.bottom),
    ]
    for i, side in enumerate((-1.0, 1.0)):
        out, forward = clothes.arms[i]
        shoulder = np.array([0.195 * side, 0.80 - drop, 0.0])
        elbow = np.array([(0.265 + 0.4 * abs(out)) * side, 0.62 - drop, -0.03 + 0.5 * forward])
        wrist = np.array([0.25 * side, 0.46 - drop, 0.08 + forward])
        if sitting:
            wrist = np.array([0.11 * side, 0.49 - drop, 0.20])
        parts += [
            limb(shoulder, elbow, 0.064, top),
            limb(elbow, wrist, 0.050, sleeve),
            ellipsoid(wrist + (wrist - elbow) * 0.25, (0.050, 0.055, 0.050), skin),
        ]
        hip = np.array([0.085 * side, 0.42 - drop, 0.0])
        knee = np.array([0.10 * side, 0.26, 0.02])
        ankle = np.array([0.10 * side, 0.08, 0.0])
        if sitting:
            knee = np.array([0.105 * side, 0.27, 0.26])
            ankle = np.array([0.105 * side, 0.08, 0.25])
        lower = skin if clothes.skirt else clothes.bottom
        parts += [
            limb(hip, knee, 0.082, lower),
            rod(knee, ankle, 0.064, lower, 0.8),
            ellipsoid(knee, (0.066,) * 3, lower),
            ellipsoid(ankle + np.array([0.0, -0.035, 0.045]), (0.060, 0.045, 0.105), clothes.shoes),
        ]
    if clothes.skirt:
        if sitting:
            parts.append(box((0, 0.30, 0.13), (0.18, 0.055, 0.15), clothes.bottom, tilt_turn(0.1)))
        else:
            parts.append(frustum((0, 0.37, 0.01), 0.24, 0.11, clothes.bottom, top=0.68))
    if sitting:
        parts.append(box((0, 0.20, -0.02), (0.19, 0.025, 0.17), clothes.seat))
        for x in (-0.16, 0.16):
            parts += [box((x, 0.09, z), (0.018, 0.09, 0.018), clothes.seat * np.float32(0.8)) for z in (-0.16, 0.12)]
    return place(parts, turn, foot, scale)


def _fabric(clothes: Clothes, centre: float, half: float) -> Paint | Array:
    """Plain, striped, two-coloured or buttoned; the pattern runs on from one solid of the torso to the next."""
    if clothes.pattern == 0:
        return clothes.top

    def paint(q: Array) -> Array:
        height = centre + half * q[1]
        colour = filled(clothes.top, q)
        if clothes.pattern == 1:
            colour[:, np.mod(height, 0.09) < 0.035] = clothes.second[:, None]
        elif clothes.pattern == 2:
            colour[:, (height > 0.66) & (height < 0.74)] = clothes.second[:, None]
        else:
            front = q[2] > 0
            colour[:, front & (np.abs(q[0]) < 0.05)] = mix(clothes.top, rgb("#2b2622"), 0.35)[:, None]
            colour[:, height > 0.86] = clothes.second[:, None]
        return colour

    return paint
