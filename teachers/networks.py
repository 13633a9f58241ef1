"""How a name becomes a network: timm's models, and four that timm has the blocks of but not the model.

The four are backbones of DEIMv2 (github.com/Intellindust-AI-Lab/DEIMv2), which gazelle-dinov3 builds on: HGNetV2 cut to three
small stages, and tiny ViTs that were distilled from DINOv3. A tiny ViT has one class token and no storage tokens, layer scale or
final norm; its biases, the key's included, are all trained (with rotated keys that bias has an effect, unlike without).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg
from timm.models.eva import Eva
from timm.models.hgnet import HighPerfGpuNet
from torch import nn

from teachers.errors import UnknownModelError, WeightsError

# Per stage: input, middle and output channels, blocks, whether it halves the resolution, whether its blocks are light, kernel
# size, layers in a block. Stages 1 and 2 are those of timm's hgnetv2_b0, and so is the third of pico.
_FIRST, _SECOND = (16, 16, 64, 1, False, False, 3, 3), (64, 32, 256, 1, True, False, 3, 3)
HGNETV2: dict[str, tuple[tuple[int | bool, ...], ...]] = {
    "hgnetv2_atto": (_FIRST, _SECOND, (256, 64, 256, 1, True, True, 3, 3)),
    "hgnetv2_femto": (_FIRST, _SECOND, (256, 64, 512, 1, True, True, 5, 3)),
    "hgnetv2_pico": (_FIRST, _SECOND, (256, 64, 512, 2, True, True, 5, 3)),
}
# Width and attention heads; twelve blocks of 16-pixel patches.
TINY_VITS: dict[str, tuple[int, int]] = {
    "vit_tiny_patch16_deimv2": (192, 3),
    "vit_tinyplus_patch16_deimv2": (256, 4),
}


def create_network(name: str, **options: Any) -> nn.Module:
    """The network ``name`` with random weights; ``options`` are those of ``timm.create_model``.

    Raises :class:`UnknownModelError` for a name that neither timm nor this module has.
    """
    if name in HGNETV2:
        return _headless(_hgnetv2(HGNETV2[name], name, **options))
    if name in TINY_VITS:
        width, heads = TINY_VITS[name]
        return Eva(
            patch_size=16, embed_dim=width, depth=12, num_heads=heads, attn_type="rope", qkv_bias=True, use_abs_pos_emb=False,
            use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100.0, rope_rotate_half=True, use_fc_norm=False,
            use_post_transformer_norm=False, norm_layer=partial(nn.LayerNorm, eps=1e-6), dynamic_img_size=True, **options,
        )
    if not timm.is_model(name):
        raise UnknownModelError.of(
            "backbone", name, [*timm.list_models(), *HGNETV2, *TINY_VITS],
            f"`python -c 'import timm; print(timm.list_models())'` lists timm's; further ones are {', '.join([*HGNETV2, *TINY_VITS])}",
        )
    network = timm.create_model(name, pretrained=False, **options)
    return _headless(network) if options.get("features_only") else network


def _headless(getter: nn.Module) -> nn.Module:
    """A feature getter without the head, which it never runs: some releases of timm leave the last convolution of HGNetV2's there."""
    if hasattr(getter, "model") and hasattr(getter.model, "head"):
        getter.model.head = nn.Identity()
    return getter


def is_timm_model(name: str) -> bool:
    """Whether timm itself has the network, and may have weights for it."""
    return name not in HGNETV2 and name not in TINY_VITS and timm.is_model(name)


@cache
def whole_network_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the uncut network: what a file of its weights may hold beyond a cut."""
    with torch.device("meta"):
        if name in HGNETV2:
            network = create_network(name, features_only=True, out_indices=(2,), feature_cls="getter").get_submodule("model")
        else:
            network = create_network(name)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _hgnetv2(stages: tuple[tuple[int | bool, ...], ...], name: str, **options: Any) -> nn.Module:
    """HGNetV2 with learnable affine blocks, as its feature getter: timm's class insists on a fourth stage, which is cut off again."""
    levels = tuple(options.pop("out_indices", ()))
    if not options.pop("features_only", False) or not levels or max(levels) >= len(stages):
        raise WeightsError(f"backbone {name} has {len(stages)} stages and no classifier; name feature levels of it, from 0 to {len(stages) - 1}")
    never_run = (stages[-1][2], 8, 8, 1, True, True, 3, 1)
    settings = {
        "stem_type": "v2", "stem_chs": [16, 16],
        **{f"stage{number}": list(stage) for number, stage in enumerate((*stages, never_run), 1)},
    }
    return build_model_with_cfg(
        HighPerfGpuNet, name, False, model_cfg=settings, use_lab=True, pretrained_cfg={"url": "", "num_classes": 1000},
        features_only=True, feature_cfg={"flatten_sequential": True, "out_indices": levels}, **options,
    )
