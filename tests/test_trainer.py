"""The trainer on tiny models: what is frozen, what opens when, what a step does, what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from training_world import CALM, CNN, VIT, golden_losses, make_batch, make_model, make_trainer

from students.accumulation import split
from students.batch import Batch
from students.checkpoint import checkpoints, read_checkpoint_file
from students.errors import RunError, TrainingError
from students.losses import LossWeights
from students.trainer import Trainer
from teachers.model import GazeModel, ModelConfig
from teachers.weights import load_model

THAW = {"epochs": 4, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 1, "unfreeze_interval": 1, "thaw_coupling": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def drop_paths(model: GazeModel) -> GazeModel:
    """A ViT whose blocks drop their paths half of the time in train mode."""
    for block in model.backbone.net.blocks:  # type: ignore[union-attr]
        block.drop_path1 = DropPath(0.5)
    return model


def at_each_step(trainer: Trainer, look: Any) -> None:
    """Call ``look(optimizer)`` just before each of the optimizer's steps."""
    trainer.optimizer.optimizer.register_step_pre_hook(lambda optimizer, *_: look(optimizer))


# -- frozen, and opened -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CNN, VIT], ids=["cnn", "vit"])
def test_a_frozen_backbone_does_not_move_in_a_bit(config: ModelConfig, tmp_path: Path) -> None:
    model = make_model(config)
    if config is VIT:
        drop_paths(model)
    before = state(model)
    trainer, _ = make_trainer(tmp_path, model, schedule={"epochs": 1})
    outputs = []
    model.backbone.register_forward_hook(lambda *arguments: outputs.append(arguments[2].clone()))
    trainer.fit()
    changed = moved(before, state(model))
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    # Neither BatchNorm nor drop-path was in train mode: the features are those of eval mode.
    model.eval()
    with torch.no_grad():
        again = model.backbone((make_batch(0).images - model.mean) / model.std)
    assert torch.equal(outputs[0], again)


