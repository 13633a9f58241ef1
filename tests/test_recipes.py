"""The recipes: each is read and planned, and what one says of its weights is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from distill.cli import main
from distill.configuration import load_run_config
from schedules.plan import compile_plan
from schedules.stages import discover_stages
from students.catalogue import build_student, student_config
from teachers.pretrained import load_pretrained_backbone

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_opens_what_it_says_within_its_run(path: Path) -> None:
    config = load_run_config(path, {})
    with torch.device("meta"):
        stages = discover_stages(build_student(student_config(config.student)).backbone)
    plan = compile_plan(config.plan_config(10), stages.blocks)
    assert plan.warnings == []
    if plan.config.progressive:
        assert plan.final_unfreeze_epoch is not None and 0 < plan.final_unfreeze_epoch < plan.config.epochs


def test_the_pico_recipe_is_of_a_pico() -> None:
    config = load_run_config(RECIPES / "gazefollow_pico.toml", {})
    assert student_config(config.student).backbone == "hgnetv2_pico"


def test_the_pico_recipes_weights_are_made_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are run, with weights from noise in place of the hub's: what they write loads strictly and gives B0's own features."""
    text = (RECIPES / "gazefollow_pico.toml").read_text()
    script = re.search(r"<<'EOF'\n(.*?)#   EOF", text, re.DOTALL)
    assert script is not None
    lines = script.group(1).replace("#   ", "")
    plain, made = timm.create_model, []

    def create_model(name: str, pretrained: bool = False, **options: Any) -> Any:
        assert pretrained
        torch.manual_seed(0)
        made.append(plain(name, **options).eval())
        return made[-1]

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    config = load_run_config(RECIPES / "gazefollow_pico.toml", {})
    student = build_student(student_config(config.student)).eval()
    assert load_pretrained_backbone(student, Path(config.backbone_weights))["source"] == "hgnetv2_pico.safetensors"
    (whole,) = made
    pixels = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        expected = whole.stages[:3](whole.stem(pixels))
        assert torch.allclose(student.backbone(pixels), expected, atol=1e-5) and expected.std() > 0


def test_without_the_file_it_is_said_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fixtures import write_gazefollow

    data = write_gazefollow(tmp_path / "data", 6)
    words = ["--data", str(data), "--cache", "", "--distill-weight", "0", "--runs", str(tmp_path / "runs"), "--device", "cpu", "--limit-steps", "1"]
    assert main(["train", str(RECIPES / "gazefollow_pico.toml"), *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "hgnetv2_pico.safetensors" in said and "--backbone-weights" in said
