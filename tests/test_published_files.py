"""Published checkpoints, by random weights in their layout: every tensor is used, compared, or named as unused; all else is refused."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.cli import main
from teachers.backbones import TokenBackbone
from teachers.convert import assemble, backbone_tensors, fill, fits, fitting, skeleton
from teachers.errors import WeightsError
from teachers.layouts import trunk_tensors
from teachers.model import IMAGENET_MEAN, IMAGENET_STD, GazeModel, ModelConfig, parameter_count
from teachers.pretrained import fill_backbone
from teachers.published import CATALOGUE
from teachers.weights import load_strictly, read_checkpoint
from tests.published_layouts import ENTRIES, FILES, Layout, published, random_weights, transformer

KEYS = Path(__file__).parents[2] / "shared/data/checkpoint_keys"
SMALL = ("gazelle_hgnetv2_atto_inout", "gazelle_hgnetv2_n", "gazelle_dinov3_vit_tiny_inout")


def on_meta(layout: Layout) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def decoder_alone(layout: Layout) -> Layout:
    return {name: shape for name, shape in layout.items() if not name.startswith("backbone.")}


def save_as_published(path: Path, tensors: dict[str, Tensor]) -> Path:
    """As gazelle-dinov3's trainer stores a model: beside its own state, NumPy's random numbers and scores included."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    torch.save({"model": tensors, "optimizer": {"state": {}}, "epoch": 3, "best_min_l2": np.mean([0.1, 0.2]), "args": {"lr": 1e-4}, "rng_state": states}, path)
    return path


