"""The configuration of a run: what is read, what is refused and in which words, and who wins."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

import pytest

from distill.cli import build_parser, with_dashes
from distill.configuration import RunConfig, config_from_sections, load_run_config, run_overrides
from distill.errors import ConfigurationError
from schedules.errors import PlanError
from schedules.plan import PlanConfig

FILE = """
[run]
seed = 4
[student]
student = "vit_tiny"
[data]
data = "scenes"
batch_size = 8
augment = 1
[train]
use_amp = true
[loss]
softmax_weight = 0.5
[schedule]
epochs = 12
finetune = true
initial_freeze_epochs = "25%"
distill_weight = "cosine 1.0 -> 0.1"
"""


def written(tmp_path: Path, text: str = FILE) -> Path:
    path = tmp_path / "gentle.toml"
    path.write_text(text)
    return path


def given(*words: str) -> dict[str, object]:
    return run_overrides(build_parser().parse_args(with_dashes(["train", *words])))


def test_a_run_file_is_read_section_by_section(tmp_path: Path) -> None:
    config = load_run_config(written(tmp_path), {})
    assert (config.name, config.seed, config.student, config.data, config.batch_size) == ("gentle", 4, "vit_tiny", "scenes", 8)
    assert config.use_amp is True and config.softmax_weight == 0.5
    assert config.augment == 1.0 and isinstance(config.augment, float)  # a whole number will do where a real one is meant
    assert config.schedule == {"epochs": 12, "finetune": True, "initial_freeze_epochs": "25%", "distill_weight": "cosine 1.0 -> 0.1"}
    untouched = RunConfig()
    assert (config.runs, config.workers, config.weight_decay) == (untouched.runs, untouched.workers, untouched.weight_decay)
    plan = config.plan_config(100)
    assert isinstance(plan, PlanConfig) and (plan.epochs, plan.steps_per_epoch, plan.finetune) == (12, 100, True)


def test_a_file_may_name_its_run_itself(tmp_path: Path) -> None:
    assert load_run_config(written(tmp_path, '[run]\nname = "other"\n'), {}).name == "other"
    assert load_run_config(None, {}) == RunConfig()


def test_the_command_line_wins(tmp_path: Path) -> None:
    overrides = given("--batch-size", "32", "--no-use-amp", "--epochs", "3", "--distill_weight", "0.3", "--name=quick", "--seed", "9")
    assert overrides == {"batch_size": 32, "use_amp": False, "epochs": 3, "distill_weight": "0.3", "name": "quick", "seed": 9}
    config = load_run_config(written(tmp_path), overrides)
    assert (config.batch_size, config.use_amp, config.name, config.seed) == (32, False, "quick", 9)
    assert config.schedule == {"epochs": 3, "finetune": True, "initial_freeze_epochs": "25%", "distill_weight": "0.3"}
    assert config.student == "vit_tiny"
    assert given() == {}, "an option that was not given takes part"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[date]\nbatch_size = 8", r"unknown section \[date\]; nearest: data; sections are data, loss, run, schedule, student, train"),
        ("[zzz]\n", r"unknown section \[zzz\]; sections are"),
        ("[data]\nbach_size = 8", r"unknown key 'bach_size' in \[data\]; nearest: batch_size in \[data\]"),
        ("[schedule]\nfinetune_layer = 8", r"unknown key 'finetune_layer' in \[schedule\]; nearest: finetune_layers in \[schedule\]"),
        ("[schedule]\nsteps_per_epoch = 8", "unknown key 'steps_per_epoch'"),
        ("[run]\nbatch_size = 8", r"key 'batch_size' belongs to \[data\], not to \[run\]; move it there"),
        ("[train]\nlr = 0.1", r"key 'lr' belongs to \[schedule\], not to \[train\]"),
        ("[run]\nqqqq = 8", r"unknown key 'qqqq' in \[run\]; nearest: the keys of \[run\]"),
        ("batch_size = 8", r"key 'batch_size' stands outside the sections; move it below \[data\]"),
        ("data = 'scenes'", "data must be a section of keys, got 'scenes'"),
        ("run = 3", "run must be a section of keys, got 3"),
        ("[data]\nbatch_size = 'many'", "batch_size must be int, got 'many'"),
        ("[data]\nbatch_size = 8.0", "batch_size must be int, got 8.0"),
        ("[data]\nbatch_size = true", "batch_size must be int, got True"),
        ("[data]\naugment = true", "augment must be float, got True"),
        ("[train]\nuse_amp = 1", "use_amp must be bool, got 1"),
        ("[data]\ncache = 3", "cache must be str, got 3"),
        ("[data]\nbatch_size = 0", "batch_size is 0; it must be at least 1"),
        ("[data]\naugment = 2.5", "augment is 2.5; give a strength between 0 and 2"),
        ("[data]\naugment = nan", "augment is nan; give a finite number"),
        ("[train]\nweight_decay = nan", "weight_decay is nan; give a finite number"),
        ("[loss]\nbce_weight = inf", "bce_weight is inf; give a finite number"),
        ("[loss]\ninout_weight = -1", r"inout_weight is -1\.0; it must be at least 0"),
        ("[run]\ndevice = 'tpu'", "device is 'tpu'; use auto, cpu or cuda"),
        ("[train]\noptimizer = 'adam'", "optimizer is 'adam'; use adamw or sgd"),
        ("[train]\non_spike = 'stop'", "on_spike is 'stop'; use warn or hold"),
        ("[train]\nspike_factor = 1.0", "spike_factor is 1.0; it must be above 1"),
        ("[train]\nspike_window = 0", "spike_window is 0; it must be at least 1"),
        ("[train]\nema_decay = 1.0", "ema_decay is 1.0; it must be below 1"),
        ("[train]\nmomentum = -0.1", "momentum is -0.1; it must be at least 0"),
        ("[train]\npatience = -1", "patience is -1; it must be at least 0"),
        ("[run]\ntimeout_minutes = 0", "timeout_minutes is 0; it must be at least 1"),
        ("[train]\ncompile = true\ngrad_checkpointing = true", "--compile and --grad-checkpointing are both set"),
        ("[data\n", "is not valid TOML"),
    ],
)
def test_what_a_run_file_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    for overrides in ({}, {"batch_size": 4, "data": "x"}):
        with pytest.raises(ConfigurationError, match=message) as caught:
            load_run_config(path, overrides)
        assert "\n" not in str(caught.value)
        assert "gentle.toml" in str(caught.value)


def test_a_run_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml does not exist; recipes/ holds examples"):
        load_run_config(tmp_path / "gone.toml", {})
    (tmp_path / "latin.toml").write_bytes(b'[run]\nname = "caf\xe9"\n')
    with pytest.raises(ConfigurationError, match=r"latin\.toml is not valid TOML"):
        load_run_config(tmp_path / "latin.toml", {})


def test_an_override_is_judged_like_the_file(tmp_path: Path) -> None:
    for path in (None, written(tmp_path)):
        with pytest.raises(ConfigurationError, match="command line: workers is 0; it must be at least 1"):
            load_run_config(path, {"workers": 0})
    with pytest.raises(ConfigurationError, match="command line: batch_size must be int"):
        load_run_config(None, {"batch_size": "8"})


def test_the_length_must_be_given_and_the_schedule_is_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"set epochs in \[schedule\], or --epochs N"):
        RunConfig().plan_config(10)
    with pytest.raises(PlanError, match="epochs must be a whole number of at least 1, got 0"):
        RunConfig(schedule={"epochs": 0}).plan_config(10)


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    config = load_run_config(written(tmp_path), given("--lr", "3e-4", "--augment", "0.5"))
    plain = json.loads(json.dumps(config.to_json()))
    assert config_from_sections(plain, "config.json") == config
    assert plain["schedule"] == {**config.schedule} and plain["run"]["name"] == "gentle"
    assert config_from_sections(json.loads(json.dumps(RunConfig().to_json())), "config.json") == RunConfig()
    # Every field is in the file, under its own section.
    assert {name for section, entries in plain.items() if section != "schedule" for name in entries} == {item.name for item in fields(RunConfig)} - {"schedule"}


def train_options() -> dict[str, argparse.Action]:
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {flag: action for action in commands.choices["train"]._actions for flag in action.option_strings}


def test_every_field_has_an_option_of_its_name() -> None:
    options = train_options()
    own = {item.name for item in fields(RunConfig)} - {"schedule"}
    # The planned length is written by a run that is prolonged, never by hand.
    schedule = {item.name for item in fields(PlanConfig)} - {"steps_per_epoch", "planned_epochs"}
    assert not own & schedule, "a name in two sections"
    for name in own | schedule:
        action = options["--" + name.replace("_", "-")]
        assert action.dest == name and action.default is argparse.SUPPRESS and action.help


@pytest.mark.parametrize(
    "flags",
    [
        "--finetune", "--finetune-layers 3", "--initial-freeze-epochs 5", "--unfreeze-interval 2", "--disable-progressive-unfreeze", "--backbone-lr 1e-5",
        "--use-amp", "--distill-weight 0.3", "--distill-temp-start 1", "--distill-temp-end 4", "--grad-clip-norm 0.5",
    ],
)
def test_the_guides_flags_are_taken_in_both_spellings(flags: str) -> None:
    flag, *values = flags.split()
    dashed, underscored = given(flag, *values), given("--" + flag[2:].replace("-", "_"), *values)
    assert dashed == underscored and list(dashed) == [flag[2:].replace("-", "_")]


def test_options_of_a_wrong_type_are_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--batch-size", "many"), ("--augment", "strong"), ("--lr-schedule", "sawtooth")):
        with pytest.raises(SystemExit) as end:
            given(*words)
        assert end.value.code == 2
        assert f"argument {words[0]}" in capsys.readouterr().err


def test_a_student_starts_from_one_place() -> None:
    with pytest.raises(ConfigurationError, match=r"--backbone-weights, --backbone-from are all set"):
        RunConfig(backbone_weights="file", backbone_from="demo")
    assert RunConfig(backbone_weights="file", backbone_from="").backbone_weights == "file"
