"""What a scene holds before it is drawn: people, things, tables, the place and the camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from distill.synth.backdrop import Stage
from distill.synth.camera import Array, Camera
from distill.synth.solids import Solid
from distill.synth.things import Thing

Rect = tuple[float, float, float, float]
"""u0, v0, u1, v1 in pixels."""
Disc = tuple[float, float, float]
"""Centre u, v and radius in pixels."""


@dataclass
class Person:
    """One person; what the looks add is filled in by `choose_looks`."""

    foot: Array
    scale: float
    sitting: bool
    head: Array
    radius: float
    disc: Disc
    """Head in the picture: centre u, v and radius in pixels."""
    gaze: Array = field(default_factory=lambda: np.zeros(3))
    """Unit direction of the look `[3]`."""
    point: Array | None = None
    """World point looked at `[3]`, None when the look leaves the frame."""
    target: int | None = None
    """Number of the thing looked at, `len(things) + i` for person i's head, None when the look leaves the frame."""


@dataclass(frozen=True)
class Placed:
    """A thing in the world."""

    thing: Thing
    anchor: str
    """What it stands, hangs or floats on, one of the constants of `things`."""
    solids: tuple[Solid, ...]
    focus: Array
    disc: Disc
    """What one looks at, in the picture: centre u, v and radius in pixels."""
    extent: Rect
    """Bounding rectangle of the whole thing in the picture, u0, v0, u1, v1 in pixels."""
    foot: Array


@dataclass(frozen=True)
class Table:
    """A table in the world; `solids` begins with its top."""

    foot: Array
    half_width: float
    half_depth: float
    height: float
    solids: list[Solid]
    extent: Rect
    """Bounding rectangle in the picture, u0, v0, u1, v1 in pixels."""

    def carries(self, foot: Array) -> bool:
        """Whether a thing whose foot is at `foot` `[3]` stands on this table."""
        return bool(
            abs(foot[1] - self.height) < 1e-9
            and abs(foot[0] - self.foot[0]) <= self.half_width
            and abs(foot[2] - self.foot[2]) <= self.half_depth
        )


@dataclass
class Layout:
    """A scene before it is drawn."""

    camera: Camera
    stage: Stage
    people: list[Person]
    things: list[Placed]
    tables: list[Table]
