"""``distill cache build|verify|info`` on a folder of pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cache_world import TinyTeacher, make_scenes

from distill.commands import cache as commands
from distill.errors import ConfigurationError
from teachers.errors import CacheError


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five pictures with a heads file; the teacher's catalogue knows the tiny one."""
    catalogue = SimpleNamespace(load_teacher=lambda name, *, device, precision, **files: TinyTeacher(int(name)))
    monkeypatch.setitem(sys.modules, "teachers.catalogue", catalogue)
    make_scenes(tmp_path / "pictures", 5)
    rows = [
        f"{number:03d}.png,{person},{5 + 20 * person},4,{15 + 20 * person},20"
        for number in range(5)
        for person in range(2)
    ]
    (tmp_path / "pictures/heads.csv").write_text("image,person,xmin,ymin,xmax,ymax\n" + "\n".join(rows) + "\n")
    return tmp_path / "pictures"


def distill(*words: object) -> int:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    args = parser.parse_args(["cache", *map(str, words)])
    return int(args.run(args))


def test_build_verify_info(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "caches/photos"
    base = (
        "build",
        "--images",
        pictures,
        "--heads",
        pictures / "heads.csv",
        "--teacher",
        "0",
        "--out",
        out,
        "--scenes-per-shard",
        "2",
    )
    assert distill(*base, "--views", 2, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["scenes"], plan["heads"], plan["rows"], plan["shards"]) == (5, 10, 20, 3) and not out.exists()
    assert distill(*base, "--views", 2, "--dry-run") == 0
    assert "rows to compute" in capsys.readouterr().out
    assert distill(*base, "--views", 2, "--part", "0/2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False
    assert distill(*base, "--views", 2) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "8 rows" in captured.err and "rows/s" in captured.err
    assert distill("info", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["scenes"], facts["views"], facts["shards_missing"]) == (20, 5, 2, 0)
    assert (
        facts["source"]["reader"] == "folder" and facts["bytes"] > facts["rows"] * 512 and facts["row_microseconds"] > 0
    )
    assert distill("info", out) == 0
    assert "seed 0" in capsys.readouterr().out
    # Data and teacher come from the cache.
    assert distill("verify", out, "--rows", 6, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["rows"] == 6
    assert distill("verify", out, "--shards-only") == 0
    assert "3 shards, every digest fits" in capsys.readouterr().out
    with pytest.raises(CacheError, match="another teacher"):
        distill("verify", out, "--teacher", "1")
    # More views, the codec left to the cache.
    assert distill(*base, "--views", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 10
    (out / "shards/00001.safetensors").write_bytes(b"cut")
    (out / "shards/00002.safetensors").unlink()
    with pytest.raises(CacheError, match=r"1 damaged shards \(1\) and 1 missing shards \(2\); run `.* --rebuild 1`: .*; then run `.*`: only what is missing"):
        distill("verify", out)


def test_seed_and_codec_of_a_cache_are_kept_unless_asked_for(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("build", "--data", f"folder:{pictures}", "--teacher", "0", "--out", tmp_path / "cache", "--json")
    assert distill(*base, "--seed", 4, "--codec", "q8") == 0
    assert distill(*base, "--views", 5) == 0
    capsys.readouterr()
    distill("info", tmp_path / "cache", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["codec"] == "q8" and facts["source"]["views"]["seed"] == 4 and facts["views"] == 5
    with pytest.raises(CacheError, match=r"source.views.seed: cache 4, asked for 5"):
        distill(*base, "--seed", 5)


def test_all_skipped_is_an_error_and_some_are_listed(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("build", "--data", f"folder:{pictures}", "--teacher", "0", "--on-error", "skip", "--out")
    (pictures / "002.png").write_bytes(b"no picture")
    assert distill(*base, tmp_path / "some") == 0
    assert "skipped 002.png" in capsys.readouterr().err
    distill("info", tmp_path / "some")
    assert "002.png" in capsys.readouterr().out
    for path in pictures.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(CacheError, match="no scene could be read"):
        distill(*base, tmp_path / "all")


def test_bad_options(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="--heads goes with --images"):
        distill(
            "build", "--data", f"folder:{pictures}", "--heads", "x.csv", "--teacher", "0", "--out", tmp_path / "cache"
        )
    for part in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(SystemExit):
            distill("build", "--data", "x", "--teacher", "0", "--out", tmp_path / "cache", f"--part={part}")
        assert "is no part" in capsys.readouterr().err
    for words, told in (
        (("--part", "²/3"), "is no part"),
        (("--seed", 2**63), "9223372036854775808 has more than 64 bits"),
        (("--seed", "x"), "'x' is no whole number"),
        (("--views", "many"), "'many' is no whole number"),
        (("--views", 0), "0 is below 1"),
        (("--batch", 10**23), "is above 1,000,000,000"),
    ):
        with pytest.raises(SystemExit):
            distill("build", "--data", "x", "--teacher", "0", "--out", tmp_path / "cache", *words)
        assert told in capsys.readouterr().err


def test_seeds_at_the_ends_of_their_range(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (-(2**63), 2**63 - 1):
        out = tmp_path / str(seed)
        assert distill("build", "--data", f"folder:{pictures}", "--teacher", "0", "--views", 2, f"--seed={seed}", "--out", out) == 0
        assert distill("verify", out, "--rows", 3, f"--seed={seed}", "--json") == 0
        assert json.loads(capsys.readouterr().out)["seed"] == seed
