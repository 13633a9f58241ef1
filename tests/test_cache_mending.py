"""What the messages tell the user to run, run as it stands: damaged shards, missing ones, skipped scenes, full and read-only places."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cache_world import TinyTeacher, make_scenes, shard_files

from distill.cli import main


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[TinyTeacher]:
    """The catalogue knows the tiny teacher by its seed; every one that was loaded is in the list, with the pictures that it saw."""
    loaded: list[TinyTeacher] = []

    def load_teacher(name: str, **_: Any) -> TinyTeacher:
        loaded.append(TinyTeacher(int(name)))
        return loaded[-1]

    monkeypatch.setitem(sys.modules, "teachers.catalogue", SimpleNamespace(load_teacher=load_teacher))
    return loaded


@pytest.fixture
def built(teachers: list[TinyTeacher], tmp_path: Path) -> tuple[Path, Path]:
    """A folder of 7 pictures (with a blank in its name) of one head each, and a cache of it: 2 views, 3 shards."""
    pictures = tmp_path / "my photos"
    make_scenes(pictures, 7)
    lines = [f"{number:03d}.png,a,5,4,25,20" for number in range(7)]
    (pictures / "heads.csv").write_text("\n".join(["image,person,xmin,ymin,xmax,ymax", *lines]) + "\n")
    cache = tmp_path / "my cache"
    base = ["cache", "build", "--images", str(pictures), "--teacher", "0", "--views", "2", "--batch", "4", "--scenes-per-shard", "3"]
    assert main([*base, "--out", str(cache)]) == 0
    return pictures, cache


def told(capsys: pytest.CaptureFixture[str], words: list[str]) -> tuple[str, list[str]]:
    """The one-line error of a command, and the command lines in it."""
    assert main(words) == 2
    message = capsys.readouterr().err
    return message, re.findall(r"`(distill [^`]*)`", message)


def run(command: str) -> int:
    return main(shlex.split(command)[1:])


def test_the_command_for_a_flipped_bit_rebuilds_just_that_shard(
    built: tuple[Path, Path], teachers: list[TinyTeacher], capsys: pytest.CaptureFixture[str]
) -> None:
    _, cache = built
    good = shard_files(cache)
    path = cache / "shards/00001.safetensors"
    path.write_bytes(good[path.name][:-30] + bytes([good[path.name][-30] ^ 1]) + good[path.name][-29:])
    times = {name: (cache / "shards" / name).stat().st_mtime_ns for name in good}
    message, (command,) = told(capsys, ["cache", "verify", str(cache), "--shards-only"])
    assert str(path) in message and "damaged" in message
    assert run(command) == 0
    assert teachers[-1].images == 6, "three scenes of two views"
    assert shard_files(cache) == good
    assert [name for name in good if (cache / "shards" / name).stat().st_mtime_ns != times[name]] == [path.name]
    assert main(["cache", "verify", str(cache), "--rows", "20"]) == 0


def test_the_commands_for_several_wrong_shards_mend_them_all(
    built: tuple[Path, Path], teachers: list[TinyTeacher], capsys: pytest.CaptureFixture[str]
) -> None:
    _, cache = built
    good = shard_files(cache)
    (cache / "shards/00000.safetensors").write_bytes(b"cut")
    (cache / "shards/00002.safetensors").unlink()
    message, commands = told(capsys, ["cache", "verify", str(cache), "--shards-only"])
    assert "1 damaged shards (0) and 1 missing shards (2)" in message and len(commands) == 2
    assert [run(command) for command in commands] == [0, 0]
    assert shard_files(cache) == good
    assert [teacher.images for teacher in teachers[-2:]] == [6, 2]


def test_skipped_scenes_are_listed_and_the_hint_computes_them(
    teachers: list[TinyTeacher], built: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, _ = built
    whole = (pictures / "004.png").read_bytes()
    (pictures / "004.png").write_bytes(whole[:50])
    words = ["cache", "build", "--images", str(pictures), "--teacher", "0", "--views", "2", "--scenes-per-shard", "3", "--batch", "4"]
    cache = tmp_path / "again"
    message, _ = told(capsys, [*words, "--out", str(cache)])
    assert "004.png" in message and sorted(shard_files(cache)) == ["00000.safetensors"]
    assert main([*words, "--out", str(cache), "--on-error", "skip"]) == 0
    assert "skipped 004.png" in capsys.readouterr().err
    assert main(["cache", "info", str(cache), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["skipped"]
    assert (listed["key"], listed["shard"]) == ("004.png", 1) and "cannot be decoded" in listed["reason"]
    assert main([*words, "--out", str(cache)]) == 0
    assert "1 scenes were skipped earlier: mend their pictures and add --retry-skipped" in capsys.readouterr().err
    (pictures / "004.png").write_bytes(whole)
    assert main([*words, "--out", str(cache), "--retry-skipped", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["shards_missing"], plan["rows"]) == (1, 6)
    assert main([*words, "--out", str(cache), "--retry-skipped"]) == 0
    assert "6 rows (1 shards again)" in capsys.readouterr().err
    assert shard_files(cache) == shard_files(built[1])
    assert main(["cache", "info", str(cache), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == []


def test_one_bad_scene_in_a_shard_of_its_own_condemns_nothing(
    teachers: list[TinyTeacher], built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, cache = built
    (pictures / "007.png").write_bytes(b"no picture")
    with (pictures / "heads.csv").open("a") as file:
        file.write("007.png,a,5,4,25,20\n")
    words = ["cache", "build", "--images", str(pictures), "--teacher", "0", "--views", "2", "--out", str(cache), "--on-error", "skip"]
    assert main(words) == 0
    assert "skipped 007.png" in capsys.readouterr().err


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS], ids=["full disk", "read-only directory"])
def test_a_place_that_takes_nothing_is_named_and_what_was_there_stays(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: int
) -> None:
    pictures, cache = built
    (cache / "shards/00001.safetensors").unlink()
    before = shard_files(cache)
    words = ["cache", "build", "--images", str(pictures), "--teacher", "0", "--views", "2", "--batch", "4", "--out", str(cache)]
    flush, plain_open = os.fsync, Path.open

    def refuse(*_: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    def refuse_new(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return refuse() if "x" in mode else plain_open(self, mode, *rest, **options)

    # A full disk may say so only when the bytes are flushed, a read-only one at once.
    monkeypatch.setattr(os, "fsync", refuse) if reason == errno.ENOSPC else monkeypatch.setattr(Path, "open", refuse_new)
    message, _ = told(capsys, words)
    assert os.strerror(reason) in message and "00001.safetensors" in message and "what was there before is whole" in message
    assert shard_files(cache) == before and not list(cache.rglob("*.tmp"))
    # A cache that is whole needs no room: the same command succeeds where nothing can be written.
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "open", plain_open)
    assert main(words) == 0
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "open", refuse_new)
    assert main(words) == 0


def test_the_command_for_a_damaged_manifest_puts_the_copy_back(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, cache = built
    words = ["cache", "build", "--images", str(pictures), "--teacher", "0", "--batch", "4", "--scenes-per-shard", "3", "--out", str(cache)]
    assert main([*words, "--views", "3"]) == 0
    good, spare = (cache / "cache.json").read_bytes(), cache / ".cache.json"
    assert spare.read_bytes() == good
    monkeypatch.chdir(tmp_path)
    flipped = [good.replace(*pair) for pair in ((b'"views"', b'"viewz"'), (b'"format"', b'"fosmat"'), (b'"version": 1', b'"version": 3'))]
    assert good not in flipped
    for damaged in (*flipped, good[:200], b""):
        (cache / "cache.json").write_bytes(damaged)
        for asked in (["cache", "info", cache.name], ["cache", "verify", cache.name], [*words, "--views", "3"]):
            assert main(asked) == 2
            (command,) = re.findall(r"; the copy that the last build made of it is whole: run `(cp [^`]*)`$", capsys.readouterr().err.strip())
            assert spare.read_bytes() == good, "a damaged manifest is never copied"
        subprocess.run(shlex.split(command), check=True, cwd="/")
        assert (cache / "cache.json").read_bytes() == good
    assert main([*words, "--views", "3"]) == 0 and "nothing was missing" in capsys.readouterr().err
    # A copy that is damaged as well is no remedy; a build that finds a whole manifest makes another copy.
    spare.write_bytes(b"{}")
    assert main([*words, "--views", "3"]) == 0 and spare.read_bytes() == good
    for other in (b"{}", None):
        spare.write_bytes(other) if other else spare.unlink()
        (cache / "cache.json").write_bytes(good[:200])
        message, _ = told(capsys, ["cache", "info", str(cache)])
        assert "restore it from a copy, delete the cache" in message and "is whole" not in message
        (cache / "cache.json").write_bytes(good)


@pytest.mark.parametrize("shards", [True, False], ids=["shards", "none yet"])
def test_a_place_that_is_known_to_take_nothing_is_named_before_the_teacher_runs(
    built: tuple[Path, Path], teachers: list[TinyTeacher], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: bool
) -> None:
    pictures, cache = built
    words = ["cache", "build", "--images", str(pictures), "--teacher", "0", "--views", "2", "--batch", "4", "--out", str(cache)]
    directory = cache / "shards" if shards else cache
    for path in [cache / "shards/00001.safetensors"] if shards else [*(cache / "shards").iterdir(), cache / "shards"]:
        path.unlink() if path.is_file() else path.rmdir()
    asked, access = [], os.access

    def read_only(path: Any, mode: int, **rest: Any) -> bool:
        asked.extend({directory} & {path})
        return path != directory and access(path, mode, **rest)

    monkeypatch.setattr(os, "access", read_only)
    message, _ = told(capsys, words)
    assert os.strerror(errno.EACCES) in message and "no shard can be written" in message and str(directory) in message
    assert teachers[-1].images == 0 and asked == [directory]
    monkeypatch.setattr(os, "access", access)
    assert main(words) == 0
    # A cache that is whole asks for no place.
    monkeypatch.setattr(os, "access", read_only)
    assert main(words) == 0 and asked == [directory]


def test_verify_exits_with_1_where_the_live_teacher_differs(
    built: tuple[Path, Path], teachers: list[TinyTeacher], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, cache = built
    assert main(["cache", "verify", str(cache), "--rows", "6"]) == 0
    assert "as the live teacher" in capsys.readouterr().out
    forward = TinyTeacher.forward
    # The same fingerprint, and other answers: what a broken library or a faulty machine would give.
    monkeypatch.setattr(TinyTeacher, "forward", lambda *inputs: (out := forward(*inputs))._replace(heatmap=out.heatmap * 1.02))
    assert main(["cache", "verify", str(cache), "--rows", "6", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and report["excess"] > 1 and report["rows"] == 6


def test_numbers_of_shards_are_judged(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("x", "1,", "-1", "1;2"):
        with pytest.raises(SystemExit):
            main(["cache", "build", "--data", "d", "--teacher", "0", "--out", "o", f"--rebuild={text}"])
        assert "names no shards; write their numbers, such as 3 or 3,17" in capsys.readouterr().err


def test_a_live_answer_that_is_not_finite_is_named_and_the_exit_code_is_1(
    built: tuple[Path, Path], teachers: list[TinyTeacher], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, cache = built
    forward = TinyTeacher.forward

    def ill(self: TinyTeacher, *inputs: Any) -> Any:
        out = forward(self, *inputs)
        if self.images == 2:  # of the second view that is looked at, one cell
            out.heatmap[0, 3, 5] = float("nan")
        return out

    monkeypatch.setattr(TinyTeacher, "forward", ill)
    assert main(["cache", "verify", str(cache), "--rows", "6", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (row,) = report["not_finite"]
    assert re.fullmatch(r"scene '00\d\.png', view [01], head 0", row)
    assert (report["ok"], report["rows"]) == (False, 6) and report["excess"] <= 1
    assert main(["cache", "verify", str(cache), "--rows", "6"]) == 1
    shown = capsys.readouterr()
    assert "NOT as the live teacher" in shown.out and f"{row}: the live teacher's answer is not finite" in shown.err
    # Not one that could be compared.
    monkeypatch.setattr(TinyTeacher, "forward", lambda *inputs: (out := forward(*inputs))._replace(inout=out.inout + float("inf")))
    assert main(["cache", "verify", str(cache), "--rows", "6", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (len(report["not_finite"]), report["excess"], report["max_error"]) == (6, None, None)
    assert main(["cache", "verify", str(cache), "--rows", "6"]) == 1
    assert "n/a" in capsys.readouterr().out


def test_a_changed_picture_of_a_finished_cache_is_named_and_the_command_mends_it_from_anywhere(
    teachers: list[TinyTeacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, elsewhere = tmp_path / "my work", tmp_path / "elsewhere"
    pictures = home / "photos"
    make_scenes(pictures, 4)
    make_scenes(tmp_path / "others", 4, seed=9)
    elsewhere.mkdir()
    lines = [f"{number:03d}.png,a,5,4,25,20" for number in range(4)]
    (home / "my heads.csv").write_text("\n".join(["image,person,xmin,ymin,xmax,ymax", *lines]) + "\n")
    # All as it is typed in a directory of one's own.
    monkeypatch.chdir(home)
    words = ["cache", "build", "--images", "photos", "--heads", "my heads.csv", "--teacher", "0", "--views", "2", "--scenes-per-shard", "2"]
    assert main([*words, "--out", "cache"]) == 0
    assert main([*words, "--out", "cache"]) == 0
    assert "nothing was missing, 4 pictures are as they were" in capsys.readouterr().err
    (pictures / "003.png").write_bytes((tmp_path / "others/003.png").read_bytes())
    message, (command,) = told(capsys, [*words, "--out", "cache"])
    assert "the picture of scene '003.png' has changed" in message and command.endswith("--rebuild 1")
    monkeypatch.chdir(elsewhere)
    assert run(command) == 0
    assert teachers[-1].images == 4
    monkeypatch.chdir(home)
    assert main([*words, "--out", "cache"]) == 0
    assert main([*words, "--out", "fresh"]) == 0
    assert shard_files(home / "cache") == shard_files(home / "fresh")


def test_a_place_where_no_directory_can_be_is_refused_with_the_remedy(
    teachers: list[TinyTeacher], built: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cache", "build", "--images", str(built[0]), "--teacher", "0", "--views", "2"]
    (tmp_path / "a file").write_text("mine")
    for out, says in (("a file", "is a file, and a cache is a directory"), ("a file/below", "no cache can be made there")):
        message, _ = told(capsys, [*words, "--out", str(tmp_path / out)])
        assert says in message and "give another --out" in message and str(tmp_path / out) in message
    assert (tmp_path / "a file").read_text() == "mine"
