"""Published checkpoints become this project's models: names, constants and backbones joined, strictly.

Gaze-LLE publishes its decoder alone, beside a frozen DINOv2; gazelle-dinov3 publishes whole models, the backbone's tensors below
``backbone.``. Both give probabilities; this project keeps the logits before their sigmoid. Where gazelle-dinov3 brings a map of 80 × 80
cells to 64 × 64 it does so with probabilities, after the sigmoid, or with logits if asked to leave the sigmoid out: this is the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from teachers.decoder import position_encoding
from teachers.errors import WeightsError
from teachers.layouts import trunk_tensors
from teachers.model import GazeModel, ModelConfig
from teachers.networks import whole_network_shapes
from teachers.pretrained import load_pretrained_backbone
from teachers.published import CATALOGUE
from teachers.weights import load_strictly, read_checkpoint

# Where the published models keep their backbones; the longest that fits is cut off.
PREFIXES = ("backbone.dinov3._model.", "backbone.dinov3.", "backbone.model.", "backbone.")


def decoder_tensors(tensors: Mapping[str, Tensor], config: ModelConfig, grid: tuple[int, int], where: str) -> dict[str, Tensor]:
    """The decoder's tensors of a published Gaze-LLE file, under this project's names.

    The position encoding in the file is a constant; it is compared with ours and left out. Backbone tensors are left out.
    """
    own = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("backbone.")}
    encoding = own.pop("pos_embed", None)
    if encoding is not None:
        expected = position_encoding(config.dim, *grid)
        if encoding.shape != expected.shape or not (encoding.is_meta or torch.allclose(encoding, expected, atol=1e-5)):
            raise WeightsError(
                f"{where} has a position encoding {tuple(encoding.shape)} that is not this architecture's {tuple(expected.shape)}; "
                "choose the architecture that the file was made for"
            )
    return own


def backbone_tensors(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The backbone's tensors of a published file under their publisher's names; empty if the file holds a decoder alone."""
    inside = [name for name in tensors if name.startswith("backbone.")]
    prefix = next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in inside) or prefix == PREFIXES[-1])
    if strange := [name for name in inside if not name.startswith(prefix)]:
        raise WeightsError(f"{where} has backbone tensors both below {prefix} and beside it ({strange[0]}, …); give one published checkpoint")
    return {name.removeprefix(prefix): tensors[name] for name in inside}


def fill(model: GazeModel, tensors: Mapping[str, Tensor], where: str) -> bool:
    """Load a published file's ``tensors`` into ``model``, strictly; returns whether they held the backbone as well."""
    backbone = backbone_tensors(tensors, where)
    load_strictly(model.decoder, decoder_tensors(tensors, model.config, model.backbone.grid, where), where)
    if not backbone:
        return False
    name, trunk = model.config.backbone, model.backbone.trunk
    wanted = set(trunk.state_dict())
    placed = trunk_tensors(backbone, model.backbone, name, where)
    if "rope_embed.periods" not in backbone and "rope.periods" in wanted:
        del placed["rope.periods"]  # a published file has its own
    load_strictly(trunk, placed, where)
    # What a cut leaves out of a network is in the file nevertheless, and tells it from one of a smaller network.
    roots = {key.partition(".")[0] for key in wanted}
    left_out = {key: shape for key, shape in whole_network_shapes(name).items() if key not in wanted and key.partition(".")[0] in roots}
    if lacking := [key for key, shape in left_out.items() if key not in backbone or tuple(backbone[key].shape) != shape]:
        raise WeightsError(f"{where} lacks {len(lacking)} tensors of the published network ({lacking[0]}, …); choose the one it was made for")
    return True


@cache
def skeleton(config: ModelConfig) -> GazeModel:
    """The model's names and shapes, without values."""
    with torch.device("meta"):
        return GazeModel(config)


def fits(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise :class:`WeightsError` unless a published file's names and shapes are those of ``config``; allocates nothing."""
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    model = skeleton(config)
    with torch.device("meta"):
        fill(model, shapes, where)


def fitting(tensors: Mapping[str, Tensor]) -> list[str]:
    """The catalogue's entries whose names and shapes a published file's ``tensors`` have."""
    inout = "none" if "inout_token.weight" not in tensors else "mlp" if "inout_head.3.weight" in tensors else "linear"
    names = []
    for name, entry in CATALOGUE.items():
        try:
            if entry.config.inout == inout:
                fits(entry.config, tensors, name)
                names.append(name)
        except WeightsError:
            continue
    return names


def told_by_tensors(checkpoint_file: Path) -> str:
    """The end of a sentence about a published file: which of the catalogue's entries it fits; empty if none. Raises :class:`WeightsError`."""
    return _remedy(read_checkpoint(checkpoint_file))


def _remedy(tensors: Mapping[str, Tensor]) -> str:
    others = fitting(tensors)
    return f"; its tensors are those of {' or '.join(others)}: give it with --arch" if others else ""


def assemble(config: ModelConfig, checkpoint_file: Path, backbone_file: Path | None) -> GazeModel:
    """A teacher from a published file and, where that holds the decoder alone, backbone weights (a file, or timm's hub).

    Raises :class:`WeightsError` for a file that is damaged, holds more than tensors, or is of another architecture; the message
    names the catalogue's entries that its tensors fit.
    """
    tensors, where = read_checkpoint(checkpoint_file), str(checkpoint_file)
    try:
        fits(config, tensors, where)
    except WeightsError as error:
        raise WeightsError(f"{error}{_remedy(tensors)}") from None
    model = GazeModel(config)
    whole = fill(model, tensors, where)
    if whole and backbone_file is not None:
        raise WeightsError(f"{where} holds its own backbone, which {backbone_file} would replace; leave --backbone out")
    if not whole:
        load_pretrained_backbone(model, backbone_file)
    return model.eval()
