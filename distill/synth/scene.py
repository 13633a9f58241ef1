"""One scene from its number: layout, drawing, and the annotation that the layout knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from distill.synth.backdrop import ROOM, Blot, paint_backdrop, paint_shadows
from distill.synth.body import build_body, draw_clothes
from distill.synth.camera import Array, Camera
from distill.synth.config import SynthConfig
from distill.synth.develop import develop
from distill.synth.errors import SynthError
from distill.synth.head import EYE_LINE, build_head, draw_looks, facing
from distill.synth.layout import draw_layout
from distill.synth.raster import Canvas, Light
from distill.synth.solids import Solid, yaw_turn
from distill.synth.world import Layout, Person

_SCALE = (
    4 / 3
)  # canvas pixels per picture pixel and side: 2 looks hardly better once the picture is a JPEG, and costs twice as much
_ATTEMPTS = 200  # layouts tried before giving up; about one in three is kept

Rect = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class DrawnHead:
    """The annotation of one head."""

    box: Rect
    """Head box xyxy in pixels, inside the picture."""
    eye: Point
    """Middle of the eyes, normalised to [0,1]."""
    gaze: Point | None
    """Point looked at, normalised to [0,1]; None where the look leaves the frame."""
    inout: int
    """1 where the look stays in the frame, 0 where it leaves it."""
    body: Rect
    """Body box as x, y, width, height, normalised to [0,1]."""


@dataclass(frozen=True)
class Drawn:
    """A picture and its heads, left to right as they were placed."""

    picture: Image.Image
    heads: list[DrawnHead]


def draw_scene(seed: int, index: int, config: SynthConfig) -> Drawn:
    """Draw scene `index` of data set `seed`; a pure function of (seed, index, picture size).

    Raises:
        SynthError: no layout was found, which a picture of unusual proportions can cause.
    """
    return _draw(seed, index, config)[0]


def draw_scene_with_layout(seed: int, index: int, config: SynthConfig) -> tuple[Drawn, Layout, Canvas]:
    """`draw_scene`, with the layout and the canvas whose owner numbers say what each pixel shows.

    Owner numbers are those of `Person.target`, and -2 for bodies and tables.
    """
    return _draw(seed, index, config)


def _draw(seed: int, index: int, config: SynthConfig) -> tuple[Drawn, Layout, Canvas]:
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng((seed, index, attempt))
        layout = draw_layout(rng, config.width, config.height)
        if layout is None:
            continue
        drawn = _render(rng, layout)
        if drawn is not None:
            return drawn[0], layout, drawn[1]
    raise SynthError(
        f"no layout for scene {index} of seed {seed} at {config.width}x{config.height} after {_ATTEMPTS} attempts; "
        "use another seed or picture size"
    )


def _render(rng: np.random.Generator, layout: Layout) -> tuple[Drawn, Canvas] | None:
    """Draw a layout; None where a target turns out to be hidden."""
    camera = layout.camera
    light = _draw_light(rng)
    solids: list[tuple[Solid, int]] = []
    for number, placed in enumerate(layout.things):
        solids += [(s, number) for s in placed.solids]
    for table in layout.tables:
        solids += [(s, -2) for s in table.solids]
    heads: list[list[Solid]] = []
    bodies: list[list[Solid]] = []
    turns: list[Array] = []
    for i, person in enumerate(layout.people):
        head, body, turn = build_person(rng, layout, person)
        heads.append(head)
        bodies.append(body)
        turns.append(turn)
        solids += [(s, len(layout.things) + i) for s in head]
        solids += [(s, -2) for s in body]
    backdrop = paint_backdrop(rng, camera, layout.stage)
    shadows = paint_shadows(camera, layout.stage, _soft_shadows(layout, light))
    canvas = Canvas(camera, light, _SCALE)
    canvas.draw(_shade_tables(layout, solids))
    annotated: list[DrawnHead] = []
    for i, person in enumerate(layout.people):
        gaze: Point | None = None
        if person.point is not None:
            u, v = (float(c) for c in camera.project(person.point))
            if not camera.contains(np.array((u, v))) or canvas.owner_at(u, v) != person.target:
                return None
            gaze = (u / camera.width, v / camera.height)
        eye = camera.project(person.head + turns[i] @ (EYE_LINE * person.radius))
        head_box = _bounds(camera, heads[i], 0.04)
        body_box = _bounds(camera, heads[i] + bodies[i], 0.0)
        annotated.append(
            DrawnHead(
                box=head_box,
                eye=(float(eye[0]) / camera.width, float(eye[1]) / camera.height),
                gaze=gaze,
                inout=int(gaze is not None),
                body=(
                    body_box[0] / camera.width,
                    body_box[1] / camera.height,
                    (body_box[2] - body_box[0]) / camera.width,
                    (body_box[3] - body_box[1]) / camera.height,
                ),
            )
        )
    return Drawn(develop(rng, canvas, backdrop, shadows), annotated), canvas


def _draw_light(rng: np.random.Generator) -> Light:
    side = rng.uniform(-0.7, 0.7)
    towards = np.array([side, rng.uniform(0.7, 1.0), rng.uniform(-0.9, -0.5)])
    return Light(towards / np.linalg.norm(towards), float(rng.uniform(0.52, 0.60)), float(rng.uniform(0.67, 0.74)))


def build_person(rng: np.random.Generator, layout: Layout, person: Person) -> tuple[list[Solid], list[Solid], Array]:
    """Solids of head and body, and the head's rotation: the head takes most of the turn from the body, the eyes the rest."""
    gaze = person.gaze
    yaw = float(np.arctan2(gaze[0], gaze[2])) + float(np.clip(rng.normal(0.0, 0.40), -0.8, 0.8))
    ahead = np.array([np.sin(yaw), 0.0, np.cos(yaw)])
    share = float(rng.uniform(0.75, 0.90))
    angle = float(np.arccos(np.clip(ahead @ gaze, -1.0, 1.0)))
    if angle < 1e-4:
        direction = gaze
    else:
        direction = (np.sin((1 - share) * angle) * ahead + np.sin(share * angle) * gaze) / np.sin(angle)
    turn = facing(direction, float(rng.normal(0.0, 0.05)))
    looks = draw_looks(rng, layout.stage.palette)
    clothes = draw_clothes(rng, layout.stage.palette, looks.skin)
    head = build_head(looks, person.head, person.radius, turn, gaze)
    body = build_body(clothes, person.foot, yaw_turn(yaw), person.scale, person.sitting)
    return head, body, turn


