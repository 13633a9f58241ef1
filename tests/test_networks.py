"""The backbones of the published teachers, operation by operation, from their published tensors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schedules.stages import discover_stages
from teachers.backbones import Backbone, PyramidBackbone, TokenBackbone
from teachers.errors import UnknownModelError, WeightsError
from teachers.layouts import trunk_tensors
from teachers.networks import HGNETV2, TINY_VITS, create_network, whole_network_shapes
from teachers.published import CATALOGUE
from teachers.weights import load_strictly
from tests.published_layouts import STAGES, Layout, hgnetv2, random_weights, transformer

VITS = [
    ("vit_tiny_patch16_deimv2", "tiny", 192), ("vit_tinyplus_patch16_deimv2", "tiny", 256), ("vit_small_patch16_dinov3_qkvb", "dinov3", 384),
    ("vit_small_plus_patch16_dinov3_qkvb", "dinov3plus", 384), ("vit_small_patch14_dinov2", "dinov2", 384),
]
BACKBONES = sorted({entry.config.backbone for entry in CATALOGUE.values()})


def shortened(name: str, size: tuple[int, int], depth: int) -> TokenBackbone:
    """The ViT ``name`` with its first blocks only: the others repeat them."""
    backbone = TokenBackbone(name, size).eval()
    backbone.net.blocks = backbone.net.blocks[:depth]  # type: ignore[index]
    return backbone


def loaded(backbone: Backbone, name: str, layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """Fill ``backbone`` with random values in their published layout; returns those in double precision."""
    tensors = random_weights(layout, seed)
    load_strictly(backbone.trunk, trunk_tensors(tensors, backbone, name, "here"), "here")
    return {key: tensor.double() for key, tensor in tensors.items()}


def slow_transformer(w: dict[str, Tensor], pixels: Tensor, family: str, depth: int) -> Tensor:
    """Patch features ``[C,h,w]`` of one picture as the published network computes them, in double precision."""
    width, patch = w["cls_token"].shape[-1], w["patch_embed.proj.weight"].shape[-1]
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    heads, depth_scaled = width // 64, family != "tiny"
    epsilon = 1e-5 if family.startswith("dinov3") else 1e-6
    tokens = [w["cls_token"][0, 0]] + list(w.get("storage_tokens", torch.zeros(1, 0, width, dtype=torch.double))[0])
    prefix = len(tokens)
    for row in range(rows):
        for column in range(columns):
            piece = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(torch.einsum("ochw,chw->o", w["patch_embed.proj.weight"], piece) + w["patch_embed.proj.bias"])
    x = torch.stack(tokens)
    if family == "dinov2":
        x = x + w["pos_embed"][0]
    turn = torch.zeros(len(x), 32, dtype=torch.double)
    if family != "dinov2":
        for row in range(rows):
            for column in range(columns):
                y, z = 2 * (row + 0.5) / rows - 1, 2 * (column + 0.5) / columns - 1
                turn[prefix + row * columns + column] = 2 * math.pi * torch.cat((y / w["rope_embed.periods"], z / w["rope_embed.periods"]))

    def normed(values: Tensor, name: str) -> Tensor:
        centred = values - values.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + epsilon).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def turned(values: Tensor) -> Tensor:
        first, second = values[:, :32], values[:, 32:]
        return torch.cat((first * turn.cos() - second * turn.sin(), second * turn.cos() + first * turn.sin()), dim=1)

    for number in range(depth):
        block = f"blocks.{number}"
        bias = w[f"{block}.attn.qkv.bias"] * w.get(f"{block}.attn.qkv.bias_mask", torch.ones(3 * width, dtype=torch.double))
        query, key, value = (normed(x, f"{block}.norm1") @ w[f"{block}.attn.qkv.weight"].T + bias).chunk(3, dim=1)
        answers = []
        for head in range(heads):
            part = slice(64 * head, 64 * head + 64)
            scores = turned(query[:, part]) @ turned(key[:, part]).T / 8.0
            answers.append(torch.softmax(scores, dim=1) @ value[:, part])
        change = torch.cat(answers, dim=1) @ w[f"{block}.attn.proj.weight"].T + w[f"{block}.attn.proj.bias"]
        x = x + change * (w[f"{block}.ls1.gamma"] if depth_scaled else 1.0)
        inside = normed(x, f"{block}.norm2")

        def dense(values: Tensor, layer: str, block: str = block) -> Tensor:
            return values @ w[f"{block}.mlp.{layer}.weight"].T + w[f"{block}.mlp.{layer}.bias"]

        if family == "dinov3plus":
            gate = dense(inside, "w1")
            change = dense(gate / (1 + torch.exp(-gate)) * dense(inside, "w2"), "w3")
        else:
            hidden = dense(inside, "fc1")
            change = dense(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), "fc2")
        x = x + change * (w[f"{block}.ls2.gamma"] if depth_scaled else 1.0)
    if family != "tiny":
        x = normed(x, "norm")
    return x[prefix:].T.reshape(width, rows, columns)


@pytest.mark.parametrize(("name", "family", "width"), VITS)
def test_a_vit_is_the_published_one_operation_by_operation(name: str, family: str, width: int) -> None:
    patch = 14 if family == "dinov2" else 16
    backbone = shortened(name, (2 * patch, 3 * patch) if family != "dinov2" else (37 * patch, 37 * patch), 2)
    if family == "dinov2":  # at its own size nothing is resampled: that has tests of its own; the reference runs on a corner's cells
        backbone.net.patch_embed.strict_img_size = False  # type: ignore[union-attr]
    layout = transformer(family, width, 2)
    w = loaded(backbone, name, layout)
    if family == "dinov2":
        keep = [0] + [1 + 37 * row + column for row in range(2) for column in range(3)]
        w["pos_embed"] = w["pos_embed"][:, keep]
        backbone.net.pos_embed.data = w["pos_embed"].float()  # type: ignore[union-attr,operator]
        backbone.grid = (2, 3)
    pixels = torch.randn(2, 3, 2 * patch, 3 * patch, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = backbone(pixels)
    assert found.shape == (2, width, 2, 3)
    for picture in range(2):
        expected = slow_transformer(w, pixels[picture].double(), family, 2)
        torch.testing.assert_close(found[picture].double(), expected, atol=2e-5, rtol=1e-4)


def test_without_its_mask_the_keys_bias_would_show() -> None:
    # The reference tells: with the key's bias let through, turned patches attend otherwise.
    layout = transformer("dinov3", 384, 2)
    w = {key: tensor.double() for key, tensor in random_weights(layout).items()}
    pixels = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(1)).double()
    masked = slow_transformer(w, pixels, "dinov3", 2)
    for number in range(2):
        w[f"blocks.{number}.attn.qkv.bias_mask"].fill_(1.0)
    assert float((slow_transformer(w, pixels, "dinov3", 2) - masked).abs().max()) > 1e-3


def slow_convolution(w: dict[str, Tensor], x: Tensor, name: str, stride: int = 1, *, act: bool = True) -> Tensor:
    weight = w[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=(weight.shape[-1] - 1) // 2, groups=x.shape[1] // weight.shape[1])
    scale = w[f"{name}.bn.weight"] / (w[f"{name}.bn.running_var"] + 1e-5).sqrt()
    x = x * scale[:, None, None] + (w[f"{name}.bn.bias"] - w[f"{name}.bn.running_mean"] * scale)[:, None, None]
    return w[f"{name}.lab.scale"] * x.clamp_min(0) + w[f"{name}.lab.bias"] if act else x


def slow_hgnetv2(w: dict[str, Tensor], x: Tensor, stages: tuple[tuple[int, int, int, int, int, bool], ...]) -> Tensor:
    """The third stage's map ``[B,C,h/16,w/16]`` as the published network computes it."""
    x = F.pad(slow_convolution(w, x, "stem.stem1", 2), (0, 1, 0, 1))
    side = slow_convolution(w, F.pad(slow_convolution(w, x, "stem.stem2a"), (0, 1, 0, 1)), "stem.stem2b")
    x = torch.cat((F.max_pool2d(x, 2, 1, ceil_mode=True), side), dim=1)
    x = slow_convolution(w, slow_convolution(w, x, "stem.stem3", 2), "stem.stem4")
    for stage, (_, _, _, _, blocks, light) in enumerate(stages[:3]):
        if stage:
            x = slow_convolution(w, x, f"stages.{stage}.downsample", 2, act=False)
        for number in range(blocks):
            block = f"stages.{stage}.blocks.{number}"
            parts = [x]
            for layer in range(3):
                name, part = f"{block}.layers.{layer}", parts[-1]
                if light:
                    part = slow_convolution(w, slow_convolution(w, part, f"{name}.conv1", act=False), f"{name}.conv2")
                else:
                    part = slow_convolution(w, part, name)
                parts.append(part)
            joined = slow_convolution(w, slow_convolution(w, torch.cat(parts, dim=1), f"{block}.aggregation.0"), f"{block}.aggregation.1")
            x = joined + x if number else joined
    return x


