"""How a vision transformer is told where a patch is: a learned embedding (DINOv2), or rotated queries and keys (DINOv3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from teachers.errors import WeightsError


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


def rope_periods(head_dim: int, base: float = 100.0) -> Tensor:
    """The periods ``[head_dim/4]`` of a rotary embedding, in grid widths: base^(4k/head_dim)."""
    return base ** (torch.arange(head_dim // 4, dtype=torch.float32) * 4.0 / head_dim)


class AxialRope(nn.Module):
    """DINOv3's rotary embedding, with its periods as a tensor of the model.

    A patch centre has coordinates in [-1,1], each axis by its own length; head channel k of the first quarter is turned by
    2π·y/period[k] against the channel half a head further, channel k of the second quarter by 2π·x/period[k]. The published
    DINOv3 files hold periods that were rounded to bfloat16, and timm computes them anew in float32: with those, the same weights
    are another function, so a file's own periods are kept. Source: facebookresearch/dinov3, ``RopePositionEmbedding``.
    """

    periods: Tensor

    def __init__(self, head_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.feat_shape = list(grid)
        self.register_buffer("periods", rope_periods(head_dim))

    def get_embed(self, shape: list[int] | None = None) -> Tensor:
        """Sines and cosines ``[h·w, 2·head_dim]`` for a grid of ``shape``, laid out as timm's attention expects them."""
        height, width = shape or self.feat_shape
        periods = self.periods.float()
        y = (torch.arange(height, dtype=torch.float32, device=periods.device) + 0.5) / height * 2.0 - 1.0
        x = (torch.arange(width, dtype=torch.float32, device=periods.device) + 0.5) / width * 2.0 - 1.0
        down = (2.0 * math.pi * y[:, None] / periods)[:, None].expand(height, width, -1)
        across = (2.0 * math.pi * x[:, None] / periods)[None].expand(height, width, -1)
        angles = torch.cat((down, across), dim=-1).flatten(0, 1).repeat(1, 2)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)
