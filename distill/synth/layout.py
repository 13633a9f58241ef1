"""One layout: a place, who and what is in it, and who looks at what.

Things are placed first and looked at second, so neither the kind nor the size of a thing says whether it is looked at.
"""

from __future__ import annotations

import numpy as np

from distill.synth.backdrop import ROOM, STREET, Stage
from distill.synth.camera import Camera
from distill.synth.colours import PALETTES
from distill.synth.looks import choose_looks
from distill.synth.placing import place_people, place_tables, place_things
from distill.synth.world import Layout


def draw_layout(rng: np.random.Generator, width: int, height: int) -> Layout | None:
    """One layout for a `width` x `height` picture, or None where the draw did not work out and another is due."""
    stage = Stage(
        ROOM if rng.random() < 0.6 else STREET,
        float(rng.uniform(3.3, 4.2)),
        float(rng.uniform(1.7, 2.8)),
        PALETTES[int(rng.integers(len(PALETTES)))],
    )
    camera = Camera(
        width,
        height,
        focal=1.07 * height,
        cx=width / 2,
        cy=height * float(rng.uniform(0.28, 0.58)),
        eye_height=float(rng.uniform(0.85, 1.40)),
    )
    people = place_people(rng, camera, stage)
    if not people:
        return None
    tables = place_tables(rng, camera, stage, people)
    things = place_things(rng, camera, stage, people, tables)
    layout = Layout(camera, stage, people, things, tables)
    if len(things) < 4 or not choose_looks(rng, layout):
        return None
    return layout