@pytest.mark.parametrize("entry", STAGES)
def test_an_hgnetv2_is_the_published_one_operation_by_operation(entry: str) -> None:
    name = CATALOGUE[entry].config.backbone
    backbone = PyramidBackbone(name, (64, 96), (2,), 16).eval()
    w = loaded(backbone, name, hgnetv2(STAGES[entry]))
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = backbone(pixels)
        expected = slow_hgnetv2(w, pixels.double(), STAGES[entry])
    assert found.shape == expected.shape == (2, STAGES[entry][2][2], 4, 6)
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=1e-3)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_of_a_new_backbone_is_in_one_stage(name: str) -> None:
    config = next(entry.config for entry in CATALOGUE.values() if entry.config.backbone == name)
    with torch.device("meta"):
        backbone = PyramidBackbone(name, (64, 64), config.levels, 16) if config.levels else TokenBackbone(name, (112, 112))
    stages = discover_stages(backbone)
    held = [parameter for stage in stages for parameter in stage.parameters]
    assert sorted(held) == sorted(key for key, _ in backbone.named_parameters())
    blocks = {"hgnetv2_atto": 3, "hgnetv2_femto": 3, "hgnetv2_pico": 4, "hgnetv2_b0": 4, "vit_large_patch14_dinov2": 24}
    assert stages.blocks == blocks.get(name, 12)
    stem = stages[len(stages) - 1].parameters
    assert all("blocks" not in parameter for parameter in stem) and any("patch_embed" in parameter or ".stem." in parameter for parameter in stem)


