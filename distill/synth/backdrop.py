"""Rooms and streets: the planes behind everything, with soft shadows where things touch them.

The camera is level, so the floor meets the far wall in a straight row of pixels and both are painted by rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.synth.camera import Array, Camera
from distill.synth.colours import Palette, mix, rgb

ROOM, STREET = "room", "street"


@dataclass(frozen=True)
class Stage:
    """Where a scene takes place: far wall at depth `far`, side walls at x = -+ `side` (rooms only), metres."""

    kind: str
    far: float
    side: float
    palette: Palette


@dataclass(frozen=True)
class Blot:
    """A soft shadow on the floor around (x, z) or, with `wall`, on the far wall around (x, y); radii in metres."""

    x: float
    across: float
    radius_x: float
    radius_across: float
    strength: float
    wall: bool = False


def paint_backdrop(rng: np.random.Generator, camera: Camera, stage: Stage) -> Array:
    """Picture `[3,height,width]` float32 in [0,1] of the empty place, unshadowed."""
    width, height = camera.width, camera.height
    x = ((np.arange(width) + 0.5 - camera.cx) / camera.focal).astype(np.float32)
    y = ((camera.cy - (np.arange(height) + 0.5)) / camera.focal).astype(np.float32)
    corner = int(np.searchsorted(-y, camera.eye_height / stage.far))  # first row of floor below the far wall
    corner = min(max(corner, 0), height)
    picture = np.empty((3, height, width), dtype=np.float32)
    wall_x, wall_y = x * stage.far, camera.eye_height + y * stage.far
    floor_z = camera.eye_height / np.maximum(-y[corner:], 1e-3)
    floor_x = floor_z[:, None] * x[None, :]
    street = stage.kind == STREET
    picture[:, :corner] = (_street_wall if street else _room_wall)(rng, stage, wall_x, wall_y[:corner])
    picture[:, corner:] = (_pavement if street else _room_floor)(rng, stage, floor_x, floor_z)
    if not street:
        _side_walls(picture, stage, camera, x, y)
    return picture


def paint_shadows(camera: Camera, stage: Stage, blots: list[Blot]) -> Array:
    """Factors `[height/4,width/4]` float32 in [0,1] on the backdrop; shadows are soft, so a quarter of the pixels a side will do."""
    x = ((np.arange(2, camera.width, 4) - camera.cx) / camera.focal).astype(np.float32)
    y = ((camera.cy - np.arange(2, camera.height, 4)) / camera.focal).astype(np.float32)
    corner = int(np.searchsorted(-y, camera.eye_height / stage.far))
    wall_x, wall_y = x * stage.far, camera.eye_height + y[:corner] * stage.far
    floor_z = camera.eye_height / np.maximum(-y[corner:], 1e-3)
    floor_x = floor_z[:, None] * x[None, :]
    factors = np.ones((y.size, x.size), dtype=np.float32)
    for blot in blots:
        part = factors[:corner] if blot.wall else factors[corner:]
        across = ((wall_x[None, :] if blot.wall else floor_x) - blot.x) / blot.radius_x
        along = ((wall_y if blot.wall else floor_z) - blot.across) / blot.radius_across
        part *= 1.0 - blot.strength * np.exp(-1.2 * (across * across + (along * along)[:, None]))
    return factors


def _room_wall(rng: np.random.Generator, stage: Stage, x: Array, y: Array) -> Array:
    base = stage.palette.wall * np.float32(rng.uniform(0.94, 1.08))
    style = rng.integers(4)
    lightness = np.ones((y.size, x.size), dtype=np.float32)
    if style == 0:  # wide stripes
        lightness *= 1.0 - 0.035 * (np.sin(x * np.float32(2 * np.pi / rng.uniform(0.3, 0.6))) > 0)
    elif style == 1:  # panels below a rail
        rail = rng.uniform(0.7, 0.95)
        groove = (np.mod(x, 0.22) < 0.012).astype(np.float32) * 0.08
        lightness -= ((y < rail).astype(np.float32))[:, None] * (0.05 + groove)[None, :]
        lightness -= (np.abs(y - rail) < 0.02).astype(np.float32)[:, None] * 0.12
    elif style == 2:  # small dots
        pitch = np.float32(rng.uniform(0.22, 0.32))
        dots = np.cos(x * (2 * np.pi / pitch))[None, :] + np.cos(y * (2 * np.pi / pitch))[:, None]
        lightness -= 0.04 * (dots > 1.5)
    lamp = np.float32(rng.uniform(-1.5, 1.5))
    glow = np.exp(-(((x - lamp) / 2.2) ** 2))
    lightness *= 0.92 + 0.12 * glow[None, :]
    lightness *= (0.93 + 0.07 * np.clip(y / 2.0, 0, 1))[:, None]
    lightness[np.abs(y - 0.04) < 0.04] *= 0.80  # skirting board
    wall = lightness * base[:, None, None]
    if rng.random() < 0.55:
        _window(rng, wall, x, y)
    return wall


def _window(rng: np.random.Generator, wall: Array, x: Array, y: Array) -> None:
    left = rng.uniform(-1.9, 0.9)
    width, low, high = rng.uniform(0.7, 1.1), rng.uniform(1.0, 1.2), rng.uniform(1.9, 2.3)
    columns = np.flatnonzero((x > left - 0.06) & (x < left + width + 0.06))
    rows = np.flatnonzero((y > low - 0.06) & (y < high + 0.06))
    if columns.size < 4 or rows.size < 4:
        return
    part = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    u, v = (x[columns] - left) / width, (y[rows] - low) / (high - low)
    sky = mix(rgb("#e9eef0"), rgb("#b9d2e6"), 0.7)
    pane = np.empty((3, rows.size, columns.size), dtype=np.float32)
    pane[:] = sky[:, None, None] * (0.92 + 0.08 * (1 - v))[:, None]
    hill = 0.22 + 0.07 * np.sin(u * 5 + rng.uniform(0, 6))
    pane[:, v[:, None] < hill] = rgb("#a9bf9f")[:, None]
    bar_u = (u < 0) | (u > 1) | (np.abs(u - 0.5) < 0.025)
    bar_v = (v < 0) | (v > 1) | (np.abs(v - 0.55) < 0.03)
    pane[:, bar_v[:, None] | bar_u] = rgb("#efece6")[:, None]
    wall[part] = pane * 0.96


def _room_floor(rng: np.random.Generator, stage: Stage, x: Array, z: Array) -> Array:
    base = stage.palette.floor * np.float32(rng.uniform(1.0, 1.15))
    style = rng.integers(3)
    if style == 0:  # planks running away from the camera
        board = np.floor(x / 0.24)
        tone = np.sin(board * 12.9898) * 43.758
        lightness = 0.94 + 0.09 * (tone - np.floor(tone)) - 0.10 * (x / 0.24 - board < 0.05)
    elif style == 1:  # tiles
        tile = np.float32(rng.uniform(0.35, 0.5))
        odd = np.mod(np.floor(x / tile) + np.floor(z / tile)[:, None], 2.0)
        lightness = 0.95 + 0.07 * odd
    else:  # a round rug on a plain floor
        lightness = np.ones_like(x)
    picture = lightness * base[:, None, None]
    if style == 2 or rng.random() < 0.3:
        rug = stage.palette.accent(rng)
        rug = mix(rug, stage.palette.floor, 0.55)
        cx, cz, r = rng.uniform(-0.6, 0.6), rng.uniform(2.2, 2.7), rng.uniform(0.9, 1.3)
        away = (((x - cx) / r) ** 2 + (((z - cz) / (0.6 * r)) ** 2)[:, None]).astype(np.float32)
        edge = np.clip((1.0 - away) * 30.0 + 0.5, 0.0, 1.0)
        picture += edge * (rug[:, None, None] - picture)
        band = np.clip((0.05 - np.abs(away - 0.79)) * 30.0 + 0.5, 0.0, 1.0)
        picture += (0.35 * band) * (1.0 - picture)
    picture *= (0.82 + 0.20 * np.clip((stage.far - z) / stage.far, 0, 1)).astype(np.float32)[:, None]
    return picture


def _side_walls(picture: Array, stage: Stage, camera: Camera, x: Array, y: Array) -> None:
    """Paint both side walls where they stand before the far wall."""
    for sign in (-1.0, 1.0):
        columns = np.flatnonzero(sign * x * stage.far > stage.side)
        if columns.size == 0:
            continue
        z = stage.side / np.abs(x[columns])
        foot = -camera.eye_height / z
        tone = stage.palette.wall * np.float32(0.80 if sign < 0 else 0.86)
        shade = (0.80 + 0.20 * np.clip((stage.far - z) / 1.2, 0, 1)).astype(np.float32)
        part = picture[:, :, columns[0] : columns[-1] + 1]
        above = np.clip((y[:, None] - foot) * np.float32(camera.focal) + np.float32(0.5), 0.0, 1.0)
        skirt = y[:, None] < (foot + 0.08 / z)[None, :]
        colour = tone[:, None, None] * (shade * np.where(skirt, np.float32(0.82), np.float32(1.0)))
        part += above * (colour - part)


def _street_wall(rng: np.random.Generator, stage: Stage, x: Array, y: Array) -> Array:
    top, low = rgb("#a5c6e2"), rgb("#e3ebee")
    height = np.clip(y / 4.0, 0, 1)[:, None]
    picture = np.empty((3, y.size, x.size), dtype=np.float32)
    picture[:] = low[:, None, None] * (1 - height) + top[:, None, None] * height
    for _ in range(int(rng.integers(1, 4))):  # clouds
        cx, cy, w = rng.uniform(-2.5, 2.5), rng.uniform(1.8, 3.6), rng.uniform(0.4, 0.9)
        puff = 0.5 * np.exp(-(((x - cx) / w) ** 2)) * np.exp(-(((y - cy) / (0.3 * w)) ** 2))[:, None]
        for plane in picture:  # one at a time stays in the cache
            rest = 1.0 - plane
            rest *= puff
            plane += rest
    left = -4.5
    while left < 4.5:
        wide = rng.uniform(0.9, 1.7)
        if rng.random() < 0.85:
            _house(rng, stage, picture, x, y, left, wide)
        left += wide
    hedge = 0.30 + 0.03 * np.sin(x * 23) + 0.02 * np.sin(x * 51 + 1)
    green = rgb("#6f8f63")
    np.copyto(picture, green[:, None, None] * (0.75 + 0.5 * np.clip(y / 0.35, 0, 1))[:, None], where=y[:, None] < hedge)
    return picture


def _house(
    rng: np.random.Generator, stage: Stage, picture: Array, x: Array, y: Array, left: float, wide: float
) -> None:
    tall = rng.uniform(1.2, 2.6)
    columns, rows = np.flatnonzero((x >= left) & (x < left + wide)), np.flatnonzero(y < tall)
    tint = rgb(("#c9b79c", "#b98d76", "#d6cfc4", "#a9b3b4", "#c6a98e", "#b7a7a9")[int(rng.integers(6))])
    tint = mix(tint, stage.palette.wall, 0.35) * np.float32(rng.uniform(0.85, 1.0))
    pitch_x, pitch_y = wide / int(rng.integers(2, 4)), rng.uniform(0.5, 0.62)
    offset = rng.uniform(0.0, 0.2)
    lit = rng.random()
    if columns.size < 2 or rows.size < 2:
        return
    part = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    u = np.mod(x[columns] - left, pitch_x) / pitch_x
    v = np.mod(y[rows] - offset, pitch_y) / pitch_y
    block = np.empty((3, rows.size, columns.size), dtype=np.float32)
    block[:] = tint[:, None, None] * (0.94 + 0.06 * (np.mod(y[rows], 0.12) > 0.02))[:, None]
    frame = ((np.abs(v - 0.5) < 0.31)[:, None]) & ((np.abs(u - 0.5) < 0.27)[None, :])
    pane = ((np.abs(v - 0.5) < 0.27)[:, None]) & ((np.abs(u - 0.5) < 0.23)[None, :])
    np.copyto(block, mix(tint, rgb("#ffffff"), 0.45)[:, None, None], where=frame)
    np.copyto(block, mix(rgb("#6f8796"), rgb("#c9d8de"), 0.2 + 0.5 * lit)[:, None, None], where=pane)
    block[:, y[rows] > tall - 0.07] = mix(tint, rgb("#4a4340"), 0.4)[:, None, None]
    block[:, :, :2] *= 0.9
    picture[part] = block


def _pavement(rng: np.random.Generator, stage: Stage, x: Array, z: Array) -> Array:
    base = mix(rgb("#aaa59d"), stage.palette.floor, 0.25)
    slab = np.float32(rng.uniform(0.45, 0.6))
    joint = (np.mod(x, slab) < 0.015) | (np.mod(z, slab) < 0.03)[:, None]
    tone = np.sin(np.floor(x / slab) * 12.9898 + (np.floor(z / slab) * 78.233)[:, None]) * 43.758
    lightness = 0.95 + 0.06 * (tone - np.floor(tone)) - 0.10 * joint
    kerb = stage.far - 0.5
    picture = lightness * base[:, None, None]
    road = z > kerb
    picture[:, road] = rgb("#6d6e72")[:, None, None] * 0.95
    picture[:, (z > kerb - 0.1) & ~road] = rgb("#c9c5bd")[:, None, None] * 0.95
    picture *= (0.88 + 0.14 * np.clip((stage.far - z) / stage.far, 0, 1)).astype(np.float32)[:, None]
    return picture
