"""Optimizer groups per stage, their rates, and state that crosses a thaw."""

from typing import Any

import pytest
import torch
from torch import nn

from schedules.config import PlanConfig
from schedules.errors import OptimizerStateError, StageError
from schedules.optimizer import (
    load_optimizer_state_by_name,
    optimizer_state_by_name,
    parameter_groups,
    set_learning_rates,
)
from schedules.plan import Plan, compile_plan
from schedules.stages import Stages, discover_stages


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.fc(self.norm(x)))


class Backbone(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.ones(1, 3, 4))
        self.patch_embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Student(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.backbone = Backbone(blocks)
        self.head = nn.Linear(4, 2)
        self.gaze_token = nn.Parameter(torch.ones(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x)) * self.gaze_token


STEPS = 4  # an epoch; blocks open at epochs 1 and 2


def build(seed: int = 0, fused: bool = False) -> tuple[Student, Stages, torch.optim.Optimizer, Plan]:
    torch.manual_seed(seed)
    student = Student()
    stages = discover_stages(student.backbone)
    groups = parameter_groups(student, stages, "backbone", weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=fused)
    config = PlanConfig(
        epochs=4,
        steps_per_epoch=STEPS,
        finetune=True,
        finetune_layers=1,
        initial_freeze_epochs=1,
        unfreeze_interval=1,
        thaw_warmup="2 steps",
        lr=0.01,
    )
    return student, stages, optimizer, compile_plan(config, stages.blocks)


def train(parts: tuple[Student, Stages, torch.optim.Optimizer, Plan], first: int, last: int) -> None:
    student, stages, optimizer, plan = parts
    for step in range(first, last):
        point = plan.at(step)
        student.train()
        stages.apply(student.backbone, point.open_blocks, point.stem_open)
        set_learning_rates(optimizer, point)
        optimizer.zero_grad()
        images = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(step))
        student(images).square().mean().backward()
        optimizer.step()


def test_groups_are_exact() -> None:
    student = Student(blocks=2)
    stages = discover_stages(student.backbone)
    groups = parameter_groups(student, stages, "backbone.", weight_decay=0.1)
    assert [(group["name"], group["stage"], group["weight_decay"], group["param_names"]) for group in groups] == [
        ("head decayed", -1, 0.1, ["head.weight"]),
        ("head undecayed", -1, 0.0, ["gaze_token", "head.bias"]),
        ("blocks.1 decayed", 0, 0.1, ["backbone.blocks.1.fc.weight"]),
        (
            "blocks.1 undecayed",
            0,
            0.0,
            [
                "backbone.blocks.1.norm.weight",
                "backbone.blocks.1.norm.bias",
                "backbone.blocks.1.fc.bias",
                "backbone.norm.weight",
                "backbone.norm.bias",
            ],
        ),
        ("blocks.0 decayed", 1, 0.1, ["backbone.blocks.0.fc.weight"]),
        (
            "blocks.0 undecayed",
            1,
            0.0,
            ["backbone.blocks.0.norm.weight", "backbone.blocks.0.norm.bias", "backbone.blocks.0.fc.bias"],
        ),
        ("stem decayed", 2, 0.1, ["backbone.patch_embed.weight"]),
        ("stem undecayed", 2, 0.0, ["backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed.bias"]),
    ]
    named = dict(student.named_parameters())
    for group in groups:
        assert all(
            named[name] is parameter for name, parameter in zip(group["param_names"], group["params"], strict=True)
        )


def test_groups_with_prefixed_stages_and_a_bare_backbone() -> None:
    student = Student()
    plain = parameter_groups(student, discover_stages(student.backbone), "backbone", 0.1)
    prefixed = parameter_groups(student, discover_stages(student, "backbone"), "", 0.1)
    assert [group["param_names"] for group in prefixed] == [group["param_names"] for group in plain]
    bare = parameter_groups(student.backbone, discover_stages(student.backbone), "", 0.1)
    assert {group["stage"] for group in bare} == {0, 1, 2, 3}


def test_groups_of_another_backbone_are_refused() -> None:
    with pytest.raises(StageError, match=r"'backbone.blocks.2.* is in no stage"):
        parameter_groups(Student(3), discover_stages(Backbone(2)), "backbone", 0.1)
    with pytest.raises(StageError, match=r"backbone.blocks.2.* which the model lacks"):
        parameter_groups(Student(2), discover_stages(Backbone(3)), "backbone", 0.1)


