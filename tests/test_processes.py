"""Two processes on the CPU (gloo), started as a user starts them: the same run as one process makes.

What is not finite in one of them stops both, before the step, and neither waits for the other. One launch makes all runs of this file, as its
processes take longer to start than to train.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_world import POISONED, TINY, World, make_model, make_world

from distill.cli import main
from distill.runlog import read_metrics
from students.catalogue import STUDENTS
from students.checkpoint import Checkpoint, checkpoints, newest_intact, read_checkpoint_file

ROOT = Path(__file__).parents[1]
TERMS = ("loss", "heatmap", "inout", "kd_heatmap", "kd_inout", "kd_kl", "kd_dist", "kd_bce", "reliability", "grad_norm")

RUNS = ("calm", "sgd", "silent", "cnn", "whole", "parts", "pieces")
POISONS = ("loss", "gradient")  # what is not finite in the second process after six of eight steps, in two runs of their own


def newest(run: Path) -> Checkpoint:
    """A run's newest checkpoint."""
    return read_checkpoint_file(checkpoints(run)[0])


class Both:
    """What two processes left, and what one process leaves of the same command lines."""

    def __init__(self, world: World, folder: Path) -> None:
        self.folder, self.one, self.two = folder, folder / "one", folder / "two"
        self.dumps, self.poisoned = folder / "dumps", folder / "poisoned"
        self.dumps.mkdir()

        def lines(runs: Path) -> list[list[str]]:
            def train(name: str, student: str, **options: Any) -> list[str]:
                # 22 pictures in batches of 5, so that the processes have 3 and 2 of them, and as many heads as comes.
                return world.arguments(runs / name, student, **{"epochs": 5, "lr": 3e-3, **options})

            # Any rise of the loss after a thaw holds the next one; the weights are averaged.
            watched = {"epochs": 3, "spike_factor": 1.0001, "on_spike": "hold", "ema_decay": 0.9, "patience": 9}
            sgd = {"optimizer": "sgd", "lr": 3e-2, "backbone_lr": 3e-2}
            return [
                train("calm", "tiny_calm", distill_loss="kl:1, dist:0.5, bce:2", reliability=0.2),
                train("sgd", "tiny_calm", **sgd),
                train("silent", "tiny_calm", epochs=1, inout_weight=0),
                train("cnn", "tiny_cnn"),
                train("whole", "tiny_vit", **watched),
                train("parts", "tiny_vit", **watched, limit_steps=6),
                ["train", "--resume", str(runs / "parts"), "--override", "--limit-steps", "0"],
                train("pieces", "tiny_calm", **sgd, accumulate=2),
            ]

        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1",
        }
        # A process that waited for the other would be given up in time, with another error than the one that is looked for.
        poisoned = [(kind, world.arguments(self.two / kind, "tiny_calm", epochs=2, timeout_minutes=10)) for kind in POISONS]
        script = [str(ROOT / "tests/training_world.py"), str(self.dumps), json.dumps(lines(self.two)), str(self.poisoned), json.dumps(poisoned)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
        self.process = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=3600)
        assert self.process.returncode == 0, self.process.stderr[-9000:]
        with pytest.MonkeyPatch.context() as patch:
            for name, config in TINY.items():
                patch.setitem(STUDENTS, name, config)
            for line in lines(self.one)[:3]:
                assert main(line) == 0

    def rank(self, run: str, rank: int) -> dict[str, Tensor]:
        return load_file(self.dumps / f"{run}-{rank}-of-2.safetensors")

    def told(self, run: str, rank: int) -> dict[str, Any]:
        return json.loads((self.dumps / f"{run}-{rank}.json").read_text())

    def left(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads((self.poisoned / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]

    @staticmethod
    def records(run: Path, kind: str) -> list[dict[str, Any]]:
        return [record for line in (run / "metrics.jsonl").read_text().splitlines() if (record := json.loads(line))["kind"] == kind]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("processes")
    yield Both(make_world(folder / "world"), folder)
    torch.set_num_threads(threads)


def test_there_were_two_processes(both: Both) -> None:
    names = {path.stem for path in both.dumps.glob("*.safetensors")}
    assert names == {f"{run}-{rank}-of-2" for run in RUNS for rank in (0, 1)}


def test_processes_have_unequal_heads(both: Both) -> None:
    for run in ("calm", "sgd", "pieces"):
        first, second = (both.told(run, rank)["heads"] for rank in (0, 1))
        assert len(first) == len(second) == 20 and sum(a != b for a, b in zip(first, second, strict=True)) >= 15


@pytest.mark.parametrize("run", RUNS)
def test_processes_are_bit_identical_after_every_thaw(run: str, both: Both) -> None:
    thaws = both.records(both.two / run, "thaw")
    assert run == "silent" or [record["epoch"] for record in thaws][:2] == [0, 1]
    one, other = both.told(run, 0), both.told(run, 1)
    # A resumed run tells of the thaws since.
    epochs = [str(record["epoch"]) for record in thaws if run != "parts" or record["step"] >= 4]
    assert list(one["thaws"]) == epochs and one["thaws"] == other["thaws"] and len(set(one["thaws"].values())) == len(epochs)
    assert one["holds"] == other["holds"]
    first, second = both.rank(run, 0), both.rank(run, 1)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_losses_are_those_of_one_process(both: Both) -> None:
    one, two = (both.records(folder / "calm", "step") for folder in (both.one, both.two))
    assert len(one) == len(two) == 20 and [r["open_blocks"] for r in one][::4] == [1, 2, 3, 4, 5]
    for mine, theirs in zip(one, two, strict=True):
        for term in TERMS:
            assert mine[term] == pytest.approx(theirs[term], abs=1e-5), (mine["step"], term)
            assert mine[term] > 0


@pytest.mark.parametrize("run", ["sgd", "pieces"])
def test_parameters_with_sgd_are_those_of_one_process(run: str, both: Both) -> None:
    """Twenty steps over every thaw; ``pieces`` also splits each process's share in two."""
    assert len(both.records(both.two / run, "step")) == 20
    alone = newest(both.one / "sgd").model
    together, started = both.rank(run, 0), make_model(TINY["tiny_calm"]).state_dict()
    assert alone.keys() == together.keys() == started.keys()
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < 1e-5
    assert max(float((alone[name] - started[name]).abs().max()) for name in alone if name.startswith("backbone.")) > 1e-3


def test_nothing_is_counted_twice(both: Both) -> None:
    for kind in ("epoch", "validation", "thaw", "end"):
        one, two = (both.records(folder / "calm", kind) for folder in (both.one, both.two))
        assert [record["step"] for record in one] == [record["step"] for record in two]
    one, two = (both.records(folder / "calm", "validation") for folder in (both.one, both.two))
    assert [(r["heads"], r["heads_in"]) for r in one] == [(r["heads"], r["heads_in"]) for r in two]
    assert "[1/" not in both.process.stdout and both.process.stdout.count("student in") == 8, "only the first process speaks"


def test_a_resumed_run_of_two_processes_is_the_undisturbed_one(both: Both) -> None:
    # tiny_vit has dropout and drop-path, which each process draws for itself; its thaws are held, its weights averaged.
    assert both.told("whole", 0)["holds"] == both.told("parts", 0)["holds"] == both.told("parts", 1)["holds"] != []
    assert any(record["held"] for record in both.records(both.two / "whole", "spike"))
    averages = [newest(both.two / run).average for run in ("whole", "parts")]
    assert averages[0].keys() == averages[1].keys() != set()
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    for rank in (0, 1):
        whole, parts = both.rank("whole", rank), both.rank("parts", rank)
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_the_stored_plan_is_the_one_that_was_followed(both: Both) -> None:
    for run in ("whole", "parts"):
        plan = json.loads((both.two / run / "plan.json").read_text())
        assert plan["holds"] == both.told(run, 0)["holds"] and any("Held after a spike in epoch" in text for text in plan["messages"])
        followed = {record["epoch"]: record["open_blocks"] for record in both.records(both.two / run, "step")}
        assert {line["epoch"]: line["open_blocks"] for line in plan["epochs"]} == followed


def test_what_takes_no_part_is_not_decayed(both: Both) -> None:
    started = make_model(TINY["tiny_calm"]).state_dict().keys()
    idle = [name for name in started if name.startswith("decoder.inout_head.")]
    alone = load_file(both.one / "silent/student/model.safetensors")
    assert idle and all(torch.equal(alone[name], both.rank("silent", 0)[name]) for name in idle)


# -- what is not finite in one process alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POISONS)
def test_both_processes_stop_before_the_step_and_are_still_the_same(kind: str, both: Both) -> None:
    first, second = both.left(kind)
    assert first["processes"] == second["processes"] == 2
    assert (first["code"], second["code"]) == (2, 2)
    assert first["step"] == second["step"] == POISONED[1]
    assert first["digest"] == first["good"] == second["digest"] == second["good"]


@pytest.mark.parametrize("kind", POISONS)
def test_the_scenes_are_named_once_for_all_processes(kind: str, both: Both) -> None:
    first, second = both.left(kind)
    errors = [line for line in both.process.stderr.splitlines() if line.startswith("distill: error:")]
    assert len(errors) == len(POISONS)
    error = errors[POISONS.index(kind)]
    assert set(first["scenes"]).isdisjoint(second["scenes"])
    assert all(scene in error for scene in second["scenes"])
    # A loss is one process's own. A gradient is summed before it is looked at, so the scenes of the whole batch are named.
    assert [scene in error for scene in first["scenes"]] == [kind == "gradient"] * len(first["scenes"])
    assert {"loss": "kd_heatmap and kd_kl is nan at step 6", "gradient": "gradient norm is nan at step 6"}[kind] in error
    assert f"the last checkpoint stands: look at these scenes, or lower --lr or --backbone-lr, then resume with --resume {both.two / kind}" in error


@pytest.mark.parametrize("kind", POISONS)
def test_the_last_good_checkpoint_stands_and_the_run_goes_on_from_it(kind: str, both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "tiny_calm", TINY["tiny_calm"])
    run = both.two / kind
    checkpoint, _, damaged = newest_intact(run)
    assert (checkpoint.facts["step"], checkpoint.facts["processes"], damaged) == (4, 2, [])
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint.model.values() if value.is_floating_point())
    assert max(record["step"] for record in read_metrics(run)) == POISONED[1]
    assert main(["train", "--resume", str(run)]) == 0
    assert read_metrics(run)[-1]["kind"] == "end" and newest_intact(run)[0].facts["step"] == 8
