"""What a file of decoder weights says of the architecture that it belongs to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import Tensor

from teachers.backbones import build_backbone
from teachers.errors import UnknownModelError, WeightsError
from teachers.model import ModelConfig
from teachers.weights import read_checkpoint

# Gaze-LLE's own, where a file has no position encoding to read a grid from.
USUAL = (448, 448)


def config_of(file: Path, backbone: str, input_size: tuple[int, int] | None = None) -> ModelConfig:
    """The configuration of a decoder file for timm's ViT ``backbone``.

    Channels, number of layers and kind of in/out head are the tensors'; the normalisation is the backbone's own in timm.
    ``input_size`` (height, width) is checked against the grid of the position encoding in the file; without it the size is that grid
    times the backbone's patch, or 448 × 448 where the file holds no encoding. Raises :class:`WeightsError` in one line for a file that is
    no such decoder, for one of a backbone of other width, and for a size that the backbone or the file cannot have.
    """
    tensors = read_checkpoint(file)
    projection, encoding = tensors.get("linear.weight"), tensors.get("pos_embed")
    layers = _layers(tensors)
    if projection is None or projection.dim() != 4 or not layers:
        raise WeightsError(f"{file} is no Gaze-LLE decoder (it lacks linear.weight or transformer.0…); give the decoder that was trained on {backbone}")
    if not timm.is_model(backbone):
        raise UnknownModelError.of("backbone", backbone, timm.list_models(), "`python -c 'import timm; print(timm.list_models())'` lists them all")
    dim, channels = int(projection.shape[0]), int(projection.shape[1])
    grid = (int(encoding.shape[-2]), int(encoding.shape[-1])) if encoding is not None and encoding.dim() >= 3 else None
    patch = _patch(backbone)
    size = input_size or (USUAL if grid is None else (grid[0] * patch[0], grid[1] * patch[1]))
    with torch.device("meta"):  # shapes alone are wanted, and a large backbone is a gigabyte
        built = build_backbone(backbone, size, (), 16)  # refuses a size that is no multiple of its patches
    if built.channels != channels:
        raise WeightsError(f"{file} was trained on a backbone of {channels} channels, {backbone} has {built.channels}; give the one that it was trained on")
    if grid is not None and built.grid != grid:
        fitting = f"{grid[0] * patch[0]}x{grid[1] * patch[1]}"
        raise WeightsError(
            f"{file} was trained on a grid of {grid[0]} x {grid[1]} cells; {backbone} at {size[0]} x {size[1]} pixels has {built.grid[0]} x "
            f"{built.grid[1]} (patches of {patch[0]}); use --input-size {fitting}, or the backbone that it was trained on"
        )
    inout = "none" if "inout_token.weight" not in tensors else "mlp" if "inout_head.3.weight" in tensors else "linear"
    known = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    config = ModelConfig(backbone=backbone, input_size=size, inout=inout, dim=dim, layers=layers)
    if known is None:
        return config
    (red, green, blue), (red_std, green_std, blue_std) = known.mean, known.std
    return replace(config, mean=(red, green, blue), std=(red_std, green_std, blue_std))


def _layers(tensors: dict[str, Tensor]) -> int:
    numbers = {int(match[1]) for name in tensors if (match := re.match(r"transformer\.(\d+)\.", name))}
    return max(numbers) + 1 if numbers else 0


def _patch(backbone: str) -> tuple[int, int]:
    """The backbone's patch in pixels, (height, width)."""
    with torch.device("meta"):
        net = timm.create_model(backbone, pretrained=False)
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if patch is None or not hasattr(net, "num_prefix_tokens"):
        raise WeightsError(
            f"backbone {backbone} is no plain ViT, and a decoder file alone does not name feature levels; use a ViT such as vit_base_patch14_dinov2"
        )
    height, width = patch
    return int(height), int(width)
