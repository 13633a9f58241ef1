"""What a training step costs: without a teacher, with its cache, with the teacher online; and by open stages.

Everything that a run does for a step is in it: reading and decoding pictures, rendering views, augmentation, targets, reading the
cache, forward, losses, backward, clipping and the optimizer's step. One measurement is a short epoch, from the first picture read
to the last update, so that what feeding prepares ahead falls within it; it is divided by its steps. The sides take turns within
one run, and each is stated with its median and quartiles, in wall time and in processor time (all threads): where other
work shares the machine, the second is the steadier.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from distill.augment import Augment
from distill.cached_teacher import open_cached_teacher
from distill.feeding import SceneBatches
from distill.readers import open_data
from distill.source import SceneSource
from distill.synth import SynthConfig, write_dataset
from distill.views import ViewPolicy
from schedules.plan import PlanConfig, PlanPoint, compile_plan
from schedules.stages import discover_stages
from students.batch import Batch
from students.catalogue import build_student, student_config
from students.losses import LossWeights
from students.options import TrainOptions
from students.saved import saved_bytes
from students.trainer import Trainer
from teachers.contract import GazeOutput
from teachers.model import GazeModel, ModelConfig, parameter_count
from teachers.model_teacher import ModelTeacher
from teachers.runner import build_cache


@dataclass
class Times:
    """Seconds of a step, wall and processor, one a measurement."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Medians and quartiles in milliseconds."""
        return {"measurements": len(self.wall), **{f"{name}_ms": _spread(getattr(self, name)) for name in ("wall", "cpu")}}


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(1000 * middle, 3), "low": round(1000 * low, 3), "high": round(1000 * high, 3)}


def ratio(over: Times, under: Times) -> dict[str, float]:
    """Of medians, by wall and by processor time."""
    return {name: round(statistics.median(getattr(over, name)) / statistics.median(getattr(under, name)), 4) for name in ("wall", "cpu")}


class SyntheticMaps:
    """A teacher that costs nothing: bells with noise, of a real teacher's shape. It fills a cache whose reading is measured."""

    input_size = (16, 16)
    heatmap_size = (64, 64)
    has_inout = True

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"name": "synthetic maps", "weights": "none"}

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        dice = torch.Generator().manual_seed(len(boxes))
        cells = torch.arange(64.0)
        x, y = (64 * (boxes[:, i] + boxes[:, i + 2]) / 2 for i in (0, 1))
        bell = torch.exp(-((cells - x[:, None]) ** 2)[:, None, :] / 18 - ((cells - y[:, None]) ** 2)[:, :, None] / 18)
        noise = torch.randn(bell.shape, generator=dice)
        return GazeOutput(12 * bell - 8 + 0.3 * noise, torch.randn(len(boxes), generator=dice))


def online_teacher(backbone: str, pixels: int, device: torch.device) -> ModelTeacher:
    """A teacher of the published architecture on ``backbone`` with random weights: its answers mean nothing, its cost is real."""
    model = GazeModel(ModelConfig(backbone=backbone, input_size=(pixels, pixels)))
    return ModelTeacher(model, backbone, "random", device=str(device))


class StepCost:
    """Scenes and a cache in ``folder``, and what steps on them cost one student after another."""

    def __init__(self, folder: Path, *, batch: int, steps: int, workers: int) -> None:
        self.folder, self.batch, self.steps, self.workers = folder, batch, steps, workers
        write_dataset(folder / "scenes", SynthConfig(scenes=batch * steps, test_fraction=0.0), processes=1)
        self.scenes = open_data(f"gazefollow:{folder / 'scenes'}", "trainval")
        self.policy = ViewPolicy()
        source = SceneSource(self.scenes, self.policy)
        build_cache(folder / "cache", SyntheticMaps(), source, views=2, workers=workers)

    def feed(self, student: GazeModel, *, cached: bool, steps: int | None = None) -> SceneBatches:
        """Batches as a run gets them, ``steps`` (default: all) to an epoch."""
        answers = open_cached_teacher(str(self.folder / "cache"), self.scenes, student.heatmap_size) if cached else None
        scenes = self.scenes.scenes[: None if steps is None else steps * self.batch]
        return SceneBatches(
            scenes, policy=self.policy, input_size=student.input_size, heatmap_size=student.heatmap_size, batch_size=self.batch,
            seed=0, lineage={}, cache=answers, augment=Augment(), workers=self.workers,
        )

    def student(self, name: str, *, weight: float, opened: bool) -> Side:
        """A student in training, all of it open or its backbone frozen, with distillation of ``weight``."""
        torch.manual_seed(0)
        model = build_student(student_config(name))
        stages = discover_stages(model.backbone)
        feed = self.feed(model, cached=weight > 0)
        plan = compile_plan(
            PlanConfig(epochs=1000, steps_per_epoch=feed.steps_per_epoch, finetune=opened, finetune_layers=0, distill_weight=weight),
            stages.blocks,
        )
        accelerator = Accelerator()
        trainer = Trainer(
            model, stages, plan, feed, self.folder / "run", accelerator, options=TrainOptions(log_every=10**9), weights=LossWeights(),
            validate=None, report=lambda record: None, facts={},
        )
        point = plan.at(0)
        model.train()
        stages.apply(model.backbone, point.open_blocks, point.stem_open)
        return Side(trainer, feed, point)


