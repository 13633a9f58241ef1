"""How a data set is distributed: people per picture, head sizes, gaze distances and directions, in/out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distill.console import progress
from distill.errors import DataError, PictureError
from distill.picture_sizes import SizeMemory
from distill.pictures import picture_size
from distill.scenes import IN, OUT, UNKNOWN, Scene, SceneSet
from distill.splits import fraction

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DIRECTIONS = ("right", "down", "left", "up")


@dataclass(frozen=True)
class Spread:
    """A quantity's mean and its 5, 25, 50, 75 and 95 % quantiles over ``count`` values."""

    count: int
    mean: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there are no values."""
        if not len(values):
            return None
        array = np.asarray(values, dtype=np.float64)
        return cls(len(array), float(array.mean()), tuple(float(q) for q in np.quantile(array, QUANTILES)))


@dataclass(frozen=True)
class DataStats:
    """Distributions over the ``scenes`` looked at, of the ``of`` in the split.

    ``heads_per_scene`` maps a number of heads to how many scenes have it. ``head_height`` is in [0,1] of the picture's
    height, ``gaze_distance`` from head centre to (mean) gaze point in [0,1] of the picture's sides, ``annotator_spread``
    the mean distance of an annotator's point to the head's mean point where there are several. ``directions`` counts
    in-frame heads by the quadrant around the direction of gaze in the picture. ``sizes`` are the commonest picture sizes.
    """

    split: str
    scenes: int
    of: int
    unreadable: int
    heads_per_scene: dict[int, int]
    inout: dict[str, int]
    head_height: Spread | None
    gaze_distance: Spread | None
    gaze_x: Spread | None
    gaze_y: Spread | None
    annotator_spread: Spread | None
    directions: dict[str, int]
    sizes: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def data_stats(scene_set: SceneSet, limit: int = 2000) -> DataStats:
    """Distributions over up to ``limit`` scenes, chosen by the digest of their keys; pictures give their sizes only.

    Raises :class:`DataError` when no picture's size can be had.
    """
    scenes = sorted(scene_set.scenes, key=lambda scene: fraction(f"stats\0{scene.key}"))[:limit]
    seen: list[Scene] = []
    upright = scene_set.reader == "folder"
    with SizeMemory(scene_set.root, upright=upright) as sizes, progress("Reading picture sizes", total=len(scenes), unit="pictures") as bar:
        for scene in scenes:
            bar.update(1)
            try:
                size = scene.size or sizes.get(scene.picture)
                if size is None:
                    size = sizes[scene.picture] = picture_size(scene.picture, exif=upright)
                seen.append(scene.normalised(*size))
            except PictureError:
                # Counted below; `data check` names each.
                continue
    if not seen:
        raise DataError(
            f"none of {len(scenes)} pictures of split {scene_set.split!r} of {scene_set.root} can be opened, the first is "
            f"{scenes[0].picture}; check that the pictures lie beside the annotations"
        )
    heads = [head for scene in seen for head in scene.heads]
    looking = [head for head in heads if head.points and head.inout != OUT]
    centres = np.array([((h.box[0] + h.box[2]) / 2, (h.box[1] + h.box[3]) / 2) for h in looking]).reshape(-1, 2)
    gazes = np.array([np.mean(h.points, axis=0) for h in looking]).reshape(-1, 2)
    offsets = gazes - centres
    pixels = offsets * np.array([scene.size for scene in seen for h in scene.heads if h.points and h.inout != OUT]).reshape(-1, 2)
    quadrants = np.round(np.arctan2(pixels[:, 1], pixels[:, 0]) / (np.pi / 2)).astype(int) % 4
    several = [
        float(np.hypot(*(np.array(h.points) - np.mean(h.points, axis=0)).T).mean()) for h in looking if len(h.points) > 1
    ]
    labels = Counter(head.inout for head in heads)
    return DataStats(
        split=scene_set.split,
        scenes=len(seen),
        of=len(scene_set),
        unreadable=len(scenes) - len(seen),
        heads_per_scene=dict(sorted(Counter(len(scene.heads) for scene in seen).items())),
        inout={"in": labels[IN], "out": labels[OUT], "unknown": labels[UNKNOWN]},
        head_height=Spread.of([head.box[3] - head.box[1] for head in heads]),
        gaze_distance=Spread.of(np.hypot(*offsets.T).tolist()),
        gaze_x=Spread.of(gazes[:, 0].tolist()),
        gaze_y=Spread.of(gazes[:, 1].tolist()),
        annotator_spread=Spread.of(several),
        directions={name: int((quadrants == number).sum()) for number, name in enumerate(DIRECTIONS)},
        sizes={f"{w} x {h}": n for (w, h), n in Counter(scene.size or (0, 0) for scene in seen).most_common(5)},
    )

