"""The watch over thaws: losses before and after, spikes, and the thaw that is held."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import CALM, make_trainer

from schedules.advice import REGRESSION, SPIKE
from schedules.plan import Plan, PlanConfig, compile_plan
from students.batch import Batch
from students.checkpoint import checkpoints, read_checkpoint_file
from students.trainer import Record, Trainer
from students.watch import Watch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- the plan with holds ------------------------------------------------------------------------------------------------


def plan(epochs: int = 16, blocks: int = 5, holds: tuple[int, ...] = (), **values: Any) -> Plan:
    settings = {"finetune_layers": 1, "initial_freeze_epochs": 4, "unfreeze_interval": 2, "lr_schedule": "constant", "thaw_warmup": 0, **values}
    return replace(compile_plan(PlanConfig(epochs=epochs, steps_per_epoch=4, finetune=True, **settings), blocks), holds=holds)


@pytest.mark.parametrize(
    ("holds", "opening"),
    [
        ((), (0, 4, 6, 8, 10, 10)),
        ((4,), (0, 4, 8, 10, 12, 12)),  # one interval later from there on; what had opened stays open
        ((5,), (0, 4, 8, 10, 12, 12)),
        ((6,), (0, 4, 6, 10, 12, 12)),
        ((4, 8), (0, 4, 8, 12, 14, 14)),
        ((4, 4), (0, 4, 10, 12, 14, 14)),
        ((1,), (0, 6, 8, 10, 12, 12)),
        ((10,), (0, 4, 6, 8, 10, 10)),
    ],
)
def test_a_hold_delays_what_has_not_opened_by_one_interval(holds: tuple[int, ...], opening: tuple[int, ...]) -> None:
    held = plan(holds=holds)
    assert held.clock.opening_epochs == opening and held.final_unfreeze_epoch == opening[-1]
    assert [line.open_blocks for line in held.epochs_table] == [sum(first <= epoch for first in opening[:-1]) for epoch in range(16)]
    assert [[rate > 0 for rate in held.at(4 * epoch).lr_stages] for epoch in range(16)] == [[first <= epoch for first in opening] for epoch in range(16)]


def test_a_hold_beyond_the_run_is_foreseen_and_counted_in_thaw_time() -> None:
    assert plan(epochs=9).clock.opening_epochs == (0, 4, 6, 8, 10, 10)
    assert plan(epochs=9, holds=(4,)).clock.opening_epochs == (0, 4, 8, 10, 12, 12)
    # At a weight of 1 the clock runs at half its rate: an interval is four epochs, and so is a hold.
    assert plan(epochs=40, distill_weight=1.0).clock.opening_epochs == (0, 8, 12, 16, 20, 20)
    assert plan(epochs=40, distill_weight=1.0, holds=(12,)).clock.opening_epochs == (0, 8, 12, 20, 24, 24)


def test_holds_change_nothing_where_nothing_is_scheduled() -> None:
    for values in ({"disable_progressive_unfreeze": True}, {"finetune_layers": 0}):
        assert plan(holds=(2, 5), **values).clock.opening_epochs == plan(**values).clock.opening_epochs


# -- the watch by itself ------------------------------------------------------------------------------------------------


def test_the_window_before_and_after_and_the_first_spike() -> None:
    watch = Watch(factor=2.0, window=4)
    assert watch.opened(0, 0.0) is None and watch.thaw is None, "nothing was trained before the run began"
    for loss in (9.0, 1.0, 2.0, 3.0, 4.0):
        assert not watch.step(loss, 0.5)
    assert watch.opened(3, 0.5) == 2.5
    assert not watch.step(5.0, 0.5), "twice the mean is not above twice the mean"
    assert watch.step(5.01, 0.5)
    assert not watch.step(50.0, 0.5), "one spike a thaw"
    assert watch.finished() is None
    assert json.loads(json.dumps(watch.state())) == watch.state()
    again = Watch(2.0, 4)
    again.load(json.loads(json.dumps(watch.state())))
    for each in (watch, again):
        each.step(1.99, 0.5)
        assert each.finished() == {"thaw_epoch": 3, "before": 2.5, "after": (5.0 + 5.01 + 50.0 + 1.99) / 4, "steps": 4, "ratio": 62.0 / 10}
        assert each.thaw is None and not each.step(100.0, 0.5), "the window is over"


def test_a_rising_distillation_weight_is_no_spike() -> None:
    watch = Watch(factor=2.0, window=4)
    watch.step(1.0, 0.5)
    watch.opened(1, 0.5)
    assert not watch.step(5.9, 1.5), "three times the weight: up to six is allowed"
    assert watch.step(6.1, 1.5)
    silent = Watch(factor=2.0, window=4)
    silent.step(1.0, 0.0)
    silent.opened(1, 0.0)
    assert not silent.step(100.0, 1.0), "from no weight at all there is no bound"
    assert silent.step(2.1, 0.0)


# -- in a run -----------------------------------------------------------------------------------------------------------

THAWING = {
    "epochs": 9, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 1, "unfreeze_interval": 1, "thaw_coupling": 0.0, "lr": 1e-4,
}

LAST = 5  # the epoch at which the tiny ViT is all open


def run(folder: Path, spikes: set[tuple[int, int]], *, resume: bool = False, **options: Any) -> tuple[Trainer, list[Record]]:
    """Nine epochs of three steps that thaw a block each, with an unsure teacher that is very sure at some (epoch, step)."""
    trainer, records = make_trainer(folder, CALM, 3, schedule=THAWING, spike_window=3, keep_checkpoints=99, **options)
    plain = trainer.batches.batches

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        for number, batch in enumerate(plain(epoch, start), start):
            assert batch.teacher_heatmap is not None
            yield replace(batch, teacher_heatmap=batch.teacher_heatmap * (10 if (epoch, number) in spikes else 0.1))

    trainer.batches.batches = batches  # type: ignore[method-assign]
    if resume:
        trainer.resume()
    trainer.fit()
    return trainer, records


def test_a_spike_is_told_once_with_the_guides_advice(tmp_path: Path) -> None:
    _, records = run(tmp_path, {(2, 1), (2, 2), (4, 0)})
    spikes = [record for record in records if record["kind"] == "spike"]
    assert [(r["step"], r["epoch"], r["thaw_epoch"], r["held"], r["next_thaw"], r["factor"]) for r in spikes] == [
        (8, 2, 2, False, 3, 2.0), (13, 4, 4, False, 5, 2.0),
    ]
    losses = {record["step"]: record["loss"] for record in records if record["kind"] == "step"}
    assert spikes[0]["loss"] == losses[8] > 2 * spikes[0]["before"]
    assert spikes[0]["before"] == pytest.approx(sum(losses[s] for s in (4, 5, 6)) / 3, rel=1e-12)
    assert all(record["advice"] == SPIKE for record in spikes)
    # Before and after each thaw but the first, which nothing went before.
    told = [(r["step"], r["thaw_epoch"], r["steps"]) for r in records if r["kind"] == "thaw_loss"]
    thaws = [record for record in records if record["kind"] == "thaw"]
    assert told == [(3 * r["epoch"] + 3, r["epoch"], 3) for r in thaws[1:]]
    for thaw, after in zip(thaws[1:], [r for r in records if r["kind"] == "thaw_loss"], strict=True):
        first = 3 * thaw["epoch"]
        assert thaw["loss_before"] == after["before"] == pytest.approx(sum(losses[first - i] for i in range(3)) / 3, rel=1e-12)
        assert after["after"] == pytest.approx(sum(losses[first + i] for i in (1, 2, 3)) / 3, rel=1e-12)


def test_a_calm_run_has_no_spike(tmp_path: Path) -> None:
    trainer, records = run(tmp_path, set())
    assert [record for record in records if record["kind"] == "spike"] == []
    assert trainer.plan.final_unfreeze_epoch == LAST


def test_a_spike_after_the_last_thaw_has_the_other_advice(tmp_path: Path) -> None:
    trainer, records = run(tmp_path, {(LAST, 2)}, on_spike="hold")
    (spike,) = [record for record in records if record["kind"] == "spike"]
    assert (spike["held"], spike["next_thaw"], spike["advice"]) == (False, None, REGRESSION)
    assert trainer.plan.holds == ()


def test_a_spike_holds_the_next_thaw(tmp_path: Path) -> None:
    trainer, records = run(tmp_path, {(1, 2)}, on_spike="hold")
    (spike,) = [record for record in records if record["kind"] == "spike"]
    assert (spike["epoch"], spike["held"], spike["next_thaw"]) == (1, True, 3)
    assert [record["epoch"] for record in records if record["kind"] == "thaw"] == [0, 1, 3, 4, 5, 6][: trainer.stages.blocks]
    assert trainer.plan.holds == (1,)
    opened = [record["open_blocks"] for record in records if record["kind"] == "step"]
    assert opened[:12] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("stop", [n if n in (6, 11) else pytest.param(n, marks=pytest.mark.soak) for n in range(1, 27)])
def test_a_held_run_resumes_to_the_bit(stop: int, tmp_path: Path, held: tuple[Trainer, list[Record]]) -> None:
    # Averaged weights and SGD's momentum go along: they are state of a run as well.
    whole, expected = held
    spikes = {(1, 2), (3, 0)}
    _, before = run(tmp_path, spikes, on_spike="hold", ema_decay=0.9, optimizer="sgd", checkpoint_steps=1, limit_steps=stop)
    # The checkpoint that a kill right after this step leaves: the end of a run cut short writes one more, of an epoch that ended early.
    newest = checkpoints(tmp_path)[0]
    assert newest.stem == f"step-{stop:07d}"
    if stop % 3:
        newest.unlink()
    start = read_checkpoint_file(checkpoints(tmp_path)[0]).facts["step"]
    resumed, after = run(tmp_path, spikes, on_spike="hold", ema_decay=0.9, optimizer="sgd", resume=True)
    assert resumed.plan.holds == whole.plan.holds == (1, 3)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.average is not None and resumed.average is not None
    for name, value in whole.average.values.items():
        assert torch.equal(value, resumed.average.values[name]), name

    def lasting(records: list[Record]) -> list[Record]:
        return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s")} for r in records if r["kind"] not in ("start", "checkpoint")]

    # What the first part told up to the checkpoint, and then the second part, is what the undisturbed run told.
    first = [r for r in lasting(before) if r["step"] <= start and r["kind"] != "end" and not (r["kind"] == "thaw" and r["step"] == start)]
    assert [*first, *lasting(after)] == lasting(expected)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[Record]]:
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("held"), {(1, 2), (3, 0)}, on_spike="hold", ema_decay=0.9, optimizer="sgd")


def test_every_open_stage_has_its_norm_and_its_rate(tmp_path: Path) -> None:
    trainer, records = make_trainer(tmp_path, CALM, 2, schedule={**THAWING, "epochs": 3, "layer_decay": 0.5}, grad_clip_norm=0.0)
    norms: list[dict[str, float]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        found: dict[str, list[torch.Tensor]] = {}
        for group in optimizer.param_groups:
            found.setdefault(group["name"].rsplit(" ", 1)[0], []).extend(p.grad.flatten() for p in group["params"] if p.grad is not None)
        norms.append({name: float(torch.cat(parts).norm()) for name, parts in found.items() if parts})

    trainer.optimizer.optimizer.register_step_pre_hook(look)
    trainer.fit()
    steps = [record for record in records if record["kind"] == "step"]
    names = [stage.name for stage in trainer.stages]
    for record, expected in zip(steps, norms, strict=True):
        assert record["grad_norms"] == pytest.approx(expected, rel=1e-5)
        assert set(record["grad_norms"]) == {"head", *names[: record["open_blocks"]]}
        assert record["grad_norm"] == pytest.approx(sum(v * v for v in expected.values()) ** 0.5, rel=1e-5)
        rates = trainer.plan.at(record["step"] - 1).lr_stages
        assert record["lr_stages"] == dict(zip(names[: record["open_blocks"]], rates, strict=False))
    assert len(steps[-1]["lr_stages"]) == 3 and len(set(steps[-1]["lr_stages"].values())) == 3
