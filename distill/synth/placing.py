"""Where people, tables and things stand, by drawing and rejecting; nobody looks anywhere yet."""

from __future__ import annotations

import numpy as np

from distill.synth.backdrop import ROOM, STREET, Stage
from distill.synth.body import HEAD_RADIUS, SITTING, STANDING
from distill.synth.camera import NEAR, Array, Camera
from distill.synth.solids import corners
from distill.synth.things import AIR, FLOOR, HANG, INDOORS, OUTDOORS, TABLE, WALL, build_table
from distill.synth.world import Disc, Person, Placed, Rect, Table

_HEAD_SIZES = (0.16, 0.32)  # of the picture's height, annotated box


def _disc(camera: Camera, centre: Array, radius: float) -> Disc:
    x, y, z = centre.tolist()
    return (
        camera.cx + camera.focal * x / z,
        camera.cy - camera.focal * (y - camera.eye_height) / z,
        camera.focal * radius / z,
    )


def place_people(rng: np.random.Generator, camera: Camera, stage: Stage) -> list[Person]:
    """One to four people whose heads are whole and apart in the picture; none where the number drawn found no room."""
    wanted = int(rng.choice((1, 2, 3, 4), p=(0.25, 0.32, 0.25, 0.18)))
    people: list[Person] = []
    for _ in range(90):
        if len(people) == wanted:
            break
        scale, sitting = float(rng.uniform(0.86, 1.12)), bool(rng.random() < 0.25)
        radius = HEAD_RADIUS * scale
        share = float(rng.uniform(*_HEAD_SIZES))
        z = camera.focal * 2.16 * radius / (share * camera.height)
        u = float(rng.uniform(0.10, 0.90)) * camera.width
        head = np.array([(u - camera.cx) * z / camera.focal, scale * (SITTING if sitting else STANDING), z])
        disc = _disc(camera, head, 1.15 * radius)
        foot = np.array([head[0], 0.0, head[2]])
        inside = camera.contains(np.array(disc[:2]), 1.15 * disc[2])
        apart = all(
            abs(disc[0] - p.disc[0]) > 1.12 * (disc[2] + p.disc[2]) and np.hypot(*(foot - p.foot)[[0, 2]]) > 0.5
            for p in people
        )
        if inside and apart and z < stage.far - 0.5 and (stage.kind == STREET or abs(foot[0]) < stage.side - 0.3):
            people.append(Person(foot, scale, sitting, head, radius, disc))
    return people if len(people) == wanted else []


def _body_extent(camera: Camera, person: Person) -> Rect:
    u, v, r = person.disc
    wide = camera.focal * 0.31 * person.scale / person.head[2]
    bottom = camera.cy + camera.focal * camera.eye_height / float(person.foot[2])
    return u - wide, v + 0.6 * r, u + wide, bottom


def _overlap(a: Rect, b: Rect, margin: float = 0.0) -> bool:
    return a[0] < b[2] + margin and b[0] < a[2] + margin and a[1] < b[3] + margin and b[1] < a[3] + margin


def _extent(camera: Camera, points: Array) -> Rect:
    """Bounding rectangle in the picture of world points `[n,3]`."""
    z = np.maximum(points[:, 2], NEAR)
    u, v = points[:, 0] / z, (points[:, 1] - camera.eye_height) / z
    return (
        camera.cx + camera.focal * float(u.min()),
        camera.cy - camera.focal * float(v.max()),
        camera.cx + camera.focal * float(u.max()),
        camera.cy - camera.focal * float(v.min()),
    )


def _head_extent(person: Person, margin: float = 1.0) -> Rect:
    u, v, r = person.disc
    return u - margin * r, v - margin * r, u + margin * r, v + margin * r


def place_tables(rng: np.random.Generator, camera: Camera, stage: Stage, people: list[Person]) -> list[Table]:
    """Up to two tables that hide no head and stand in nobody's way."""
    tables: list[Table] = []
    wanted = int(rng.choice((0, 1, 2), p=(0.2, 0.5, 0.3)))
    for _ in range(25):
        if len(tables) == wanted:
            break
        half_width, half_depth, height = (
            float(rng.uniform(0.28, 0.5)),
            float(rng.uniform(0.2, 0.28)),
            float(rng.uniform(0.42, 0.62)),
        )
        z = float(rng.uniform(1.5, stage.far - 0.5))
        u = float(rng.uniform(0.05, 0.95)) * camera.width
        foot = np.array([(u - camera.cx) * z / camera.focal, 0.0, z])
        if stage.kind == ROOM and abs(foot[0]) > stage.side - half_width:
            continue
        extent = _extent(
            camera,
            foot
            + np.array([[x * half_width, y, z * half_depth] for x in (-1, 1) for y in (0, height) for z in (-1, 1)]),
        )
        near = any(_overlap(extent, _head_extent(p, 1.1)) for p in people)
        hidden = any(p.head[2] < z and _overlap(extent, _body_extent(camera, p)) for p in people)
        collides = any(
            abs(p.foot[0] - foot[0]) < half_width + 0.3 and abs(p.foot[2] - z) < half_depth + 0.35 for p in people
        )
        crowded = any(_overlap(extent, t.extent, 6) for t in tables)
        if not (near or hidden or collides or crowded) and extent[1] + 14 < camera.height:
            solids = build_table(stage.palette, half_width, half_depth, height)
            tables.append(Table(foot, half_width, half_depth, height, [s.shifted(foot) for s in solids], extent))
    return tables


