"""What the student alone sees: photometric changes and jittered boxes. The teacher's cached view is never touched by it.

Every draw is keyed by (seed, epoch, scene key), so that a resumed run sees the same pictures.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Strengths: ``brightness``, ``contrast`` and ``saturation`` are the half-widths of factors around 1; ``grey`` is a chance;
    ``box`` is the jitter of each box edge as a fraction of the box's side. All 0 switches it off."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    grey: float = 0.05
    box: float = 0.05

    def generator(self, seed: int, epoch: int, key: str) -> torch.Generator:
        digest = hashlib.blake2b(struct.pack("<qq", seed, epoch) + key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def picture(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A changed copy of ``image [3,H,W]`` in [0,1]."""
        roll = torch.rand(4, generator=generator) * 2 - 1
        grey = image.mean(dim=0, keepdim=True)
        if float(roll[3]) * 0.5 + 0.5 < self.grey:
            image = grey.expand_as(image)
        else:
            image = torch.lerp(grey.expand_as(image), image, float(1 + self.saturation * roll[2]))
        mean = image.mean()
        image = (image - mean) * float(1 + self.contrast * roll[1]) + mean * float(1 + self.brightness * roll[0])
        return image.clamp(0.0, 1.0)

    def boxes(self, boxes: Tensor, generator: torch.Generator) -> Tensor:
        """Boxes ``[N,4]`` xyxy with each edge moved by up to ``box`` of the side, clipped to [0,1]."""
        if not self.box or not len(boxes):
            return boxes
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        shift = (torch.rand(boxes.shape, generator=generator) * 2 - 1) * self.box
        return (boxes + sides * shift).clamp(0.0, 1.0)
