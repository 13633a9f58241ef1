"""Scenes: pictures with annotated heads, as the readers produce them.

A reader opens annotation files, never pictures. Coordinates therefore stay in the file's own units (pixels or [0,1])
until the picture's size is known; :meth:`Scene.normalised` does the conversion, clamps to the picture and puts reversed
boxes right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distill.errors import DataError

OUT, IN, UNKNOWN = 0, 1, -1

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Head:
    """One person's head in a scene.

    ``box`` is xyxy and ``points`` are the gaze points of 0..n annotators, both in the units that the scene states.
    ``inout`` is :data:`IN`, :data:`OUT` or :data:`UNKNOWN` (1, 0, -1). ``person`` names the head within its scene.
    """

    box: Box
    points: tuple[Point, ...] = ()
    inout: int = UNKNOWN
    person: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture with its heads.

    ``key`` is stable and unique in the data set (the path within it), ``file`` the picture's path. ``size`` is (width, height) in pixels where
    the annotations state it; coordinates in pixels are then counted in it, whatever the size of the picture on disk. ``group`` is what must
    not be split between training and validation (a show, a video).
    """

    key: str
    file: str  # plain text: a hundred thousand paths, taken apart and interned, would cost more than all else that a scene holds
    heads: tuple[Head, ...]
    size: tuple[int, int] | None = None
    box_pixels: bool = False
    point_pixels: bool = False
    group: str = ""

    @property
    def picture(self) -> Path:
        """The picture's path."""
        return Path(self.file)

    def normalised(self, width: int, height: int) -> Scene:
        """The same scene with boxes and points in [0,1] of a picture of ``width`` × ``height`` pixels, clamped to it.

        Points of heads that are not in the frame are dropped: they mean nothing. Reversed boxes are put right. Raises :class:`DataError` for
        pixels counted in a picture that lay on its side when it was annotated.
        """
        pixels = self.size or (width, height)
        if (self.box_pixels or self.point_pixels) and pixels != (width, height) and pixels == (height, width):
            raise DataError(
                f"picture {self.file} is {width} x {height}, and {self.key} was annotated at {height} x {width}: one of them is turned; save "
                "the picture without its EXIF orientation, or annotate it upright"
            )
        bw, bh = pixels if self.box_pixels else (1, 1)
        pw, ph = pixels if self.point_pixels else (1, 1)

        def unit(value: float) -> float:
            return min(max(value, 0.0), 1.0)

        heads = []
        for head in self.heads:
            x0, y0, x1, y1 = head.box
            xs, ys = sorted((x0 / bw, x1 / bw)), sorted((y0 / bh, y1 / bh))
            points = () if head.inout == OUT else tuple((unit(x / pw), unit(y / ph)) for x, y in head.points)
            heads.append(replace(head, box=(unit(xs[0]), unit(ys[0]), unit(xs[1]), unit(ys[1])), points=points))
        return replace(self, heads=tuple(heads), size=(width, height), box_pixels=False, point_pixels=False)

    def boxes(self) -> np.ndarray:
        """Head boxes ``[N,4]`` float64 xyxy, in the scene's units."""
        return np.array([head.box for head in self.heads], dtype=np.float64).reshape(-1, 4)

    def in_frame_points(self) -> np.ndarray:
        """All gaze points ``[P,2]`` of heads that are not out of frame, in the scene's units."""
        points = [point for head in self.heads if head.inout != OUT for point in head.points]
        return np.array(points, dtype=np.float64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect of a data set: its name, how often, one example, and what was done (dropped, clamped, kept, refused)."""

    name: str
    count: int
    example: str
    action: str


@dataclass(frozen=True)
class SceneSet:
    """What a reader returns: the scenes of one split, in a stable order, and what was wrong on the way.

    ``reader`` is the reader's name, ``root`` the data set's folder, ``files`` the annotation files.
    """

    reader: str
    root: Path
    split: str
    scenes: tuple[Scene, ...]
    findings: tuple[Finding, ...] = ()
    files: tuple[Path, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.scenes)

    def digest(self) -> str:
        """Digest (hex) of the reader, the split and every annotation in it; pictures are not opened."""
        digest = hashlib.blake2b(f"{self.reader}\0{self.split}\0".encode(), digest_size=16)
        for scene in self.scenes:
            # What pixels are counted in is what they mean; of coordinates in [0,1] the size says nothing.
            counted = (scene.size,) if scene.size is not None and (scene.box_pixels or scene.point_pixels) else ()
            digest.update(repr((scene.key, scene.heads, scene.box_pixels, scene.point_pixels, *counted)).encode())
        return digest.hexdigest()

    def subset(self, scenes: Sequence[Scene]) -> SceneSet:
        return replace(self, scenes=tuple(scenes))