@pytest.mark.parametrize("config", [CNN, VIT], ids=["cnn", "vit"])
def test_stages_open_at_the_planned_steps_and_only_they_move(config: ModelConfig, tmp_path: Path) -> None:
    trainer, records = make_trainer(tmp_path, config, 3, schedule={**THAW, "epochs": 9})
    opening = trainer.plan.clock.opening_epochs
    blocks = trainer.stages.blocks
    assert opening == (0, *range(1, blocks), blocks - 1)
    first_moved: dict[int, int] = {}
    trained: list[set[int]] = []
    kept = state(trainer.model.backbone)

    def look(_: Any) -> None:
        named = dict(trainer.model.backbone.named_parameters())
        trained.append({index for index, stage in enumerate(trainer.stages) if any(named[n].requires_grad for n in stage.parameters)})
        for name in moved(kept, state(trainer.model.backbone)):
            if name in named:
                first_moved.setdefault(trainer.stages.of(name), trainer.step)

    at_each_step(trainer, look)
    trainer.fit()
    assert trained == [{i for i, epoch in enumerate(opening) if epoch is not None and epoch <= step // 3} for step in range(27)]
    # What a step moves is seen before the next one.
    assert first_moved == {index: epoch * 3 + 1 for index, epoch in enumerate(opening) if epoch is not None}
    events = [(record["epoch"], record["step"], record["opened"]) for record in records if record["kind"] == "thaw"]
    names = [stage.name for stage in trainer.stages]
    expected = [(epoch, 3 * epoch, [names[epoch]]) for epoch in range(blocks - 1)]
    assert events == [*expected, (blocks - 1, 3 * (blocks - 1), names[blocks - 1 :])]
    totals = [record["trainable"] for record in records if record["kind"] == "thaw"]
    assert totals[-1] == sum(parameter.numel() for parameter in trainer.model.parameters()) and totals == sorted(set(totals))


def test_batchnorm_of_closed_stages_stands_still_while_open_ones_move(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, CNN, schedule={**THAW, "epochs": 1})
    before = state(trainer.model.backbone)
    trainer.fit()
    changed = moved(before, state(trainer.model.backbone))
    opened = trainer.stages[0].name
    assert {name.startswith(f"{opened}.") for name in changed} == {True}
    assert any(name.endswith("running_mean") for name in changed)


def test_every_group_has_the_planned_rate_at_every_step(tmp_path: Path) -> None:
    trainer, records = make_trainer(
        tmp_path, CNN, 3, schedule={**THAW, "lr": 4e-3, "backbone_lr": 2e-3, "layer_decay": 0.5, "thaw_warmup": "2 steps"}
    )
    seen: list[dict[int, set[float]]] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        rates: dict[int, set[float]] = {}
        for group in optimizer.param_groups:
            rates.setdefault(group["stage"], set()).add(group["lr"])
        seen.append(rates)

    at_each_step(trainer, look)
    trainer.fit()
    points = [trainer.plan.at(step) for step in range(12)]
    assert seen == [{-1: {p.lr_head}, **{index: {rate} for index, rate in enumerate(p.lr_stages)}} for p in points]
    # Hand-computed for the second block, open from step 3: warm-up 1/2, then the cosine over 12 steps.
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    second = [0.0, 0.0, 0.0, 0.5 * 1e-3 * cosine[3], *(1e-3 * value for value in cosine[4:])]
    assert [next(iter(rates[1])) for rates in seen] == pytest.approx(second, rel=1e-12)
    steps = [record for record in records if record["kind"] == "step"]
    assert [(s["lr_head"], s["lr_backbone"]) for s in steps] == [(p.lr_head, p.lr_stages[0]) for p in points]


# -- what a step does ---------------------------------------------------------------------------------------------------


def test_it_learns_one_batch_by_heart(tmp_path: Path) -> None:
    batch = make_batch(0)
    schedule = {"epochs": 1, "lr": 1e-2, "finetune": True, "finetune_layers": 0, "lr_schedule": "constant"}
    trainer, records = make_trainer(tmp_path, replace(CNN, drop_path=0.0), [batch] * 60, schedule=schedule)
    trainer.fit()
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize(("name", "config"), [("cnn", CNN), ("vit", VIT)])
def test_the_golden_run(name: str, config: ModelConfig, tmp_path: Path) -> None:
    # Written by `python tests/training_world.py golden`; other kernels and thread counts stay within 1e-6 of it.
    golden = json.loads((Path(__file__).parent / "golden/losses.json").read_text())[name]
    assert len(golden) == 20
    assert golden_losses(config, tmp_path) == pytest.approx(golden, rel=1e-4)


def _gradients(tmp_path: Path, batch: Batch, parts: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    schedule = {"epochs": 1, "finetune": True, "finetune_layers": 0}
    trainer, records = make_trainer(tmp_path / str(parts), CALM, [batch], schedule=schedule, accumulate=parts, grad_clip_norm=0.0)
    found: dict[str, Tensor] = {}
    at_each_step(trainer, lambda _: found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}))
    trainer.fit()
    return found, [record for record in records if record["kind"] == "step"]


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_accumulated_parts_are_one_batch(parts: int, tmp_path: Path) -> None:
    batch = make_batch(3, images=5)
    heads = [int(part.has_target.sum()) for part in split(batch, parts)]
    assert len(set(heads)) > 1, "the parts must differ in heads for the means to be put to the test"
    whole, (once,) = _gradients(tmp_path, batch, 1)
    summed, (record,) = _gradients(tmp_path, batch, parts)
    assert whole.keys() == summed.keys() == dict(make_model(CALM).named_parameters()).keys()
    for name, gradient in whole.items():
        assert torch.allclose(summed[name], gradient, rtol=0, atol=1e-5), name
    for name in ("loss", "heatmap", "inout", "kd_heatmap", "kd_inout", "grad_norm"):
        assert record[name] == pytest.approx(once[name], abs=1e-5)
        assert once[name] > 0


def test_a_part_keeps_each_head_with_its_picture() -> None:
    batch = make_batch(2, images=5)
    parts = split(batch, 3)
    assert [len(part.images) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.images[part.image_index] for part in parts]), batch.images[batch.image_index])
    assert torch.equal(torch.cat([part.boxes for part in parts]), batch.boxes)
    assert sum((part.scenes for part in parts), ()) == batch.scenes


