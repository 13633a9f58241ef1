"""Gaze-LLE's decoder against slow transcriptions of the published formulas, and the model around it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from teachers.backbones import PyramidBackbone, TokenBackbone
from teachers.decoder import GazelleDecoder, head_masks, position_encoding
from teachers.errors import UnknownModelError, WeightsError
from teachers.model import GazeModel, ModelConfig, parameter_count

KEYS = Path(__file__).parents[2] / "shared/data/checkpoint_keys"

# Tensors and their shapes in terms of d (dim), c (channels of the backbone): the published decoder, one transformer block.
ENDS = {"linear.weight": "dc11", "linear.bias": "d", "head_token.weight": "1d", "heatmap_head.0.weight": "dd22", "heatmap_head.0.bias": "d", "heatmap_head.1.weight": "1d11"}
BLOCK = {
    "norm1.weight": (1,), "norm1.bias": (1,), "attn.qkv.weight": (3, 1), "attn.proj.weight": (1, 1), "attn.proj.bias": (1,), "norm2.weight": (1,),
    "norm2.bias": (1,), "mlp.fc1.weight": (4, 1), "mlp.fc1.bias": (4,), "mlp.fc2.weight": (1, 4), "mlp.fc2.bias": (1,),
}
INOUT = {
    "mlp": {"inout_token.weight": (1, "d"), "inout_head.0.weight": (128, "d"), "inout_head.0.bias": (128,), "inout_head.3.weight": (1, 128), "inout_head.3.bias": (1,)},
    "linear": {"inout_token.weight": (1, "d"), "inout_head.0.weight": (1, "d"), "inout_head.0.bias": (1,)},
    "none": {},
}


def small_decoder(grid: tuple[int, int] = (3, 4), heatmap_size: tuple[int, int] | None = None, *, inout: str = "mlp", layers: int = 2) -> GazelleDecoder:
    torch.manual_seed(0)
    size = heatmap_size or (2 * grid[0], 2 * grid[1])
    decoder = GazelleDecoder(5, grid, size, dim=16, layers=layers, attention_heads=4, inout=inout)
    for parameter in decoder.parameters():  # biases and norms start as 0 and 1: a wrong use of them would not show
        parameter.data = torch.randn(parameter.shape) * 0.3
    return decoder.eval()


def shapes_of(decoder: GazelleDecoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}


@pytest.mark.parametrize(("dim", "height", "width"), [(16, 5, 7), (8, 1, 9), (256, 3, 2)])
def test_the_position_encoding_is_the_published_formula(dim: int, height: int, width: int) -> None:
    half = dim // 2
    expected = np.zeros((dim, height, width))
    for channel in range(dim):
        within = channel % half
        rate = 10000.0 ** (2 * (within // 2) / half)
        for row in range(height):
            for column in range(width):
                angle = (column if channel < half else row) / rate
                expected[channel, row, column] = math.cos(angle) if within % 2 else math.sin(angle)
    np.testing.assert_allclose(position_encoding(dim, height, width).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((0.0, 0.0, 1.0, 1.0), (0, 4, 0, 4)),
        ((0.125, 0.375, 0.625, 0.875), (2, 4, 0, 2)),  # 0.5, 1.5, 2.5, 3.5 cells round to 0, 2, 2, 4: half to even
        ((0.375, 0.125, 0.875, 0.625), (0, 2, 2, 4)),
        ((0.3, 0.3, 0.35, 0.35), None),  # narrower than a cell: both edges round to 1
        ((0.24, 0.1, 0.26, 0.9), None),  # tall, and too narrow all the same
        ((0.36, 0.36, 0.4, 0.4), (1, 2, 1, 2)),  # as narrow, but across a rounding edge
    ],
)
def test_a_head_covers_the_cells_between_its_rounded_edges(box: tuple[float, ...], cells: tuple[int, ...] | None) -> None:
    expected = torch.zeros(4, 4)
    if cells is not None:
        expected[cells[0] : cells[1], cells[2] : cells[3]] = 1
    assert head_masks(torch.tensor([box]), 4, 4)[0].tolist() == expected.tolist()


def test_head_masks_are_slices_between_pythons_rounded_edges() -> None:
    # Multiples of 1/128 are exact in both precisions, and meet every tie of a 9×6 grid's neighbours.
    dice = np.random.default_rng(0)
    low = dice.integers(0, 100, (200, 2))
    boxes = np.concatenate((low, np.minimum(low + dice.integers(0, 60, (200, 2)), 128)), axis=1) / 128.0
    masks = head_masks(torch.from_numpy(boxes).float(), 8, 16)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        expected = torch.zeros(8, 16)
        expected[round(y0 * 8) : round(y1 * 8), round(x0 * 16) : round(x1 * 16)] = 1
        assert torch.equal(mask, expected)
    assert masks.sum() > 0 and (masks.sum(dim=(1, 2)) == 0).any()


def slow_decoder(decoder: GazelleDecoder, features: Tensor, box: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """One head's heatmap logits ``[2gh,2gw]`` and in/out logit, operation by operation as the published model applies them."""
    weights = {name: tensor.double() for name, tensor in decoder.state_dict().items()}
    dim, grid = weights["head_token.weight"].shape[1], features.shape[-2:]
    scene = torch.einsum("oc,chw->ohw", weights["linear.weight"][:, :, 0, 0], features.double()) + weights["linear.bias"][:, None, None]
    scene = scene + position_encoding(dim, *grid).double()
    mask = torch.zeros(grid, dtype=torch.double)
    mask[round(box[1] * grid[0]) : round(box[3] * grid[0]), round(box[0] * grid[1]) : round(box[2] * grid[1])] = 1
    scene = scene + mask * weights["head_token.weight"][0][:, None, None]
    tokens = torch.cat((weights["inout_token.weight"], scene.flatten(1).T))

    def normed(values: Tensor, name: str) -> Tensor:
        centred = values - values.mean(dim=1, keepdim=True)
        spread = centred.pow(2).mean(dim=1, keepdim=True)
        return centred / (spread + decoder.transformer[0].norm1.eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    for number in range(len(decoder.transformer)):
        name = f"transformer.{number}"
        query, key, value = (normed(tokens, f"{name}.norm1") @ weights[f"{name}.attn.qkv.weight"].T).chunk(3, dim=1)
        answers = []
        for part in (slice(first, first + dim // 4) for first in range(0, dim, dim // 4)):
            scores = query[:, part] @ key[:, part].T / math.sqrt(dim // 4)
            answers.append(scores.exp() / scores.exp().sum(dim=1, keepdim=True) @ value[:, part])
        tokens = tokens + torch.cat(answers, dim=1) @ weights[f"{name}.attn.proj.weight"].T + weights[f"{name}.attn.proj.bias"]
        hidden = normed(tokens, f"{name}.norm2") @ weights[f"{name}.mlp.fc1.weight"].T + weights[f"{name}.mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + hidden @ weights[f"{name}.mlp.fc2.weight"].T + weights[f"{name}.mlp.fc2.bias"]
    first = (tokens[0] @ weights["inout_head.0.weight"].T + weights["inout_head.0.bias"]).clamp_min(0)
    inout = first @ weights["inout_head.3.weight"][0] + weights["inout_head.3.bias"][0]
    heatmap = torch.zeros(2 * grid[0], 2 * grid[1], dtype=torch.double)
    for row in range(heatmap.shape[0]):
        for column in range(heatmap.shape[1]):
            cell = tokens[1 + (row // 2) * grid[1] + column // 2]
            up = cell @ weights["heatmap_head.0.weight"][:, :, row % 2, column % 2] + weights["heatmap_head.0.bias"]
            heatmap[row, column] = up @ weights["heatmap_head.1.weight"][0, :, 0, 0]
    return heatmap, inout


def test_the_decoder_is_the_published_one_operation_by_operation() -> None:
    decoder = small_decoder()
    features = torch.randn(2, 5, 3, 4)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.7], [0.4, 0.3, 1.0, 1.0], [0.5, 0.0, 0.75, 0.34]])
    index = torch.tensor([1, 0, 1])
    output = decoder(features, boxes, index)
    assert output.heatmap.shape == (3, 6, 8) and output.inout is not None and output.inout.shape == (3,)
    for head in range(3):
        heatmap, inout = slow_decoder(decoder, features[index[head]], tuple(boxes[head].tolist()))
        torch.testing.assert_close(output.heatmap[head].double(), heatmap, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(output.inout[head].double(), inout, atol=2e-5, rtol=1e-4)


def test_answers_are_logits() -> None:
    # The last layers are linear: what comes out follows their weights without bound, which no probability would.
    decoder = small_decoder()
    features, boxes, index = torch.randn(1, 5, 3, 4), torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([0])
    before = decoder(features, boxes, index)
    with torch.no_grad():
        decoder.heatmap_head[1].weight.mul_(64.0)
        decoder.inout_head[3].bias.add_(32.0)  # type: ignore[index]
    after = decoder(features, boxes, index)
    torch.testing.assert_close(after.heatmap, before.heatmap * 64.0)
    torch.testing.assert_close(after.inout, before.inout + 32.0)
    assert after.heatmap.max().item() > 1.0 and after.heatmap.min().item() < 0.0


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resampling between cell centres, the border repeated, no antialiasing: ``[h,w]`` to ``size``."""
    result = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = min(max((row + 0.5) * values.shape[0] / size[0] - 0.5, 0.0), values.shape[0] - 1.0)
            x = min(max((column + 0.5) * values.shape[1] / size[1] - 0.5, 0.0), values.shape[1] - 1.0)
            top, left = int(y), int(x)
            below, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
            fy, fx = y - top, x - left
            result[row, column] = (1 - fy) * ((1 - fx) * values[top, left] + fx * values[top, right]) + fy * (
                (1 - fx) * values[below, left] + fx * values[below, right]
            )
    return result


@pytest.mark.parametrize("size", [(3, 3), (9, 12), (2, 20)])
def test_maps_are_resized_bilinearly_without_antialiasing(size: tuple[int, int]) -> None:
    native, resized = small_decoder(), small_decoder(heatmap_size=size)
    features, boxes, index = torch.randn(1, 5, 3, 4), torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([0])
    whole = native(features, boxes, index).heatmap[0].detach().numpy()
    found = resized(features, boxes, index).heatmap[0].detach().numpy()
    np.testing.assert_allclose(found, bilinear(whole, size), atol=2e-5)
    if size == (3, 3):  # where the map shrinks, an antialiased resize is another function
        smooth = F.interpolate(torch.from_numpy(whole)[None, None], size, mode="bilinear", antialias=True)[0, 0].numpy()
        assert np.abs(found - smooth).max() > 0.05


@pytest.mark.parametrize("inout", ["mlp", "linear", "none"])
def test_tensors_are_named_and_shaped_as_published(inout: str) -> None:
    decoder = GazelleDecoder(24, (2, 2), (4, 4), dim=32, layers=2, inout=inout)
    sizes: dict[str | int, int] = {"d": 32, "c": 24}
    expected = {name: tuple(sizes.get(letter) or int(letter) for letter in text) for name, text in ENDS.items()}
    for number in range(2):
        expected |= {f"transformer.{number}.{name}": tuple(32 * part for part in parts) for name, parts in BLOCK.items()}
    expected |= {name: tuple(sizes.get(part) or int(part) for part in shape) for name, shape in INOUT[inout].items()}
    assert shapes_of(decoder) == expected


@pytest.mark.skipif(not KEYS.is_dir(), reason="the published checkpoints' key lists are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "channels", "grid", "inout"),
    [
        ("gazelle_dinov2_vitb14_inout", 768, (32, 32), "mlp"),
        ("gazelle_dinov2_vitb14", 768, (32, 32), "none"),
        ("gazelle_dinov3_vits16_inout", 384, (40, 40), "linear"),
        ("gazelle_hgnetv2_n_inout", 512, (40, 40), "linear"),
    ],
)
def test_published_checkpoints_fit_the_decoder(file: str, channels: int, grid: tuple[int, int], inout: str) -> None:
    tensors = json.loads((KEYS / f"{file}.json").read_text())["tensors"]
    published = {name: tuple(shape) for name, (shape, _) in tensors.items() if not name.startswith("backbone.")}
    assert position_encoding(256, *grid).shape == published.pop("pos_embed")
    with torch.device("meta"):
        decoder = GazelleDecoder(channels, grid, (64, 64), inout=inout)
    assert shapes_of(decoder) == published


CONFIG = ModelConfig(backbone="test_vit", input_size=(64, 32), dim=16, layers=1, attention_heads=2, heatmap_size=(8, 4), mean=(0.5, 0.25, 0.125), std=(0.5, 2.0, 0.25))


@pytest.fixture(scope="module")
def model() -> GazeModel:
    torch.manual_seed(0)
    return GazeModel(CONFIG).eval()


def heads() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    low = torch.rand(7, 2) * 0.5
    boxes = torch.cat((low, low + 0.2 + 0.3 * torch.rand(7, 2)), dim=1)
    return torch.rand(3, 3, 64, 32), boxes, torch.tensor([2, 0, 0, 2, 2, 0, 2])


def test_the_backbone_runs_once_per_image_however_many_heads(model: GazeModel) -> None:
    seen: list[tuple[int, ...]] = []
    hook = model.backbone.net.patch_embed.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    images, boxes, index = heads()
    try:
        with torch.no_grad():
            output = model(images, boxes, index)
    finally:
        hook.remove()
    assert seen == [(3, 3, 64, 32)]
    assert output.heatmap.shape == (7, 8, 4) and output.inout is not None and output.inout.shape == (7,)


def test_a_head_is_answered_alike_alone_and_in_company(model: GazeModel) -> None:
    images, boxes, index = heads()
    with torch.no_grad():
        together = model(images, boxes, index)
        for number in range(len(boxes)):
            alone = model(images[index[number]][None], boxes[number][None], torch.tensor([0]))
            torch.testing.assert_close(together.heatmap[number], alone.heatmap[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.inout[number], alone.inout[0], atol=1e-5, rtol=1e-4)
    spread = together.heatmap[index == 2].std(dim=0).mean()
    assert float(spread) > 1e-4, "all heads of a picture get the same answer: the boxes are not looked at"


def test_no_heads_give_no_maps(model: GazeModel) -> None:
    output = model(torch.rand(2, 3, 64, 32), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert output.heatmap.shape == (0, 8, 4) and output.inout is not None and output.inout.shape == (0,)


def test_the_model_normalises_its_pictures_itself(model: GazeModel) -> None:
    seen: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    try:
        model(torch.full((1, 3, 64, 32), 0.75), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0]))
    finally:
        hook.remove()
    assert [seen[0][0, channel].unique().tolist() for channel in range(3)] == [[0.5], [0.25], [2.5]]


def test_a_config_survives_json_and_refuses_strange_keys() -> None:
    plain = json.loads(json.dumps(CONFIG.to_json()))
    assert ModelConfig.from_json(plain) == CONFIG
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        ModelConfig.from_json({**plain, "colour": 1})
    with pytest.raises(WeightsError, match=r"lacks \['input_size'\]"):
        ModelConfig.from_json({"backbone": "test_vit"})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dim": 18}, "dim 18"), ({"attention_heads": 3}, "attention_heads 3"), ({"inout": "both"}, "inout 'both'"), ({"decoder": "pyramid"}, "decoder 'pyramid'")],
)
def test_a_config_is_checked_at_birth(change: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        ModelConfig.from_json({**CONFIG.to_json(), **change})


def test_backbones_give_one_grid_and_hold_nothing_behind_it() -> None:
    tokens = TokenBackbone("test_vit", (64, 32))
    assert tokens(torch.rand(2, 3, 64, 32)).shape == (2, 64, 4, 2) == (2, tokens.channels, *tokens.grid)
    pyramid = PyramidBackbone("test_efficientnet", (64, 96), (2, 3, 4), 16)
    assert pyramid(torch.rand(2, 3, 64, 96)).shape == (2, pyramid.channels, 4, 6)
    shallow = PyramidBackbone("test_efficientnet", (64, 96), (2,), 16)
    assert shallow.channels < pyramid.channels and parameter_count(shallow) < parameter_count(pyramid)
    # Every parameter takes part in the answer.
    features = shallow(torch.rand(2, 3, 64, 96))
    features.square().sum().backward()
    assert [name for name, parameter in shallow.named_parameters() if parameter.grad is None] == []


def test_pyramid_levels_are_pooled_or_interpolated_to_the_stride() -> None:
    torch.manual_seed(0)
    pyramid = PyramidBackbone("test_efficientnet", (64, 64), (2, 3, 4), 16).eval()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = pyramid(pixels)[0]
        fine, same, coarse = (level[0] for level in pyramid.net(pixels))
    assert (fine.shape[-1], same.shape[-1], coarse.shape[-1]) == (8, 4, 2)
    first, second, third = found.split([len(fine), len(same), len(coarse)])
    torch.testing.assert_close(first, (fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]) / 4)
    assert torch.equal(second, same)
    np.testing.assert_allclose(third[0].numpy(), bilinear(coarse[0].numpy(), (4, 4)), atol=1e-5)


def test_backbones_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(UnknownModelError, match="nearest: test_vit"):
        TokenBackbone("test_vitt", (64, 64))
    with pytest.raises(WeightsError, match=r"60×64 is no multiple of the 16-pixel patches of test_vit; use e\.g\. 48"):
        TokenBackbone("test_vit", (60, 64))
    with pytest.raises(WeightsError, match="60×64 is no multiple of the stride 16"):
        PyramidBackbone("test_efficientnet", (60, 64), (2,), 16)
    for name in ("test_resnet", "test_efficientnet"):
        with pytest.raises(WeightsError, match=f"{name} is no plain ViT"):
            TokenBackbone(name, (64, 64))
