"""The query decoder: the scene once, then each head as one query.

Gaze-LLE's decoder runs its transformer over all scene cells once *per head*, so a second head costs what the first did. Here
the cells are mixed once per image; a head becomes a query, formed from the features under its box and from the box itself,
that reads the scene by cross-attention; and its heatmap is the product of the query with the cells that all heads of the image
share.

What a head costs is products of a few rows with the cells ``[T,d]`` of its image, which are gathered once and serve for all of
it: pooling the region, attention in every layer, the heatmap. To that end attention has no projections of the cells: query and
key matrix are one matrix on the query's side, and so are value and output matrix. The two further rows and columns of the
heatmap come from the query as well, which gives four kernels for a cell's quarters, instead of from an up-sampled scene.

The parts are those of DETR (arXiv 2005.12872: queries that cross-attend) and MaskFormer (arXiv 2107.06278: a mask is the
product of a query's embedding with embeddings of the pixels), put together for gaze. What was tried in variants and left out is
in ``docs/students.md``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from teachers.contract import GazeOutput
from teachers.decoder import position_encoding

BINS = 3  # the region under a box is pooled in 3×3 bins, so that where in it the face is can be told
CONTEXT = 1.5  # the region is the box, this much larger about its centre: hair line, chin and shoulders say where a head points
WAVES = 4  # centre and size of a box as sines and cosines of 1, 2, 4 and 8 half-waves across the image


def bin_weights(centre: Tensor, size: Tensor, cells: int, bins: int) -> Tensor:
    """How much each cell counts in each of ``bins`` equal parts of an interval: ``[...]`` twice to ``[...,bins,cells]``, rows sum to 1.

    ``centre`` and ``size`` are of the interval, in [0,1] of the image. A bin is a triangle about its centre, as wide on either side as
    the bin or one cell, whichever is more: an antialiased resize of the wide, linear interpolation for the narrow. So an interval of no
    size keeps its weight; what lies outside of the image is read at its border.
    """
    offset = (torch.arange(bins, device=centre.device, dtype=centre.dtype) + 0.5) / bins - 0.5
    centre, size = centre[..., None], size[..., None]
    middle = (centre + size * offset).mul(cells).clamp(0.5, cells - 0.5)
    reach = (size * (cells / bins)).clamp_min(1.0)
    cell = torch.arange(cells, device=centre.device, dtype=centre.dtype) + 0.5
    weights = (reach[..., None] - (cell - middle[..., None]).abs()).relu()
    return weights / weights.sum(dim=-1, keepdim=True)  # the nearest cell has a half at least


class SceneBlock(Block):
    """timm's block, parameters and all, on rows of cells ``[B·T,d]``; ``cells`` says how many rows an image has.

    Without an axis for the image, runtimes add biases inside of the matrix products.
    """

    def forward(self, rows: Tensor, cells: int) -> Tensor:  # type: ignore[override]
        attention: Any = self.attn
        mixed, width = self.norm1(rows), rows.shape[1]
        # Three products instead of one: the parts of one would have to be copied apart.
        query, key, value = (
            rearrange(F.linear(mixed, attention.qkv.weight[first : first + width]), "(b t) (heads c) -> b heads t c", t=cells, heads=attention.num_heads)
            for first in (0, width, 2 * width)
        )
        read = rearrange(F.scaled_dot_product_attention(query, key, value), "b heads t c -> (b t) (heads c)")
        rows = rows + self.drop(self.drop_path1, attention.proj(read), cells)
        return rows + self.drop(self.drop_path2, self.mlp(self.norm2(rows)), cells)

    @staticmethod
    def drop(path: nn.Module, rows: Tensor, cells: int) -> Tensor:
        """Stochastic depth, which is by image."""
        return rows if isinstance(path, nn.Identity) else path(rows.unflatten(0, (-1, cells))).flatten(0, 1)


class CrossBlock(nn.Module):
    """Queries read the scene: pre-norm cross-attention and MLP. ``queries [N,d]``, ``cells [N,T,d]`` (normalised) to ``[N,d]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim**-0.5
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ask, self.take = nn.Linear(dim, heads * dim), nn.Linear(heads * dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, queries: Tensor, cells: Tensor) -> Tensor:
        ask = self.ask(self.norm1(queries)).unflatten(1, (self.heads, -1)) * self.scale
        share = torch.softmax(ask @ cells.transpose(1, 2), dim=-1)
        queries = queries + self.take((share @ cells).flatten(1))
        return queries + self.mlp(self.norm2(queries))


