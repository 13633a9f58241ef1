"""A contact sheet: some pictures of a data set with their head boxes and gaze, to be looked at by a person."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from distill.errors import DataError
from distill.overlay import Person, Style, overlay, panel
from distill.pictures import load_picture
from distill.scenes import IN, OUT, UNKNOWN, Scene, SceneSet

WIDTH = 480  # pixels of one picture on the sheet: a face can be read, and 24 of them fit a screen


def contact_sheet(scene_set: SceneSet, n: int = 24, seed: int = 0, *, columns: int = 4) -> Image.Image:
    """Draw ``n`` scenes, chosen by ``seed``, each person in a colour of their own.

    A line runs from the head to the (mean) gaze point, crosses mark every annotator's point where there are several, a
    dashed box is a head that looks out of the frame. Pictures that cannot be opened, or lie on their side, are left out. Raises
    :class:`DataError` when none can.
    """
    chosen = random.Random(seed).sample(range(len(scene_set)), k=len(scene_set))
    cells: list[tuple[str, Image.Image]] = []
    for index in chosen:
        if len(cells) == n:
            break
        scene = scene_set.scenes[index]
        try:
            drawn = _drawn(scene, load_picture(scene.picture, exif=scene_set.reader == "folder"))
        except DataError:
            # Broken, or turned against its annotations: the check counts and names it; the sheet shows another one.
            continue
        cells.append((_caption(scene), drawn))
    if not cells:
        raise DataError(f"no picture of split {scene_set.split!r} of {scene_set.root} can be opened; check the folder")
    return panel(cells, columns, width=WIDTH)


def _caption(scene: Scene) -> str:
    labels = [head.inout for head in scene.heads]
    names = ((IN, "in"), (OUT, "out"), (UNKNOWN, "unlabelled"))
    parts = [f"{labels.count(label)} {name}" for label, name in names if label in labels]
    return f"{scene.key} · {', '.join(parts)}"


def _drawn(scene: Scene, picture: np.ndarray) -> Image.Image:
    height, width = picture.shape[:2]
    # Strokes belong to the size at which they are seen, so the picture is resized before it is drawn on.
    small = Image.fromarray(picture).resize((WIDTH, max(1, round(WIDTH * height / width))), Image.Resampling.LANCZOS)
    people = []
    for head in scene.normalised(width, height).heads:
        point = tuple(np.mean(head.points, axis=0).tolist()) if head.points else None
        people.append(
            Person(
                box=head.box,
                point=point,
                inout=0.0 if head.inout == OUT else None,
                truth=head.points if len(head.points) > 1 else None,
            )
        )
    return overlay(np.asarray(small), people, style=Style(labels=False, scale=1.15))
