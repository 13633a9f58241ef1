"""Averaged weights, which student is kept, and when a run stops early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_world import CNN, VIT, make_trainer

from students.average import WeightAverage, decay_at
from students.checkpoint import checkpoints, read_checkpoint_file
from students.choice import Choice
from students.errors import TrainingError
from students.trainer import Trainer
from teachers.model import GazeModel, ModelConfig
from teachers.weights import load_model

THAW = {"epochs": 3, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 1, "unfreeze_interval": 1, "thaw_coupling": 0.0, "lr": 1e-2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state(model: GazeModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def after_each_step(trainer: Trainer, look: Any) -> None:
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: look())


# -- the average --------------------------------------------------------------------------------------------------------


def test_the_decay_begins_small() -> None:
    assert [decay_at(0.999, step) for step in (0, 1, 8, 89)] == [0.1, 2 / 11, 0.5, 90 / 99]
    assert decay_at(0.999, 100_000) == 0.999 and decay_at(0.3, 8) == 0.3


@pytest.mark.parametrize("config", [CNN, VIT], ids=["cnn", "vit"])
def test_the_average_is_that_of_every_step(config: ModelConfig, tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, config, 3, schedule={**THAW, "unfreeze_interval": 2}, ema_decay=0.6)
    expected = {name: value.double() for name, value in state(trainer.model).items() if value.is_floating_point()}
    steps = 0

    def take() -> None:
        nonlocal steps
        steps += 1
        decay = min(0.6, (1 + steps) / (10 + steps))
        for name, value in trainer.model.state_dict().items():
            if name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * value.double()

    after_each_step(trainer, take)
    trainer.fit()
    assert steps == 9 and trainer.average is not None and trainer.average.values.keys() == expected.keys()
    for name, value in trainer.average.values.items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-4, atol=1e-6), name
    # What never opened is its own average to the bit, BatchNorm's statistics included; what moved is not.
    closed = {f"backbone.{name}" for index, stage in enumerate(trainer.stages) if index > 1 for name in stage.parameters}
    raw = trainer.model.state_dict()
    assert closed and all(torch.equal(trainer.average.values[name], raw[name]) for name in closed)
    assert not torch.equal(trainer.average.values["decoder.linear.weight"], raw["decoder.linear.weight"])
    opened = [name for name in expected if name.startswith(f"backbone.{trainer.stages[0].name}.") and name.endswith("running_mean")]
    assert bool(opened) == (config is CNN) and all(not torch.equal(trainer.average.values[name], raw[name]) for name in opened)


def test_the_model_has_its_own_weights_again_afterwards() -> None:
    model = GazeModel(CNN)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    raw = state(model)
    seen: list[bool] = []

    def interrupted() -> None:
        with average.applied():
            seen.extend(torch.equal(value, average.values[name]) for name, value in model.state_dict().items() if name in average.values)
            raise KeyError

    with pytest.raises(KeyError):  # whatever happens meanwhile
        interrupted()
    assert all(seen) and len(seen) == len(average.values)
    assert all(torch.equal(value, raw[name]) for name, value in model.state_dict().items())


def test_averaging_changes_nothing_in_the_training(tmp_path: Path) -> None:
    plain, before = make_trainer(tmp_path / "plain", CNN, 3, schedule=THAW)
    averaged, after = make_trainer(tmp_path / "averaged", CNN, 3, schedule=THAW, ema_decay=0.9)
    for trainer in (plain, averaged):
        trainer.fit()
    assert [r["loss"] for r in before if r["kind"] == "step"] == [r["loss"] for r in after if r["kind"] == "step"]
    assert all(torch.equal(value, averaged.model.state_dict()[name]) for name, value in plain.model.state_dict().items())


# -- which student is kept ----------------------------------------------------------------------------------------------


def test_the_better_of_raw_and_averaged_weights_is_kept(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    values = [0.5, 0.4, 0.3, 0.45, 0.2, 0.2]  # raw and averaged, of three epochs

    def validate(model: GazeModel) -> dict[str, float | None]:
        assert not any(module.training for module in model.modules())
        seen.append(state(model))
        return {"avg_l2": values[len(seen) - 1], "ap": None}

    trainer, records = make_trainer(tmp_path, CNN, 2, schedule=THAW, validate=validate, ema_decay=0.5)
    trainer.fit()
    validations = [record for record in records if record["kind"] == "validation"]
    kept = [(record["best"], record["weights"]) for record in validations]
    assert kept == [(True, "averaged"), (True, "raw"), (True, "raw")]
    assert [(record["avg_l2"], record["ema_avg_l2"], record["ema_ap"]) for record in validations] == [(0.5, 0.4, None), (0.3, 0.45, None), (0.2, 0.2, None)]
    assert (trainer.choice.best, trainer.choice.best_step) == (0.2, 6)
    stored, description = load_model(tmp_path / "student")
    assert description["facts"]["weights"] == "raw" and all(torch.equal(value, seen[4][name]) for name, value in stored.state_dict().items())
    newest = read_checkpoint_file(checkpoints(tmp_path)[0])
    assert trainer.average is not None and all(torch.equal(value, trainer.average.values[name]) for name, value in newest.average.items())
    # The model goes on from its own weights, not from the averaged ones.
    assert all(torch.equal(value, newest.model[name]) for name, value in trainer.model.state_dict().items())


def test_averaged_weights_are_stored_where_they_are_the_best(tmp_path: Path) -> None:
    calls: list[int] = []

    def validate(model: GazeModel) -> dict[str, float | None]:
        calls.append(1)
        return {"auc": 0.5 + 0.1 * (len(calls) % 2 == 0)}

    trainer, _ = make_trainer(tmp_path, CNN, 2, schedule={**THAW, "epochs": 1}, validate=validate, ema_decay=0.5, best_metric="auc")
    trainer.fit()
    stored, description = load_model(tmp_path / "student")
    assert description["facts"]["weights"] == "averaged" and description["facts"]["validation"] == {"auc": 0.6}
    assert trainer.average is not None and all(torch.equal(stored.state_dict()[name], value) for name, value in trainer.average.values.items())


def test_without_validation_the_newest_average_is_kept(tmp_path: Path) -> None:
    trainer, records = make_trainer(tmp_path, CNN, 2, schedule={**THAW, "epochs": 2}, ema_decay=0.5)
    trainer.validate = None
    trainer.fit()
    stored, description = load_model(tmp_path / "student")
    assert description["facts"]["weights"] == "averaged" and description["facts"]["step"] == 4
    assert trainer.average is not None and all(torch.equal(stored.state_dict()[name], value) for name, value in trainer.average.values.items())
    assert [record for record in records if record["kind"] == "validation"] == []


def test_a_run_that_is_averaged_from_a_resumption_on_says_so(tmp_path: Path) -> None:
    make_trainer(tmp_path, CNN, 2, schedule=THAW, limit_steps=4)[0].fit()
    later, _ = make_trainer(tmp_path, CNN, 2, schedule=THAW, ema_decay=0.9)
    assert later.resume() == ["the run's weights were not averaged before: --ema-decay takes effect from step 4 on"]
    assert later.average is not None and all(torch.equal(value, later.model.state_dict()[name]) for name, value in later.average.values.items())
    later.fit()
    plain, _ = make_trainer(tmp_path, CNN, 2, schedule=THAW)
    assert plain.resume() == ["the run's weights were averaged before: --ema-decay takes effect from step 6 on"]


# -- stopping early -----------------------------------------------------------------------------------------------------


def test_patience_ends_the_run_and_a_resumption_does_not_undo_it(tmp_path: Path) -> None:
    values = iter([0.5, 0.4, 0.41, 0.4, 0.3])
    schedule = {**THAW, "epochs": 9}
    trainer, records = make_trainer(tmp_path, CNN, 2, schedule=schedule, validate=lambda model: {"avg_l2": next(values)}, patience=2)
    end = trainer.fit()
    assert (end["step"], end["stopped_early"], end["best"], end["best_step"]) == (8, True, 0.4, 4)
    assert [record["best"] for record in records if record["kind"] == "validation"] == [True, True, False, False]
    again, records = make_trainer(tmp_path, CNN, 2, schedule=schedule, validate=lambda model: {"avg_l2": 0.1}, patience=2)
    again.resume()
    assert again.fit()["step"] == 8 and not [record for record in records if record["kind"] == "step"]
    patient, _ = make_trainer(tmp_path, CNN, 2, schedule=schedule, validate=lambda model: {"avg_l2": 0.45}, patience=3)
    patient.resume()
    end = patient.fit()
    assert (end["step"], end["best"]) == (10, 0.4), "two of three had passed before"


def test_a_resumption_that_chooses_by_another_metric_begins_the_choice_anew(tmp_path: Path) -> None:
    def trainer_by(metric: str, values: dict[str, float], **options: Any) -> tuple[Trainer, list[dict[str, Any]]]:
        trainer, records = make_trainer(tmp_path, CNN, 2, schedule=THAW, validate=lambda model: values, best_metric=metric, **options)
        trainer.facts["selection"] = {"split": "val", "metric": metric}
        return trainer, records

    trainer_by("auc", {"auc": 0.9, "ap": 0.3}, limit_steps=4)[0].fit()
    same, records = trainer_by("auc", {"auc": 0.8, "ap": 0.4})
    assert same.resume() == [] and same.choice.best == 0.9
    other, records = trainer_by("ap", {"auc": 0.8, "ap": 0.4})
    assert other.resume() == [
        "the best student was chosen by metric auc, split val, from step 4 on it is chosen anew by metric ap, split val"
    ]
    end = other.fit()
    assert (end["best"], end["best_step"]) == (0.4, 6), "0.9 was another metric's value"
    assert [record["best"] for record in records if record["kind"] == "validation"] == [True]


@pytest.mark.parametrize(("metric", "better", "worse"), [("avg_l2", 0.1, 0.2), ("min_l2", 0.1, 0.2), ("auc", 0.9, 0.8), ("ap", 0.9, 0.8)])
def test_what_is_better(metric: str, better: float, worse: float) -> None:
    choice = Choice(metric, patience=1)
    assert choice.judge({metric: worse}, 1) and not choice.judge({metric: worse}, 2), "an equal value is no better one"
    assert choice.exhausted and choice.judge({metric: better}, 3) and not choice.exhausted
    assert choice.winner({"raw": {metric: worse}, "averaged": {metric: better}}) == "averaged"
    assert choice.winner({"raw": {metric: better}, "averaged": {metric: better}}) == "raw"
    with pytest.raises(TrainingError, match=f"no '{metric}' to choose the best student by"):
        choice.value({metric: None, "other": 1.0})
