"""The fp16 gradient scaler in a run, and SGD: state that a checkpoint must keep."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from training_world import CALM, CNN, make_trainer

from schedules.optimizer import build_optimizer, optimizer_state_by_name
from students.checkpoint import checkpoints, read_checkpoint_file
from students.errors import RunError, TrainingError
from students.trainer import MOST_SKIPPED, Record, Trainer

SCHEDULE = {
    "epochs": 3, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 1, "unfreeze_interval": 1, "thaw_coupling": 0.0, "distill_weight": 0.0,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scaled(folder: Path, batches: int = 4, *, overflow: set[int] = frozenset(), **options: Any) -> tuple[Trainer, list[Record]]:  # type: ignore[assignment]
    """A trainer whose gradients go through torch's scaler, as with fp16 on a GPU, and overflow at some steps."""
    trainer, records = make_trainer(folder, CALM, batches, schedule=SCHEDULE, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    weight = trainer.model.decoder.linear.weight
    weight.register_hook(lambda gradient: gradient * math.inf if trainer.step in overflow else gradient)
    return trainer, records


def test_scaled_steps_are_the_plain_ones(tmp_path: Path) -> None:
    plain, expected = make_trainer(tmp_path / "plain", CALM, 4, schedule=SCHEDULE)
    trainer, records = scaled(tmp_path / "scaled")
    for each in (plain, trainer):
        each.fit()
    for mine, theirs in zip((r for r in records if r["kind"] == "step"), (r for r in expected if r["kind"] == "step"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), "the norm is that of the gradient before scaling"


def test_an_overflow_skips_the_step_and_is_told(tmp_path: Path) -> None:
    trainer, records = scaled(tmp_path, overflow={1, 5}, ema_decay=0.5)
    before: dict[int, torch.Tensor] = {}
    plain = trainer._watch

    def watch(loss: float, point: Any) -> None:
        before[trainer.step] = trainer.model.decoder.linear.weight.detach().clone()
        plain(loss, point)

    trainer._watch = watch  # type: ignore[method-assign]
    trainer.fit()
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["grad_norm"] is None for record in steps] == [number in (1, 5) for number in range(12)]
    assert all(bool(record["grad_norms"]) == (record["grad_norm"] is not None) for record in steps)
    assert [torch.equal(before[n], before[n + 1]) for n in range(1, 12)] == [n in (1, 5) for n in range(1, 12)]
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [record["skipped_steps"] for record in epochs] == [1, 1, 0]
    kept = [record["grad_norm"] for record in steps[:4] if record["grad_norm"] is not None]
    assert epochs[0]["grad_norm"] == pytest.approx(sum(kept) / 3, rel=1e-12)
    json.dumps(records, allow_nan=False)


def test_the_scaler_is_kept_and_resumed_to_the_bit(tmp_path: Path) -> None:
    whole, expected = scaled(tmp_path / "whole", overflow={1, 5})
    whole.fit()
    cut, _ = scaled(tmp_path / "cut", overflow={1, 5}, limit_steps=8)
    cut.fit()
    kept = read_checkpoint_file(checkpoints(tmp_path / "cut")[0]).facts["scaler"]
    assert kept["scale"] != 2.0**10 and kept == cut.accelerator.scaler.state_dict()
    resumed, records = scaled(tmp_path / "cut", overflow={1, 5})
    assert resumed.resume() == []
    assert resumed.accelerator.scaler.state_dict() == kept
    resumed.fit()
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert all(torch.equal(value, resumed.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    assert [r["loss"] for r in records if r["kind"] == "step"] == [r["loss"] for r in expected if r["kind"] == "step"][8:]


def test_overflow_without_end_stops_the_run(tmp_path: Path) -> None:
    trainer, records = scaled(tmp_path, MOST_SKIPPED + 2, overflow=set(range(1, 99)))
    with pytest.raises(TrainingError, match=rf"gradient norm is (nan|inf) at step {MOST_SKIPPED} on scenes scene {MOST_SKIPPED}/0"):
        trainer.fit()
    assert len([record for record in records if record["kind"] == "step"]) == MOST_SKIPPED
    assert read_checkpoint_file(checkpoints(tmp_path)[0]).facts["step"] == 0


# -- SGD ----------------------------------------------------------------------------------------------------------------


def test_sgd_takes_hand_computed_steps() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer([{"params": [weight], "param_names": ["w"], "weight_decay": 0.5, "stage": -1}], "sgd", momentum=0.9)
    optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(2):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
    # v = 2 + 0.5·1 = 2.5, w = 1 − 0.25 = 0.75; v = 0.9·2.5 + 2 + 0.5·0.75 = 4.625, w = 0.75 − 0.4625
    assert weight.item() == pytest.approx(0.2875)
    assert optimizer_state_by_name(optimizer)["w"]["momentum_buffer"].item() == pytest.approx(4.625)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_checkpoint_of_any_epoch_loads_on_either_side_of_any_thaw(kind: str, tmp_path: Path) -> None:
    """The reference could not resume 10 of 44 checkpoints: its groups change size at a thaw."""
    trainer, _ = make_trainer(tmp_path, CNN, 2, schedule={**SCHEDULE, "epochs": 5}, optimizer=kind, keep_checkpoints=99)
    trainer.fit()
    saved = checkpoints(tmp_path)
    assert [path.stem for path in saved] == [f"step-{step:07d}" for step in (10, 8, 6, 4, 2, 0)]
    thaws = [epoch for epoch, _ in trainer.plan.thaw_events]
    assert thaws == [0, 1, 2]
    for path in saved:
        for later in checkpoints(tmp_path):
            if later > path:
                later.unlink()
        for layers in range(1, 4):  # as many blocks open at the epoch of the resumption, whatever was open before
            other, records = make_trainer(
                tmp_path, CNN, 2, optimizer=kind, limit_steps=int(path.stem[5:]) + 1, keep_checkpoints=99,
                schedule={**SCHEDULE, "epochs": 6, "finetune_layers": layers, "disable_progressive_unfreeze": True},
            )
            assert other.resume() == []
            other.fit()
            (step,) = [record for record in records if record["kind"] == "step"]
            assert step["step"] == int(path.stem[5:]) + 1 and step["open_blocks"] == layers and math.isfinite(step["loss"])
            checkpoints(tmp_path)[0].unlink()


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, CNN, 2, schedule=SCHEDULE, limit_steps=2)[0].fit()
    other, _ = make_trainer(tmp_path, CNN, 2, schedule=SCHEDULE, optimizer="sgd")
    with pytest.raises(RunError, match="holds the state of adamw, this run asks for sgd; resume with --optimizer adamw"):
        other.resume()


def test_epochs_of_another_number_of_steps_are_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, CNN, 2, schedule=SCHEDULE, limit_steps=2)[0].fit()
    other, _ = make_trainer(tmp_path, CNN, 3, schedule=SCHEDULE)
    with pytest.raises(RunError, match="was made with 2 steps an epoch, this run would have 3: every rate and every thaw would fall on another step"):
        other.resume()
