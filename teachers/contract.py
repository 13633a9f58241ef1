"""The teacher contract: what every teacher takes, gives and says of itself, and what the cache asks of a data source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class GazeOutput(NamedTuple):
    """What a gaze model answers: ``heatmap [N,h,w]`` logits and ``inout [N]`` logits, or None where it has no such head."""

    heatmap: Tensor
    inout: Tensor | None


class Teacher(Protocol):
    """Anything that maps images and boxes to heatmap logits.

    ``fingerprint`` is plain JSON: name, weights digest, architecture, input size, preprocessing, precision. Two teachers
    with equal fingerprints give equal maps. ``input_size`` and ``heatmap_size`` are (height, width). A teacher may have a method
    ``stack(images)`` as well: ``[3,H,W]`` tensors as one batch, in memory from which its device copies fastest.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...

    @property
    def input_size(self) -> tuple[int, int]: ...

    @property
    def heatmap_size(self) -> tuple[int, int]: ...

    @property
    def has_inout(self) -> bool: ...

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        """``images [B,3,H,W]`` float RGB in [0,1], ``boxes [N,4]`` xyxy in [0,1], ``image_index [N]`` int64."""
        ...


@dataclass(frozen=True)
class SceneViews:
    """Some views of one scene, ready for a teacher.

    ``images [V,3,H,W]`` float32 RGB in [0,1]; ``boxes [V,N,4]`` float32 xyxy in [0,1] of each view; ``geometry [V,5]`` float64
    (left, top, right, bottom, flip), opaque to the cache; the digests are 16 bytes each, of the picture's file, of the
    boxes and of the gaze points with their in/out labels.
    """

    images: Tensor
    boxes: np.ndarray
    geometry: np.ndarray
    picture_digest: bytes
    boxes_digest: bytes
    points_digest: bytes


class ViewSource(Protocol):
    """Where the cache's scenes come from, seen from below: keys in order, and a way to load views of one of them.

    ``identity`` is plain JSON that names reader, split and view policy (opaque here, compared as a whole); ``mend`` is the
    command line that would build a cache for this source, for error messages. ``load`` raises a mendable error that names the
    file for a scene that cannot be read.
    """

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def mend(self) -> str: ...

    def load(self, scene: int, views: Sequence[int], size: tuple[int, int]) -> SceneViews: ...

    def annotation_digests(self, scene: int) -> tuple[bytes, bytes]:
        """(boxes digest, points digest) without opening the picture, 16 bytes each."""
        ...

    def picture_digest(self, scene: int) -> bytes:
        """The digest of the picture's file, 16 bytes, which is read but not decoded; raises as ``load`` does."""
        ...

    def picture_stamp(self, scene: int) -> bytes:
        """What changes whenever the picture's file does, without reading it; empty where nothing can be relied on."""
        ...