def test_the_gradient_is_clipped_and_its_own_norm_reported(tmp_path: Path) -> None:
    norms: dict[float, list[float]] = {}
    reported: dict[float, list[float]] = {}
    for limit in (0.0, 0.05):
        trainer, records = make_trainer(tmp_path / str(limit), CALM, [make_batch(0)], schedule={"epochs": 1}, grad_clip_norm=limit)
        norms[limit] = []
        at_each_step(trainer, lambda o, into=norms[limit]: into.append(float(torch.cat([p.grad.flatten() for g in o.param_groups for p in g["params"] if p.grad is not None]).norm())))
        trainer.fit()
        reported[limit] = [record["grad_norm"] for record in records if record["kind"] == "step"]
    assert norms[0.0][0] > 0.05 and norms[0.05][0] == pytest.approx(0.05, rel=1e-4)
    assert reported[0.0] == reported[0.05] == pytest.approx(norms[0.0], rel=1e-6)


def test_dropout_is_drawn_anew_at_every_step_and_the_same_in_every_run(tmp_path: Path) -> None:
    config = replace(VIT, drop_path=0.5)
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # what was drawn before does not matter
        trainer, records = make_trainer(tmp_path / str(number), config, [make_batch(0)] * 3, schedule={"epochs": 1, "lr": 1e-12}, seed=seed)
        trainer.fit()
        runs.append([record["loss"] for record in records if record["kind"] == "step"])
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == 3


@pytest.mark.parametrize("field", ["images", "teacher_heatmap"])
def test_a_loss_that_is_not_finite_stops_before_the_step(field: str, tmp_path: Path) -> None:
    batches = [make_batch(number) for number in range(4)]
    broken = getattr(batches[1], field).clone()
    broken[0, 0, 0] = math.nan
    trainer, records = make_trainer(tmp_path, CNN, batches, schedule={"epochs": 3})
    plain = trainer.batches.batches

    def poisoned(epoch: int, start: int) -> Iterator[Batch]:
        for number, batch in enumerate(plain(epoch, start)):
            yield replace(batch, **{field: broken}) if (epoch, number) == (1, 1) else batch

    trainer.batches.batches = poisoned  # type: ignore[method-assign]
    steps: list[dict[str, Tensor]] = []
    at_each_step(trainer, lambda _: steps.append({}))
    with pytest.raises(TrainingError, match=r"nan at step 5 on scenes scene 1/0, scene 1/1, .*--resume") as caught:
        trainer.fit()
    term = "heatmap" if field == "images" else "kd_heatmap"  # the loss itself is looked at, not only the gradient that it gives
    named = set(str(caught.value).partition(" is nan")[0].split(" and "))
    # And no term is blamed that is not in use.
    assert term in named <= {"heatmap", "inout", "kd_heatmap", "kd_inout", "kd_kl"} and "\n" not in str(caught.value)
    assert len(steps) == trainer.step == 5
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    newest = read_checkpoint_file(checkpoints(tmp_path)[0])
    assert newest.facts["step"] == 4
    assert [record["kind"] for record in records][-1] == "step"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), None, MemoryError()], ids=["GPU", "CPU", "Python"])
def test_memory_that_runs_out_after_a_thaw_repeats_the_guides_advice(error: Exception | None, tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, CNN, 2, schedule=THAW)
    plain = trainer.model.forward

    def forward(*inputs: Any) -> Any:
        if trainer.step == 3:  # two steps an epoch: a block opened at the second
            if error is not None:
                raise error
            torch.empty(2**60)
        return plain(*inputs)

    trainer.model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"out of memory after unfreezing: .*reduce the batch size, .*--use-amp.* \(step 3, 2 blocks open: "):
        trainer.fit()
    assert read_checkpoint_file(checkpoints(tmp_path)[0]).facts["step"] == 2


