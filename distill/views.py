"""Views: geometric variants of a scene, as values.

A view is a crop, on whole pixels, and perhaps a mirror image. It maps picture, boxes, points and heatmaps alike. Its
geometry is a pure function of (policy seed, scene key, view number, the scene's boxes and gaze points, picture size): any
process on any machine computes the same one. View 0 is the identity.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from distill.scenes import Scene


@dataclass(frozen=True, slots=True)
class View:
    """A crop (edges in [0,1] of the scene, on whole pixels) and whether the crop is mirrored left to right."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    flip: bool = False

    def points(self, points: np.ndarray) -> np.ndarray:
        """Map points ``[...,2]`` from [0,1] of the scene to [0,1] of the view."""
        x = (points[..., 0] - self.left) / (self.right - self.left)
        y = (points[..., 1] - self.top) / (self.bottom - self.top)
        return np.stack((1.0 - x if self.flip else x, y), axis=-1)

    def scene_points(self, points: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`points`."""
        x = 1.0 - points[..., 0] if self.flip else points[..., 0]
        x = self.left + x * (self.right - self.left)
        return np.stack((x, self.top + points[..., 1] * (self.bottom - self.top)), axis=-1)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map xyxy boxes ``[N,4]`` from the scene to the view, clipped to it."""
        corners = self.points(boxes.reshape(-1, 2, 2))
        if self.flip:
            corners[..., 0] = corners[:, ::-1, 0]
        return np.clip(corners.reshape(-1, 4), 0.0, 1.0)

    def picture(self, picture: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """The view of an RGB picture ``[H,W,3]`` uint8 as float ``[3,h,w]`` in [0,1], squashed to ``size`` = (h, w).

        Antialiased bilinear resampling of the float tensor, as Gaze-LLE's own preprocessing does.
        """
        height, width = picture.shape[:2]
        x0, x1 = round(self.left * width), round(self.right * width)
        y0, y1 = round(self.top * height), round(self.bottom * height)
        part = picture[y0:y1, x0:x1]
        # torch takes neither memory that is read-only nor a picture that is seen backwards.
        crop = torch.from_numpy(part if part.flags.writeable and min(part.strides) >= 0 else part.copy())
        # To float and to planes in one pass over the picture.
        image = crop.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
        if tuple(image.shape[1:]) != size:
            image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
            image.clamp_(0.0, 1.0)
        return image.flip(-1) if self.flip else image

    def to_row(self) -> tuple[float, float, float, float, float]:
        """The geometry as five numbers, as the cache stores it."""
        return (self.left, self.top, self.right, self.bottom, float(self.flip))


IDENTITY = View()


class _Dice:
    """Uniform numbers from a digest: the same on every machine, in every process, for the same key."""

    def __init__(self, *key: bytes) -> None:
        self._digest = hashlib.blake2b(digest_size=32)
        for part in key:
            self._digest.update(struct.pack("<q", len(part)))
            self._digest.update(part)
        self._count = 0

    def uniform(self) -> float:
        """A number in [0,1), 53 bits."""
        roll = self._digest.copy()
        roll.update(struct.pack("<q", self._count))
        self._count += 1
        return (int.from_bytes(roll.digest()[:8], "little") >> 11) / float(1 << 53)


@dataclass(frozen=True, slots=True)
class ViewPolicy:
    """How views are drawn: name, seed, chance of a mirror image, chance of a crop, how much of a free margin may go.

    A crop always keeps every head and every in-frame gaze point, with ``margin`` (fraction of the picture) around them.
    """

    name: str = "crop-flip"
    seed: int = 0
    flip: float = 0.5
    crop: float = 0.8
    cut: float = 0.6
    margin: float = 0.02

    def describe(self) -> dict[str, object]:
        """Name and parameters, as the cache's manifest records them."""
        return asdict(self)

    def view(self, scene: Scene, number: int) -> View:
        """View ``number`` of a scene that is normalised (its picture's size is known). Number 0 is the identity."""
        if number == 0:
            return IDENTITY
        if scene.size is None or scene.box_pixels or scene.point_pixels:
            raise ValueError(f"scene {scene.key} must be normalised before a view of it is drawn")
        width, height = scene.size
        boxes, points = scene.boxes(), scene.in_frame_points()
        dice = _Dice(
            b"view", struct.pack("<qq", self.seed, number), scene.key.encode(), boxes.astype("<f8").tobytes(),
            points.astype("<f8").tobytes(),
        )
        flip = dice.uniform() < self.flip
        crops = dice.uniform() < self.crop
        rolls = [dice.uniform() for _ in range(4)]
        if not crops:
            return View(flip=flip)
        keep = np.concatenate((boxes.reshape(-1, 2), points)) if len(boxes) else np.array([[0.0, 0.0], [1.0, 1.0]])
        low = np.clip(keep.min(axis=0) - self.margin, 0.0, 1.0)
        high = np.clip(keep.max(axis=0) + self.margin, 0.0, 1.0)
        # Outward rounding: a crop on whole pixels that still holds everything that must be kept.
        left = int(np.floor(rolls[0] * self.cut * low[0] * width)) / width
        top = int(np.floor(rolls[1] * self.cut * low[1] * height)) / height
        right = int(np.ceil((1.0 - rolls[2] * self.cut * (1.0 - high[0])) * width)) / width
        bottom = int(np.ceil((1.0 - rolls[3] * self.cut * (1.0 - high[1])) * height)) / height
        return View(left, top, min(right, 1.0), min(bottom, 1.0), flip)


def choose_view(seed: int, epoch: int, key: str, views: int) -> int:
    """Which of ``views`` views of scene ``key`` is shown at ``epoch``: every view once in each cycle of ``views`` epochs."""
    if views <= 1:
        return 0
    cycle, position = divmod(epoch, views)
    dice = _Dice(b"order", struct.pack("<qq", seed, cycle), key.encode())
    order = sorted(range(views), key=lambda _: dice.uniform())
    return order[position]
