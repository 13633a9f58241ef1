"""Several caches as one teacher, from the command line to what a run records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_world import TINY, World, cache_arguments, make_world, store_teacher

from distill.cli import build_parser, main
from distill.configuration import load_run_config, run_overrides
from distill.errors import ConfigurationError
from students.catalogue import STUDENTS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A data set with the caches ``cache`` (fp16) and ``second`` (q8, of another teacher)."""
    root = tmp_path_factory.mktemp("ensembles")
    world = make_world(root, 8)
    other = store_teacher(root / "other", shift=0.5)
    assert main(cache_arguments(world, teacher=other, out=root / "second", codec="q8")) == 0
    return world


@pytest.mark.parametrize("space", ["logit", "probability"])
def test_a_run_states_the_average_that_it_learns_from(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    monkeypatch.setitem(STUDENTS, "tiny_cnn", TINY["tiny_cnn"])
    second = world.cache.with_name("second")
    # No data is named either: the first cache knows it.
    words = world.arguments(tmp_path / "run", data=None, epochs=1, cache=f"{world.cache}:3")
    assert main([*words, "--cache", f"{second}:1", "--ensemble-space", space]) == 0
    assert f"average of caches {world.cache} (0.75), {second} (0.25) in {'log-odds' if space == 'logit' else space}" in capsys.readouterr().err
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["data"]["cache"] == f"{world.cache}:3,{second}:1" and config["data"]["ensemble_space"] == space
    teacher = config["facts"]["lineage"]["teacher"]
    assert teacher["space"] == space and [member["weight"] for member in teacher["members"]] == [0.75, 0.25]
    # Every member is in the run's chain, and is looked at.
    assert main(["info", str(tmp_path / "run"), "--json"]) == 0
    links = [(link["name"], link["status"]) for link in json.loads(capsys.readouterr().out)["links"] if link["what"] == "cache"]
    assert links == [(str(world.cache), "ok"), (str(second), "ok")]
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_the_two_spellings_are_one() -> None:
    def config(*words: str) -> str:
        return load_run_config(None, run_overrides(build_parser().parse_args(["train", *words]))).cache

    assert config("--cache", "a:0.6", "--cache", "b:0.4") == config("--cache=a:0.6,b:0.4") == "a:0.6,b:0.4"
    assert config("--cache", "a") == "a"
    with pytest.raises(ConfigurationError, match="ensemble_space is 'odds'; use logit or probability"):
        config("--cache", "a", "--ensemble-space", "odds")


@pytest.mark.parametrize("weight", ["inf", "nan", "0", "-2"])
def test_a_weight_that_weighs_nothing_or_everything_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weight: str
) -> None:
    monkeypatch.setitem(STUDENTS, "tiny_cnn", TINY["tiny_cnn"])
    assert main(world.arguments(tmp_path / "run", cache=f"{world.cache}:{weight},{world.cache}")) == 2
    assert f"weight {weight} is not a finite number above 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
