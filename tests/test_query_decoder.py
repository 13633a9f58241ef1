"""The query decoder: against a slow transcription, people apart from each other, odd boxes, gradients, export."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from schedules.stages import discover_stages
from students.catalogue import STUDENTS
from teachers.decoder import position_encoding
from teachers.errors import WeightsError
from teachers.model import GazeModel, ModelConfig, parameter_count
from teachers.query_decoder import CONTEXT, QueryDecoder, SceneBlock, bin_weights

TINY = ModelConfig(
    backbone="vit_tiny_patch16_224", input_size=(32, 48), decoder="query", dim=16, layers=2, attention_heads=2, heatmap_size=(8, 8), drop_path=0.0
)
BOXES = torch.tensor([[0.0, 0.0, 0.5, 0.7], [0.4, 0.3, 1.0, 1.0], [0.5, 0.0, 0.75, 0.34]])


def small(grid: tuple[int, int] = (3, 4), heatmap_size: tuple[int, int] | None = None, **options: object) -> QueryDecoder:
    torch.manual_seed(0)
    values: dict[str, object] = {"dim": 16, "layers": 2, "attention_heads": 4, **options}
    decoder = QueryDecoder(5, grid, heatmap_size or (2 * grid[0], 2 * grid[1]), **values)  # type: ignore[arg-type]
    for parameter in decoder.parameters():  # biases and norms start as 0 and 1: a wrong use of them would not show
        parameter.data = torch.randn(parameter.shape) * 0.3
    return decoder.eval()


def slow_bins(low: float, high: float, cells: int) -> np.ndarray:
    """Weights ``[3,cells]``, cell by cell."""
    result = np.zeros((3, cells))
    part = (high - low) / 3
    for number in range(3):
        middle = min(max((low + (number + 0.5) * part) * cells, 0.5), cells - 0.5)
        for cell in range(cells):
            result[number, cell] = max(0.0, 1.0 - abs(cell + 0.5 - middle) / max(1.0, part * cells))
        result[number] /= result[number].sum()
    return result


def test_bins_are_triangles_over_cells() -> None:
    assert bin_weights(torch.tensor([0.5]), torch.tensor([0.0]), 4, 3)[0].tolist() == [[0.0, 0.5, 0.5, 0.0]] * 3  # on the edge of two cells
    assert bin_weights(torch.tensor([0.375]), torch.tensor([0.0]), 4, 1)[0].tolist() == [[0.0, 1.0, 0.0, 0.0]]  # in the middle of one
    for centre in (-5.0, 0.0):  # outside counts as the border
        assert bin_weights(torch.tensor([centre]), torch.tensor([0.1]), 4, 1)[0].tolist() == [[1.0, 0.0, 0.0, 0.0]]
    dice = np.random.default_rng(0)
    low, size = dice.random(50), dice.random(50) * dice.integers(0, 2, 50)
    found = bin_weights(torch.from_numpy(low + size / 2), torch.from_numpy(size), 7, 3).numpy()
    for row, start, length in zip(found, low, size, strict=True):
        np.testing.assert_allclose(row, slow_bins(start, start + length, 7), atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=2), 1.0)


def slow_decoder(decoder: QueryDecoder, features: Tensor, box: list[float]) -> tuple[Tensor, Tensor]:
    """One head's heatmap ``[2gh,2gw]`` and in/out logit in double precision, operation by operation."""
    w = {name: tensor.double() for name, tensor in decoder.state_dict().items()}
    dim, (height, width) = 16, decoder.grid

    def linear(values: Tensor, name: str) -> Tensor:
        return values @ w[f"{name}.weight"].T + w[f"{name}.bias"] if f"{name}.bias" in w else values @ w[f"{name}.weight"].T

    def normed(values: Tensor, name: str, epsilon: float = 1e-5) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(values: Tensor) -> Tensor:
        return values * 0.5 * (1 + torch.erf(values / math.sqrt(2)))

    cells = torch.einsum("oc,chw->hwo", w["linear.weight"][:, :, 0, 0], features.double()) + w["linear.bias"]
    cells = (cells + position_encoding(dim, height, width).double().permute(1, 2, 0)).reshape(-1, dim)
    query, key, value = linear(normed(cells, "scene.0.norm1", decoder.scene[0].norm1.eps), "scene.0.attn.qkv").chunk(3, dim=1)
    read = [torch.softmax(query[:, s] @ key[:, s].T / 2.0, dim=1) @ value[:, s] for s in (slice(4 * h, 4 * h + 4) for h in range(4))]
    cells = cells + linear(torch.cat(read, dim=1), "scene.0.attn.proj")
    cells = cells + linear(gelu(linear(normed(cells, "scene.0.norm2", decoder.scene[0].norm2.eps), "scene.0.mlp.fc1")), "scene.0.mlp.fc2")
    cells = normed(cells, "scene_norm")
    x0, y0, x1, y1 = box
    reach_x, reach_y = (x1 - x0) * CONTEXT / 2, (y1 - y0) * CONTEXT / 2
    columns = slow_bins((x0 + x1) / 2 - reach_x, (x0 + x1) / 2 + reach_x, width)
    rows = slow_bins((y0 + y1) / 2 - reach_y, (y0 + y1) / 2 + reach_y, height)
    region = [
        sum(rows[i, y] * columns[j, x] * cells[y * width + x] for y in range(height) for x in range(width)) for i in range(3) for j in range(3)
    ]
    place = []
    for number in ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0):
        place += [math.sin(math.pi * 2**k * number) for k in range(4)] + [math.cos(math.pi * 2**k * number) for k in range(4)]
    person = linear(torch.cat(region), "region")
    person = person + linear(gelu(linear(torch.tensor(place, dtype=torch.double), "place.0")), "place.2")
    for number in range(2):
        ask = linear(normed(person, f"blocks.{number}.norm1"), f"blocks.{number}.ask").reshape(4, dim) / math.sqrt(dim)
        person = person + linear((torch.softmax(ask @ cells.T, dim=1) @ cells).flatten(), f"blocks.{number}.take")
        person = person + linear(gelu(linear(normed(person, f"blocks.{number}.norm2"), f"blocks.{number}.mlp.0")), f"blocks.{number}.mlp.2")
    person = normed(person, "norm")
    kernel = linear(gelu(linear(person, "kernel.0")), "kernel.2").reshape(4, dim)
    heatmap = torch.zeros(2 * height, 2 * width, dtype=torch.double)
    for row in range(2 * height):
        for column in range(2 * width):
            cell = cells[(row // 2) * width + column // 2]
            heatmap[row, column] = kernel[2 * (row % 2) + column % 2] @ cell + linear(person, "level")[0]
    return heatmap, linear(gelu(linear(person, "inout_head.0")), "inout_head.2")[0]


def test_the_decoder_is_its_transcription_and_follows_image_index() -> None:
    decoder, features, index = small(), torch.randn(2, 5, 3, 4), torch.tensor([1, 0, 1])
    output = decoder(features, BOXES, index)
    assert output.heatmap.shape == (3, 6, 8) and output.inout is not None and output.inout.shape == (3,)
    for head in range(3):
        heatmap, inout = slow_decoder(decoder, features[index[head]], BOXES[head].tolist())
        torch.testing.assert_close(output.heatmap[head].double(), heatmap, atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(output.inout[head].double(), inout, atol=5e-5, rtol=1e-4)


def test_people_know_nothing_of_each_other_nor_of_the_batch() -> None:
    decoder, features, index = small(heatmap_size=(16, 16)), torch.randn(3, 5, 3, 4), torch.tensor([2, 0, 2])
    together = decoder(features, BOXES, index)
    assert together.inout is not None
    for head in range(3):
        alone = decoder(features[index[head]][None], BOXES[head : head + 1], torch.tensor([0]))
        assert alone.inout is not None
        torch.testing.assert_close(alone.heatmap[0], together.heatmap[head], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.inout[0], together.inout[head], atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(features, BOXES[order], index[order]).heatmap, together.heatmap[order], atol=1e-5, rtol=1e-5)


def test_a_heads_place_and_features_show_in_its_map() -> None:
    decoder, features, index = small(), torch.randn(1, 5, 3, 4), torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[0.30, 0.30, 0.31, 0.31]])  # a tenth of a cell: Gaze-LLE's mask would be empty
    base = decoder(features, box, index).heatmap
    assert float((decoder(features, box + 0.01, index).heatmap - base).detach().abs().max()) > 1e-4
    changed = features.clone()
    changed[0, :, 0, 1] += 1.0
    weights = decoder.queries(decoder.scene_norm(torch.randn(1, 12, 16)), box)
    assert weights.shape == (1, 16)
    assert float((decoder(changed, box, index).heatmap - base).abs().max()) > 1e-3


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.5], [0.2, 0.4, 0.6, 0.4], [1.5, 1.5, 2.0, 2.0], [-1.0, 0.2, -0.5, 0.3], [0.0, 0.0, 1.0, 1.0], [0.6, 0.6, 0.4, 0.4]])
def test_odd_boxes_have_finite_answers_and_gradients(box: list[float]) -> None:
    decoder = small()
    output = decoder(torch.randn(1, 5, 3, 4), torch.tensor([box]), torch.zeros(1, dtype=torch.int64))
    assert output.inout is not None and output.heatmap.isfinite().all() and output.inout.isfinite().all()
    (output.heatmap.square().mean() + output.inout.mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_nobody_has_no_answers() -> None:
    output = small()(torch.randn(2, 5, 3, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert output.heatmap.shape == (0, 6, 8) and output.inout is not None and output.inout.shape == (0,)


def test_every_parameter_learns_and_so_does_the_backbone() -> None:
    torch.manual_seed(0)
    model = GazeModel(TINY).train()
    output = model(torch.rand(2, 3, 32, 48), BOXES, torch.tensor([0, 1, 1]))
    assert output.heatmap.shape == (3, 8, 8) and output.inout is not None
    (output.heatmap.square().mean() + output.inout.sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().max() > 0] == []


def test_half_precision_answers_like_single() -> None:
    decoder, features, index = small(), torch.randn(1, 5, 3, 4), torch.zeros(3, dtype=torch.int64)
    single = decoder(features, BOXES, index).heatmap
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = decoder(features, BOXES, index).heatmap
    assert half.isfinite().all() and float((half.float() - single).abs().mean() / single.std()) < 0.05


@pytest.mark.parametrize(("inout", "keys"), [("mlp", 4), ("linear", 2), ("none", 0)])
def test_the_in_out_heads(inout: str, keys: int) -> None:
    decoder = small(inout=inout)
    assert sum(name.startswith("inout_head") for name in decoder.state_dict()) == keys
    output = decoder(torch.randn(1, 5, 3, 4), BOXES[:1], torch.zeros(1, dtype=torch.int64))
    assert (output.inout is None) == (inout == "none")


def test_without_layers_it_still_answers() -> None:
    output = small(layers=0, scene_layers=0)(torch.randn(1, 5, 3, 4), BOXES[:2], torch.zeros(2, dtype=torch.int64))
    assert float((output.heatmap[0] - output.heatmap[1]).abs().max()) > 1e-3


def test_the_description_comes_back_and_those_from_before_stay_the_same() -> None:
    for config in (TINY, replace(TINY, scene_layers=3), STUDENTS["lite0_tiny"]):
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    # Caches and runs record the description: a gazelle decoder's must not gain a key.
    assert set(STUDENTS["lite0_tiny"].to_json()) == {
        "backbone", "input_size", "levels", "stride", "mean", "std", "decoder", "dim", "layers", "attention_heads", "inout", "heatmap_size", "drop_path"
    }
    assert TINY.to_json()["scene_layers"] == 1
    with pytest.raises(WeightsError, match=r"decoder 'quary' is not known; this version has 'gazelle' and 'query'"):
        replace(TINY, decoder="quary")
    assert parameter_count(GazeModel(replace(TINY, scene_layers=2)).decoder) > parameter_count(GazeModel(TINY).decoder)


def test_stages_and_freezing_concern_the_backbone_alone() -> None:
    model = GazeModel(TINY)
    stages = discover_stages(model, prefix="backbone")
    assert stages.blocks == 12 and all(name.startswith("backbone.") for stage in stages for name in stage.parameters)
    model.train()
    stages.apply(model, 0, False)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())
    assert model.decoder.training and not model.backbone.training


@pytest.mark.soak  # with a smaller backbone it is exported on the way of a user's work: tests/test_pipeline.py
def test_it_exports_with_any_number_of_people(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from students.export import trace

    torch.manual_seed(0)
    model = GazeModel(replace(TINY, backbone="hgnetv2_atto", levels=(2,), inout="mlp")).eval().requires_grad_(False)
    trace(model, tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 32, 48)
    for people in (1, 7):
        boxes = BOXES[torch.arange(people) % 3]
        index = torch.zeros(people, dtype=torch.int64)
        with torch.inference_mode():
            wanted = model(images, boxes, index)
        heatmap, inout = session.run(None, {"images": images.numpy(), "boxes": boxes.numpy(), "image_index": index.numpy()})
        torch.testing.assert_close(torch.from_numpy(heatmap), wanted.heatmap, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(inout), wanted.inout, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_the_scene_block_is_timms(training: bool) -> None:
    torch.manual_seed(0)
    block = SceneBlock(dim=16, num_heads=4, drop_path=0.5).train(training)
    tokens = torch.randn(6, 5, 16)
    answers = []
    for run in (lambda: Block.forward(block, tokens), lambda: block(tokens.flatten(0, 1), 5).unflatten(0, (6, 5))):
        torch.manual_seed(1)  # the same images dropped
        answer = run()
        block.zero_grad()
        answer.square().sum().backward()
        answers.append((answer.detach(), *(parameter.grad.clone() for parameter in block.parameters() if parameter.grad is not None)))
    assert len(answers[0]) == 1 + 11
    for wanted, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