def test_the_catalogue_is_the_published_one() -> None:
    assert sorted(CATALOGUE) == sorted(FILES) and len(FILES) == 22
    for name, entry in CATALOGUE.items():
        family, _, pixels = ENTRIES[name.removesuffix("_inout")]
        config, convolutional = entry.config, family == "hgnetv2"
        assert config.input_size == (pixels, pixels)
        assert config.heatmap_size == {320: (32, 32), 416: (48, 48)}.get(pixels, (64, 64))
        assert config.inout == ("none" if not name.endswith("_inout") else "mlp" if family == "dinov2" else "linear")
        # The convolutional ones take pixels in [0,1] as they are.
        assert (config.mean, config.std) == (((0.0,) * 3, (1.0,) * 3) if convolutional else (IMAGENET_MEAN, IMAGENET_STD))
        assert (config.dim, config.layers, config.attention_heads) == (256, 3, 8)
        release = "fkryan/gazelle/releases/download/v1.0.0" if family == "dinov2" else "PINTO0309/gazelle-dinov3/releases/download/weights"
        assert entry.url == f"https://github.com/{release}/{name}{'_distill' if convolutional else ''}.pt"
        assert entry.metrics.startswith("VideoAttentionTarget" if name.endswith("_inout") else "GazeFollow")
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.skipif(not KEYS.is_dir(), reason="the published checkpoints' key lists are not beside this checkout")
@pytest.mark.parametrize("path", sorted(KEYS.glob("*.json")), ids=lambda path: path.stem)
def test_the_layouts_here_are_those_of_the_published_files(path: Path) -> None:
    tensors = json.loads(path.read_text())["tensors"]
    assert published(path.stem) == {name: tuple(shape) for name, (shape, _) in tensors.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_fits_its_entry(name: str) -> None:
    model = skeleton(CATALOGUE[name].config)
    assert abs(parameter_count(model) / 1e6 - CATALOGUE[name].parameters) < 0.06
    assert fill(model, on_meta(published(name)), "file") is True


@pytest.mark.parametrize(
    "name", ["gazelle_dinov2_vitb14_inout", "gazelle_dinov3_vit_tiny", "gazelle_dinov3_vits16_inout", "gazelle_dinov3_vits16plus", "gazelle_hgnetv2_n_inout"]
)
def test_every_tensor_of_a_published_file_is_accounted_for(name: str) -> None:
    layout = published(name)
    tensors = on_meta(layout)
    model = skeleton(CATALOGUE[name].config)
    # What may be absent unnoticed: the constant that is built anyway, and the token of pretraining.
    optional = {"pos_embed", "backbone.model.mask_token", "backbone.dinov3.mask_token"}
    needed = [key for key in sorted(layout) if key not in optional and not key.endswith("bias_mask")]
    for key in [*needed[::97], *(key for key in needed if "token" in key or "periods" in key)]:
        with pytest.raises(WeightsError, match=r"missing|lacks"):
            fill(model, {other: tensor for other, tensor in tensors.items() if other != key}, "file")
    for key in {".".join(key.split(".")[-2:]): key for key in layout}.values():  # one of each kind, constants and unused ones included
        with pytest.raises(WeightsError):
            fill(model, {**tensors, key: torch.empty((*layout[key], 1), device="meta")}, "file")
    first = next(key for key in layout if key.endswith(("cls_token", "stem.stem1.conv.weight")))
    prefix = first.removesuffix("cls_token").removesuffix("stem.stem1.conv.weight")
    for further in ("surprise.weight", f"{prefix}surprise.weight", f"{prefix}blocks.0.attn.surprise"):
        with pytest.raises(WeightsError, match=r"1 unexpected: .*surprise"):
            fill(model, {**tensors, further: torch.empty(1, device="meta")}, "file")


@pytest.mark.parametrize("name", SMALL)
def test_a_published_file_is_loaded_value_by_value(tmp_path: Path, name: str) -> None:
    tensors = random_weights(published(name))
    model = assemble(CATALOGUE[name].config, save_as_published(tmp_path / "file.pt", tensors), None)
    assert not model.training
    held = backbone_tensors(tensors, "file")
    for key, tensor in model.decoder.state_dict().items():
        assert torch.equal(tensor, tensors[key])
    for key, tensor in model.backbone.trunk.state_dict().items():
        assert torch.equal(tensor, held["rope_embed.periods" if key == "rope.periods" else key]), key
    unused = {key for key in held if key not in model.backbone.trunk.state_dict()} - {"rope_embed.periods"}
    assert all(key.startswith("stages.3.") for key in unused) and bool(unused) == (name == "gazelle_hgnetv2_n")


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"])
def test_dinov3s_names_become_timms(name: str) -> None:
    backbone = TokenBackbone(name, (32, 32))
    backbone.net.blocks = backbone.net.blocks[:2]  # type: ignore[index]
    tensors = random_weights(transformer("dinov3plus" if "plus" in name else "dinov3", 384, 2))
    placed = trunk_tensors(tensors, backbone, name, "file")
    assert torch.equal(placed["reg_token"], tensors["storage_tokens"])
    assert torch.equal(placed["blocks.1.gamma_2"], tensors["blocks.1.ls2.gamma"])
    bias = tensors["blocks.1.attn.qkv.bias"]
    assert torch.equal(placed["blocks.1.attn.q_bias"], bias[:384]) and torch.equal(placed["blocks.1.attn.v_bias"], bias[768:])
    assert bias[:384].any() and bias[768:].any()
    assert torch.equal(placed["rope.periods"], tensors["rope_embed.periods"])
    assert not {"mask_token", "blocks.0.attn.qkv.bias_mask", "blocks.0.attn.qkv.bias"} & set(placed)
    load_strictly(backbone.trunk, placed, "file")


@cache
def one_block(name: str) -> TokenBackbone:
    backbone = TokenBackbone(name, (32, 32))
    backbone.net.blocks = backbone.net.blocks[:1]  # type: ignore[index]
    return backbone


def one_block_file(changes: dict[str, Tensor | None]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor | None] = {**random_weights(transformer("dinov3", 384, 1)), **changes}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.attn.qkv.bias_mask": torch.ones(1152)}, "bias_mask masks something else than the keys' bias"),
        ({"blocks.0.attn.qkv.bias_mask": torch.full((1152,), float("nan"))}, "bias_mask masks something else"),
        ({"blocks.0.attn.qkv.bias_mask": None}, "has a bias of the keys, which this network has not"),
        ({"rope_embed.periods": torch.tensor([10000.0 ** (k / 16) for k in range(16)])}, "other rotary periods than DINOv3's"),
        ({"rope_embed.periods": torch.full((16,), float("nan"))}, "other rotary periods"),
    ],
)
def test_constants_that_are_others_are_refused(changes: dict[str, Tensor | None], message: str) -> None:
    name = "vit_small_patch16_dinov3_qkvb"
    with pytest.raises(WeightsError, match=message):
        trunk_tensors(one_block_file(changes), one_block(name), name, "file")


