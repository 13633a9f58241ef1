"""The names that published files give a backbone's tensors, brought to those of the network here.

Every tensor of a file ends in one of three ways: it is loaded under its own or another name, it is a constant that is compared
with the one here (a key bias's mask, a bias that this network does not have), or it is one that no forward pass uses and that is
named here: ``mask_token`` of DINOv2 and DINOv3, and what lies behind the deepest level of a cut network. Anything else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from teachers.backbones import Backbone, TokenBackbone
from teachers.errors import WeightsError
from teachers.networks import whole_network_shapes
from teachers.positions import resample_position_embedding, rope_periods

# DINOv3's own names (facebookresearch/dinov3) and timm's. The gated MLP is w3(silu(w1·x) · w2·x).
RENAMED = {
    r"storage_tokens": "reg_token",
    r"rope_embed\.periods": "rope.periods",
    r"(blocks\.\d+)\.ls([12])\.gamma": r"\1.gamma_\2",
    r"(blocks\.\d+\.mlp)\.w1\.(weight|bias)": r"\1.fc1_g.\2",
    r"(blocks\.\d+\.mlp)\.w2\.(weight|bias)": r"\1.fc1_x.\2",
    r"(blocks\.\d+\.mlp)\.w3\.(weight|bias)": r"\1.fc2.\2",
}


def trunk_tensors(tensors: Mapping[str, Tensor], backbone: Backbone, name: str, where: str) -> dict[str, Tensor]:
    """``tensors`` of a file ``where`` under the names of ``backbone.trunk``, without what the network ``name`` does not use.

    Names that are the trunk's own already stay. The values of tensors on the meta device are not compared. Raises
    :class:`WeightsError` for a constant that is another; names that fit nowhere are left for the loader to refuse.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in backbone.trunk.state_dict().items()}
    found = {_renamed(key, wanted): tensor for key, tensor in tensors.items()}
    if len(found) != len(tensors):
        raise WeightsError(f"{where} holds the same tensors under two names; give the weights of one network")
    if isinstance(backbone, TokenBackbone):
        if "mask_token" in found and tuple(found["mask_token"].shape) == (1, backbone.channels):
            del found["mask_token"]  # stands for masked patches in pretraining
        for key in [key for key in found if key.endswith(".attn.qkv.bias") and key not in wanted]:
            _split_bias(found, key.removesuffix("qkv.bias"), wanted, where)
        if "pos_embed" in found and "pos_embed" in wanted:
            found["pos_embed"] = resample_position_embedding(found["pos_embed"], backbone.grid, backbone.embedded_prefix)
        if "rope.periods" in wanted:
            _check_periods(found, wanted["rope.periods"], where)
    further = set(found) - set(wanted)
    whole = whole_network_shapes(name) if further else {}
    return {key: tensor for key, tensor in found.items() if key in wanted or key not in whole}


def _renamed(name: str, wanted: Mapping[str, tuple[int, ...]]) -> str:
    for pattern, other in RENAMED.items():
        if name not in wanted and re.fullmatch(pattern, name) and (renamed := re.sub(pattern, other, name)) in wanted:
            return renamed
    return name


def _split_bias(found: dict[str, Tensor], attention: str, wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Replace one bias of queries, keys and values by timm's two: DINOv3 masks the key's third, which must be 0 otherwise."""
    bias, mask = found[f"{attention}qkv.bias"], found.get(f"{attention}qkv.bias_mask")
    if bias.dim() != 1 or bias.shape[0] % 3 or (mask is not None and mask.shape != bias.shape):
        return
    query, key, value = bias.chunk(3)
    if mask is not None:
        expected = torch.ones_like(bias)
        expected[bias.shape[0] // 3 : 2 * bias.shape[0] // 3] = 0.0
        if not bias.is_meta and not torch.equal(mask.to(expected), expected):
            raise WeightsError(f"{where}: {attention}qkv.bias_mask masks something else than the keys' bias; save the file again from its model")
        del found[f"{attention}qkv.bias_mask"]
    elif not bias.is_meta and key.any():
        raise WeightsError(f"{where}: {attention}qkv.bias has a bias of the keys, which this network has not; choose the network it was made for")
    if f"{attention}q_bias" in wanted:
        found |= {f"{attention}q_bias": query, f"{attention}v_bias": value}
    elif not bias.is_meta and (query.any() or value.any()):
        raise WeightsError(
            f"{where}: {attention}qkv.bias is not zero and this network has no such bias; choose the backbone's variant that ends in _qkvb"
        )
    del found[f"{attention}qkv.bias"]


def _check_periods(found: dict[str, Tensor], shape: tuple[int, ...], where: str) -> None:
    """A file's periods are kept as they are; they must be those of base 100, rounded to bfloat16 at the coarsest.

    A file without any (timm's weights) gets them unrounded, as timm computes them.
    """
    expected = rope_periods(4 * shape[0])
    periods = found.setdefault("rope.periods", expected)
    if tuple(periods.shape) == shape and not periods.is_meta and not bool(((periods.float() / expected - 1.0).abs() <= 2.0**-8).all()):
        raise WeightsError(f"{where} has other rotary periods than DINOv3's (base 100); choose the network that the file was made for")
