"""``timm:NAME``: a student of any backbone that yields a feature map, with defaults that the backbone itself suggests.

A plain ViT is read at its patches. Any other network is read at stride 16 (of several levels there, the last) and at stride 32 where it
has that. The picture is as large as the backbone was pretrained on, in [192, 448], a multiple of 32 (or of the patch). Normalisation is
the backbone's own. Everything is tried on tensors without memory before it is believed.
"""

from __future__ import annotations

import timm
import torch

from schedules.errors import StageError
from schedules.stages import discover_stages
from teachers.backbones import Backbone, TokenBackbone, build_backbone
from teachers.errors import UnknownModelError, WeightsError
from teachers.model import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from teachers.networks import HGNETV2, TINY_VITS, create_network, is_timm_model

PREFIX = "timm:"
STRIDE = 16
SMALLEST, LARGEST = 192, 448  # pixels: below, a grid of 12 cells loses heads; above, no small student is quick


def timm_student(backbone: str) -> ModelConfig:
    """The description of a student with the query decoder on ``backbone``.

    Raises :class:`UnknownModelError` for a name that does not exist, :class:`WeightsError` for a network that yields no map of
    features or no stages to open.
    """
    if not is_timm_model(backbone) and backbone not in HGNETV2 and backbone not in TINY_VITS:
        raise UnknownModelError.of(
            "backbone", backbone, [*timm.list_models(), *HGNETV2, *TINY_VITS],
            f"`python -c 'import timm; print(timm.list_models())'` lists timm's; further ones are {', '.join([*HGNETV2, *TINY_VITS])}",
        )
    suggested = timm.get_pretrained_cfg(backbone) if is_timm_model(backbone) else None
    pixels = suggested.input_size[-1] if suggested is not None and suggested.input_size else 320
    pixels = min(max(pixels, SMALLEST), LARGEST)
    levels = _levels(backbone)
    multiple = 32
    if not levels:
        with torch.device("meta"):
            multiple = int(create_network(backbone).patch_embed.patch_size[0])  # type: ignore[union-attr,index]
    size = pixels // multiple * multiple
    config = ModelConfig(
        backbone=backbone, input_size=(size, size), levels=levels, stride=STRIDE, decoder="query", dim=128, layers=2, attention_heads=4,
        mean=tuple(suggested.mean) if suggested is not None else IMAGENET_MEAN,  # type: ignore[arg-type]
        std=tuple(suggested.std) if suggested is not None else IMAGENET_STD,  # type: ignore[arg-type]
        drop_path=0.0,
    )
    _tried(config)
    return config


def _levels(backbone: str) -> tuple[int, ...]:
    """Feature indices to cut a convolutional network at; none for a plain ViT."""
    if backbone in HGNETV2:
        return (2,)
    with torch.device("meta"):
        if _plain_vit(backbone):
            return ()
        try:
            strides = create_network(backbone, features_only=True, feature_cls="getter").feature_info.reduction()  # type: ignore[union-attr,operator]
        except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:  # timm has no kind of its own for it
            raise _refusal(backbone, str(error).splitlines()[0][:120] if str(error) else type(error).__name__) from None
    if STRIDE not in strides:
        raise _refusal(backbone, f"its features have the strides {', '.join(map(str, strides))}, none of them {STRIDE}")
    last = max(index for index, stride in enumerate(strides) if stride == STRIDE)
    return (last, last + 1) if strides[last + 1 : last + 2] == [2 * STRIDE] else (last,)


def _plain_vit(backbone: str) -> bool:
    network = create_network(backbone)
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    return hasattr(network, "num_prefix_tokens") and hasattr(network, "blocks") and isinstance(patch, tuple)


def _tried(config: ModelConfig) -> None:
    """Build the backbone and run it, both without memory: its map must have the promised shape, its parameters their stages."""
    try:
        with torch.device("meta"):
            backbone: Backbone = build_backbone(config.backbone, config.input_size, config.levels, config.stride)
            found = tuple(backbone.eval()(torch.zeros(1, 3, *config.input_size)).shape)
            discover_stages(backbone)
    except WeightsError:
        raise
    except StageError as error:
        raise WeightsError(f"timm:{config.backbone} cannot be opened block by block: {error}") from None
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise _refusal(config.backbone, str(error).splitlines()[0][:120] if str(error) else type(error).__name__) from None
    promised = (1, backbone.channels, *backbone.grid)
    if found != promised:
        kind = "patch tokens" if isinstance(backbone, TokenBackbone) else "feature levels"
        raise _refusal(config.backbone, f"its {kind} come as {list(found)}, not as {list(promised)}")


def _refusal(backbone: str, reason: str) -> WeightsError:
    return WeightsError(
        f"timm:{backbone} yields no feature map that a student can be cut from ({reason}); choose a convolutional network with features at "
        f"stride {STRIDE} or a plain ViT, e.g. timm:mobilenetv4_conv_small or timm:vit_tiny_patch16_224"
    )
