"""Tiny students, batches and runs for the trainer's tests.

As a script that knows the tiny students: ``golden`` prints the losses of the golden runs (``tests/golden/losses.json``), ``serve``
runs `distill` in processes of their own that hold still at a chosen moment to be killed, and ``FOLDER COMMANDS`` (JSON) runs
several command lines, one after the other, and leaves in the folder what each training ended with; a second pair ``FOLDER COMMANDS``
is of trainings in which one process alone meets what is not finite.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from fixtures import write_gazefollow
from torch import nn

import distill.runlog
from distill.cli import main
from schedules.plan import PlanConfig, compile_plan
from schedules.stages import discover_stages
from students.batch import Batch
from students.catalogue import STUDENTS
from students.losses import LossWeights
from students.options import TrainOptions
from students.trainer import Record, Trainer
from teachers.model import HALF, GazeModel, ModelConfig
from teachers.weights import save_model, tensors_digest

CNN = ModelConfig(
    backbone="test_efficientnet", input_size=(64, 64), levels=(1, 2), mean=HALF, std=HALF, dim=16, layers=1,
    attention_heads=2, heatmap_size=(16, 16), drop_path=0.2,
)
VIT = replace(CNN, backbone="test_vit", levels=())
CALM = replace(VIT, inout="linear", drop_path=0.0)  # neither dropout nor BatchNorm: its losses add up over any division
TINY = {"tiny_cnn": CNN, "tiny_vit": VIT, "tiny_calm": CALM, "tiny_query": replace(CNN, decoder="query")}


def fill(model: nn.Module) -> None:
    """Weights that depend on nothing but names and shapes: no release of torch or timm changes them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            dice = np.random.default_rng(zlib.crc32(name.encode()))
            if parameter.ndim > 1:
                values = dice.standard_normal(tuple(parameter.shape)) / np.sqrt(parameter[0].numel())
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def make_model(config: ModelConfig) -> GazeModel:
    model = GazeModel(config)
    fill(model)
    return model


def make_batch(number: int, images: int = 4, *, teacher: bool = True) -> Batch:
    """Random pictures of one to three heads each: in the frame, out of it, and unlabelled ones."""
    dice = np.random.default_rng([7, number])
    counts = dice.integers(1, 4, images)
    heads = int(counts.sum())
    corner = dice.uniform(0.0, 0.6, (heads, 2))
    inout = dice.choice([1.0, 1.0, 0.0, -1.0], heads)
    inout[0] = 1.0
    cells = np.arange(16)
    point = dice.integers(0, 16, (heads, 2))
    bell = np.exp(-((cells - point[:, :1]) ** 2)[:, None, :] / 2.0 - ((cells - point[:, 1:]) ** 2)[:, :, None] / 2.0)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.float32))

    return Batch(
        images=tensor(dice.uniform(0.0, 1.0, (images, 3, 64, 64))),
        boxes=tensor(np.concatenate((corner, corner + 0.3), axis=1)),
        image_index=torch.from_numpy(np.repeat(np.arange(images), counts)),
        target=tensor(bell * (inout == 1.0)[:, None, None]),
        has_target=torch.from_numpy(inout == 1.0),
        inout=tensor(inout),
        scenes=tuple(f"scene {number}/{image}" for image in range(images)),
        teacher_heatmap=tensor(8.0 * bell - 4.0 + dice.standard_normal(bell.shape)) if teacher else None,
        teacher_inout=tensor(dice.standard_normal(heads)) if teacher else None,
    )