class QueryDecoder(nn.Module):
    """``features [B,C,gh,gw]``, ``boxes [N,4]``, ``image_index [N]`` to ``heatmap [N,h,w]`` and ``inout [N]`` logits.

    ``scene_layers`` transformer blocks mix the cells once per image; ``layers`` cross-attention blocks read them per head. ``inout`` is
    "mlp", "linear" or "none". The map of 2·gh × 2·gw cells is brought to ``heatmap_size`` bilinearly as logits.
    """

    pos_embed: Tensor

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        heatmap_size: tuple[int, int],
        *,
        dim: int = 128,
        layers: int = 2,
        attention_heads: int = 4,
        scene_layers: int = 1,
        inout: str = "mlp",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid, self.heatmap_size = grid, heatmap_size
        self.linear = nn.Conv2d(channels, dim, 1)
        self.register_buffer("pos_embed", position_encoding(dim, *grid), persistent=False)
        self.scene = nn.ModuleList(
            SceneBlock(dim=dim, num_heads=attention_heads, mlp_ratio=4.0, drop_path=drop_path) for _ in range(scene_layers)
        )
        self.scene_norm = nn.LayerNorm(dim)
        self.region = nn.Linear(BINS * BINS * dim, dim)
        self.place = nn.Sequential(nn.Linear(4 * 2 * WAVES, dim), nn.GELU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(CrossBlock(dim, attention_heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.kernel = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4 * dim))
        with torch.no_grad():
            # Small at the start, but not slow: a factor in the forward pass would scale every step of the optimizer as well
            # (average L2 after four epochs 0.127 with it, 0.099 so).
            self.kernel[-1].weight.mul_(dim**-0.5)  # type: ignore[operator]
        self.level = nn.Linear(dim, 1)
        self.inout_head: nn.Module | None = None
        if inout == "mlp":
            self.inout_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))
        elif inout == "linear":
            self.inout_head = nn.Linear(dim, 1)

    def queries(self, cells: Tensor, boxes: Tensor) -> Tensor:
        """One query a head: ``cells [N,T,d]`` of its image, ``boxes [N,4]`` to ``[N,d]``."""
        boxes = boxes.float()  # a box of a few pixels is below the resolution of half precision
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        height, width = self.grid
        if height == width:  # both axes at once: half the steps, of which small students have more than their share
            columns, rows = bin_weights(centre, size * CONTEXT, width, BINS).to(cells.dtype).split(1, dim=1)
        else:
            columns = bin_weights(centre[:, :1], size[:, :1] * CONTEXT, width, BINS).to(cells.dtype)
            rows = bin_weights(centre[:, 1:], size[:, 1:] * CONTEXT, height, BINS).to(cells.dtype)
        across = columns @ cells.unflatten(1, self.grid)  # one axis after the other: [N,gh,3,d], then [N,1,3,3·d]
        region = (rows @ across.flatten(2)[:, None]).flatten(1)
        rates = math.pi * 2.0 ** torch.arange(WAVES, device=boxes.device, dtype=boxes.dtype)
        wave = torch.cat((centre, size), dim=1)[:, :, None] * rates
        place = torch.cat((wave.sin(), wave.cos()), dim=-1).flatten(1).to(cells.dtype)
        return self.region(region) + self.place(place)

    def forward(self, features: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        count = self.grid[0] * self.grid[1]
        # The 1×1 convolution as a product whose result has the channels last, as the cells have.
        place = self.pos_embed.flatten(1).T + self.linear.bias  # type: ignore[operator]
        scene = features.flatten(2).transpose(1, 2) @ self.linear.weight.flatten(1).T + place
        rows = scene.flatten(0, 1)
        for mix in self.scene:
            rows = mix(rows, count)
        cells = self.scene_norm(rows).unflatten(0, (-1, count))[image_index]
        queries = self.queries(cells, boxes)
        for block in self.blocks:
            queries = block(queries, cells)
        queries = self.norm(queries)
        kernel = self.kernel(queries).unflatten(1, (4, -1))
        quarters = kernel @ cells.transpose(1, 2) + self.level(queries)[:, :, None]
        heatmap = F.pixel_shuffle(quarters.unflatten(2, self.grid), 2)
        if tuple(heatmap.shape[-2:]) != self.heatmap_size:
            heatmap = F.interpolate(heatmap, size=self.heatmap_size, mode="bilinear", align_corners=False)
        inout = None if self.inout_head is None else self.inout_head(queries).squeeze(1)
        return GazeOutput(heatmap.squeeze(1), inout)
