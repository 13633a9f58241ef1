"""Where a cache's scenes come from: a scene set and a view policy, rendered for a teacher."""

from __future__ import annotations

import hashlib
import os
import shlex
import struct
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import DataError
from distill.pictures import decode, digest_bytes, load_picture, read_bytes
from distill.scenes import Scene, SceneSet
from distill.views import ViewPolicy
from teachers.contract import SceneViews

if TYPE_CHECKING:
    from distill.views import View

# Both are carved from the training file and share its scenes' keys: one cache of the file serves either.
FILES = {"train": "trainval", "val": "trainval"}
# File systems count time in steps of up to two seconds (FAT).
FRESH_NS = 2_000_000_000
# VideoAttentionTarget's trainval holds every sixth frame, as training does, but its val holds every frame: what is named to
# build a cache for val must be val itself, whose frames are then in the same cache beside the others.
EVERY_FRAME = {("vat", "val")}


def boxes_digest(scene: Scene) -> bytes:
    """16-byte digest of the head boxes as annotated, their unit included."""
    digest = hashlib.blake2b(struct.pack("<?q", scene.box_pixels, len(scene.heads)), digest_size=16)
    for head in scene.heads:
        digest.update(struct.pack("<4d", *head.box))
    return digest.digest()


def points_digest(scene: Scene) -> bytes:
    """16-byte digest of the gaze points as annotated, their unit and the in/out labels included."""
    digest = hashlib.blake2b(struct.pack("<?q", scene.point_pixels, len(scene.heads)), digest_size=16)
    for head in scene.heads:
        digest.update(struct.pack("<bq", head.inout, len(head.points)))
        for point in head.points:
            digest.update(struct.pack("<2d", *point))
    return digest.digest()


def refuse_outside(scene: Scene, flat: Scene) -> None:
    """Raise :class:`DataError` for a head of ``scene`` that has no area left in ``flat``, the scene clamped to its picture."""
    assert flat.size is not None
    boxes = (head.box for head in flat.heads)
    for number, (head, (left, top, right, bottom)) in enumerate(zip(scene.heads, boxes, strict=True)):
        if left >= right or top >= bottom:
            box = ", ".join(f"{value:g}" for value in head.box)
            raise DataError(
                f"scene {scene.key}: head {head.person or number} with box {box} lies outside its picture {scene.picture} ({flat.size[0]} x "
                f"{flat.size[1]} pixels); correct or delete its line (`distill cache build --on-error skip` leaves such scenes out of a cache)"
            )


def opened(scene: Scene, *, exif: bool) -> tuple[np.ndarray, Scene]:
    """The picture of ``scene``, ``[h,w,3]`` uint8 RGB, and the scene in [0,1] of it. ``exif``: turned upright (:func:`distill.pictures.decode`).

    Raises :class:`PictureError` for a picture that cannot be decoded, :class:`DataError` for a head wholly outside it.
    """
    picture = load_picture(scene.picture, exif=exif)
    flat = scene.normalised(picture.shape[1], picture.shape[0])
    refuse_outside(scene, flat)
    return picture, flat


class SceneSource:
    """A :class:`teachers.contract.ViewSource` over a scene set.

    Its identity is reader, split and view policy: neither the folder (a cache can be shared) nor the list of scenes (a cache
    may grow). The splits ``train`` and ``val``, carved from the training file, are ``trainval`` in it.
    ``spec`` is what the user wrote for ``--data``, for messages. Pictures of the reader ``folder``
    are a user's own photographs and are turned upright (see :func:`distill.pictures.decode`); those of data sets are not.
    """

    def __init__(self, scenes: SceneSet, policy: ViewPolicy, *, spec: str = "") -> None:
        self.scenes, self.policy, self.exif = scenes, policy, scenes.reader == "folder"
        self._spec = spec or f"{scenes.reader}:{scenes.root}"
        self._keys = tuple(scene.key for scene in scenes.scenes)

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def split(self) -> str:
        """The split that a cache is built of so that it has these scenes."""
        if (self.scenes.reader, self.scenes.split) in EVERY_FRAME:
            return self.scenes.split
        return FILES.get(self.scenes.split, self.scenes.split)

    @property
    def identity(self) -> Mapping[str, Any]:
        split = FILES.get(self.scenes.split, self.scenes.split)
        return {"reader": self.scenes.reader, "split": split, "views": self.policy.describe()}

    @property
    def mend(self) -> str:
        """The command line that builds a cache for this source, but for the teacher and ``--out``."""
        return f"distill cache build --data {shlex.quote(self._spec)} --split {self.split} --seed {self.policy.seed}"

    def heads(self, scene: int) -> int:
        """How many heads a scene has."""
        return len(self.scenes.scenes[scene].heads)

    def annotation_digests(self, scene: int) -> tuple[bytes, bytes]:
        """(boxes digest, points digest), 16 bytes each, without opening the picture."""
        return boxes_digest(self.scenes.scenes[scene]), points_digest(self.scenes.scenes[scene])

    def picture(self, scene: int) -> tuple[np.ndarray, bytes]:
        """A scene's picture ``[H,W,3]`` uint8 RGB and the 16-byte digest of its file; :class:`PictureError` names a bad one."""
        path = self.scenes.scenes[scene].picture
        data = read_bytes(path)
        return decode(data, path, exif=self.exif), digest_bytes(data)

    def picture_digest(self, scene: int) -> bytes:
        """The 16-byte digest of a scene's picture file; :class:`PictureError` names one that cannot be read."""
        return digest_bytes(read_bytes(self.scenes.scenes[scene].picture))

    def picture_stamp(self, scene: int) -> bytes:
        """Inode, size and times of change of a scene's picture file; empty if it is not there or changed just now."""
        try:
            facts = os.stat(self.scenes.scenes[scene].picture)
        except OSError:
            return b""
        # A file that was written in this very tick of the clock may be written again in it, and would keep its stamp.
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < FRESH_NS:
            return b""
        return struct.pack("<QQqq", facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)

    def draw(self, scene: int, views: Sequence[int], width: int, height: int) -> tuple[Scene, list[View]]:
        """The scene in [0,1] of its picture of ``width`` × ``height`` pixels, and the geometry of its ``views``.

        A head wholly outside the picture is a :class:`DataError`: clamped, it would be no head.
        """
        flat = self.scenes.scenes[scene].normalised(width, height)
        refuse_outside(self.scenes.scenes[scene], flat)
        return flat, [self.policy.view(flat, number) for number in views]

    def load(self, scene: int, views: Sequence[int], size: tuple[int, int]) -> SceneViews:
        """Views of a scene at ``size`` = (height, width); :class:`PictureError` names a picture that cannot be read."""
        # Imported here: a command that only plans or lists opens no picture.
        import torch

        picture, digest = self.picture(scene)
        flat, drawn = self.draw(scene, views, picture.shape[1], picture.shape[0])
        boxes = flat.boxes()
        digests = self.annotation_digests(scene)
        return SceneViews(
            images=torch.stack([view.picture(picture, size) for view in drawn]),
            boxes=np.stack([view.boxes(boxes) for view in drawn]).astype(np.float32),
            geometry=np.array([view.to_row() for view in drawn], dtype=np.float64),
            picture_digest=digest,
            boxes_digest=digests[0],
            points_digest=digests[1],
        )