class TinyBatches:
    """A :class:`students.batch.BatchSource`: the same few batches every epoch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.all = list(batches)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.all)

    @property
    def lineage(self) -> Mapping[str, Any]:
        return {"data": "tiny"}

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        yield from self.all[start:]


def make_trainer(
    run: Path,
    config: ModelConfig | GazeModel,
    batches: Sequence[Batch] | int = 4,
    *,
    schedule: Mapping[str, Any] | None = None,
    validate: Callable[[GazeModel], Mapping[str, float | None]] = lambda model: {"avg_l2": 0.5},
    weights: LossWeights | None = None,
    **options: Any,
) -> tuple[Trainer, list[Record]]:
    """A trainer on the CPU and the list that its records go to; ``batches`` may be how many random ones an epoch has."""
    model = config if isinstance(config, GazeModel) else make_model(config)
    source = TinyBatches([make_batch(n) for n in range(batches)] if isinstance(batches, int) else batches)
    stages = discover_stages(model.backbone)
    settings = {"epochs": 2, "lr": 1e-3, "distill_weight": 0.5, **(schedule or {})}
    plan = compile_plan(PlanConfig(steps_per_epoch=source.steps_per_epoch, **settings), stages.blocks)
    records: list[Record] = []
    trainer = Trainer(
        model, stages, plan, source, run, Accelerator(cpu=True), options=TrainOptions(**options),
        weights=weights or LossWeights(), validate=validate, report=records.append, facts={"name": "tiny"},
    )
    return trainer, records


def golden_losses(config: ModelConfig, run: Path) -> list[float]:
    """The losses of twenty steps over two thaws, in float32 on the CPU."""
    schedule = {
        "epochs": 4, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 1, "unfreeze_interval": 1,
        "thaw_coupling": 0.0, "distill_temp_end": 2.0,
    }
    trainer, records = make_trainer(run, config, 5, schedule=schedule)
    trainer.fit()
    return [record["loss"] for record in records if record["kind"] == "step"]


@dataclass(frozen=True)
class World:
    """A data set, a stored teacher and a cache of two views, all tiny."""

    data: Path
    teacher: Path
    cache: Path

    def arguments(self, run: Path, student: str = "tiny_cnn", **options: Any) -> list[str]:
        """``distill train`` for three epochs that thaw at each; ``options`` by their names win."""
        settings = {
            "student": student, "random_backbone": True, "data": self.data, "cache": self.cache, "runs": run.parent,
            "name": run.name, "epochs": 3, "batch_size": 5, "seed": 3, "device": "cpu", "tracker": "none", "log_every": 1,
            "workers": 1, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 0.6, "unfreeze_interval": 0.6,
            "distill_weight": 0.5, **options,
        }
        words = ["train"]
        for name, value in settings.items():
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [] if value is None else [flag, str(value)]
        return words


def store_teacher(directory: Path, shift: float = 0.0) -> Path:
    """A stored tiny teacher with maps of its own size; another ``shift`` is another teacher."""
    model = make_model(replace(CNN, heatmap_size=(32, 32)))
    with torch.no_grad():
        model.decoder.head_token.weight.add_(shift)
    save_model(directory, model, "tiny", {})
    return directory


def make_world(root: Path, scenes: int = 24) -> World:
    world = World(write_gazefollow(root / "data", scenes), store_teacher(root / "teacher"), root / "cache")
    assert main(cache_arguments(world)) == 0
    return world


def cache_arguments(world: World, **options: Any) -> list[str]:
    settings = {"data": world.data, "teacher": world.teacher, "out": world.cache, "views": 2, "device": "cpu", **options}
    return ["cache", "build", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def hold_at(moment: str) -> None:
    """At the n-th record of a kind (``thaw:2``) say so and wait to be killed; the record has been logged."""
    kind, _, count = moment.partition(":")
    plain, seen = distill.runlog.RunLog.__call__, 0

    def held(self: distill.runlog.RunLog, record: Record) -> None:
        nonlocal seen
        plain(self, record)
        seen += record["kind"] == kind
        if record["kind"] == kind and seen == int(count):
            print(f"holding {os.getpid()}", flush=True)
            time.sleep(3600)

    distill.runlog.RunLog.__call__ = held  # type: ignore[method-assign]


def dump_parameters(folder: Path) -> None:
    """Every process leaves what each of its trainings ended with, as ``run-rank-of-world.safetensors``.

    Beside it ``run-rank.json``: for every batch its heads, for every thaw the digest of all parameters after its first step, and the
    epochs in which thaws were held.
    """
    from safetensors.torch import save_file

    plain, plain_step, plain_open = Trainer.fit, Trainer.train_step, Trainer._open_stages
    seen: dict[str, Any] = {"heads": [], "thaws": {}}
    thawed: list[int] = []

    def open_stages(self: Trainer, epoch: int, *, announce: bool) -> None:
        plain_open(self, epoch, announce=announce)
        if epoch in dict(self.plan.thaw_events):
            thawed.append(epoch)

    def train_step(self: Trainer, batch: Batch, point: Any) -> None:
        plain_step(self, batch, point)
        seen["heads"].append(len(batch.boxes))
        if thawed:
            seen["thaws"][thawed.pop()] = tensors_digest(dict(self.model.named_parameters()))

    def fit(self: Trainer) -> Record:
        end = plain(self)
        tensors = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        accelerator = self.accelerator
        save_file(tensors, folder / f"{self.run.name}-{accelerator.process_index}-of-{accelerator.num_processes}.safetensors")
        (folder / f"{self.run.name}-{accelerator.process_index}.json").write_text(json.dumps({**seen, "holds": self.plan.holds}))
        seen.update(heads=[], thaws={})
        return end

    Trainer.fit, Trainer.train_step, Trainer._open_stages = fit, train_step, open_stages  # type: ignore[method-assign]


def serve() -> None:
    """For each line of standard input, JSON ``[arguments, moment, errors]``: a process that is `distill`, then its status.

    The processes are forked, so that torch is imported once; their standard error goes to the file ``errors``.
    """
    torch.set_num_threads(1)
    for line in sys.stdin:
        arguments, moment, errors = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            if moment:
                hold_at(moment)
            code = 1
            try:
                code = main(arguments)
            finally:
                os._exit(code)
        print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


POISONED = (1, 6)  # the process, and the number of steps done, at which it meets what is not finite


def poison(kind: str) -> None:
    """At the step of ``POISONED`` that process has a NaN in its teacher's maps (``loss``), or in its gradients (``gradient``)."""
    plain_step = Trainer.train_step

    def train_step(self: Trainer, batch: Batch, point: Any) -> None:
        hook = None
        if (self.accelerator.process_index, self.step) == POISONED:
            assert batch.teacher_heatmap is not None
            if kind == "loss":
                batch = replace(batch, teacher_heatmap=torch.full_like(batch.teacher_heatmap, float("nan")))
            else:
                hook = self.model.decoder.linear.weight.register_hook(lambda gradient: gradient * float("nan"))
        try:
            plain_step(self, batch, point)
        finally:
            if self.step == POISONED[1]:
                self.asked = batch.scenes  # type: ignore[attr-defined]
            if hook is not None:
                hook.remove()
        self.good = tensors_digest(dict(self.model.named_parameters()))  # type: ignore[attr-defined]

    Trainer.train_step = train_step  # type: ignore[method-assign]