def place_things(
    rng: np.random.Generator, camera: Camera, stage: Stage, people: list[Person], tables: list[Table]
) -> list[Placed]:
    """Up to eight things that are seen whole or nearly so; the kinds are drawn before their spots."""
    kinds = INDOORS if stage.kind == ROOM else OUTDOORS
    shares = {FLOOR: 0.31, TABLE: 0.32 if tables else 0.0, WALL: 0.15, AIR: 0.16, HANG: 0.06}
    anchors = [a for a in kinds if shares[a] > 0]
    weights = np.array([shares[a] for a in anchors])
    weights /= weights.sum()
    things: list[Placed] = []
    for _ in range(int(rng.integers(5, 10))):
        anchor = anchors[int(rng.choice(len(anchors), p=weights))]
        thing = kinds[anchor][int(rng.integers(len(kinds[anchor])))](rng, stage.palette)
        points = corners(thing.solids).reshape(-1, 3)
        for _ in range(12):
            spot = _spot(rng, anchor, camera, stage, tables)
            focus = spot + thing.focus
            disc = _disc(camera, focus, thing.radius)
            if not _shows(disc, focus, anchor, camera, stage, people, things):
                continue
            extent = _extent(camera, points + spot)
            if _fits(extent, spot, anchor, camera, people, things, tables):
                things.append(
                    Placed(thing, anchor, tuple(s.shifted(spot) for s in thing.solids), focus, disc, extent, spot)
                )
                break
        if len(things) == 8:
            break
    return things


def _spot(rng: np.random.Generator, anchor: str, camera: Camera, stage: Stage, tables: list[Table]) -> Array:
    u = float(rng.uniform(0.04, 0.96)) * camera.width
    if anchor == TABLE:
        table = tables[int(rng.integers(len(tables)))]
        return table.foot + np.array(
            [rng.uniform(-1, 1) * (table.half_width - 0.1), table.height, rng.uniform(-0.5, 0.5) * table.half_depth]
        )
    if anchor == FLOOR:
        nearest = camera.focal * camera.eye_height / (camera.height - camera.cy) + 0.1
        z = float(rng.uniform(min(nearest, stage.far - 0.5), stage.far - 0.25))
        return np.array([(u - camera.cx) * z / camera.focal, 0.0, z])
    if anchor == WALL:
        return camera.lift(u, float(rng.uniform(0.06, 0.60)) * camera.height, stage.far - 0.04)
    if anchor == HANG:
        return camera.lift(u, float(rng.uniform(0.08, 0.35)) * camera.height, float(rng.uniform(1.7, stage.far - 0.4)))
    return camera.lift(u, float(rng.uniform(0.07, 0.70)) * camera.height, float(rng.uniform(1.5, stage.far - 0.3)))


def _shows(
    disc: Disc,
    focus: Array,
    anchor: str,
    camera: Camera,
    stage: Stage,
    people: list[Person],
    things: list[Placed],
) -> bool:
    """Whether what one looks at is in the picture, large enough, within the room and not behind a person or another thing."""
    u, v, r = disc
    if (
        not (0.8 * r <= u <= camera.width - 0.8 * r and 0.8 * r <= v <= camera.height - 0.8 * r)
        or r < 0.03 * camera.height
    ):
        return False
    if anchor in (AIR, HANG, WALL) and focus[1] < 0.35:
        return False
    if stage.kind == ROOM and abs(focus[0]) > stage.side - 0.25:
        return False
    for other_u, other_v, other_r in [t.disc for t in things] + [p.disc for p in people]:
        if abs(u - other_u) < r + other_r and abs(v - other_v) < r + other_r:
            return False
    core = (u - 0.9 * r, v - 0.9 * r, u + 0.9 * r, v + 0.9 * r)
    return not any(p.head[2] < focus[2] and _overlap(core, _body_extent(camera, p)) for p in people)


def _fits(
    extent: Rect,
    foot: Array,
    anchor: str,
    camera: Camera,
    people: list[Person],
    things: list[Placed],
    tables: list[Table],
) -> bool:
    """Whether a thing keeps clear of heads, bodies, other things and tables that it does not stand on."""
    if any(_overlap(extent, _head_extent(p, 1.05)) for p in people):
        return False
    if any(_overlap(extent, other.extent, 0.008 * camera.height) for other in things):
        return False
    if anchor in (AIR, HANG) and any(_overlap(extent, _body_extent(camera, p)) for p in people):
        return False
    if any((p.foot[0] - foot[0]) ** 2 + (p.foot[2] - foot[2]) ** 2 < 0.2 for p in people):
        return False
    return not any(_overlap(extent, t.extent, 0.01 * camera.height) for t in tables if not t.carries(foot))