def test_biases_are_dropped_only_where_they_are_zero() -> None:
    # timm's variants without _qkvb have no such biases: Meta's pretrained files have zeros there, fine-tuned ones need not.
    tensors, plain = one_block_file({}), one_block("vit_small_patch16_dinov3")
    with pytest.raises(WeightsError, match="is not zero and this network has no such bias; choose the backbone's variant that ends in _qkvb"):
        trunk_tensors(tensors, plain, "vit_small_patch16_dinov3", "file")
    tensors["blocks.0.attn.qkv.bias"] = torch.zeros(1152)
    load_strictly(plain.trunk, trunk_tensors(tensors, plain, "vit_small_patch16_dinov3", "file"), "file")


def test_timms_own_weights_have_no_periods_and_get_timms() -> None:
    model = GazeModel(ModelConfig("vit_tiny_patch16_deimv2", (32, 32), dim=16, layers=1, attention_heads=2, heatmap_size=(4, 4)))
    tensors = {key: tensor for key, tensor in model.backbone.trunk.state_dict().items() if key != "rope.periods"}
    model.backbone.net.rope.periods.zero_()  # type: ignore[union-attr,operator]
    fill_backbone(model, tensors, "file")
    expected = torch.tensor([100.0 ** (k / 16) for k in range(16)])
    torch.testing.assert_close(model.backbone.trunk.state_dict()["rope.periods"], expected)


@pytest.mark.parametrize(
    ("held", "asked", "fit"),
    [
        ("gazelle_dinov2_vitb14_inout", "gazelle_dinov2_vitb14", ["gazelle_dinov2_vitb14_inout"]),
        ("gazelle_hgnetv2_n", "gazelle_hgnetv2_pico", ["gazelle_hgnetv2_n"]),
        ("gazelle_hgnetv2_pico", "gazelle_hgnetv2_n", ["gazelle_hgnetv2_pico"]),
        ("gazelle_dinov3_vits16plus_inout", "gazelle_dinov3_vits16_inout", ["gazelle_dinov3_vits16plus_inout"]),
    ],
)
def test_what_a_file_is_shows_in_its_tensors(held: str, asked: str, fit: list[str]) -> None:
    tensors = on_meta(published(held))
    with pytest.raises(WeightsError):
        fits(CATALOGUE[asked].config, tensors, "file")
    assert fitting(tensors) == fit


def test_a_wrong_architecture_is_refused_with_the_fitting_one(tmp_path: Path) -> None:
    # Gaze-LLE's own files: the decoder alone.
    file, arch = tmp_path / "file.pt", CATALOGUE["gazelle_dinov2_vitb14"].config
    torch.save(random_weights(decoder_alone(published("gazelle_dinov2_vitl14"))), file)
    with pytest.raises(WeightsError, match=r"1 misshapen: linear\.weight .*its tensors are those of gazelle_dinov2_vitl14: give it with --arch") as caught:
        assemble(arch, file, None)
    assert "\n" not in str(caught.value)
    torch.save({"linear.weight": torch.zeros(3)}, file)
    with pytest.raises(WeightsError, match=r"choose the one it was made for$"):
        assemble(arch, file, None)