@dataclass
class Side:
    """One side of a comparison: a student with its batches."""

    trainer: Trainer
    feed: SceneBatches
    point: PlanPoint
    teacher: ModelTeacher | None = None
    times: Times = field(default_factory=Times)
    epoch: int = 0

    def measure(self) -> None:
        """Train a short epoch and note what a step took."""
        device = self.trainer.accelerator.device
        began, busy, done = time.perf_counter(), time.process_time(), 0
        for batch in self._batches(device):
            self.trainer.train_step(batch, self.point)
            done += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.times.wall.append((time.perf_counter() - began) / done)
        self.times.cpu.append((time.process_time() - busy) / done)
        self.epoch += 1

    def _batches(self, device: torch.device) -> Iterator[Batch]:
        for plain in self.feed.batches(self.epoch, 0):
            batch = plain.to(device)
            if self.teacher is not None:
                # Enlarged from the student's pictures: less work than a run of the teacher would give feeding, not more.
                images = F.interpolate(batch.images, size=self.teacher.input_size, mode="bilinear", align_corners=False)
                answer = self.teacher(images, batch.boxes, batch.image_index)
                # To the student's grid as logits, as with a cache, and copied out of inference mode.
                size = tuple(batch.target.shape[-2:])
                heatmap = F.interpolate(answer.heatmap[:, None].clone(), size=size, mode="bilinear", align_corners=False)[:, 0]
                batch = replace(batch, teacher_heatmap=heatmap, teacher_inout=None if answer.inout is None else answer.inout.clone())
            yield batch


def compare(
    cost: StepCost, name: str, teacher: ModelTeacher, *, rounds: int, online_rounds: int, tell: Callable[[], None]
) -> dict[str, Any]:
    """(a) without a teacher, (b) with the cache, both with the backbone frozen and with all open, and (c) with the teacher online."""
    sides = {
        (kind, opened): cost.student(name, weight=weight, opened=opened)
        for opened in (False, True) for kind, weight in (("task", 0.0), ("cached", 0.5))
    }
    online = cost.student(name, weight=0.5, opened=True)
    online.teacher, online.feed = teacher, cost.feed(online.trainer.model, cached=False, steps=1)
    for side in sides.values():
        side.measure()  # the first steps make buffers and pick kernels
        side.times = Times()
    for number in range(rounds):
        order = list(sides.values())
        for side in order if number % 2 == 0 else reversed(order):
            side.measure()
        if number < online_rounds:
            online.measure()
        tell()
    facts: dict[str, Any] = {"student": name, "parameters": parameter_count(online.trainer.model)}
    for opened, label in ((False, "frozen"), (True, "open")):
        task, cached = sides["task", opened].times, sides["cached", opened].times
        facts[label] = {"task": task.facts(), "cached": cached.facts(), "cached_over_task": ratio(cached, task)}
    facts["open"] |= {"online": online.times.facts(), "online_over_cached": ratio(online.times, sides["cached", True].times)}
    return facts


def by_stages(cost: StepCost, name: str, *, rounds: int, tell: Callable[[], None]) -> list[dict[str, Any]]:
    """A step on one batch held in memory, and the bytes that autograd saves for it, by how many blocks are open."""
    side = cost.student(name, weight=0.5, opened=True)
    trainer, model = side.trainer, side.trainer.model
    batch = next(iter(side.feed.batches(0, 0))).to(trainer.accelerator.device)
    total = trainer.stages.blocks
    depths = sorted({0, 1, 2, total // 4, total // 2, 3 * total // 4, total - 1, total})
    times = {depth: Times() for depth in depths}

    def opened(depth: int) -> None:
        model.train()
        trainer.stages.apply(model.backbone, depth, depth == total)

    def step(into: Times | None) -> None:
        began, busy = time.perf_counter(), time.process_time()
        trainer.train_step(batch, side.point)  # ends with reading the loss, so the device is done
        if into is not None:
            into.wall.append(time.perf_counter() - began)
            into.cpu.append(time.process_time() - busy)

    for number in range(rounds):
        for depth in depths if number % 2 == 0 else reversed(depths):
            opened(depth)
            step(None)  # a thaw's first step makes gradients and optimizer state
            step(times[depth])
        tell()
    rows = []
    for depth in depths:
        opened(depth)
        kept = saved_bytes(lambda: model(batch.images, batch.boxes, batch.image_index), besides=[*model.parameters(), *model.buffers()])
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        rows.append({"open_blocks": depth, "stem_open": depth == total, "trainable": trainable, "saved_bytes": kept, **times[depth].facts()})
    whole = float(np.median(times[total].cpu))
    return [{**row, "cpu_share_of_all_open": round(row["cpu_ms"]["median"] / 1000 / whole, 3)} for row in rows]
