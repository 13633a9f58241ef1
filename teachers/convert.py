"""Published checkpoints become this project's models: names, constants and backbones joined, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from teachers.decoder import position_encoding
from teachers.errors import WeightsError
from teachers.model import GazeModel, ModelConfig
from teachers.pretrained import load_pretrained_backbone
from teachers.weights import load_strictly, read_checkpoint


def decoder_tensors(tensors: Mapping[str, Tensor], config: ModelConfig, grid: tuple[int, int], where: str) -> dict[str, Tensor]:
    """The decoder's tensors of a published Gaze-LLE file, under this project's names.

    The position encoding in the file is a constant; it is compared with ours and left out. Backbone tensors are left out.
    """
    own = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("backbone.")}
    encoding = own.pop("pos_embed", None)
    if encoding is not None:
        expected = position_encoding(config.dim, *grid)
        if encoding.shape != expected.shape or not torch.allclose(encoding, expected, atol=1e-5):
            raise WeightsError(
                f"{where} has a position encoding {tuple(encoding.shape)} that is not this architecture's {tuple(expected.shape)}; "
                "choose the architecture that the file was made for"
            )
    return own


def assemble(config: ModelConfig, decoder_file: Path, backbone_file: Path | None) -> GazeModel:
    """A teacher from a published decoder file and backbone weights (a file, or timm's hub)."""
    model = GazeModel(config)
    tensors = read_checkpoint(decoder_file)
    load_strictly(model.decoder, decoder_tensors(tensors, config, model.backbone.grid, str(decoder_file)), str(decoder_file))
    load_pretrained_backbone(model, backbone_file)
    return model.eval()
