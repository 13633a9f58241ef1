"""What the trainer eats: a small named record of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Views of some scenes with their heads, labels and, where there is a cache, the teacher's answers.

    ``images [B,3,H,W]`` float RGB in [0,1]; ``boxes [N,4]`` xyxy in [0,1]; ``image_index [N]`` int64; ``target [N,h,w]`` in
    [0,1] (zero where there is no gaze point); ``has_target [N]`` bool: labelled, and in the frame; ``inout [N]`` float: 1 in,
    0 out, −1 unknown; ``teacher_heatmap [N,h,w]`` and ``teacher_inout [N]`` logits or None; ``scenes`` the keys, one an image.
    """

    images: Tensor
    boxes: Tensor
    image_index: Tensor
    target: Tensor
    has_target: Tensor
    inout: Tensor
    scenes: tuple[str, ...]
    teacher_heatmap: Tensor | None = None
    teacher_inout: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for field in fields(self)
            for value in (getattr(self, field.name),)
        }
        return Batch(**moved)


class BatchSource(Protocol):
    """Where batches come from. The order of an epoch is a pure function of the source's seed and the epoch's number.

    ``batches(epoch, start)`` yields this process's share of the epoch's batches from the ``start``-th on.
    ``lineage`` is plain JSON: the digests of the data, the views and the caches that the batches are made of.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def lineage(self) -> Mapping[str, Any]: ...

    def batches(self, epoch: int, start: int) -> Iterator[Batch]: ...
