"""`distill plan`: JSON, the table and how it draws equal epochs together, the text picture, what is missing and what wins."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from distill.commands import plan as plan_command
from distill.errors import ConfigurationError
from distill.plan_table import COLUMNS, table_rows, text_picture
from schedules.config import PlanConfig
from schedules.cost import StageSizes, equal_blocks
from schedules.errors import PlanError
from schedules.plan import compile_plan


def config(epochs: int = 45, **values: Any) -> PlanConfig:
    return PlanConfig(epochs=epochs, steps_per_epoch=10, **{"finetune": True, **values})


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plan_command.register(parser.add_subparsers())
    args = parser.parse_args(["plan", *arguments])
    return int(args.run(args))


GUIDE = (
    "--blocks 12 --epochs 45 --finetune --finetune-layers 2 --initial-freeze-epochs 10 --unfreeze-interval 3 "
    "--distill-weight 0.3"
)


def test_command_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*GUIDE.split(), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["final_unfreeze_epoch"] == 49
    assert len(facts["warnings"]) == 1
    assert [line["epoch"] for line in facts["epochs"]] == list(range(45))
    first = facts["epochs"][0]
    assert {key: first[key] for key in ("epoch", "open_blocks", "thaw_time", "distill_weight", "temperature")} == {
        "epoch": 0,
        "open_blocks": 2,
        "thaw_time": 0.0,
        "distill_weight": 0.3,
        "temperature": 1.0,
    }
    assert command(*GUIDE.split(), "--thaw-by", "80%", "--json") == 0
    solved = json.loads(capsys.readouterr().out)
    assert solved["warnings"] == []
    assert solved["final_unfreeze_epoch"] <= 36
    assert solved["epochs"][36]["stem_open"] is True
    assert solved["config"]["unfreeze_interval"] == "1.9658 epochs"


def test_command_table_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*GUIDE.split()) == 0
    captured = capsys.readouterr()
    assert "Progressive unfreeze scheduled after 10 epochs, adding one block every 3 epochs." in captured.out
    assert "50 epochs would be needed" in captured.err
    assert "every block alike (there is no model to count on)" in captured.out
    (row,) = (line for line in captured.out.splitlines() if line.strip().startswith("│ 13 – 16 "))
    assert [cell.strip() for cell in row.strip("│ ").split("│")[:7]] == ["13 – 16", "0.3", "1", "10 → 12.31", "3/12", "+1", "-"]
    assert command(*GUIDE.split(), "--every-epoch") == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if line.strip().startswith("│    13 "))
    assert [cell.strip() for cell in row.strip("│ ").split("│")[:6]] == ["13", "0.3", "1", "10", "3/12", "+1"]
    assert sum(line.startswith("│") for line in lines) == 45


def test_equal_epochs_are_one_row_of_a_long_plan() -> None:
    values: dict[str, Any] = {"finetune_layers": 1, "initial_freeze_epochs": 2, "unfreeze_interval": 4, "distill_weight": "linear 1 -> 0"}
    sizes = StageSizes((100, 1000, 10_000, 5), (3.0, 2.0, 1.0, 0.0), head_parameters=7, head_work=4.0)
    flat = {"lr": 1.0, "backbone_lr": 0.5, "lr_schedule": "constant", "warmup": 0, "thaw_warmup": 0, "layer_decay": 0.5, "thaw_coupling": 0.0}
    plan = compile_plan(config(epochs=30, **values, **flat), blocks=3)
    rows = table_rows(plan, sizes, parameters=True)
    assert rows == [
        ["0 – 1", "1 → 0.9667", "1", "0 → 1", "1/3", "+1", "107", "1.00e+00", "5.00e-01", "5.00e-01", "80%"],
        ["2 – 5", "0.9333 → 0.8333", "1", "2 → 5", "2/3", "+1", "1,107", "1.00e+00", "5.00e-01", "2.50e-01", "93%"],
        ["6 – 29", "0.8 → 0.03333", "1", "6 → 29", "3/3 + stem", "+1", "11,112", "1.00e+00", "5.00e-01", "6.25e-02", "100%"],
    ]
    assert len(COLUMNS) == len(rows[0])
    assert [row[0] for row in table_rows(compile_plan(config(epochs=4, **values), blocks=3), sizes, parameters=True)] == ["0", "1", "2", "3"]
    frozen = table_rows(compile_plan(config(epochs=25, finetune=False), blocks=3), sizes, parameters=True)
    assert [(row[0], *row[4:7], row[8], row[9]) for row in frozen] == [("0 – 24", "0/3", "", "7", "-", "-")]


def test_cost_counts_forward_once_and_backward_twice() -> None:
    sizes = equal_blocks(12)
    # Twelve forwards of one unit and the backward, of two, of what is open, over thirty-six.
    assert [sizes.cost(opened, False) for opened in (0, 2, 12)] == pytest.approx([12 / 36, 16 / 36, 1.0])
    with_head = StageSizes((0, 0, 0), (1.0, 3.0, 2.0), head_work=4.0)
    assert with_head.cost(0, False) == pytest.approx((6 + 12) / 30)
    assert with_head.cost(1, False) == pytest.approx((6 + 12 + 2) / 30)
    assert with_head.cost(2, True) == 1.0


def test_picture_is_exact() -> None:
    plan = compile_plan(config(epochs=12, finetune_layers=1, initial_freeze_epochs=2, unfreeze_interval=4), blocks=3)
    assert text_picture(plan) == [
        "  block 2 ████████████",
        "  block 1 ░░██████████",
        "  block 0 ░░░░░░██████",
        "     stem ░░░░░░██████",
        "    epoch 0         10",
        "        w              (highest 0)",
        "        T ████████████ (highest 1)",
    ]


def test_steps_in_an_epoch_are_not_assumed_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    told = "an epoch is taken to have 100 of them"
    for words in (["--warmup", "50 steps"], ["--distill-weight", "stairs 0: 1, 300 steps: 0.5"]):
        for more, warned in (([], True), (["--steps-per-epoch", "100"], False)):
            assert command("--blocks", "2", "--epochs", "9", *words, *more, "--json") == 0
            assert (told in capsys.readouterr().err) == warned
    assert command("--blocks", "2", "--epochs", "9", "--warmup", "5%", "--json") == 0
    assert capsys.readouterr().err == ""


def test_another_student_is_planned_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "run.toml"
    recipe.write_text('[student]\nstudent = "lite0_tiny"\n[schedule]\nepochs = 2\n')
    found = []
    for words in ([str(recipe)], [str(recipe), "--student", "vit_tiny"], ["--student", "vit_tiny", "--epochs", "2"]):
        assert command(*words, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        found.append((facts["blocks"], facts["epochs"][0]["trainable_parameters"]))
    assert [blocks for blocks, _ in found] == [11, 12, 12] and found[1] == found[2] and found[0][1] != found[1][1]


def test_the_picture_fits_a_narrow_terminal() -> None:
    plan = compile_plan(config(epochs=300, distill_temp_end=3.987), blocks=30)
    for width in (40, 80, 120):
        lines = text_picture(plan, width)
        assert max(map(len, lines)) <= width
        assert len(lines[0]) == min(width - 20, 110)  # as wide as there is room for
    assert {len(line) for line in text_picture(plan, 1)[:3]} == {11}


def test_messages_are_lines_of_their_own_however_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert command(*GUIDE.split(), "--thaw-coupling", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Progressive unfreeze scheduled after 10 epochs, adding one block every 3 epochs." in lines
    assert lines[-1].startswith("With --thaw-coupling 0") and lines[-1].endswith("before more of it opens.")


def test_command_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="--epochs"):
        command("--blocks", "12")
    with pytest.raises(ConfigurationError, match="--blocks"):
        command("--epochs", "12")
    with pytest.raises(PlanError, match="must not be negative"):
        command("--blocks", "12", "--epochs", "12", "--distill-weight", "-1")
    for blocks, more in (("0", []), ("0", ["--finetune"]), ("-3", [])):
        with pytest.raises(PlanError, match=f"--blocks is {blocks}, and a backbone that yields no stages has no plan; give at least 1"):
            command("--blocks", blocks, "--epochs", "12", *more)


def test_a_directory_in_place_of_a_run_file_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{tmp_path} is a directory, where a run file \(TOML\) is expected; recipes/ holds examples"):
        command(str(tmp_path), "--blocks", "3")
    (tmp_path / "mine.toml").write_text("[schedule]\nepochs = 2\n")
    with pytest.raises(ConfigurationError, match=f"name one of its run files, such as {tmp_path}/mine.toml"):
        command(str(tmp_path), "--blocks", "3")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=f"it holds a run: its compiled plan is {tmp_path}/plan.json, `distill report {tmp_path}`"):
        command(str(tmp_path), "--blocks", "3")
    with pytest.raises(ConfigurationError, match=r"mine.toml/more.toml cannot be read \(Not a directory\); mend that"):
        command(str(tmp_path / "mine.toml/more.toml"), "--blocks", "3")


def test_command_reads_a_run_file_and_options_override_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text("[schedule]\nepochs = 8\nfinetune = true\nfinetune_layers = 3\ninitial_freeze_epochs = 2\n")
    assert command(str(recipe), "--blocks", "6", "--unfreeze-interval", "2 epochs", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [line["open_blocks"] for line in facts["epochs"]] == [3, 3, 4, 4, 5, 5, 6, 6]
