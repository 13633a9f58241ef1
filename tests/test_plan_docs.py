"""docs/plan.md shows what the command shows: tables, sentences and pictures of its recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distill.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/plan.md").read_text()
SHOWN = re.findall(r"^### `distill plan recipes/(\w+)\.toml`$", TEXT, re.MULTILINE)


def test_there_are_three() -> None:
    assert len(SHOWN) == 3


@pytest.mark.parametrize("name", SHOWN)
def test_the_document_shows_what_the_command_says(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / f"recipes/{name}.toml"), "--picture", str(tmp_path / "plan.svg")]) == 0
    said = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    block = TEXT.partition(f"recipes/{name}.toml`")[2].partition("```text\n")[2].partition("\n```")[0]
    assert [line for line in block.splitlines() if line not in said] == []
    assert block.count("│") >= 48 and "Progressive unfreeze scheduled" in block
    # Written again by `distill plan recipes/NAME.toml --picture docs/plan-NAME.svg`.
    assert (tmp_path / "plan.svg").read_text() == (ROOT / f"docs/plan-{name}.svg").read_text()
    assert f"](plan-{name}.svg)" in TEXT
