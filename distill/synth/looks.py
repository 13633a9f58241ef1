"""Who looks at what, or out of the frame.

A look is kept only if a person who sees the picture could tell: its target is the first thing on the line of sight, nothing
else lies close to that line in the picture before it, and it is neither straight at the camera nor straight away from it.
"""

from __future__ import annotations

import numpy as np

from distill.synth.backdrop import ROOM
from distill.synth.camera import Array
from distill.synth.things import AIR, FLOOR, HANG, TABLE, WALL
from distill.synth.world import Disc, Layout

# What hangs in the air is in nobody's way and would pass the test below several times as often as what stands; trying it later evens
# out how often each kind is looked at.
_TRIED = {AIR: 0.4, HANG: 0.5, TABLE: 1.0, WALL: 2.6, FLOOR: 2.6}
_TRIED_HEAD = 0.3

OUT_SHARE = 0.23
"""Share of the people who look out of the frame."""


def choose_looks(rng: np.random.Generator, layout: Layout) -> bool:
    """Give every person a look; False where someone finds nothing to look at that could be told."""
    for i in range(len(layout.people)):
        out = rng.random() < OUT_SHARE and _look_out(rng, layout, i)
        if not out and not _look_at(rng, layout, i):
            return False
    return True


def _crosses_body(layout: Layout, i: int, here: Array, there: Array, but: int = -1) -> bool:
    """Whether the line in the picture from `here` to `there` `[2]` pixels crosses the body of someone other than i and `but`."""
    steps = here + np.linspace(0.0, 1.0, 24)[:, None] * (there - here)
    for k, other in enumerate(layout.people):
        if k in (i, but):
            continue
        u, v, r = other.disc
        half = layout.camera.focal * 0.19 * other.scale / float(other.head[2])
        if ((np.abs(steps[:, 0] - u) < half) & (steps[:, 1] > v + 0.5 * r)).any():
            return True
    return False


def _targets(layout: Layout) -> list[tuple[Array, float, Disc]]:
    """Everything that can be looked at: focus, radius in metres, disc in the picture; things first, then heads."""
    return [(t.focus, t.thing.radius, t.disc) for t in layout.things] + [
        (p.head, p.radius, p.disc) for p in layout.people
    ]


def _look_at(rng: np.random.Generator, layout: Layout, i: int) -> bool:
    person, targets = layout.people[i], _targets(layout)
    strict = rng.random() < 0.85  # the rest may have a distractor somewhat nearer to the line, or a shorter look
    weights = np.array([_TRIED[t.anchor] for t in layout.things] + [_TRIED_HEAD] * len(layout.people))
    order = rng.choice(len(targets), len(targets), replace=False, p=weights / weights.sum())
    for j in order:
        if j == len(layout.things) + i:
            continue
        focus, radius, _ = targets[j]
        wander = rng.normal(0.0, 0.22 * radius, 3)
        point = focus + wander
        if _clear(layout, i, int(j), point, strict):
            away = point - person.head
            person.gaze, person.point, person.target = away / np.linalg.norm(away), point, int(j)
            return True
    return False


def _clear(layout: Layout, i: int, j: int, point: Array, strict: bool) -> bool:
    """Whether person i's look at `point` on target j can be told from the picture."""
    person, targets, camera = layout.people[i], _targets(layout), layout.camera
    away = point - person.head
    reach = float(np.linalg.norm(away))
    gaze = away / reach
    to_camera = camera.origin - person.head
    facing = float(gaze @ to_camera / np.linalg.norm(to_camera))
    if (
        facing > np.cos(np.radians(20))
        or facing < -np.cos(np.radians(50 if strict else 40))
        or abs(gaze[1]) > np.sin(np.radians(52))
    ):
        return False
    here = np.array(person.disc[:2])
    there = camera.project(point)
    line = there - here
    length = float(np.hypot(*line))
    if length < (0.14 if strict else 0.10) * camera.width or length < 1.25 * person.disc[2]:
        return False
    if _crosses_body(layout, i, here, there, j - len(layout.things)):
        return False
    own = np.arctan2(targets[j][2][2], length)
    closest = np.radians(13.0 if strict else 8.0)
    for k, (focus, radius, disc) in enumerate(targets):
        if k in (j, len(layout.things) + i):
            continue
        other = np.array(disc[:2]) - here
        distance = float(np.hypot(*other))
        angle = abs(float(np.arctan2(line[0] * other[1] - line[1] * other[0], line @ other)))
        beyond = distance > length + disc[2] + targets[j][2][2]
        if not beyond and angle < max(closest, 0.5 * own + float(np.arctan2(disc[2], distance))):
            return False
        along = float(gaze @ (focus - person.head))
        off = float(np.linalg.norm(focus - person.head - along * gaze))
        if 0 < along < reach and off < 1.3 * radius:
            return False
    return True


def _look_out(rng: np.random.Generator, layout: Layout, i: int) -> bool:
    person, camera = layout.people[i], layout.camera
    to_camera = camera.origin - person.head
    to_camera /= np.linalg.norm(to_camera)
    for _ in range(24):
        if rng.random() < 0.12:  # at the viewer
            gaze = to_camera + rng.normal(0.0, 0.04, 3)
        else:
            yaw, pitch = rng.uniform(-np.pi, np.pi), rng.normal(0.0, 0.30)
            gaze = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        gaze = gaze / np.linalg.norm(gaze)
        if abs(gaze[1]) < 0.8 and gaze @ to_camera > -0.72 and leaves_frame(layout, i, gaze):
            person.gaze, person.point, person.target = gaze, None, None
            return True
    return False


def leaves_frame(layout: Layout, i: int, gaze: Array) -> bool:
    """Whether the look of person i along unit `gaze` `[3]` leaves the picture and meets nothing before it does."""
    person, camera, stage = layout.people[i], layout.camera, layout.stage
    steps = np.geomspace(0.05, 8.0, 160)
    points = person.head + steps[:, None] * gaze
    seen = camera.contains(camera.project(points)) & (points[:, 2] > 0.3)
    stopped = (points[:, 1] < 0.0) | (points[:, 2] > stage.far)
    if stage.kind == ROOM:
        stopped |= np.abs(points[:, 0]) > stage.side
    gone = int(np.argmax(~seen)) if not seen.all() else len(steps)
    if gone == len(steps) or stopped[: gone + 1].any():
        return False
    here = np.array(person.disc[:2])
    start, end = person.head, points[max(gone - 1, 0)]
    line = camera.project(end) - here
    length = float(np.hypot(*line))
    if _crosses_body(layout, i, here, here + line):
        return False
    for k, (focus, radius, disc) in enumerate(_targets(layout)):
        if k == len(layout.things) + i:
            continue
        along = float(gaze @ (focus - start))
        if along > 0 and float(np.linalg.norm(focus - start - along * gaze)) < radius + 0.30 * along:
            return False
        other = np.array(disc[:2]) - here
        angle = abs(float(np.arctan2(line[0] * other[1] - line[1] * other[0], line @ other)))
        if length > 1.2 * person.disc[2] and angle < np.arctan2(disc[2], float(np.hypot(*other))) + np.radians(12.0):
            return False
    return True