def test_a_file_with_its_own_backbone_takes_no_other(tmp_path: Path) -> None:
    name = "gazelle_hgnetv2_atto"
    file = save_as_published(tmp_path / "file.pt", random_weights(published(name)))
    with pytest.raises(WeightsError, match=r"file\.pt holds its own backbone, which .*other\.pt would replace; leave --backbone out"):
        assemble(CATALOGUE[name].config, file, tmp_path / "other.pt")


def test_a_decoder_and_its_backbone_may_lie_apart(tmp_path: Path) -> None:
    name = "gazelle_hgnetv2_atto"
    tensors = random_weights(published(name))
    apart = {key: tensor for key, tensor in tensors.items() if not key.startswith("backbone.")}
    torch.save(apart, tmp_path / "decoder.pt")
    torch.save({key.removeprefix("backbone."): tensor for key, tensor in tensors.items() if key not in apart}, tmp_path / "backbone.pt")
    joined = assemble(CATALOGUE[name].config, tmp_path / "decoder.pt", tmp_path / "backbone.pt").state_dict()
    whole = assemble(CATALOGUE[name].config, save_as_published(tmp_path / "whole.pt", tensors), None).state_dict()
    assert joined.keys() == whole.keys() and all(torch.equal(tensor, whole[key]) for key, tensor in joined.items())
    with pytest.raises(WeightsError, match="no pretrained weights of hgnetv2_atto to fetch; give a file"):
        assemble(CATALOGUE[name].config, tmp_path / "decoder.pt", None)


def test_backbones_of_two_kinds_in_one_file_are_refused() -> None:
    mixed = {"backbone.model.cls_token": torch.zeros(1), "backbone.dinov3.cls_token": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"below backbone\.dinov3\. and beside it \(backbone\.model\.cls_token"):
        backbone_tensors(mixed, "file")


def convert_and_check(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, out = published(name), tmp_path / name
    tensors = random_weights(layout)
    arguments = ["teachers", "convert", str(tmp_path / "file.pt"), "--arch", name, "--out", str(out)]
    if "dinov2" in name:
        torch.save({key: tensor for key, tensor in tensors.items() if not key.startswith("backbone.")}, tmp_path / "file.pt")
        torch.save(backbone_tensors(tensors, "file"), tmp_path / "backbone.pth")
        arguments += ["--backbone", str(tmp_path / "backbone.pth")]
    else:
        save_as_published(tmp_path / "file.pt", tensors)
    del tensors
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["teachers", "check", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["finite"] is True and facts["input_size"] == list(CATALOGUE[name].config.input_size)
    assert facts["heatmap_size"] == list(CATALOGUE[name].config.heatmap_size) and facts["inout"] == name.endswith("_inout")


def test_convert_and_check_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_and_check("gazelle_hgnetv2_atto_inout", tmp_path, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("name", FILES)
def test_convert_and_check_for_every_entry(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_and_check(name, tmp_path, capsys)


def test_a_damaged_file_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_as_published(tmp_path / "file.pt", random_weights(published("gazelle_hgnetv2_atto")))
    file.write_bytes(file.read_bytes()[:500_000])
    assert main(["teachers", "convert", str(file), "--arch", "gazelle_hgnetv2_atto", "--out", str(tmp_path / "out")]) == 2
    assert "is damaged or cut short" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pt"]


class Command:
    """Something that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


def test_code_in_a_file_is_named_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Command(mark)}, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=r"is no plain checkpoint of tensors \(it would run \w+\.system\); only tensors are ever loaded"):
        read_checkpoint(tmp_path / "file.pt")
    assert not mark.exists()


def test_numpys_values_beside_the_tensors_are_dropped(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    found = read_checkpoint(save_as_published(tmp_path / "file.pt", tensors))
    assert found.keys() == {"a"} and torch.equal(found["a"], tensors["a"])
    torch.save({"a": np.zeros(3)}, tmp_path / "array.pt")  # but none stands for a tensor
    with pytest.raises(WeightsError, match="something else than named tensors"):
        read_checkpoint(tmp_path / "array.pt")
