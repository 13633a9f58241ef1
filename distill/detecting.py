"""Heads found in a picture, where nobody says where they are: OpenCV's cascades by default, or any ONNX detector.

A detector of faces gives a smaller box than the head box that gaze models are trained on: it is widened about its middle, which is raised, as :data:`FACE`
and :data:`PROFILE` say. The factors are the rounded medians over the matches in six video frames with annotated heads (two people, 1920 x 1080); a head
that is seen from behind has no face, and a face detector does not find it.

The cascades are shown a picture whose contrast was equalised locally, and at least :data:`NEIGHBOURS` of their candidates must agree. On the same six
frames as they are, mirrored, and at half the size, with 12 heads each, that finds 9, 10 and 9 heads and nothing else. Equalised as a whole and
with four candidates, as in OpenCV's examples, it was 10, 10 and 7, with 8, 5 and 0 boxes where nobody is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from distill.errors import HeadsError, PictureError
from distill.exporting import require_extra
from distill.pictures import load_picture
from distill.readers.head_row import HeadRow
from distill.scenes import Box, Head, Scene

if TYPE_CHECKING:
    from distill.subjects import Subjects

CASCADES = "opencv"
LONG_SIDE = 960  # the cascades look at a picture of this size at most: faces below 3 % of its long side are not found
NEIGHBOURS = 10  # candidates that must agree on a face; see the module's text
CONTRAST, TILES = 2.0, (8, 8)  # limit and tiles of the local equalisation of contrast (CLAHE)
OVERLAP = 0.35  # two boxes with a larger intersection over union are the same head


@dataclass(frozen=True, slots=True)
class Widening:
    """From a face's box to the head's: both sides times ``factor``, the middle raised by ``raised`` of the face's height."""

    factor: float
    raised: float

    def __call__(self, box: Box) -> Box:
        x0, y0, x1, y1 = box
        x, y = (x0 + x1) / 2, (y0 + y1) / 2 - self.raised * (y1 - y0)
        half_width, half_height = self.factor * (x1 - x0) / 2, self.factor * (y1 - y0) / 2
        return (x - half_width, y - half_height, x + half_width, y + half_height)


FACE, PROFILE = Widening(1.6, 0.17), Widening(1.35, 0.17)


@dataclass(frozen=True, slots=True)
class Found:
    """A head that was found: its box xyxy in pixels, within the picture, and the detector's score (any scale, larger is surer)."""

    box: Box
    score: float


class HeadDetector(Protocol):
    """Anything that finds heads in a picture ``[H,W,3]`` uint8 RGB; ``name`` goes into messages and answers."""

    name: str

    def __call__(self, picture: np.ndarray) -> list[Found]: ...


class CascadeDetector:
    """OpenCV's bundled cascades for frontal faces and for profiles of either side; no file is fetched.

    Raises :class:`~distill.errors.MissingExtraError` where OpenCV is absent, or is a release that ships no cascades.
    """

    name = CASCADES

    def __init__(self) -> None:
        require_extra("detect", "cv2", "cv2.data")
        import cv2

        folder = Path(importlib.import_module("cv2.data").haarcascades)
        self._front = cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))
        self._profile = cv2.CascadeClassifier(str(folder / "haarcascade_profileface.xml"))

    def __call__(self, picture: np.ndarray) -> list[Found]:
        import cv2

        height, width = picture.shape[:2]
        scale = min(1.0, LONG_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        least = max(20, round(0.03 * max(size)))
        if min(size) < least:
            return []
        grey = cv2.createCLAHE(CONTRAST, TILES).apply(small)
        found: list[Found] = []
        for cascade, widening, mirrored in ((self._front, FACE, False), (self._profile, PROFILE, False), (self._profile, PROFILE, True)):
            seen = np.ascontiguousarray(grey[:, ::-1]) if mirrored else grey
            # The number of candidates that agree is of one scale for both cascades; their own weights are not.
            boxes, agreeing = cascade.detectMultiScale2(seen, 1.1, NEIGHBOURS, minSize=(least, least))
            for (x, y, w, h), count in zip(boxes, np.ravel(agreeing), strict=True):
                x = size[0] - x - w if mirrored else x
                face = (x / scale, y / scale, (x + w) / scale, (y + h) / scale)
                found.append(Found(widening(face), float(count)))
        return distinct(found, width, height)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0,1]."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def distinct(found: Sequence[Found], width: int, height: int) -> list[Found]:
    """Every head once, clamped to the picture, from left to right; of those that overlap the surest."""
    kept: list[Found] = []
    for each in sorted(found, key=lambda one: -one.score):
        x0, y0, x1, y1 = each.box
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1 and all(overlap(box, other.box) <= OVERLAP for other in kept):
            kept.append(Found(box, each.score))
    return sorted(kept, key=lambda one: one.box)


def open_detector(spec: str = CASCADES) -> HeadDetector:
    """The detector that ``spec`` names: ``opencv``, or an ONNX file as :class:`distill.onnx_detector.OnnxDetector` takes it.

    Raises :class:`~distill.errors.MissingExtraError` and :class:`~distill.errors.ConfigurationError`.
    """
    if spec == CASCADES:
        return CascadeDetector()
    from distill.onnx_detector import OnnxDetector

    return OnnxDetector(spec)


def find_heads(
    pictures: Sequence[Path], detector: HeadDetector, *, skip_unreadable: bool = False, advance: Callable[[int], Any] | None = None
) -> Subjects:
    """Subjects of a prediction whose boxes ``detector`` found; people are numbered from 1, from left to right.

    ``advance(1)`` is called for each picture. Raises :class:`PictureError` for one that cannot be decoded (unless
    ``skip_unreadable``), :class:`HeadsError` where there is nobody in any.
    """
    from distill.subjects import Subjects

    scenes: list[Scene] = []
    rows: list[HeadRow] = []
    places: list[tuple[int, ...]] = []
    without: list[Path] = []
    unreadable: list[str] = []
    for path in pictures:
        try:
            picture = load_picture(path, exif=True)
        except PictureError as error:
            if not skip_unreadable:
                raise
            unreadable.append(str(error))
            continue
        found = detector(picture)
        heads = tuple(Head(each.box, person=str(number)) for number, each in enumerate(found, start=1))
        if heads:
            first = len(rows)
            rows += [HeadRow(image=str(path), person=head.person, box=head.box, place=f"{path} ({detector.name})") for head in heads]
            places.append(tuple(range(first, len(rows))))
            scenes.append(replace(Scene(str(path), str(path), heads), size=(picture.shape[1], picture.shape[0]), box_pixels=True))
        else:
            without.append(path)
        if advance is not None:
            advance(1)
    if not rows:
        where = str(pictures[0]) if len(pictures) == 1 else f"any of the {len(pictures)} pictures given"
        broken = f" ({len(unreadable)} cannot be decoded)" if unreadable else ""
        raise HeadsError(f"{detector.name} found no head in {where}{broken}; give boxes with --heads, or a detector of your own with --detector FILE.onnx")
    return Subjects(tuple(scenes), tuple(rows), tuple(places), 0, tuple(without), tuple(unreadable), ())
