"""A head built from ellipsoids: skull, jaw, hair, nose, eyes with pupils, brows, mouth, ears."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.synth.camera import Array
from distill.synth.colours import EYES, HAIRS, SKINS, Palette, filled, mix, rgb
from distill.synth.solids import Cut, Paint, Solid, cross, ellipsoid, place, roll_turn, tilt_turn, yaw_turn

SHORT, LONG, BUN, TAIL, BALD, CAP, BEANIE = "short", "long", "bun", "tail", "bald", "cap", "beanie"
_STYLES = (SHORT, LONG, BUN, TAIL, BALD, CAP, BEANIE)
_STYLE_SHARES = (0.34, 0.20, 0.10, 0.11, 0.06, 0.11, 0.08)

EYE_LINE = np.array([0.0, 0.12, 0.80])
"""Point between the eyes in head radii, x to the side, y up, z out of the face."""


@dataclass(frozen=True)
class Looks:
    """What a head looks like, whatever it looks at."""

    skin: Array
    hair: Array
    iris: Array
    style: str
    hat: Array
    fringe: float
    beard: bool
    mouth: float
    nose: float
    brow: float


def draw_looks(rng: np.random.Generator, palette: Palette) -> Looks:
    """Draw one person's features; hair is kept apart in tone from the skin, so that the back of a head reads as one."""
    skin = SKINS[int(rng.integers(len(SKINS)))]
    tones = [h for h in HAIRS if float(np.abs(h - skin).sum()) > 0.45] or [HAIRS[0]]
    if float(skin.sum()) < 1.1:
        tones = [HAIRS[0], HAIRS[6]]
    hat = palette.accent(rng)
    return Looks(
        skin=(skin * rng.uniform(0.96, 1.03)).astype(np.float32),
        hair=tones[int(rng.integers(len(tones)))],
        iris=EYES[int(rng.integers(len(EYES)))],
        style=_STYLES[int(rng.choice(len(_STYLES), p=_STYLE_SHARES))],
        hat=hat if float(np.abs(hat - skin).sum()) > 0.4 else rgb("#3d405b"),
        fringe=float(rng.uniform(-0.08, 0.10)),
        beard=bool(rng.random() < 0.14),
        mouth=float(rng.uniform(-0.5, 1.0)),
        nose=float(rng.uniform(0.95, 1.2)),
        brow=float(rng.uniform(-0.14, 0.05)),
    )


def facing(direction: Array, roll: float = 0.0) -> Array:
    """Rotation `[3,3]` whose z axis is the unit `direction` and whose y axis is as upright as it can be, then rolled."""
    z = direction / np.sqrt(direction @ direction)
    x = np.array([z[2], 0.0, -z[0]])
    x /= np.sqrt(x @ x)
    return np.array([x, cross(z, x), z]).T @ roll_turn(roll)


def build_head(looks: Looks, centre: Array, radius: float, turn: Array, gaze: Array) -> list[Solid]:
    """Solids of a head at `centre` `[3]` with half height about `radius` metres; the eyes point along unit `gaze` `[3]`."""
    skin, dark = looks.skin, mix(looks.skin, rgb("#5a2318"), 0.25)
    look = (turn.T @ gaze).astype(np.float32)
    parts = [
        ellipsoid((0, 0.06, -0.04), (0.80, 0.90, 0.88), _skull_paint(looks)),
        ellipsoid((0, -0.44, 0.16), (0.60, 0.54, 0.62), _jaw_paint(looks)),
        ellipsoid(
            (0, -0.10, 0.92), (0.15 * looks.nose, 0.20, 0.32 * looks.nose), mix(skin, dark, 0.22), tilt_turn(0.25)
        ),
        ellipsoid((0.82, -0.02, -0.06), (0.10, 0.23, 0.16), mix(skin, dark, 0.3), yaw_turn(-0.3)),
        ellipsoid((-0.82, -0.02, -0.06), (0.10, 0.23, 0.16), mix(skin, dark, 0.3), yaw_turn(0.3)),
    ]
    for side in (-1.0, 1.0):
        parts.append(ellipsoid((0.31 * side, 0.13, 0.70), (0.20, 0.19, 0.18), _eye_paint(looks, look), gloss=0.25))
        brow = roll_turn(looks.brow * side) @ yaw_turn(0.3 * side)
        parts.append(
            ellipsoid((0.32 * side, 0.42, 0.74), (0.20, 0.05, 0.08), mix(looks.hair, rgb("#1d1815"), 0.3), brow)
        )
    parts += _hair(looks)
    return place(parts, turn, centre, radius)