def test_rates_follow_the_plan() -> None:
    parts = build()
    _, _, optimizer, plan = parts
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    for step in (0, 3, 4, 5, 9, 100):
        point = plan.at(step)
        set_learning_rates(optimizer, point)
        rates = {group["stage"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {-1: point.lr_head, **dict(enumerate(point.lr_stages))}
    assert plan.at(4).lr_stages[1] == pytest.approx(plan.at(4).lr_stages[0] / 2)
    assert plan.at(3).lr_stages[1:] == (0.0, 0.0, 0.0)
    with pytest.raises(StageError, match="stage 2 but the plan only 2"):
        set_learning_rates(optimizer, compile_plan(plan.config, 1).at(0))


def test_rates_of_a_device_side_optimizer_are_filled_in_place() -> None:
    student, stages, _, plan = build()
    optimizer = torch.optim.AdamW(parameter_groups(student, stages, "backbone", 0.1), lr=1.0)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0, dtype=torch.float64)
    tensors = [group["lr"] for group in optimizer.param_groups]
    set_learning_rates(optimizer, plan.at(5))
    assert tensors[0].item() == plan.at(5).lr_head
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))


def test_a_stage_has_state_once_it_has_opened() -> None:
    parts = build()
    train(parts, 0, STEPS)
    state = optimizer_state_by_name(parts[2])
    assert set(state) == {
        name for name in dict(parts[0].named_parameters())
        if name.startswith(("head", "gaze_token", "backbone.blocks.2", "backbone.norm"))
    }  # fmt: skip
    assert set(state["head.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    train(parts, STEPS, 3 * STEPS)
    assert set(optimizer_state_by_name(parts[2])) == set(dict(parts[0].named_parameters()))
    # What was read out is a copy.
    assert float(state["head.weight"]["step"]) == STEPS


def everything(parts: tuple[Student, Stages, torch.optim.Optimizer, Plan]) -> dict[str, Any]:
    flat: dict[str, Any] = dict(parts[0].state_dict())
    for name, entries in optimizer_state_by_name(parts[2]).items():
        flat |= {f"{name}/{key}": value for key, value in entries.items()}
    return flat


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stop", range(0, 4 * STEPS + 1))
def test_resume_at_any_step_is_the_undisturbed_run_to_the_bit(stop: int, fused: bool) -> None:
    whole = build(fused=fused)
    train(whole, 0, 4 * STEPS)
    killed = build(fused=fused)
    train(killed, 0, stop)
    saved, weights = optimizer_state_by_name(killed[2]), {k: v.clone() for k, v in killed[0].state_dict().items()}
    resumed = build(seed=1, fused=fused)
    resumed[0].load_state_dict(weights)
    load_optimizer_state_by_name(resumed[2], saved)
    train(resumed, stop, 4 * STEPS)
    expected, found = everything(whole), everything(resumed)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_state_loads_on_either_side_of_a_thaw() -> None:
    before, after = build(), build()
    train(before, 0, STEPS)
    train(after, 0, 3 * STEPS)
    early, late = optimizer_state_by_name(before[2]), optimizer_state_by_name(after[2])
    # Saved before a thaw, loaded where everything is open: the later stages end up without state.
    load_optimizer_state_by_name(after[2], early)
    assert set(optimizer_state_by_name(after[2])) == set(early)
    train(after, 3 * STEPS, 3 * STEPS + 1)
    # Saved after it, loaded where most is closed.
    load_optimizer_state_by_name(before[2], late)
    assert set(optimizer_state_by_name(before[2])) == set(late)
    train(before, STEPS - 1, STEPS)
    # Loading copies: training on did not change what was saved.
    assert float(late["head.weight"]["step"]) == 3 * STEPS


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    parts = build()
    train(parts, 0, 2)
    before = optimizer_state_by_name(parts[2])
    with pytest.raises(OptimizerStateError, match=r"names body.weight, which this model lacks") as caught:
        load_optimizer_state_by_name(parts[2], {**before, "body.weight": {"step": 1.0}})
    assert caught.value.mendable
    misshapen: dict[str, Any] = {**before, "head.weight": {"exp_avg": torch.zeros(3, 3)}}
    with pytest.raises(OptimizerStateError, match=r"exp_avg of shape \(3, 3\) for head.weight, the model has \(2, 4\)"):
        load_optimizer_state_by_name(parts[2], misshapen)
    after = optimizer_state_by_name(parts[2])
    assert set(after) == set(before)
    assert torch.equal(
        torch.as_tensor(after["head.weight"]["exp_avg"]), torch.as_tensor(before["head.weight"]["exp_avg"])
    )
