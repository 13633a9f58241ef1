"""The folder that a command writes to: whole or not at all, and refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.cli import main
from distill.errors import ConfigurationError
from distill.workshop import refuse_unwritable, workshop


def spoil(out: Path) -> None:
    with workshop(out) as bench:
        (bench / "half.txt").write_text("half")
        raise ValueError("stop")


def test_what_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        spoil(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with workshop(tmp_path / "a" / "b") as bench:
        (bench / "whole.txt").write_text("whole")
        (bench / "whole.txt").rename(tmp_path / "a" / "b" / "whole.txt")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["whole.txt"]
    with pytest.raises(ValueError, match="stop"):
        spoil(tmp_path / "a" / "b")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["whole.txt"]
    assert (tmp_path / "a" / "b" / "whole.txt").read_text() == "whole"


def test_a_folder_that_was_there_and_empty_stays(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path)
    assert tmp_path.is_dir()


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ConfigurationError, match="is a file or lies below one, and a folder is to be written; choose another --out"):
            refuse_unwritable(out)

    def refused(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("tempfile.mkdtemp", refused)  # the superuser may write anywhere
        with pytest.raises(ConfigurationError, match=r"cannot be written to \(Permission denied\); choose another --out"):
            refuse_unwritable(tmp_path)
    # Before the pictures are looked at, and so before any model is loaded.
    assert main(["predict", "demo", str(tmp_path / "nothing.jpg"), "--out", str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