def test_memory_that_runs_out_with_all_frozen_has_nothing_to_say_of_thaws(tmp_path: Path) -> None:
    def raising(kind: Exception) -> Trainer:
        def forward(*_: Any) -> Any:
            raise kind

        trainer, _ = make_trainer(tmp_path, CNN, 1, schedule={"epochs": 1})
        trainer.model.forward = forward  # type: ignore[method-assign]
        return trainer

    with pytest.raises(TrainingError, match=r"out of memory with a frozen backbone: reduce the batch size .* \(step 0, 0 blocks open: no room\)"):
        raising(torch.OutOfMemoryError("no room")).fit()
    with pytest.raises(RuntimeError, match="a defect"):  # another error is none of this
        raising(RuntimeError("a defect")).fit()


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, CNN)
    weight = trainer.model.decoder.linear.weight
    weight.register_hook(lambda gradient: gradient * math.inf if trainer.step == 2 else gradient)
    before: list[Tensor] = []
    at_each_step(trainer, lambda _: before.append(weight.detach().clone()))
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) at step 2 on scenes scene 2/0"):
        trainer.fit()
    assert len(before) == 2 and torch.isfinite(weight).all()


def test_a_term_that_is_switched_off_is_not_computed(tmp_path: Path) -> None:
    trainer, records = make_trainer(tmp_path, CNN, 1, schedule={"epochs": 1}, weights=LossWeights(inout=0.0, bce=0.0, softmax=1.0))
    trainer.fit()
    step = next(record for record in records if record["kind"] == "step")
    assert step["heatmap"] == step["inout"] == step["kd_inout"] == 0.0
    assert step["loss"] == pytest.approx(step["spatial"] + 0.5 * step["kd_heatmap"], rel=1e-5)


# -- what is kept and told ----------------------------------------------------------------------------------------------


def test_limit_steps_ends_the_run_with_everything_written(tmp_path: Path) -> None:
    trainer, records = make_trainer(tmp_path, CNN, 4, schedule={"epochs": 5}, limit_steps=6, log_every=4)
    end = trainer.fit()
    assert trainer.step == end["step"] == 6
    assert [record["step"] for record in records if record["kind"] == "step"] == [4, 6]
    assert [(r["epoch"], r["step"]) for r in records if r["kind"] == "validation"] == [(0, 4), (1, 6)]
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-0000006", "step-0000004"]


@pytest.mark.parametrize(("metric", "values", "best"), [("avg_l2", [0.5, 0.3, 0.4], 1), ("auc", [0.5, 0.9, 0.8], 1), ("avg_l2", [0.2, 0.2, 0.3], 0)])
def test_the_best_student_is_kept(metric: str, values: list[float], best: int, tmp_path: Path) -> None:
    weights: list[dict[str, Tensor]] = []

    def validate(model: GazeModel) -> dict[str, float | None]:
        assert not any(module.training for module in model.modules())
        weights.append(state(model))
        return {metric: values[len(weights) - 1], "ap": None}

    trainer, records = make_trainer(tmp_path, CNN, 2, schedule={"epochs": 3}, validate=validate, best_metric=metric)
    end = trainer.fit()
    stored, description = load_model(tmp_path / "student")
    assert not moved(weights[best], state(stored))
    assert moved(weights[best], weights[2])
    assert (end["best"], end["best_step"], end["metric"]) == (values[best], 2 * best + 2, metric)
    assert description["facts"]["validation"] == {metric: values[best], "ap": None}
    assert [record["best"] for record in records if record["kind"] == "validation"] == [n == 0 or n == best for n in range(3)]


def test_training_goes_on_in_train_mode_after_a_validation(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, CNN, 2, schedule={**THAW, "epochs": 2})
    modes: list[tuple[bool, bool]] = []
    at_each_step(trainer, lambda _: modes.append((trainer.model.decoder.training, trainer.model.backbone.training)))
    trainer.fit()
    assert modes == [(True, False)] * 4


def test_a_metric_that_validation_does_not_give_is_named(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, CNN, 1, best_metric="ap", validate=lambda model: {"ap": None, "auc": 0.5})
    with pytest.raises(TrainingError, match="no 'ap' to choose the best student by \\(it has auc\\); choose one with --best-metric"):
        trainer.fit()


