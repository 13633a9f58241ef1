"""Backbones: any timm encoder as a map from normalised pixels to one feature grid.

Two cuts. A ViT gives the patch tokens of its last block, through its final norm, as a grid. A convolutional network gives
the pyramid levels named by ``levels``, each brought to the grid of the first of them at the wanted stride and
concatenated. Nothing behind the deepest level used is built, so every parameter counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from teachers.errors import WeightsError
from teachers.networks import create_network
from teachers.positions import AxialRope


class Backbone(nn.Module):
    """``[B,3,H,W]`` normalised pixels to one grid of features ``[B,channels,*grid]``; ``net`` is timm's network, cut."""

    net: nn.Module
    channels: int
    grid: tuple[int, int]

    @property
    def trunk(self) -> nn.Module:
        """The module whose tensors carry timm's own names."""
        return self.net


class TokenBackbone(Backbone):
    """A plain ViT of timm (DINOv2, DINOv3, ...): ``[B,3,H,W]`` normalised pixels to ``[B,C,H/p,W/p]``."""

    def __init__(self, name: str, input_size: tuple[int, int]) -> None:
        super().__init__()
        refusal = WeightsError(f"backbone {name} is no plain ViT, and no feature levels of it are named; use a ViT such as vit_base_patch14_dinov2")
        try:
            self.net = create_network(name, num_classes=0, img_size=input_size)
        except TypeError as error:  # what timm's convolutional networks say to a picture size
            if "img_size" not in str(error):
                raise
            raise refusal from None
        if not hasattr(self.net, "num_prefix_tokens"):
            raise refusal
        patch: tuple[int, int] = self.net.patch_embed.patch_size  # type: ignore[union-attr,assignment]
        if input_size[0] % patch[0] or input_size[1] % patch[1]:
            raise WeightsError(
                f"input size {input_size[0]}×{input_size[1]} is no multiple of the {patch[0]}-pixel patches of {name}; "
                f"use e.g. {input_size[0] // patch[0] * patch[0]}"
            )
        self.grid = (input_size[0] // patch[0], input_size[1] // patch[1])
        self.channels = int(self.net.num_features)  # type: ignore[arg-type]
        self.prefix = int(self.net.num_prefix_tokens)  # type: ignore[arg-type]
        # DINOv2 with registers embeds the patches alone.
        self.embedded_prefix = 0 if getattr(self.net, "no_embed_class", False) else self.prefix
        rope = getattr(self.net, "rope", None)
        if isinstance(rope, RotaryEmbeddingDinoV3):
            self.net.rope = AxialRope(rope.dim, self.grid)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.net.forward_features(pixels)[:, self.prefix :]  # type: ignore[operator]
        return rearrange(tokens, "b (h w) c -> b c h w", h=self.grid[0])


class PyramidBackbone(Backbone):
    """A convolutional network of timm cut at ``levels`` (timm's feature indices), all brought to ``stride``."""

    def __init__(self, name: str, input_size: tuple[int, int], levels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        if input_size[0] % stride or input_size[1] % stride:
            raise WeightsError(f"input size {input_size[0]}×{input_size[1]} is no multiple of the stride {stride} of {name}")
        # The getter prunes what lies behind the deepest level; timm's default for EfficientNets keeps it all.
        self.net = create_network(name, features_only=True, out_indices=levels, feature_cls="getter")
        self.channels = sum(self.net.feature_info.channels())  # type: ignore[union-attr,operator]
        self.grid = (input_size[0] // stride, input_size[1] // stride)
        # Channels last: depthwise convolutions train about a third faster on a CPU, and no slower on a GPU.
        self.to(memory_format=torch.channels_last)

    @property
    def trunk(self) -> nn.Module:
        """timm's network inside the wrapper that hands out its levels."""
        return self.net.model  # type: ignore[return-value]

    def forward(self, pixels: Tensor) -> Tensor:
        maps = []
        for level in self.net(pixels.contiguous(memory_format=torch.channels_last)):
            if level.shape[-1] > self.grid[1]:
                level = F.adaptive_avg_pool2d(level, self.grid)
            elif level.shape[-1] < self.grid[1]:
                level = F.interpolate(level, size=self.grid, mode="bilinear", align_corners=False)
            maps.append(level)
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


def build_backbone(name: str, input_size: tuple[int, int], levels: tuple[int, ...], stride: int) -> Backbone:
    """The backbone ``name`` (of timm, or of :mod:`teachers.networks`) with random weights; no ``levels`` means a ViT."""
    if levels:
        return PyramidBackbone(name, input_size, levels, stride)
    return TokenBackbone(name, input_size)
