"""Commands that must be refused: one line of error, exit code 2, and everything on disk as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.cli import main


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Refusals:
    """Runs a command that must be refused, and gives its one line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys

    def __call__(self, *arguments: object, new: str = "") -> str:
        """``new`` is what the name of every file that the command may leave begins with (none, if empty)."""
        before = snapshot(self.root)
        self.capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = self.capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("distill: error:")]
        assert len(errors) == 1 and said.err.splitlines()[-1] == errors[0]
        assert "Traceback" not in said.err and said.out == ""
        after = snapshot(self.root)
        assert {name: after.get(name) for name in before} == before
        assert [name for name in after if name not in before and not (new and name.startswith(new))] == []
        return errors[0]
