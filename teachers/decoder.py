"""Gaze-LLE's decoder (arXiv 2412.09586, section 3): from scene features and head boxes to heatmaps.

Scene features are projected to ``dim`` channels once per image. Each head adds a learned embedding on the cells that its
box covers, and a small transformer over all cells (with an in/out token in front, where there is one) turns the result
into a heatmap. Names and operations follow the published model (fkryan/gazelle, ``gazelle/model.py``), without its final
sigmoid: this decoder gives logits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from teachers.contract import GazeOutput


def position_encoding(dim: int, height: int, width: int) -> Tensor:
    """Two-dimensional sine encoding ``[dim,height,width]``: the first half of the channels encodes x, the second y."""
    half = dim // 2
    frequency = torch.exp(torch.arange(0, half, 2, dtype=torch.float32) * -(math.log(10000.0) / half))

    def line(length: int) -> Tensor:
        angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).T

    x = line(width)[:, None, :].expand(half, height, width)
    y = line(height)[:, :, None].expand(half, height, width)
    return torch.cat((x, y)).contiguous()


def head_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which cells each head box covers: ``[N,4]`` xyxy in [0,1] to ``[N,height,width]`` of 0 and 1.

    Edges are rounded half to even, as the published model does; a head narrower than a cell may cover nothing.
    """
    x0, y0, x1, y1 = boxes.float().unbind(-1)
    column = torch.arange(width, device=boxes.device, dtype=torch.float32)
    row = torch.arange(height, device=boxes.device, dtype=torch.float32)
    inside_x = (column >= torch.round(x0 * width)[:, None]) & (column < torch.round(x1 * width)[:, None])
    inside_y = (row >= torch.round(y0 * height)[:, None]) & (row < torch.round(y1 * height)[:, None])
    return (inside_y[:, :, None] & inside_x[:, None, :]).to(boxes.dtype)


class GazelleDecoder(nn.Module):
    """``features [B,C,gh,gw]``, ``boxes [N,4]``, ``image_index [N]`` to ``heatmap [N,h,w]`` and ``inout [N]`` logits.

    ``inout`` is "mlp" (Gaze-LLE), "linear" (gazelle-dinov3) or "none". The map of 2·gh × 2·gw cells is brought to
    ``heatmap_size`` bilinearly as logits, without antialiasing, where the two differ.
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        heatmap_size: tuple[int, int],
        *,
        dim: int = 256,
        layers: int = 3,
        attention_heads: int = 8,
        inout: str = "mlp",
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.heatmap_size = heatmap_size
        self.linear = nn.Conv2d(channels, dim, 1)
        self.register_buffer("pos_embed", position_encoding(dim, *grid), persistent=False)
        self.head_token = nn.Embedding(1, dim)
        self.transformer = nn.Sequential(
            *(Block(dim=dim, num_heads=attention_heads, mlp_ratio=4.0, drop_path=drop_path) for _ in range(layers))
        )
        self.heatmap_head = nn.Sequential(nn.ConvTranspose2d(dim, dim, 2, stride=2), nn.Conv2d(dim, 1, 1, bias=False))
        self.inout_token: nn.Embedding | None = None
        self.inout_head: nn.Module | None = None
        if inout == "mlp":
            self.inout_token = nn.Embedding(1, dim)
            self.inout_head = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 1))
        elif inout == "linear":
            self.inout_token = nn.Embedding(1, dim)
            self.inout_head = nn.Sequential(nn.Linear(dim, 1))

    def forward(self, features: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        scene = self.linear(features) + self.pos_embed
        height, width = scene.shape[-2:]
        masks = head_masks(boxes, height, width).to(scene.dtype)
        cells = scene[image_index] + masks[:, None] * self.head_token.weight[0][:, None, None]
        tokens = rearrange(cells, "n c h w -> n (h w) c")
        if self.inout_token is not None:
            token = self.inout_token.weight[None].expand(tokens.shape[0], 1, -1)
            tokens = torch.cat((token, tokens), dim=1)
        tokens = self.transformer(tokens)
        inout = None
        if self.inout_head is not None:
            inout = self.inout_head(tokens[:, 0]).squeeze(1)
            tokens = tokens[:, 1:]
        heatmap = self.heatmap_head(rearrange(tokens, "n (h w) c -> n c h w", h=height))
        if tuple(heatmap.shape[-2:]) != self.heatmap_size:
            heatmap = F.interpolate(heatmap, size=self.heatmap_size, mode="bilinear", align_corners=False)
        return GazeOutput(heatmap.squeeze(1), inout)
