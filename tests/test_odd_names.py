"""Names that a shell, a table or a message could take for something else: brackets, colons, two spaces, ``~``."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.cached_teacher import specs_of
from distill.cli import main
from distill.console import print_result, say, table
from distill.errors import PictureError
from distill.pictures import decode, read_bytes
from teachers.cache.ensemble import split_spec

ODD = "a [red]b[/x] :dog: [1]"


def test_tables_and_lines_show_a_name_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(table(ODD, ["what", ODD], [[ODD, "1"]], left=2))
    print_result(f"{ODD} {'long ' * 60}end")
    say(ODD)
    shown = capsys.readouterr()
    assert shown.out.count(ODD) == 4 and shown.err == f"{ODD}\n"
    assert shown.out.splitlines()[-1].endswith("long end"), "a line that is there to be pasted was folded"


def test_a_table_cuts_nothing_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "x" * 400
    print_result(table("", ["what"], [[name]]))
    assert capsys.readouterr().out.count("x") == 400


def test_a_message_keeps_the_spaces_of_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", str(tmp_path / "two  spaces")]) == 2
    message = capsys.readouterr().err
    assert "two  spaces is no cache" in message and message.count("\n") == 1


def test_the_reason_of_an_unreadable_picture_is_the_same_every_time(tmp_path: Path) -> None:
    reasons = []
    for _ in range(2):
        with pytest.raises(PictureError) as caught:
            decode(b"no picture", tmp_path / "a.png")
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1] and "it is no picture of a known format" in reasons[0] and "0x" not in reasons[0]
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match=r"folder\.png cannot be read \(Is a directory\)"):
        read_bytes(tmp_path / "folder.png")


def test_caches_below_a_home_and_with_a_comma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [split_spec(spec) for spec in specs_of("~/a:0.6,~/b")] == [(f"{tmp_path}/a", 0.6), (f"{tmp_path}/b", 1.0)]
    (tmp_path / "one, two").mkdir()
    assert specs_of(f"{tmp_path}/one, two:0.5") == [f"{tmp_path}/one, two:0.5"]
