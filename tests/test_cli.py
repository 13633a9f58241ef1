"""The command line as a whole: help that teaches, options in both spellings, exit codes, JSON alone on standard output."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distill
from distill.cli import build_parser, main, with_dashes
from tests.fixtures import write_gazefollow

ROOT = Path(__file__).parents[1]


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that does something, with the words that call it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words, parser
    for action in below:
        for name, child in action.choices.items():
            yield from leaves(child, (*words, name))


LEAVES = dict(leaves(build_parser()))


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    body = " ".join(text.partition("\n\n")[2].split())  # behind the usage line, which is no example
    taught = f"distill {' '.join(words)} " in f"{body} "
    assert taught, "the help has no example: give add_parser an epilog with one"


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_option_is_explained_and_every_command_runs_something(words: tuple[str, ...]) -> None:
    parser = LEAVES[words]
    silent = [action.dest for action in parser._actions if not action.help]
    assert silent == []
    assert callable(parser.get_default("run"))


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for words in LEAVES:
        assert f"    {words[0]} " in text


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"distill {distill.__version__}\n"


def test_options_may_be_written_with_underscores() -> None:
    given = ["train", "my_run.toml", "--distill_weight", "0.5_x", "--finetune_layers=2", "--no_finetune", "-a_b", "--name=a_b"]
    assert with_dashes(given) == ["train", "my_run.toml", "--distill-weight", "0.5_x", "--finetune-layers=2", "--no-finetune", "-a_b", "--name=a_b"]


def test_both_spellings_give_the_same_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--blocks", "4", "--epochs", "6", "--json", "--finetune"]
    assert main([*words, "--finetune-layers", "1", "--unfreeze-interval", "1", "--initial-freeze-epochs", "2"]) == 0
    dashes = capsys.readouterr().out
    assert main([*words, "--finetune_layers", "1", "--unfreeze_interval=1", "--initial_freeze_epochs", "2"]) == 0
    assert capsys.readouterr().out == dashes
    assert main([*words, "--finetune-layers", "2", "--unfreeze-interval", "1", "--initial-freeze-epochs", "2"]) == 0
    assert capsys.readouterr().out != dashes


def test_an_unknown_command_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "trian" in message
    assert "train" in message.replace("trian", "")


def test_no_command_at_all_is_refused() -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--epochs", "6"],
        ["cache", "info", "nowhere"],
        ["train", "nowhere.toml"],
        ["train", "--resume", "nowhere"],
        ["info", "nowhere"],
        ["report", "nowhere"],
    ],
    ids=" ".join,
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("distill: error: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_traceback_shows_where_a_mendable_error_comes_from() -> None:
    from schedules.errors import PlanError

    with pytest.raises(PlanError):
        main(["--traceback", "plan", "--blocks", "4", "--epochs", "0"])


def test_a_defect_is_not_taken_for_the_users_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("distill.lineage.lineage", broken)
    with pytest.raises(KeyError):
        main(["info", "."])


def test_json_stands_alone_on_standard_output(tmp_path: Path) -> None:
    """In a process of its own, so that what libraries print counts as well."""
    data = write_gazefollow(tmp_path / "data")
    for words in (["info", str(data)], ["plan", "--blocks", "3", "--epochs", "2"]):
        done = subprocess.run(
            [sys.executable, "-m", "distill", *words, "--json"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert isinstance(json.loads(done.stdout), dict)


def test_the_catalogue_of_students(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.throughput import Work
    from students.catalogue import STUDENTS

    monkeypatch.setattr("distill.throughput.work_of", lambda model: Work(1e9, 1e6))  # counting takes seconds; it has a test of its own
    assert main(["students", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts] == list(STUDENTS)
    for row in facts:
        assert row["parameters"] == row["backbone_parameters"] + row["decoder_parameters"] > 0
        assert row["input_size"] == list(STUDENTS[row["name"]].input_size)
    # DINOv3's ViT-S/16 has 21.6 M parameters by its authors' count.
    assert round(next(row for row in facts if row["name"] == "dinov3_small")["backbone_parameters"] / 1e6, 1) == 21.6
    monkeypatch.setattr("distill.commands.students.student_facts", lambda _: facts)  # as they were counted just now
    assert main(["students", "list"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in STUDENTS if name not in shown] == []
