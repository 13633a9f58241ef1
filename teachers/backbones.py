"""Backbones: any timm encoder as a map from normalised pixels to one feature grid.

Two cuts. A ViT gives the patch tokens of its last block, through its final norm, as a grid. A convolutional network gives
the pyramid levels named by ``levels``, each brought to the grid of the first of them at the wanted stride and
concatenated. Nothing behind the deepest level used is built, so every parameter counts.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from teachers.errors import UnknownModelError, WeightsError


def _create(name: str, **options: Any) -> nn.Module:
    if not timm.is_model(name):
        raise UnknownModelError.of(
            "backbone", name, timm.list_models(), "`python -c 'import timm; print(timm.list_models())'` lists them all"
        )
    return timm.create_model(name, pretrained=False, **options)


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
            self.net = _create(name, num_classes=0, img_size=input_size)
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
        self.net = _create(name, features_only=True, out_indices=levels, feature_cls="getter")
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
    """The backbone ``name`` of timm with random weights; no ``levels`` means a ViT."""
    if levels:
        return PyramidBackbone(name, input_size, levels, stride)
    return TokenBackbone(name, input_size)


def resample_position_embedding(embedding: Tensor, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """A learned position embedding ``[1,prefix+s·s,C]`` for another ``grid``, as DINOv2 itself resamples it.

    Plain bicubic, no antialiasing, scale factors (grid + 0.1)/s. Source: facebookresearch/dinov2, the vision
    transformer's ``interpolate_pos_encoding``. timm resamples antialiased, which is another function: at Gaze-LLE's 448
    pixels the features' cosine falls to 0.989.
    """
    cells = embedding.shape[1] - prefix if embedding.dim() == 3 else -1
    side = round(max(cells, 0) ** 0.5)
    if side < 1 or side * side != cells:
        raise WeightsError(
            f"a position embedding {tuple(embedding.shape)} with {prefix} further tokens is no square grid of patches; give the "
            "weights of the backbone that is named"
        )
    extra, patches = embedding[:, :prefix], embedding[:, prefix:]
    if (side, side) == grid:
        return embedding
    square = rearrange(patches.float(), "b (h w) c -> b c h w", h=side)
    resampled = F.interpolate(
        square, scale_factor=((grid[0] + 0.1) / side, (grid[1] + 0.1) / side), mode="bicubic", antialias=False
    )
    if tuple(resampled.shape[-2:]) != grid:
        raise WeightsError(f"a {side}×{side} position embedding cannot be resampled to {grid[0]}×{grid[1]}")
    return torch.cat((extra, rearrange(resampled, "b c h w -> b (h w) c").to(embedding.dtype)), dim=1)
