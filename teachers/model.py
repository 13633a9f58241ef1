"""The gaze model: backbone, decoder and the normalisation that belongs to it, described by one record of plain data.

One class serves as teacher and as student, from training to export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from teachers.backbones import build_backbone
from teachers.contract import GazeOutput
from teachers.decoder import GazelleDecoder
from teachers.errors import WeightsError
from teachers.query_decoder import QueryDecoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
DECODERS: dict[str, type[GazelleDecoder] | type[QueryDecoder]] = {"gazelle": GazelleDecoder, "query": QueryDecoder}
# Fields that only one decoder has: descriptions of the others do not carry them, so that files, caches and runs from before stay the same.
OF_DECODER = {"query": ("scene_layers",)}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the architecture depends on; stored as JSON beside the weights.

    ``levels`` are timm's feature indices of a convolutional backbone (empty: a ViT); sizes are (height, width) in pixels or
    cells; ``mean`` and ``std`` are per channel in [0,1] RGB; ``inout`` is "mlp", "linear" or "none". ``layers`` are run for every head,
    ``scene_layers`` (of the query decoder alone) once per image.
    """

    backbone: str
    input_size: tuple[int, int]
    levels: tuple[int, ...] = ()
    stride: int = 16
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    decoder: str = "gazelle"
    dim: int = 256
    layers: int = 3
    attention_heads: int = 8
    inout: str = "mlp"
    heatmap_size: tuple[int, int] = (64, 64)
    drop_path: float = 0.1
    scene_layers: int = 1

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise WeightsError(f"decoder {self.decoder!r} is not known; this version has {' and '.join(map(repr, DECODERS))}")
        if self.inout not in ("mlp", "linear", "none"):
            raise WeightsError(f"inout {self.inout!r} is not known; use 'mlp', 'linear' or 'none'")
        if self.dim % 4 or self.dim % self.attention_heads:
            raise WeightsError(f"dim {self.dim} must be a multiple of 4 and of attention_heads {self.attention_heads}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without the fields of other decoders."""
        foreign = {key for decoder, keys in OF_DECODER.items() if decoder != self.decoder for key in keys}
        return {key: value for key, value in asdict(self).items() if key not in foreign}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of :meth:`to_json`; an unknown or missing key is a :class:`WeightsError` that names it."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise WeightsError(f"model description holds unknown keys {unknown}; it was written by another version")
        if missing := sorted({"backbone", "input_size"} - set(values)):
            raise WeightsError(f"model description lacks {missing}; convert the checkpoint again")
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**plain)


def build_decoder(config: ModelConfig, channels: int, grid: tuple[int, int]) -> GazelleDecoder | QueryDecoder:
    """The decoder that ``config`` names, with random weights, for features of ``channels`` on ``grid``."""
    extra = {key: getattr(config, key) for key in OF_DECODER.get(config.decoder, ())}
    return DECODERS[config.decoder](
        channels, grid, config.heatmap_size, dim=config.dim, layers=config.layers, attention_heads=config.attention_heads,
        inout=config.inout, drop_path=config.drop_path, **extra,
    )


class GazeModel(nn.Module):
    """``images [B,3,H,W]`` float RGB in [0,1], ``boxes [N,4]`` xyxy in [0,1], ``image_index [N]`` to :class:`GazeOutput`.

    One backbone pass per image, however many heads.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.input_size, config.levels, config.stride)
        self.decoder = build_decoder(config, self.backbone.channels, self.backbone.grid)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    @property
    def input_size(self) -> tuple[int, int]:
        return self.config.input_size

    @property
    def heatmap_size(self) -> tuple[int, int]:
        return self.config.heatmap_size

    @property
    def has_inout(self) -> bool:
        return self.config.inout != "none"

    def forward(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        features = self.backbone((images - self.mean) / self.std)
        return self.decoder(features, boxes, image_index)


def parameter_count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