def _skull_paint(looks: Looks) -> Paint:
    blush = mix(looks.skin, rgb("#d2604f"), 0.30)

    def paint(q: Array) -> Array:
        cheek = np.exp(-(((np.abs(q[0]) - 0.52) / 0.2) ** 2 + ((q[1] + 0.28) / 0.16) ** 2)) * (q[2] > 0)
        return looks.skin[:, None] + (0.8 * cheek) * (blush - looks.skin)[:, None]

    return paint


def _jaw_paint(looks: Looks) -> Paint:
    lips = mix(looks.skin, rgb("#8e2f33"), 0.75)

    def paint(q: Array) -> Array:
        colour = filled(looks.skin, q)
        if looks.beard:
            chin = (q[1] < 0.32 - 0.35 * np.clip(q[2], 0, 1)) & (q[2] > -0.5)
            chin |= (np.abs(q[0]) < 0.42) & (np.abs(q[1] - 0.30) < 0.09) & (q[2] > 0)
            colour[:, chin] = looks.hair[:, None]
        curve = 0.08 + 0.35 * looks.mouth * q[0] ** 2
        colour[:, (q[2] > 0) & (np.abs(q[0]) < 0.40) & (np.abs(q[1] - curve) < 0.075)] = lips[:, None]
        return colour

    return paint


def _eye_paint(looks: Looks, look: Array) -> Paint:
    white, lid = rgb("#f7f5f0"), mix(looks.skin, rgb("#4a2a20"), 0.35)
    eased = np.array([look[0] * 1.25, look[1] * 1.25, look[2]], dtype=np.float32)
    eased /= np.linalg.norm(eased)

    def paint(q: Array) -> Array:
        colour = filled(white, q)
        towards = q[0] * eased[0] + q[1] * eased[1] + q[2] * eased[2]
        colour[:, towards > 0.80] = looks.iris[:, None]
        colour[:, towards > 0.91] = 0.04
        colour[:, q[1] > 0.66] = lid[:, None]
        return colour

    return paint


def _hair(looks: Looks) -> list[Solid]:
    hair, style = looks.hair, looks.style

    def strands(q: Array) -> Array:
        wave = np.sin(18.0 * np.arctan2(q[0], q[2] - 0.2) + 3.0 * q[1])
        return hair[:, None] * (0.96 + 0.09 * wave)

    def cap_of(threshold: float, neck: float) -> Cut:
        def cut(q: Array) -> NDArray[np.bool_]:
            wavy = 0.05 * np.sin(9.0 * q[0])
            kept = (0.85 * q[1] - 0.95 * q[2] + wavy > threshold) & (q[1] > neck)
            return np.asarray(kept)

        return cut

    shell = (0.0, 0.12, -0.08), (0.90, 0.96, 0.97)
    if style == BALD:
        return [
            ellipsoid(
                (0, -0.02, -0.08),
                (0.86, 0.86, 0.93),
                strands,
                cut=lambda q: (q[1] > -0.55) & (q[1] < 0.12) & (q[2] < -0.02),
            )
        ]
    threshold = {SHORT: -0.18, LONG: -0.22, BUN: -0.12, TAIL: -0.14, CAP: -0.20, BEANIE: -0.25}[style] + looks.fringe
    neck = -0.62 if style in (SHORT, CAP, BEANIE) else -0.80
    solids = [ellipsoid(*shell, strands, cut=cap_of(threshold, neck), gloss=0.12)]
    if style == LONG:
        solids.append(ellipsoid((0, -0.42, -0.42), (0.84, 0.95, 0.50), strands, gloss=0.12))
        solids += [ellipsoid((0.74 * s, -0.36, -0.14), (0.20, 0.72, 0.34), strands, gloss=0.12) for s in (-1.0, 1.0)]
    elif style == BUN:
        solids.append(ellipsoid((0, 0.80, -0.66), (0.36, 0.34, 0.36), strands, gloss=0.12))
    elif style == TAIL:
        solids.append(ellipsoid((0, -0.05, -1.12), (0.24, 0.62, 0.26), strands, tilt_turn(0.25), gloss=0.12))
    elif style == CAP:
        solids.append(ellipsoid((0, 0.16, -0.08), (0.95, 0.99, 1.01), looks.hat, cut=lambda q: q[1] > 0.34))
        solids.append(ellipsoid((0, 0.50, 0.95), (0.62, 0.07, 0.50), looks.hat * np.float32(0.85), tilt_turn(-0.12)))
    elif style == BEANIE:

        def knit(q: Array) -> Array:
            rib = np.where(q[1] < 0.52, 0.78, 0.95 + 0.05 * np.sin(30 * np.arctan2(q[0], q[2])))
            return looks.hat[:, None] * rib.astype(np.float32)

        solids.append(ellipsoid((0, 0.16, -0.06), (0.96, 1.04, 1.02), knit, cut=lambda q: q[1] > 0.30))
    return solids