def test_the_small_networks_are_named_beside_timms() -> None:
    with pytest.raises(UnknownModelError, match=r"unknown backbone 'hgnetv2_ato'; nearest: .*hgnetv2_atto"):
        create_network("hgnetv2_ato")
    for name in HGNETV2:
        shapes = whole_network_shapes(name)
        assert shapes and not any(key.startswith(("stages.3", "head")) for key in shapes)
        for levels in ((3,), ()):
            with pytest.raises(WeightsError, match=f"{name} has 3 stages and no classifier; name feature levels of it, from 0 to 2"):
                create_network(name, features_only=True, out_indices=levels)
        with pytest.raises(WeightsError, match="name feature levels"):
            TokenBackbone(name, (64, 64))
    assert set(TINY_VITS) < set(BACKBONES) and set(HGNETV2) < set(BACKBONES)


def test_pico_and_n_are_one_function() -> None:
    # The fourth stage of n is never run; without it the two differ in name alone.
    pico, n = CATALOGUE["gazelle_hgnetv2_pico"].config, CATALOGUE["gazelle_hgnetv2_n"].config
    assert replace(pico, backbone=n.backbone) == n
    with torch.device("meta"):
        shapes = [PyramidBackbone(config.backbone, (64, 64), (2,), 16).trunk.state_dict() for config in (pico, n)]
    assert {key: value.shape for key, value in shapes[0].items()} == {key: value.shape for key, value in shapes[1].items()}
