"""Stages: total cover of many backbones, opening order, and that a closed stage does not move."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from schedules.errors import StageError
from schedules.stages import Stages, discover_stages
from students.catalogue import STUDENTS, build_student


class Block(nn.Module):
    """A residual block with all that moves in train mode: BatchNorm, dropout, drop-path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.drop_path = timm.layers.DropPath(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path(self.drop(torch.relu(self.bn(self.conv(x)))))


class Net(nn.Module):
    """Stem, two stages of two blocks with down-sampling between, a final norm, and a token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.down = nn.Conv2d(4, 4, 2, stride=2)
        self.layer2 = nn.Sequential(Block(4), Block(4))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer2(self.down(self.layer1(self.stem(x) + self.token))))


def assert_total_cover(model: nn.Module, stages: Stages) -> None:
    """Every parameter, and every module (hence every buffer), in exactly one stage."""
    assert sorted(name for stage in stages for name in stage.parameters) == sorted(dict(model.named_parameters()))
    assert sorted(name for stage in stages for name in stage.modules) == sorted(dict(model.named_modules()))
    assert [stage.counted for stage in stages] == [True] * stages.blocks + [False]
    assert all(stage.parameters for stage in stages if stage.counted)


def test_order_and_membership() -> None:
    stages = discover_stages(Net())
    assert [stage.name for stage in stages] == ["layer2.1", "layer2.0", "layer1.1", "layer1.0", "stem"]
    assert (stages.blocks, len(stages)) == (4, 5)
    assert_total_cover(Net(), stages)
    assert stages[0].parameters == (*(f"layer2.1.{n}" for n in ("conv.weight", "conv.bias", "bn.weight", "bn.bias")),
                                    "norm.weight", "norm.bias")  # fmt: skip
    assert stages.of("down.weight") == 1
    assert stages.of("layer1.1.bn.bias") == 2
    assert stages.of("token") == stages.of("stem.1.weight") == 4
    assert "layer1.0.bn" in stages[3].modules
    # A module that spans stages follows the last of them to open.
    assert "layer1" in stages[3].modules
    assert "" in stages[4].modules
    with pytest.raises(StageError, match=r"'head\.weight' is in no stage"):
        stages.of("head.weight")


# name, features_only, blocks, first and last stage name, what the stem's parameters begin with
BACKBONES = [
    ("vit_tiny_patch16_224", False, 12, "blocks.11", "blocks.0", {"cls_token", "pos_embed", "patch_embed"}),
    ("vit_tiny_patch16_224", True, 12, "model.blocks.11", "model.blocks.0", {"model"}),
    ("vit_small_patch16_dinov3", False, 12, "blocks.11", "blocks.0", {"cls_token", "reg_token", "patch_embed"}),
    (
        "vit_small_patch14_reg4_dinov2",
        False,
        12,
        "blocks.11",
        "blocks.0",
        {"cls_token", "reg_token", "pos_embed", "patch_embed"},
    ),
    ("efficientnet_lite0", False, 16, "blocks.6.0", "blocks.0.0", {"conv_stem", "bn1"}),
    ("efficientnet_lite0", True, 16, "blocks.6.0", "blocks.0.0", {"conv_stem", "bn1"}),
    ("mobilenetv3_small_050", False, 12, "blocks.5.0", "blocks.0.0", {"conv_stem", "bn1"}),
    ("mobilenetv4_conv_small", True, 17, "blocks.4.0", "blocks.0.0", {"conv_stem", "bn1"}),
    ("hgnetv2_b0", False, 5, "stages.3.blocks.0", "stages.0.blocks.0", {"stem"}),
    ("hgnetv2_b0", True, 5, "stages_3.blocks.0", "stages_0.blocks.0", {"stem"}),
    ("convnext_atto", False, 12, "stages.3.blocks.1", "stages.0.blocks.0", {"stem"}),
    ("convnext_atto", True, 12, "stages_3.blocks.1", "stages_0.blocks.0", {"stem_0", "stem_1"}),
    ("fastvit_t8", False, 10, "stages.3.blocks.1", "stages.0.blocks.0", {"stem"}),
    ("repvit_m0_9", True, 20, "stages_3.blocks.1", "stages_0.blocks.0", {"stem"}),
    ("resnet18", True, 8, "layer4.1", "layer1.0", {"conv1", "bn1"}),
    ("regnetx_002", False, 13, "s4.b7", "s1.b1", {"stem"}),
    ("mobilevit_xxs", False, 10, "stages.4.1", "stages.0.0", {"stem"}),
    ("levit_128s", False, 9, "stages.2.blocks.3", "stages.0.blocks.0", {"stem"}),
    ("vit_base_patch14_dinov2", False, 12, "blocks.11", "blocks.0", {"cls_token", "pos_embed", "patch_embed"}),
    ("vit_small_plus_patch16_dinov3", False, 12, "blocks.11", "blocks.0", {"cls_token", "reg_token", "patch_embed"}),
    ("hgnetv2_b4", True, 6, "stages_3.blocks.0", "stages_0.blocks.0", {"stem"}),
    ("efficientnet_b0", True, 16, "blocks.6.0", "blocks.0.0", {"conv_stem", "bn1"}),
    ("mobilenetv3_large_100", True, 16, "blocks.6.0", "blocks.0.0", {"conv_stem", "bn1"}),
    ("convnextv2_atto", True, 12, "stages_3.blocks.1", "stages_0.blocks.0", {"stem_0", "stem_1"}),
    ("fastvit_t12", True, 12, "stages_3.blocks.1", "stages_0.blocks.0", {"stem_0", "stem_1", "stem_2"}),
    ("repvit_m1", True, 20, "stages_3.blocks.1", "stages_0.blocks.0", {"stem"}),
    ("resnet50", True, 16, "layer4.2", "layer1.0", {"conv1", "bn1"}),
    ("swin_tiny_patch4_window7_224", True, 12, "layers_3.blocks.1", "layers_0.blocks.0", {"patch_embed"}),
    ("efficientvit_b0", True, 10, "stages_3.blocks.2", "stages_0.blocks.0", {"stem_in_conv", "stem_res0"}),
]


@pytest.mark.parametrize(("name", "features_only", "blocks", "first", "last", "stem"), BACKBONES)
def test_timm_backbones(name: str, features_only: bool, blocks: int, first: str, last: str, stem: set[str]) -> None:
    with torch.device("meta"):
        model = timm.create_model(
            name, pretrained=False, **({"features_only": True} if features_only else {"num_classes": 0})
        )
    stages = discover_stages(model)
    assert_total_cover(model, stages)
    assert (stages.blocks, stages[0].name, stages[blocks - 1].name) == (blocks, first, last)
    assert {parameter.split(".")[0] for parameter in stages[blocks].parameters} == stem


@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_of_the_catalogue(student: str) -> None:
    with torch.device("meta"):
        backbone = build_student(STUDENTS[student]).backbone
    stages = discover_stages(backbone)
    assert_total_cover(backbone, stages)
    assert stages.blocks >= 3, "a thaw in fewer steps is none"
    # What the pictures meet first opens last, what the decoder reads opens first.
    names = [name for name, _ in backbone.named_parameters()]
    assert stages.of(names[0]) == stages.blocks
    assert stages.of(names[-1]) == 0


def test_final_norm_opens_with_the_last_block_and_downsampling_with_the_next() -> None:
    with torch.device("meta"):
        vit = discover_stages(timm.create_model("vit_tiny_patch16_224", num_classes=0))
        convnext = discover_stages(timm.create_model("convnext_atto", num_classes=0))
        efficientnet = discover_stages(timm.create_model("efficientnet_lite0", num_classes=0))
    assert vit.of("norm.weight") == vit.of("blocks.11.mlp.fc1.weight") == 0
    assert vit.of("blocks.10.norm1.weight") == 1
    assert convnext.of("stages.3.downsample.1.weight") == convnext.of("stages.3.blocks.0.mlp.fc1.weight") == 1
    assert efficientnet.of("conv_head.weight") == efficientnet.of("bn2.weight") == 0


def test_a_cut_backbone() -> None:
    with torch.device("meta"):
        vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    vit.prune_intermediate_layers([5], prune_norm=True)
    stages = discover_stages(vit)
    assert_total_cover(vit, stages)
    assert (stages.blocks, stages[0].name) == (6, "blocks.5")


def test_wrappers_and_prefix() -> None:
    net, neck, head = Net(), nn.Conv2d(4, 4, 1), nn.Linear(4, 1)
    backbone = nn.ModuleDict({"body": net, "neck": neck})
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    stages = discover_stages(backbone)
    assert_total_cover(backbone, stages)
    assert stages.blocks == 4
    assert stages.of("neck.weight") == 0
    for prefix in ("backbone", "backbone."):
        prefixed = discover_stages(model, prefix)
        assert [stage.parameters for stage in prefixed] == [
            tuple(f"backbone.{name}" for name in stage.parameters) for stage in stages
        ]
        assert prefixed[0].name == "backbone.body.layer2.1"
        prefixed.apply(model, 2, stem_open=False)
    assert neck.weight.requires_grad
    assert net.down.weight.requires_grad
    assert not net.get_parameter("stem.0.weight").requires_grad
    assert head.weight.requires_grad


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "no child is named like a series of blocks"),
        (nn.Identity(), "has no parameters"),
        (nn.ModuleDict({"body": nn.Linear(50, 50), "tail": nn.ModuleDict({"layers": nn.Linear(2, 2)})}), "series"),
    ],
)
def test_no_stages_is_an_error(backbone: nn.Module, message: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        discover_stages(backbone)
    assert caught.value.mendable


def test_apply_sets_gradients_and_modes_per_stage_and_is_idempotent() -> None:
    net = Net()
    stages = discover_stages(net)
    for open_blocks, stem_open in ((0, False), (2, False), (4, True), (1, False)):
        net.train()
        for _ in range(2):
            stages.apply(net, open_blocks, stem_open)
            for index, stage in enumerate(stages):
                expected = index < open_blocks if stage.counted else stem_open
                assert {net.get_parameter(name).requires_grad for name in stage.parameters} == {expected}
                assert {net.get_submodule(name).training for name in stage.modules} == {expected}
    with pytest.raises(ValueError, match="between 0 and 4, got 5"):
        stages.apply(net, 5, stem_open=True)
    with pytest.raises(StageError, match=r"lacks down\.bias, .* and 17 more, which its stages name"):
        stages.apply(nn.Conv2d(3, 3, 1), 1, stem_open=False)


def test_closing_drops_gradients() -> None:
    net = Net()
    stages = discover_stages(net)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    stages.apply(net, 1, stem_open=False)
    assert net.get_parameter("layer2.1.conv.weight").grad is not None
    assert all(net.get_parameter(name).grad is None for stage in list(stages)[1:] for name in stage.parameters)


def train(net: nn.Module, stages: Stages, open_blocks: int, stem_open: bool, size: int, steps: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(steps):
        net.train()
        stages.apply(net, open_blocks, stem_open)
        optimizer.zero_grad()
        net(torch.rand(2, 3, size, size)).square().mean().backward()
        optimizer.step()


def moved(before: dict[str, torch.Tensor], net: nn.Module) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("open_blocks", [0, 1, 2, 3])
def test_frozen_means_frozen(open_blocks: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.backbone = Net()
    net.head = nn.Conv2d(4, 2, 1)
    stages = discover_stages(net, "backbone")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, stages, open_blocks, stem_open=False, size=8, steps=4)
    changed = moved(before, net)
    closed = {name for stage in list(stages)[open_blocks:] for name in stage.modules if name != "backbone"}
    assert not {name for name in changed if name.rpartition(".")[0] in closed}
    assert "backbone.token" not in changed
    # And what is open does move, statistics included, so that the check above can fail.
    assert "head.weight" in changed
    if open_blocks:
        assert {"backbone.layer2.1.conv.weight", "backbone.layer2.1.bn.running_mean", "backbone.norm.weight"} <= changed


def test_frozen_means_frozen_in_a_timm_network() -> None:
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0, drop_path_rate=0.3, drop_rate=0.3)
    stages = discover_stages(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, stages, 3, stem_open=False, size=32, steps=3)
    changed = moved(before, net)
    still = {name for name in before if name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"))}
    assert not changed & still
    assert "blocks.5.0.bn1.running_mean" in changed
    assert "blocks.4.1.conv_pw.weight" in changed


def test_a_closed_prefix_is_deterministic_and_not_paid_for() -> None:
    net = Net()
    stages = discover_stages(net)
    images = torch.rand(2, 3, 8, 8)

    def saved(open_blocks: int, stem_open: bool) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        net.train()
        stages.apply(net, open_blocks, stem_open)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            net(images)
        return total

    with torch.no_grad():
        net.train()
        stages.apply(net, 2, stem_open=False)
        assert torch.equal(net.layer1(net.stem(images)), net.layer1(net.stem(images)))
    assert not net.layer1(net.stem(images) + net.token).requires_grad
    measured = [saved(0, False), saved(1, False), saved(2, False), saved(4, True)]
    assert measured[0] == 0
    assert measured == sorted(set(measured))


def test_tokens_without_a_stem_module_are_the_stem() -> None:
    trunk = nn.Module()
    trunk.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
    trunk.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))])
    stages = discover_stages(trunk)
    assert_total_cover(trunk, stages)
    assert (stages.blocks, stages.of("cls_token"), stages[2].parameters) == (2, 2, ("cls_token",))
