"""The recorded command: words as they were typed, and where; a remedy that holds in any directory."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from teachers.cache.command import recorded_command, split_command, words_of
from teachers.cache.format import Manifest
from teachers.cache.remedies import build_command, other_command


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with data, heads and teachers; the current one is another."""
    home = tmp_path / "my work"
    for folder in ("data", "photos", "teachers/tiny", "demo", "trainval"):
        (home / folder).mkdir(parents=True)
    for file in ("my heads.csv", "model.onnx", "decoder.safetensors"):
        (home / file).write_text("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


def test_a_command_is_recorded_with_its_directory(there: Path) -> None:
    words = ["distill", "cache", "build", "--data", "a b"]
    command = recorded_command(words, there)
    assert command == f"cd '{there}' && distill cache build --data 'a b'"
    assert split_command(command) == (there, words)
    assert split_command("distill cache build --data 'a b'") == (None, words)
    assert words_of("") == []


@pytest.mark.parametrize(
    ("option", "typed", "found"),
    [
        ("--data", "data", "{}/data"),
        ("--data", "gazefollow:data", "gazefollow:{}/data"),
        ("--data", "folder:photos?heads=my%20heads.csv", "folder:{}/photos?heads={quoted}/my%20heads.csv"),
        ("--data", "folder:/gone/photos?heads=my%20heads.csv", "folder:/gone/photos?heads={quoted}/my%20heads.csv"),
        ("--data", "folder:photos?category=head", "folder:{}/photos?category=head"),
        ("--data", "gazefollow:gone", "gazefollow:gone"),
        ("--data", "gazefollow:~/data", "gazefollow:~/data"),
        ("--teacher", "teachers/tiny", "{}/teachers/tiny"),
        ("--teacher", "onnx:model.onnx", "onnx:{}/model.onnx"),
        # The catalogue's, whatever directories there are; and words that are no paths.
        ("--teacher", "demo", "demo"),
        ("--teacher", "timm:data", "timm:data"),
        ("--split", "trainval", "trainval"),
        ("--weights", "decoder.safetensors", "{}/decoder.safetensors"),
        ("--adapter", "gazelle", "gazelle"),
    ],
)
def test_paths_are_found_from_where_the_command_was_typed(there: Path, monkeypatch: pytest.MonkeyPatch, option: str, typed: str, found: str) -> None:
    command = recorded_command(["distill", "cache", "build", option, typed], there)
    expected = found.format(there, quoted=str(there).replace(" ", "%20"))
    assert words_of(command)[-1] == words_of(command, anywhere=True)[-1] == expected
    monkeypatch.chdir(there)
    assert words_of(command)[-1] == typed, "what is found from here stays as it was typed"
    assert words_of(command, anywhere=True)[-1] == expected


def test_a_tree_that_was_copied_is_its_own(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere/data").mkdir()
    command = recorded_command(["distill", "cache", "build", "--data", "data"], there)
    assert words_of(command)[-1] == "data"
    assert words_of(command, anywhere=True)[-1] == str(tmp_path / "elsewhere/data")


def test_remedies_hold_in_any_directory(there: Path) -> None:
    words = ["distill", "cache", "build", "--data", "gazefollow:data", "--teacher", "teachers/tiny", "--views", "2", "--codec", "q8", "--seed", "0", "--batch", "4"]
    manifest = Manifest({}, {}, "q8", (4, 4), True, (), recorded_command(words, there))
    out = shlex.quote(str(Path.cwd() / "caches/a"))
    data, teacher = shlex.quote(f"gazefollow:{there}/data"), shlex.quote(f"{there}/teachers/tiny")
    asked = f"distill cache build --data {data} --teacher {teacher} --views 2 --codec q8 --seed 0 --batch 4"
    assert build_command(Path("caches/a"), manifest) == f"{asked} --out {out}"
    assert other_command("MEND", manifest) == f"MEND --teacher {teacher} --views 2 --codec q8 --batch 4 --out OTHER_PATH"
    assert build_command(Path("a"), Manifest({}, {}, "q8", (4, 4), True)).startswith("distill cache build --out /")