def _bounds(camera: Camera, solids: list[Solid], pad: float) -> Rect:
    """Rectangle in pixels around solids, widened by `pad` of its size on each side, clamped to the picture."""
    centres, edges = np.array([s.centre for s in solids]), np.array([s.turn * s.half for s in solids])
    reach = np.sqrt((edges * edges).sum(axis=2))[:, :2]  # half extents along the world's x and y
    centre, size = camera.project(centres), camera.focal * reach / centres[:, 2:]
    low, high = (centre - size).min(axis=0), (centre + size).max(axis=0)
    margin = pad * (high - low)
    low, high = np.maximum(low - margin, 0.0), np.minimum(high + margin, (camera.width, camera.height))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _soft_shadows(layout: Layout, light: Light) -> list[Blot]:
    lean = -0.22 * light.towards[0]
    blots = []
    for person in layout.people:
        x, z = float(person.foot[0]), float(person.foot[2])
        blots.append(Blot(x + lean * person.scale, z + 0.12, 0.40 * person.scale, 0.34, 0.42))
        blots.append(Blot(x, z, 0.22 * person.scale, 0.18, 0.35))
    for table in layout.tables:
        blots.append(
            Blot(float(table.foot[0]), float(table.foot[2]), 1.15 * table.half_width, 1.3 * table.half_depth, 0.38)
        )
    for placed in layout.things:
        x, y, z = (float(c) for c in placed.foot)
        radius = placed.thing.foot
        if radius > 0 and y == 0.0:
            blots.append(Blot(x + 0.2 * lean, z + 0.02, 1.35 * radius, 1.25 * radius, 0.50))
        elif placed.thing.kind in ("painting", "clock") and layout.stage.kind == ROOM:
            blots.append(
                Blot(
                    x - 0.06 * float(np.sign(light.towards[0])),
                    y - 0.05,
                    1.45 * placed.thing.radius,
                    1.35 * placed.thing.radius,
                    0.30,
                    wall=True,
                )
            )
    return blots


def _shade_tables(layout: Layout, solids: list[tuple[Solid, int]]) -> list[tuple[Solid, int]]:
    """Give every table top the shadows of what stands on it."""
    tops = {id(table.solids[0]): table for table in layout.tables}
    shaded = []
    for solid, owner in solids:
        table = tops.get(id(solid))
        if table is not None:
            solid = _table_top(
                solid,
                [
                    (
                        float(t.foot[0] - table.foot[0]) / table.half_width,
                        float(t.foot[2] - table.foot[2]) / table.half_depth,
                        1.3 * t.thing.foot / table.half_width,
                        1.3 * t.thing.foot / table.half_depth,
                    )
                    for t in layout.things
                    if table.carries(t.foot)
                ],
            )
        shaded.append((solid, owner))
    return shaded


def _table_top(solid: Solid, marks: list[tuple[float, float, float, float]]) -> Solid:
    wood = np.asarray(solid.paint, dtype=np.float32)

    def paint(q: Array) -> Array:
        tone = 0.98 + 0.03 * np.sin(q[2] * 21 + 1.5 * np.sin(q[0] * 4))
        for x, z, across, along in marks:
            tone = tone * (1.0 - 0.5 * np.exp(-1.3 * (((q[0] - x) / across) ** 2 + ((q[2] - z) / along) ** 2)))
        return (tone * wood[:, None]).astype(np.float32)

    return Solid(solid.shape, solid.centre, solid.half, solid.turn, paint, solid.gloss)
