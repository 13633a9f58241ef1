"""The progressive-unfreezing guide, line by line: its flags, defaults, messages, recipes, advice and troubleshooting."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from distill.cli import build_parser, main, with_dashes
from distill.commands.plan import schedule_overrides
from distill.commands.train import resumed_config
from distill.configuration import load_run_config
from schedules.advice import OUT_OF_MEMORY, REGRESSION, SPIKE
from schedules.config import PlanConfig
from schedules.errors import PlanError
from schedules.plan import Plan, compile_plan

RECIPES = Path(__file__).parents[1] / "recipes"
FLAGS = {
    "--finetune": False, "--finetune_layers": 2, "--initial_freeze_epochs": 10, "--unfreeze_interval": 3,
    "--disable_progressive_unfreeze": False,
}


def parsed(command: str, words: str) -> argparse.Namespace:
    return build_parser().parse_args(with_dashes([command, *words.split()]))


def plan_of(words: str, blocks: int = 12) -> Plan:
    given = schedule_overrides(parsed("plan", words))
    return compile_plan(PlanConfig(steps_per_epoch=10, **{"epochs": 45, **given}), blocks)


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize("flag", FLAGS)
def test_section_2_flags_and_defaults(command: str, flag: str) -> None:
    name = flag.removeprefix("--")
    (default,) = (field.default for field in fields(PlanConfig) if field.name == name)
    assert default == FLAGS[flag] and type(default) is type(FLAGS[flag])
    assert name not in vars(parsed(command, ""))  # not given is not the same as given with the default
    value = "" if isinstance(default, bool) else " 7"
    for spelling in (flag, flag.replace("_", "-")):
        assert str(getattr(parsed(command, spelling + value), name)) == (value.strip() or "True")


def test_section_2_meanings() -> None:
    assert [line.open_blocks for line in plan_of("").epochs_table] == [0] * 45  # without the flag the backbone stays frozen
    counted = plan_of("--finetune").epochs_table
    assert [line.open_blocks for line in counted[:10]] == [2] * 10  # held
    assert [line.open_blocks for line in counted[10:17]] == [3, 3, 3, 4, 4, 4, 5]  # then one more every three epochs
    assert all(rate > 0 for rate in counted[0].lr_blocks[:2]) and counted[0].lr_blocks[2:] == (0.0,) * 10  # from the last block backwards
    for layers in ("0", "-1"):
        first = plan_of(f"--finetune --finetune_layers={layers}").epochs_table[0]
        assert (first.open_blocks, first.stem_open) == (12, True)
    fixed = plan_of("--finetune --finetune_layers 3 --disable_progressive_unfreeze")
    assert {(line.open_blocks, line.stem_open) for line in fixed.epochs_table} == {(3, False)}


def test_section_3_messages() -> None:
    plan = plan_of("--finetune")
    assert plan.messages[0] == "Progressive unfreeze scheduled after 10 epochs, adding one block every 3 epochs."
    assert plan.messages[1] == "All 12 blocks and the stem are expected to be unfrozen at epoch 37 (epochs count from 0)."
    assert plan.final_unfreeze_epoch == 37 and plan.warnings == []
    # final >= epochs warns, one fewer does not.
    assert plan_of("--finetune --epochs 38").warnings == []
    (warning,) = plan_of("--finetune --epochs 37").warnings
    assert warning.startswith("The last stage opens at epoch 37 only, beyond this run of 37 epochs")
    assert "38 epochs would be needed: raise --epochs to 38, or lower --initial-freeze-epochs or --unfreeze-interval" in warning


GUIDES_OWN: dict[str, dict[str, Any]] = {
    "frozen_backbone": {},
    "gentle_finetune": {"finetune": True, "finetune_layers": 2, "initial_freeze_epochs": 5, "unfreeze_interval": 2},
    "full_adaptation": {"finetune": True, "finetune_layers": 0, "disable_progressive_unfreeze": True},
    "slow_burn": {"finetune": True, "finetune_layers": 4, "initial_freeze_epochs": 15, "unfreeze_interval": 5},
}


@pytest.mark.parametrize("name", GUIDES_OWN)
def test_section_4_recipes(name: str) -> None:
    schedule = load_run_config(RECIPES / f"{name}.toml", {}).schedule
    guides = {key: value for key, value in schedule.items() if key in {flag.removeprefix("--") for flag in FLAGS}}
    assert guides == GUIDES_OWN[name]
    plan = compile_plan(load_run_config(RECIPES / f"{name}.toml", {}).plan_config(100), 12)
    assert plan.warnings == []


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_planned_on_its_own_student(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["warnings"] == []
    assert len(plan["epochs"]) == load_run_config(recipe, {}).schedule["epochs"]


def test_section_5_monitoring() -> None:
    assert "too aggressive" in SPIKE and "lower --backbone-lr" in SPIKE and "10x smaller than the head" in SPIKE and "--unfreeze-interval" in SPIKE
    plan = plan_of("--finetune --lr 1e-3")
    assert plan.config.backbone_rate == 1e-4  # the guide's ten times smaller is the default
    (warning,) = plan_of("--finetune --lr 1e-3 --backbone_lr 2e-3 --initial_freeze_epochs 1").warnings
    assert "lowering --backbone-lr to 0.0001 (10x smaller than the head's)" in warning


def test_section_6_distillation() -> None:
    slowed = plan_of("--finetune --distill_weight 1.0 --epochs 90")
    assert any("slows the thaw clock up to 2 times" in message for message in slowed.messages)
    epochs = [epoch for epoch, _ in slowed.thaw_events]
    assert epochs[1:4] == [20, 26, 32]  # a loud teacher: the hold and the intervals last twice as long
    plain = plan_of("--finetune --distill_weight 1.0 --thaw_coupling 0 --epochs 90")
    assert any("with large weights keep --unfreeze-interval longer" in message for message in plain.messages)


def test_section_7_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved = load_run_config(RECIPES / "gentle_finetune.toml", {})
    (run / "config.json").write_text(json.dumps(saved.to_json()))
    # What a checkpoint holds: every flag of the guide, also those that were left to their defaults.
    assert {flag.removeprefix("--") for flag in FLAGS} <= set(saved.plan_config(1).to_dict())
    other: dict[str, Any] = {
        "finetune": False, "finetune_layers": 3, "initial_freeze_epochs": "4 epochs", "unfreeze_interval": "9 epochs",
        "disable_progressive_unfreeze": True,
    }
    kept = resumed_config(run, other, override=False)
    warned = capsys.readouterr().err
    assert kept.schedule == saved.schedule
    for name in other:
        assert f"--{name.replace('_', '-')}" in warned
    assert warned.count("which is kept") == 5


def test_section_8_nothing_is_being_unfrozen() -> None:
    (warning,) = plan_of("--finetune_layers 4 --unfreeze_interval 1").warnings
    assert warning == "Nothing is being unfrozen: --finetune-layers, --unfreeze-interval given without --finetune; add --finetune."
    with pytest.raises(PlanError, match="nothing is being unfrozen; set --unfreeze-interval"):
        plan_of("--finetune --unfreeze_interval 0")
    short = plan_of("--finetune --epochs 10")
    assert any("Nothing is being unfrozen beyond the first 2 blocks" in text and "--epochs exceeds --initial-freeze-epochs" in text for text in short.warnings)
    assert plan_of("--finetune --finetune_layers 0").messages == ["All 12 blocks and the stem are open from the start."]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (OUT_OF_MEMORY, ("exceed memory once gradients flow through deeper layers", "reduce the batch size", "--use-amp", "slow the cadence")),
        (REGRESSION, ("cap the number of blocks", "--finetune-layers", "unfreeze progressively over a longer schedule")),
    ],
    ids=["out of memory", "regression"],
)
def test_section_8_other_troubles(text: str, advice: tuple[str, ...]) -> None:
    assert [part for part in advice if part not in text] == []
    assert "\n" not in text
