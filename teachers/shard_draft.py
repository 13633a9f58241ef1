"""A shard in the making: views wait for a forward pass, and what comes of it is kept encoded until the shard is whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from teachers.cache.codecs import Codec, codec_named
from teachers.cache.format import Manifest, Span
from teachers.contract import Teacher
from teachers.errors import CacheError


@dataclass(slots=True)
class ShardDraft:
    """A shard in the making, its rows already encoded."""

    span: Span
    geometry: np.ndarray
    digests: np.ndarray
    skipped: np.ndarray
    counts: np.ndarray
    boxes: list[np.ndarray] = field(default_factory=list)
    inout: list[np.ndarray] = field(default_factory=list)
    encoded: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    reasons: list[tuple[int, str, str]] = field(default_factory=list)

    @classmethod
    def empty(cls, span: Span) -> ShardDraft:
        scenes, views = span.scenes, span.views
        return cls(
            span,
            np.zeros((scenes, views, 5)),
            np.zeros((scenes, 3, 16), np.uint8),
            np.zeros(scenes, np.uint8),
            np.zeros(scenes * views, np.int64),
        )

    def skip(self, scene: int, key: str, reason: str, annotations: tuple[bytes, bytes]) -> None:
        """Mark a scene that could not be read; ``annotations`` are the digests of its boxes and gaze points."""
        self.skipped[scene] = 1
        for row, digest in enumerate(annotations, start=1):
            self.digests[scene, row] = np.frombuffer(digest, np.uint8)
        self.reasons.append((self.span.scene_start + scene, key, reason))

    def tensors(self, manifest: Manifest) -> dict[str, np.ndarray]:
        rows = int(self.counts.sum())
        height, width = manifest.heatmap_size
        codec = codec_named(manifest.codec)
        # Encoding nothing gives the empty tensors of a shard without heads.
        pieces = self.encoded or [codec.encode(np.zeros((0, height, width), np.float32), str)]
        tensors = {name: np.concatenate([piece[name] for piece in pieces]) for name in codec.tensors}
        tensors["geometry"] = self.geometry
        tensors["offsets"] = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        tensors["boxes"] = np.concatenate([np.zeros((0, 4), np.float32), *self.boxes])
        tensors["digests"], tensors["skipped"] = self.digests, self.skipped
        if manifest.has_inout:
            tensors["inout"] = np.concatenate([np.zeros(0, np.float32), *self.inout])
        if len(tensors["boxes"]) != rows or len(tensors["heatmaps"]) != rows:
            raise ValueError(
                f"shard {self.span.shard} has {rows} rows, {len(tensors['boxes'])} boxes, {len(tensors['heatmaps'])} maps"
            )
        return tensors


class WaitingViews:
    """Views of one shard that wait for a forward pass."""

    def __init__(self, teacher: Teacher, codec: Codec, shard: ShardDraft) -> None:
        self._teacher, self._codec, self._shard = teacher, codec, shard
        self._images: list[torch.Tensor] = []
        self._boxes: list[np.ndarray] = []
        self._names: list[str] = []
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: torch.Tensor, boxes: np.ndarray, name: str) -> None:
        self._images.append(image)
        self._boxes.append(boxes)
        self._names.append(name)

    def run(self, limit: int) -> int:
        """One forward pass over the first ``limit`` views that wait; returns the rows that it gave."""
        if not self._images:
            return 0
        waiting = self._boxes[:limit]
        counts = [len(boxes) for boxes in waiting]
        boxes = np.concatenate(waiting).astype(np.float32)
        # A teacher on a GPU has them stacked in page-locked memory.
        stack = getattr(self._teacher, "stack", torch.stack)
        images = stack(self._images[:limit])
        started = time.perf_counter()
        heatmap, inout = answer(self._teacher, images, boxes, np.repeat(np.arange(len(counts)), counts))
        self.seconds += time.perf_counter() - started
        names = [
            f"{name}, head {head}"
            for name, count in zip(self._names[:limit], counts, strict=True)
            for head in range(count)
        ]
        if inout is not None and not np.isfinite(inout).all():
            raise CacheError(
                f"{names[int(np.argmin(np.isfinite(inout)))]}: in/out logit is not finite; check the teacher's weights, or use --precision fp32"
            )
        self._shard.encoded.append(self._codec.encode(heatmap, names.__getitem__))
        self._shard.boxes.append(boxes)
        if inout is not None:
            self._shard.inout.append(inout)
        for queue in (self._images, self._boxes, self._names):
            del queue[:limit]
        return len(boxes)


def answer(
    teacher: Teacher, images: torch.Tensor, boxes: np.ndarray, image_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """A teacher's ``heatmap [N,h,w]`` and ``inout [N]`` (or None) as float32 arrays; shapes are checked against its word."""
    with torch.inference_mode():
        output = teacher(images, torch.from_numpy(boxes), torch.from_numpy(image_index.astype(np.int64)))
        heatmap = output.heatmap.float().cpu().numpy()
        inout = None if output.inout is None else output.inout.float().cpu().numpy()
    if heatmap.shape != (len(boxes), *teacher.heatmap_size) or (inout is not None) != teacher.has_inout:
        raise ValueError(
            f"teacher gave maps {heatmap.shape} for {len(boxes)} heads, it states {teacher.heatmap_size}, in/out {teacher.has_inout}"
        )
    if inout is not None and inout.shape != (len(boxes),):
        raise ValueError(f"teacher gave in/out logits {inout.shape} for {len(boxes)} heads")
    return heatmap, inout