def train_poisoned(folder: Path, commands: list[tuple[str, list[str]]]) -> None:
    """Each process leaves ``KIND-RANK.json``: exit status, steps done, digests of the parameters after the last good step and at the end."""
    plain_fit, plain_step, ended = Trainer.fit, Trainer.train_step, []

    def fit(self: Trainer) -> Record:
        ended.append(self)
        return plain_fit(self)

    Trainer.fit = fit  # type: ignore[method-assign]
    folder.mkdir(exist_ok=True)  # both processes come by
    for kind, arguments in commands:
        Trainer.train_step = plain_step  # type: ignore[method-assign]
        poison(kind)
        code = main(arguments)
        trainer: Any = ended.pop()
        left = {
            "code": code, "step": trainer.step, "good": trainer.good, "scenes": trainer.asked,
            "digest": tensors_digest(dict(trainer.model.named_parameters())), "processes": trainer.accelerator.num_processes,
        }
        (folder / f"{kind}-{trainer.accelerator.process_index}.json").write_text(json.dumps(left))


if __name__ == "__main__":
    STUDENTS.update(TINY)
    if sys.argv[1:] == ["serve"]:
        serve()
    elif sys.argv[1:] == ["golden"]:
        import tempfile

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as scratch:
            losses = {"cnn": golden_losses(CNN, Path(scratch, "cnn")), "vit": golden_losses(VIT, Path(scratch, "vit"))}
        print(json.dumps(losses, indent=1))
    else:
        # The end of a training leaves the group of processes; here another one follows.
        PartialState.destroy_process_group = lambda self, group=None: None
        dump_parameters(Path(sys.argv[1]))
        for line in json.loads(sys.argv[2]):
            if code := main(line):
                sys.exit(code)
        if sys.argv[3:]:
            train_poisoned(Path(sys.argv[3]), json.loads(sys.argv[4]))