def test_the_records_are_complete(tmp_path: Path) -> None:
    trainer, records = make_trainer(tmp_path, CNN, 2, schedule=THAW, validate=lambda model: {"avg_l2": 0.5, "auc": 0.6})
    trainer.fit()
    kinds = [record["kind"] for record in records]
    epoch = ["step", "step", "epoch", "validation", "checkpoint"]
    watched = [*epoch[:4], "thaw_loss", "checkpoint"]
    last = ["step", "step", "thaw_loss", *epoch[2:]]
    assert kinds == ["start", "checkpoint", "thaw", *epoch, "thaw", *watched, "thaw", *epoch, *last, "end"]
    by_kind = {record["kind"]: set(record) - {"kind", "step"} for record in records}
    parts = ("heatmap", "spatial", "inout", "kd_heatmap", "kd_inout", "kd_kl")
    terms = {"loss", *parts, *(f"weighted_{part}" for part in parts), "grad_norm"}
    assert by_kind["start"] == {"total", "steps_per_epoch"}
    assert by_kind["step"] == {
        *terms, "epoch", "seconds", "weight", "temperature", "open_blocks", "stem_open", "lr_head", "lr_backbone", "target_mass",
        "lr_stages", "grad_norms",
    }
    assert by_kind["epoch"] == {*terms, "epoch", "images_per_s", "seconds", "skipped_steps"}
    assert by_kind["validation"] == {"epoch", "best", "weights", "avg_l2", "auc"}
    assert by_kind["thaw"] == {"epoch", "opened", "open_blocks", "trainable", "loss_before"}
    assert by_kind["thaw_loss"] == {"thaw_epoch", "before", "after", "steps", "ratio"}
    assert by_kind["end"] == {"best", "best_step", "metric", "stopped_early", "seconds"}
    json.dumps(records, allow_nan=False)
    steps = [record for record in records if record["kind"] == "step"]
    assert [(record["step"], record["epoch"], record["open_blocks"]) for record in steps] == [
        (1, 0, 1), (2, 0, 1), (3, 1, 2), (4, 1, 2), (5, 2, 3), (6, 2, 3), (7, 3, 3), (8, 3, 3),
    ]
    for number, record in enumerate(record for record in records if record["kind"] == "epoch"):
        for term in terms:
            mean = (steps[2 * number][term] + steps[2 * number + 1][term]) / 2
            assert record[term] == pytest.approx(mean, rel=1e-12), term
    total = steps[0]["heatmap"] + steps[0]["inout"] + 0.5 * (steps[0]["kd_heatmap"] + steps[0]["kd_inout"])
    assert steps[0]["loss"] == pytest.approx(total, rel=1e-6)


def test_a_run_has_a_checkpoint_from_its_first_moment_on(tmp_path: Path) -> None:
    trainer, records = make_trainer(tmp_path, CNN, 4, schedule={"epochs": 2}, checkpoint_steps=2, keep_checkpoints=9)
    before = state(trainer.model)
    trainer.fit()
    # One at step 4, when the epoch's end is done: a run resumed from one before that would skip its validation.
    assert [record["step"] for record in records if record["kind"] == "checkpoint"] == [0, 2, 4, 6, 8]
    assert [path.stem for path in checkpoints(tmp_path)] == [f"step-000000{step}" for step in (8, 6, 4, 2, 0)]
    first = read_checkpoint_file(checkpoints(tmp_path)[-1])
    assert not moved(before, dict(first.model)) and first.optimizer == {}


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, CNN, 1, schedule={"epochs": 1})
    trainer.fit()
    held = {path: path.read_bytes() for path in checkpoints(tmp_path)}
    trainer.step = 2
    (tmp_path / "checkpoints/step-0000002.safetensors/in the way").mkdir(parents=True)
    with pytest.raises(RunError, match=r"step-0000002.safetensors cannot be written .*make room"):
        trainer._save()
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir() if path.is_file()} == held
