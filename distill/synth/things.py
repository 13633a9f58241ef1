"""Things to look at: each kind is a function that builds its solids around a local origin.

The origin of a thing that stands is the middle of its foot; of one that hangs in the air or on a wall, its middle.
A thing on a wall faces -z (towards the camera) before it is turned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill.synth.camera import Array
from distill.synth.colours import Palette, mix, rgb, where
from distill.synth.solids import IDENTITY, Solid, box, ellipsoid, frustum, place, rod, roll_turn, tilt_turn, yaw_turn

FLOOR, TABLE, WALL, AIR, HANG = "floor", "table", "wall", "air", "hang"


@dataclass(frozen=True)
class Thing:
    """A thing around its local origin: what one looks at is the ball of `radius` metres around `focus` `[3]`."""

    kind: str
    solids: tuple[Solid, ...]
    focus: Array
    radius: float
    foot: float
    """Radius in metres of the shadow that it throws where it stands; 0 for one that does not stand."""


_WHITE, _DARK, _METAL = rgb("#f3efe6"), rgb("#35312e"), rgb("#a9adb0")


def _thing(
    kind: str, solids: list[Solid], focus: tuple[float, float, float], radius: float, foot: float, yaw: float = 0.0
) -> Thing:
    turn = yaw_turn(yaw)
    return Thing(kind, tuple(place(solids, turn, np.zeros(3))), turn @ np.array(focus), radius, foot)


def _ball(rng: np.random.Generator, palette: Palette) -> Thing:
    r, first = rng.uniform(0.12, 0.15), palette.accent(rng)
    second = _WHITE if float(np.abs(first - _WHITE).sum()) > 0.6 else _DARK
    turn = tilt_turn(rng.uniform(-0.9, 0.9)) @ roll_turn(rng.uniform(-0.9, 0.9))
    wedges = int(rng.integers(2, 5))

    def paint(q: Array) -> Array:
        odd = np.sin(wedges * np.arctan2(q[0], q[2])) > 0
        odd |= np.abs(q[1]) > 0.93
        colour = where(odd, first, second)
        return colour

    return _thing("ball", [ellipsoid((0, r, 0), (r, r, r), paint, turn, gloss=0.3)], (0, r, 0), r, r)


def _cup(rng: np.random.Generator, palette: Palette) -> Thing:
    colour, r, h = palette.accent(rng), 0.095, 0.105

    def inside(q: Array) -> Array:
        top = (q[1] > 0.98) & (q[0] ** 2 + q[2] ** 2 < 0.78)
        band = (np.abs(q[1]) < 0.25) & ~top
        return np.where(top, rgb("#5a3a24")[:, None], where(band, mix(colour, _WHITE, 0.6), colour))

    def ring(q: Array) -> np.ndarray:
        return np.asarray(q[0] ** 2 + q[1] ** 2 > 0.42)

    return _thing(
        "cup",
        [
            frustum((0, h, 0), r, h, inside, bottom=0.78, gloss=0.2),
            ellipsoid((r, h * 1.05, 0), (0.065, 0.07, 0.022), colour, cut=ring),
        ],
        (0, h, 0),
        0.11,
        r,
        rng.uniform(-1.0, 1.0),
    )


def _books(rng: np.random.Generator, palette: Palette) -> Thing:
    solids, y = [], 0.0
    for i in range(int(rng.integers(3, 5))):
        cover, half = palette.accent(rng), rng.uniform(0.022, 0.034)

        def paint(q: Array, cover: Array = cover) -> Array:
            pages = (np.abs(q[1]) < 0.72) & (q[0] > -0.9)
            return where(pages, rgb("#efe6d2"), cover)

        solids.append(
            box(
                (rng.uniform(-0.012, 0.012), y + half, 0),
                (0.135 - 0.01 * i, half, 0.10),
                paint,
                yaw_turn(rng.uniform(-0.25, 0.25)),
            )
        )
        y += 2 * half
    return _thing("books", solids, (0, y / 2, 0), 0.13, 0.14, rng.uniform(-0.6, 0.6) + np.pi * (rng.random() < 0.5))


def _lamp(rng: np.random.Generator, palette: Palette) -> Thing:
    shade = mix(palette.accent(rng), rgb("#ffe7b5"), 0.55)
    solids = [
        frustum((0, 0.015, 0), 0.085, 0.015, _DARK),
        rod(np.array([0, 0.02, 0]), np.array([0, 0.22, 0]), 0.014, _METAL),
        frustum((0, 0.28, 0), 0.135, 0.09, shade, top=0.62, glow=0.5),
    ]
    return _thing("lamp", solids, (0, 0.27, 0), 0.13, 0.10)


def _plant(rng: np.random.Generator, palette: Palette) -> Thing:
    pot, green = palette.accent(rng), mix(rgb("#4f8a4c"), rgb("#8fb368"), rng.uniform(0, 0.7))
    solids = [
        frustum((0, 0.075, 0), 0.09, 0.075, pot, bottom=0.7),
        frustum((0, 0.15, 0), 0.098, 0.018, pot * np.float32(0.9)),
    ]
    for i in range(7):
        angle, lean = i * 2.4 + rng.uniform(0, 0.5), rng.uniform(0.25, 0.75)
        tip = np.array([np.cos(angle) * lean * 0.16, 0.27 + rng.uniform(0, 0.07), np.sin(angle) * lean * 0.16])
        solids.append(
            ellipsoid(
                tip * np.array([0.75, 0.92, 0.75]),
                (0.045, 0.095, 0.020),
                green * np.float32(rng.uniform(0.8, 1.1)),
                yaw_turn(np.pi / 2 - angle) @ tilt_turn(lean),
            )
        )
    return _thing("plant", solids, (0, 0.20, 0), 0.15, 0.10)


def _gift(rng: np.random.Generator, palette: Palette) -> Thing:
    paper, ribbon = palette.accent(rng), palette.accent(rng)
    if float(np.abs(paper - ribbon).sum()) < 0.4:
        ribbon = _WHITE
    a, b = rng.uniform(0.10, 0.13), rng.uniform(0.08, 0.12)

    def paint(q: Array) -> Array:
        band = (np.abs(q[0]) < 0.16) | (np.abs(q[2]) < 0.16)
        return where(band, ribbon, paper)

    bow = [
        ellipsoid((0.045 * s, 2 * b + 0.025, 0), (0.055, 0.030, 0.030), ribbon, roll_turn(0.5 * s)) for s in (-1.0, 1.0)
    ]
    return _thing("gift", [box((0, b, 0), (a, b, a), paint), *bow], (0, b, 0), 0.14, a * 1.1, rng.uniform(0, 1.5))


def _monitor(rng: np.random.Generator, palette: Palette) -> Thing:
    picture = _screen_paint(rng, palette)
    solids = [
        box((0, 0.012, 0), (0.09, 0.012, 0.06), _DARK),
        box((0, 0.06, 0.015), (0.018, 0.06, 0.012), _DARK),
        box((0, 0.21, 0), (0.185, 0.125, 0.016), picture, glow=0.25),
    ]
    return _thing("monitor", solids, (0, 0.21, 0), 0.15, 0.12, rng.uniform(-0.6, 0.6))


def _screen_paint(rng: np.random.Generator, palette: Palette) -> Callable[[Array], Array]:
    low, high, sun = palette.accent(rng), mix(palette.accent(rng), _WHITE, 0.5), rng.uniform(-0.4, 0.4)

    def paint(q: Array) -> Array:
        rise = np.clip(q[1] * 0.5 + 0.5, 0, 1)
        colour = high[:, None] * rise + mix(low, _WHITE, 0.25)[:, None] * (1 - rise)
        colour[:, (q[0] - sun) ** 2 + (q[1] - 0.25) ** 2 < 0.06] = rgb("#fff3c9")[:, None]
        colour[:, q[1] < -0.25 + 0.22 * np.sin(3.0 * q[0] + sun * 9)] = low[:, None] * np.float32(0.75)
        edge = (np.abs(q[0]) > 0.93) | (np.abs(q[1]) > 0.90) | (q[2] > -0.95)
        colour[:, edge] = _DARK[:, None]
        return colour

    return paint


def _painting(rng: np.random.Generator, palette: Palette) -> Thing:
    scene, wood = _screen_paint(rng, palette), palette.wood * np.float32(rng.uniform(0.7, 1.0))

    def paint(q: Array) -> Array:
        colour = scene(q * np.array([[1.1], [1.1], [1.0]], dtype=np.float32))
        colour[:, (np.abs(q[0]) > 0.86) | (np.abs(q[1]) > 0.84) | (q[2] > -0.95)] = wood[:, None]
        return colour

    a, b = rng.uniform(0.17, 0.24), rng.uniform(0.15, 0.21)
    return _thing("painting", [box((0, 0, 0), (a, b, 0.02), paint)], (0, 0, -0.02), min(a, b), 0.0)


def _clock(rng: np.random.Generator, palette: Palette) -> Thing:
    rim = palette.accent(rng)
    hour, minute = rng.uniform(0, 6.28), rng.uniform(0, 6.28)

    def paint(q: Array) -> Array:
        x, z = q[0], q[2]
        colour = where(x * x + z * z > 0.72, rim, _WHITE)
        for angle, length in ((hour, 0.45), (minute, 0.68)):
            along, off = x * np.sin(angle) + z * np.cos(angle), x * np.cos(angle) - z * np.sin(angle)
            colour[:, (along > -0.05) & (along < length) & (np.abs(off) < 0.06)] = _DARK[:, None]
        return colour

    r = rng.uniform(0.15, 0.19)
    return _thing("clock", [frustum((0, 0, 0), r, 0.02, paint, tilt_turn(-np.pi / 2))], (0, 0, -0.02), r, 0.0)


def _balloon(rng: np.random.Generator, palette: Palette) -> Thing:
    colour, r = palette.accent(rng), rng.uniform(0.12, 0.145)
    solids = [
        ellipsoid((0, 0, 0), (r, r * 1.18, r), colour, gloss=0.45),
        frustum((0, -r * 1.21, 0), 0.022, 0.018, colour, top=0.3),
        rod(np.array([0, -r * 1.2, 0]), np.array([0.02, -r * 1.2 - 0.24, 0]), 0.005, _WHITE),
    ]
    return _thing("balloon", solids, (0, 0, 0), r, 0.0)


def _pendant(rng: np.random.Generator, palette: Palette) -> Thing:
    shade = palette.accent(rng)
    solids = [
        frustum((0, 0, 0), 0.15, 0.09, shade, top=0.35),
        ellipsoid((0, -0.085, 0), (0.06, 0.05, 0.06), rgb("#fff1c4"), glow=1.0),
        rod(np.array([0, 0.08, 0]), np.array([0, 2.5, 0]), 0.008, _DARK),
    ]
    return _thing("pendant", solids, (0, 0, 0), 0.13, 0.0)


def _bird(rng: np.random.Generator, palette: Palette) -> Thing:
    body, wing = palette.accent(rng), palette.accent(rng)
    solids = [
        ellipsoid((0, 0, 0), (0.085, 0.075, 0.13), body),
        ellipsoid((0, 0.075, 0.12), (0.06, 0.06, 0.06), body),
        frustum((0, 0.07, 0.20), 0.022, 0.04, rgb("#e9a13b"), tilt_turn(np.pi / 2), top=0.1),
        ellipsoid((0, 0.02, -0.16), (0.045, 0.015, 0.09), wing, tilt_turn(-0.3)),
    ]
    solids += [ellipsoid((0.14 * s, 0.06, 0.0), (0.13, 0.018, 0.07), wing, roll_turn(0.5 * s)) for s in (-1.0, 1.0)]
    solids += [ellipsoid((0.045 * s, 0.09, 0.155), (0.014, 0.014, 0.014), _DARK) for s in (-1.0, 1.0)]
    return _thing("bird", solids, (0, 0.02, 0.02), 0.12, 0.0, rng.choice([-1, 1]) * rng.uniform(0.9, 2.0))


def _kite(rng: np.random.Generator, palette: Palette) -> Thing:
    first, second = palette.accents[int(rng.integers(4))], palette.accents[int(rng.integers(4, 8))]

    def paint(q: Array) -> Array:
        return where(q[0] * q[1] > 0, first, second)

    turn = roll_turn(np.pi / 4 + rng.uniform(-0.25, 0.25))
    down = turn @ np.array([-0.13, -0.13, 0.0])
    solids = [box((0, 0, 0), (0.14, 0.14, 0.008), paint, turn)]
    solids += [ellipsoid(down * (1.25 + 0.4 * i), (0.032, 0.020, 0.012), (first, second)[i % 2]) for i in range(3)]
    return _thing("kite", solids, (0, 0, 0), 0.14, 0.0, rng.uniform(-0.4, 0.4))


def _vase(rng: np.random.Generator, palette: Palette) -> Thing:
    pot = palette.accent(rng)
    solids = [
        ellipsoid((0, 0.085, 0), (0.075, 0.09, 0.075), pot, gloss=0.3),
        frustum((0, 0.175, 0), 0.045, 0.03, pot, bottom=0.7),
    ]
    for i in range(5):
        angle = i * 1.2566 + rng.uniform(-0.3, 0.3)
        top = np.array([0.09 * np.cos(angle), 0.30 + rng.uniform(-0.03, 0.05), 0.09 * np.sin(angle)])
        solids += [
            rod(np.array([0, 0.18, 0]), top, 0.007, rgb("#5d8a50")),
            ellipsoid(top, (0.042, 0.035, 0.042), palette.accents[(i // 2) % 4]),
        ]
    return _thing("flowers", solids, (0, 0.22, 0), 0.14, 0.085)


def _duck(rng: np.random.Generator, palette: Palette) -> Thing:
    body = mix(palette.accent(rng), rgb("#f4c542"), 0.5)
    solids = [
        ellipsoid((0, 0.085, 0), (0.10, 0.085, 0.14), body, gloss=0.2),
        ellipsoid((0, 0.20, 0.085), (0.075, 0.07, 0.075), body, gloss=0.2),
        ellipsoid((0, 0.19, 0.165), (0.045, 0.018, 0.045), rgb("#e2793a")),
        ellipsoid((0, 0.13, -0.13), (0.05, 0.03, 0.05), body, tilt_turn(-0.6)),
    ]
    solids += [ellipsoid((0.05 * s, 0.225, 0.135), (0.014, 0.016, 0.014), _DARK) for s in (-1.0, 1.0)]
    return _thing("duck", solids, (0, 0.13, 0.02), 0.13, 0.13, rng.uniform(0, 6.28))


def _teapot(rng: np.random.Generator, palette: Palette) -> Thing:
    colour = palette.accent(rng)
    lid = mix(colour, _WHITE, 0.5)
    solids = [
        ellipsoid((0, 0.095, 0), (0.115, 0.095, 0.115), colour, gloss=0.35),
        ellipsoid((0, 0.18, 0), (0.06, 0.02, 0.06), lid),
        ellipsoid((0, 0.21, 0), (0.022,) * 3, lid),
        rod(np.array([0.08, 0.08, 0]), np.array([0.19, 0.17, 0]), 0.032, colour, 0.55),
        ellipsoid((-0.12, 0.10, 0), (0.065, 0.07, 0.022), colour, cut=lambda q: q[0] ** 2 + q[1] ** 2 > 0.45),
    ]
    return _thing("teapot", solids, (0, 0.10, 0), 0.125, 0.11, rng.uniform(0, 6.28))


def _cone(rng: np.random.Generator, palette: Palette) -> Thing:
    orange = rgb("#e8642c")

    def paint(q: Array) -> Array:
        band = ((q[1] > -0.45) & (q[1] < -0.05)) | ((q[1] > 0.3) & (q[1] < 0.6))
        return where(band, _WHITE, orange)

    return _thing(
        "cone",
        [
            box((0, 0.012, 0), (0.14, 0.012, 0.14), orange * np.float32(0.8), yaw_turn(rng.uniform(0, 1.5))),
            frustum((0, 0.19, 0), 0.11, 0.17, paint, top=0.22),
        ],
        (0, 0.17, 0),
        0.13,
        0.14,
    )


def _hydrant(rng: np.random.Generator, palette: Palette) -> Thing:
    colour = palette.accent(rng)
    dark = colour * np.float32(0.8)
    solids = [
        frustum((0, 0.02, 0), 0.11, 0.02, dark),
        frustum((0, 0.17, 0), 0.08, 0.14, colour),
        ellipsoid((0, 0.31, 0), (0.095, 0.075, 0.095), colour),
        frustum((0, 0.31, 0), 0.102, 0.012, dark),
        ellipsoid((0, 0.39, 0), (0.025, 0.03, 0.025), dark),
        rod(np.array([-0.125, 0.22, 0]), np.array([0.125, 0.22, 0]), 0.042, dark),
    ]
    return _thing("hydrant", solids, (0, 0.22, 0), 0.14, 0.12, rng.uniform(0, 3.1))


def _road_sign(rng: np.random.Generator, palette: Palette) -> Thing:
    colour, kind, height = palette.accent(rng), int(rng.integers(3)), rng.uniform(0.85, 1.55)

    def paint(q: Array) -> Array:
        x, z = q[0], q[2]
        rim = x * x + z * z > 0.68
        mark = (np.abs(z) < 0.17, np.abs(x) + np.abs(z) < 0.42, (np.abs(x) < 0.14) | (np.abs(z + 0.1) < 0.12))[kind]
        colours = where(rim | mark, colour, _WHITE)
        return colours

    solids = [
        frustum((0, height, 0), 0.155, 0.012, paint, tilt_turn(-np.pi / 2)),
        rod(np.zeros(3), np.array([0, height - 0.1, 0.02]), 0.016, _METAL),
    ]
    return _thing("sign", solids, (0, height, -0.01), 0.15, 0.06, rng.uniform(-0.3, 0.3))


def _bicycle(rng: np.random.Generator, palette: Palette) -> Thing:
    frame, r = palette.accent(rng), 0.17

    def rim(q: Array) -> np.ndarray:
        distance = q[0] ** 2 + q[2] ** 2
        spoke = np.abs(np.mod(np.arctan2(q[0], q[2]), np.pi / 4) - np.pi / 8) * np.sqrt(distance) < 0.028
        return np.asarray((distance > 0.72) | spoke)

    wheel = tilt_turn(np.pi / 2)
    back, front = np.array([-0.23, r, 0]), np.array([0.23, r, 0])
    crank, seat, bar = np.array([-0.02, r, 0]), np.array([-0.09, 0.38, 0]), np.array([0.16, 0.40, 0])
    solids = [frustum(w, r, 0.014, _DARK, wheel, cut=rim) for w in (back, front)]
    solids += [
        rod(a, b, 0.014, frame)
        for a, b in ((back, crank), (back, seat), (crank, seat), (crank, bar), (seat, bar), (front, bar))
    ]
    solids += [
        ellipsoid(seat + np.array([0, 0.025, 0]), (0.06, 0.02, 0.035), _DARK),
        rod(bar, bar + np.array([0.01, 0.07, 0]), 0.012, _METAL),
        rod(bar + np.array([0.01, 0.07, -0.09]), bar + np.array([0.01, 0.07, 0.09]), 0.014, _DARK),
    ]
    return _thing("bicycle", solids, (0, 0.24, 0), 0.22, 0.30, rng.uniform(-0.45, 0.45) + np.pi * (rng.random() < 0.5))


Builder = Callable[[np.random.Generator, Palette], Thing]

INDOORS: dict[str, tuple[Builder, ...]] = {
    FLOOR: (_ball, _books, _plant, _gift, _vase, _duck),
    TABLE: (_cup, _books, _lamp, _plant, _gift, _monitor, _vase, _duck, _teapot, _ball),
    WALL: (_painting, _clock),
    AIR: (_balloon, _bird),
    HANG: (_pendant,),
}
OUTDOORS: dict[str, tuple[Builder, ...]] = {
    FLOOR: (_ball, _cone, _hydrant, _road_sign, _bicycle, _plant, _gift, _road_sign),
    TABLE: (_cup, _books, _plant, _gift, _vase, _teapot, _ball),
    AIR: (_balloon, _bird, _kite),
}


def build_table(palette: Palette, half_width: float, half_depth: float, height: float) -> list[Solid]:
    """A table with its foot at the origin and its top at `height` metres."""
    wood, under = palette.wood, palette.wood * np.float32(0.75)
    legs = [
        box(
            (x * (half_width - 0.05), height / 2 - 0.02, z * (half_depth - 0.05)),
            (0.022, height / 2 - 0.02, 0.022),
            under,
            IDENTITY,
        )
        for x in (-1.0, 1.0)
        for z in (-1.0, 1.0)
    ]
    return [box((0, height - 0.02, 0), (half_width, 0.02, half_depth), wood), *legs]
