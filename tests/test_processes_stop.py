"""What is not finite in one of two processes (gloo, on the CPU) stops both, before the step, and neither waits for the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import POISONED, TINY, World, make_world

from distill.cli import main
from distill.runlog import read_metrics
from students.catalogue import STUDENTS
from students.checkpoint import newest_intact

ROOT = Path(__file__).parents[1]
KINDS = ("loss", "gradient")


class Stopped:
    """Two trainings of two processes each; in the second process of each something is not finite after six of eight steps."""

    def __init__(self, world: World, folder: Path) -> None:
        self.runs, self.left = folder / "runs", folder / "left"
        self.left.mkdir()
        # A process that waited for the other would be given up after a minute, with another error than the one that is looked for.
        lines = [(kind, world.arguments(self.runs / kind, "tiny_calm", epochs=2, timeout_minutes=1)) for kind in KINDS]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1",
        }
        script = [str(ROOT / "tests/training_world.py"), "poisoned", str(self.left), json.dumps(lines)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
        self.process = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
        assert self.process.returncode == 0, self.process.stderr[-9000:]

    def ranks(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads((self.left / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    return Stopped(make_world(folder / "world"), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_stop_before_the_step_and_are_still_the_same(kind: str, stopped: Stopped) -> None:
    first, second = stopped.ranks(kind)
    assert first["processes"] == second["processes"] == 2
    assert (first["code"], second["code"]) == (2, 2)
    assert first["step"] == second["step"] == POISONED[1]
    assert first["digest"] == first["good"] == second["digest"] == second["good"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scenes_are_named_once_for_all_processes(kind: str, stopped: Stopped) -> None:
    first, second = stopped.ranks(kind)
    errors = [line for line in stopped.process.stderr.splitlines() if line.startswith("distill: error:")]
    assert len(errors) == len(KINDS)
    error = errors[KINDS.index(kind)]
    assert set(first["scenes"]).isdisjoint(second["scenes"])
    assert all(scene in error for scene in second["scenes"])
    # A loss is one process's own. A gradient is summed before it is looked at, so the scenes of the whole batch are named.
    assert [scene in error for scene in first["scenes"]] == [kind == "gradient"] * len(first["scenes"])
    assert {"loss": "kd_heatmap and kd_kl is nan at step 6", "gradient": "gradient norm is nan at step 6"}[kind] in error
    assert f"the last checkpoint stands: look at these scenes, or lower --lr or --backbone-lr, then resume with --resume {stopped.runs / kind}" in error


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_good_checkpoint_stands_and_the_run_goes_on_from_it(kind: str, stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "tiny_calm", TINY["tiny_calm"])
    run = stopped.runs / kind
    checkpoint, _, damaged = newest_intact(run)
    assert (checkpoint.facts["step"], checkpoint.facts["processes"], damaged) == (4, 2, [])
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint.model.values() if value.is_floating_point())
    assert max(record["step"] for record in read_metrics(run)) == POISONED[1]
    assert main(["train", "--resume", str(run)]) == 0
    assert read_metrics(run)[-1]["kind"] == "end" and newest_intact(run)[0].facts["step"] == 8
