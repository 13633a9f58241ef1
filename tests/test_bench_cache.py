"""``distill bench cache``: that every figure is measured and judged by its bar; how large they are is not a test's business."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.benchmarks import cache_building
from distill.benchmarks.cache_figures import figure
from distill.benchmarks.cache_reading import RandomMaps, forget_pages, last_level_cache, make_random_cache
from distill.cli import main
from teachers.cache.reader import CacheReader


def test_a_smoke_run_measures_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # The demo teacher is measured on fewer pictures than --quick takes.
    scenes = cache_building.make_scenes
    monkeypatch.setattr(cache_building, "make_scenes", lambda folder, _: scenes(folder, 2))
    assert main(["bench", "cache", "--quick", "--rows", "320", "--dir", str(tmp_path / "disk"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    figures = {one["name"]: one for one in facts["figures"]}
    expected = {
        *(f"{codec}: read {state}, {order}" for codec in ("q8", "fp16") for state in ("cold", "warm") for order in ("at random", "in order")),
        "copy of float32 rows, at random", "copy of float32 rows, in order", "q8: size of a row", "fp16: size of a row",
        "open 30 shards", "open 30 shards, every index checked", "memory: opening, at its peak",
        "q8 against fp16: KL at T=1, largest", "q8 against fp16: KL at T=1",
        "demo teacher: bare forward", "demo teacher: build", "demo teacher: build beyond the forward",
    }
    assert set(figures) == expected
    bars = {name: (one["bar"], one["bar_is"]) for name, one in figures.items() if one["bar"] is not None}
    assert bars == {
        "q8: read warm, at random": (1 / 6, "least"), "q8: size of a row": (4300.0, "most"), "open 30 shards, every index checked": (1.0, "most"),
        "memory: opening, at its peak": (64.0, "most"), "q8 against fp16: KL at T=1, largest": (1e-3, "most"),
    }
    # What does not depend on the machine's speed is as promised.
    for name in ("q8: size of a row", "memory: opening, at its peak", "q8 against fp16: KL at T=1, largest"):
        assert figures[name]["ok"] is True, figures[name]
    assert 4160 < figures["q8: size of a row"]["median"] < 4300 < 8192 < figures["fp16: size of a row"]["median"]
    assert list((tmp_path / "disk").iterdir()) == [], "what was made to measure is removed"


def test_a_bar_judges_the_ratio_where_there_is_one() -> None:
    assert figure("a", "x", [1.0, 2.0, 3.0], bar=2.0).ok is True and figure("a", "x", [1.0, 2.1, 3.0], bar=2.0).ok is False
    assert figure("a", "x", [9.0], ratio=0.2, bar=1 / 6, least=True).ok is True
    assert figure("a", "x", [9.0], ratio=0.1, bar=1 / 6, least=True).ok is False
    assert figure("a", "x", [9.0]).ok is None
    one = figure("a", "x", [4.0, 1.0, 2.0, 3.0])
    assert (one.median, one.quartiles, one.count) == (2.5, (1.75, 3.25), 4)
    assert one.row()[:3] == ["a", "2.5 x", "1.75 to 3.25"]


def test_the_material_is_a_cache_like_any_other(tmp_path: Path) -> None:
    source = make_random_cache(tmp_path / "cache", 100, "q8", lambda done: None, scenes_per_shard=40)
    assert isinstance(source, RandomMaps) and CacheReader(tmp_path / "cache").covers(source.keys) == ([], [])
    assert forget_pages(tmp_path / "cache") and last_level_cache() >= 1 << 20
    maps = CacheReader(tmp_path / "cache").read_many([(key, 0) for key in source.keys]).heatmap
    assert maps.shape == (100, 64, 64) and maps.std(axis=(1, 2)).min() > 1.0


@pytest.mark.parametrize("words", [["--rounds", "2"], ["--rows", "10"], ["--vit-scenes", "0"]], ids=" ".join)
def test_too_little_to_measure_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cache", *words]) == 2
    assert "give --rounds of at least 5" in capsys.readouterr().err
