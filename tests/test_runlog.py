"""What is shown of a training and handed to trackers."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import LoggerType
from rich.console import Console
from training_world import CNN, make_trainer

from distill.accelerating import make_accelerator, trackers
from distill.configuration import RunConfig
from distill.errors import ConfigurationError, MissingExtraError
from distill.live import LiveDisplay, events, open_display
from distill.runlog import RunLog, scalars_of
from schedules.advice import SPIKE
from schedules.plan import Plan
from students.trainer import Record

THAW = {"epochs": 3, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 1, "unfreeze_interval": 1, "thaw_coupling": 0.0}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Record]]:
    """The records of a run of six steps that thaws twice."""
    values = iter([0.5, 0.4, 0.45])
    validate = lambda model: {"auc": 0.7, "avg_l2": next(values), "min_l2": 0.1, "ap": None}  # noqa: E731
    trainer, records = make_trainer(tmp_path_factory.mktemp("told"), CNN, 2, schedule=THAW, validate=validate)
    trainer.fit()
    return trainer.plan, records


SPIKED = {
    "kind": "spike", "step": 4, "epoch": 1, "thaw_epoch": 1, "loss": 9.25, "before": 2.5, "factor": 2.0, "held": True, "next_thaw": 5, "advice": SPIKE,
}


def test_what_is_told_for_good(told: tuple[Plan, list[Record]]) -> None:
    plan, records = told
    lines = [event for record in records for event in events(record, plan)]
    assert all(not warning for warning, _ in lines)
    texts = [text for _, text in lines]
    assert texts[0].startswith("epoch 0: opened net.model.blocks.2.0") and "1 of 3 blocks open" in texts[0]
    assert texts[1] == "epoch 0: auc 0.7000  avg_l2 0.5000  min_l2 0.1000  ap n/a  (best so far)"
    assert texts[3].startswith("epoch 1: auc 0.7000  avg_l2 0.4000") or texts[4].startswith("thaw of epoch 1: mean loss ")
    assert not texts[-1].endswith("(best so far)") and len(texts) == 3 + 3 + 2
    ((warning, text),) = events(SPIKED, plan)
    assert warning and text == (
        f"step 4: loss 9.25 is above 2 times the 2.5 before the thaw of epoch 1: {SPIKE}; the next thaw is held by one interval (due at epoch 5, beyond the 3 of this run)"
    )
    ((_, text),) = events({**SPIKED, "held": False, "next_thaw": None}, plan)
    assert text.endswith("; the next thaw: none is left")
    end = {**records[-1], "stopped_early": True}
    assert events(end, plan) == [(False, "stopped early at step 6: no validation since has been better than avg_l2 0.4000 of step 4 (--patience)")]


def test_the_panel_shows_where_the_run_is(told: tuple[Plan, list[Record]]) -> None:
    plan, records = told
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=150, height=30)
    display = LiveDisplay("Training tiny", plan, console)
    try:
        for record in records[:-3]:  # up to the last epoch's record
            display.show(record)
        shown = Console(width=150)
        with shown.capture() as capture:
            shown.print(display.render())
    finally:
        display.close()
    text = capture.get()
    last = next(record for record in reversed(records) if record["kind"] == "step")
    assert "Training tiny" in text and "100%" in text and "6/6 steps" in text
    assert "epoch 2 of 3" in text and "steps/s" in text and "0:00 left" in text
    assert f"loss {last['loss']:.4g}" in text and f"gradient {last['grad_norm']:.3g}" in text and "kd_heatmap" in text
    assert "w 0.5  T 1  open 3 of 3 blocks and the stem" in text and f"head {last['lr_head']:.2e}" in text
    assert "epoch 1: auc 0.7000  avg_l2 0.4000" in text and "(best: epoch 1)" in text
    assert "Training tiny" in screen.getvalue()


def test_the_panel_is_there_before_the_first_step(told: tuple[Plan, list[Record]]) -> None:
    plan, records = told
    display = LiveDisplay("Training tiny", plan, Console(file=io.StringIO(), force_terminal=True, width=150))
    shown = Console(width=150)
    try:
        for record in ([], [records[0]]):
            for each in record:
                display.show(each)
            with shown.capture() as capture:
                shown.print(display.render())
            assert "passed" in capture.get() and "left" not in capture.get()
    finally:
        display.close()


def test_lines_where_there_is_no_terminal(told: tuple[Plan, list[Record]], capsys: pytest.CaptureFixture[str]) -> None:
    plan, records = told
    display = open_display("Training tiny", plan)
    for record in [*records[:4], SPIKED, *records[4:]]:
        display.show(record)
    display.close()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and "\x1b" not in captured.err
    assert [line for line in lines if line.startswith("Training: 6/6 steps (100%)")]
    assert len([line for line in lines if line.startswith("warning: step 4: loss 9.25")]) == 1
    assert len([line for line in lines if line.startswith("epoch ")]) == 6


# -- trackers -----------------------------------------------------------------------------------------------------------


def test_nested_numbers_are_scalars_and_what_is_none_is_left_out(told: tuple[Plan, list[Record]]) -> None:
    _, records = told
    step = next(record for record in records if record["kind"] == "step")
    scalars = scalars_of(step)
    assert scalars["step/loss"] == step["loss"] and "step/step" not in scalars
    assert scalars["step/grad_norms/head"] == step["grad_norms"]["head"]
    assert scalars["step/lr_stages/net.model.blocks.2.0"] == step["lr_stages"]["net.model.blocks.2.0"]
    assert "validation/ap" not in scalars_of(next(record for record in records if record["kind"] == "validation"))
    assert scalars_of({"kind": "step", "step": 1, "loss": float("inf")}) == {}


def test_which_trackers_are_asked_for() -> None:
    assert trackers("none") is None
    assert trackers("auto") in (None, ["tensorboard"])
    with pytest.raises(ConfigurationError, match="tracker 'wandbb' is not known; nearest: wandb"):
        trackers("wandbb")


def test_a_tracker_that_is_not_installed_names_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    assert trackers("auto") is None
    for name, extra in (("wandb", r"'gaze-distill\[tracking\]'"), ("tensorboard", r"'gaze-distill\[report\]'"), ("mlflow", "mlflow"), ("comet_ml", "comet-ml")):
        with pytest.raises(MissingExtraError, match=f"tracker '{name}' is not installed; install it with `pip install {extra}`"):
            trackers(name)


def test_a_hosted_tracker_gets_the_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: it shows what goes out, with no account and no network."""
    made: list[Any] = []

    class Tracked:
        def __init__(self, project: str, **options: Any) -> None:
            self.project, self.options, self.config, self.logged, self.finished = project, options, {}, [], False
            made.append(self)

        def log(self, values: dict[str, float], step: int, **_: Any) -> None:
            self.logged.append((step, values))

        def finish(self) -> None:
            self.finished = True

    package = types.ModuleType("wandb")
    package.init, package.config = Tracked, types.SimpleNamespace(update=lambda values, **_: made[0].config.update(values))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    config = RunConfig(tracker="wandb", device="cpu", name="run")
    plan: Any = make_trainer(tmp_path / "other", CNN, 1)[0].plan
    log = RunLog(tmp_path, plan, make_accelerator(config, tmp_path))
    log.begin(config)
    log({"kind": "validation", "step": 2, "epoch": 0, "best": True, "weights": "raw", "avg_l2": 0.25, "ap": None})
    log.close()
    (tracked,) = made
    assert (tracked.project, tracked.options) == ("distill", {"name": tmp_path.name, "dir": str(tmp_path)})
    assert tracked.logged == [(2, {"validation/epoch": 0.0, "validation/best": 1.0, "validation/avg_l2": 0.25})]
    assert tracked.config["train.optimizer"] == "adamw" and tracked.finished


def test_tensorboard_writes_into_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    plan: Any = make_trainer(tmp_path / "other", CNN, 1)[0].plan
    config = RunConfig(tracker="tensorboard", device="cpu")
    log = RunLog(tmp_path, plan, make_accelerator(config, tmp_path))
    log.begin(config)
    log({"kind": "validation", "step": 2, "epoch": 0, "best": True, "weights": "raw", "avg_l2": 0.25})
    log.close()
    assert any(path.name.startswith("events.out") for path in tmp_path.rglob("*"))


def test_processes_wait_for_as_long_as_they_are_told(tmp_path: Path) -> None:
    accelerator = make_accelerator(RunConfig(device="cpu", tracker="none", timeout_minutes=7), tmp_path)
    assert accelerator.init_handler is not None and accelerator.init_handler.timeout.total_seconds() == 7 * 60
