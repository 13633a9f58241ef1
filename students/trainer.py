"""The trainer: one loop for every student, with or without a teacher's cache.

It prints nothing. Small records (plain JSON) go to a callable: ``start``, ``thaw``, ``step``, ``epoch``, ``validation``,
``checkpoint`` and ``end``. Several processes each take their share of a global batch; gradients are summed over them by hand rather
than by a wrapper, because stages open while the run goes on and a wrapper's buckets are fixed when it is made.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from schedules.advice import OUT_OF_MEMORY
from schedules.optimizer import (
    load_optimizer_state_by_name,
    optimizer_state_by_name,
    parameter_groups,
    set_learning_rates,
)
from schedules.plan import Plan, PlanPoint
from schedules.stages import Stages
from students.batch import Batch, BatchSource
from students.checkpoint import Checkpoint, checkpoints, newest_intact, save_checkpoint
from students.errors import RunError, TrainingError
from students.losses import HeadCounts, Losses, LossWeights, gaze_losses, loss_record, mass_near_peak
from teachers.model import GazeModel
from teachers.weights import load_strictly, save_model

Record = dict[str, Any]


@dataclass(frozen=True)
class TrainOptions:
    """What the trainer needs beyond model, plan and batches.

    ``accumulate`` splits each step's batch into that many parts; ``grad_clip_norm`` 0 switches clipping off; ``best_metric`` is
    a key of what ``validate`` returns, lower is better unless it is ``auc`` or ``ap``; ``checkpoint_steps`` 0 writes checkpoints
    at the end of epochs only; ``limit_steps`` ends the run early (a smoke run).
    """

    weight_decay: float = 0.01
    grad_clip_norm: float = 1.0
    accumulate: int = 1
    best_metric: str = "avg_l2"
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    validate_every: int = 1
    log_every: int = 1
    limit_steps: int | None = None
    seed: int = 0


class Trainer:
    """Trains ``model`` by ``plan`` on ``batches``, writes checkpoints and the best student into ``run``.

    ``validate(model)`` returns metrics by name and is called in eval mode on the first process; ``facts`` are stored with the
    student (lineage, configuration). Raises :class:`TrainingError` before the optimizer's step when a loss is not finite.
    """

    def __init__(
        self,
        model: GazeModel,
        stages: Stages,
        plan: Plan,
        batches: BatchSource,
        run: Path,
        accelerator: Accelerator,
        *,
        options: TrainOptions,
        weights: LossWeights,
        validate: Callable[[GazeModel], Mapping[str, float | None]] | None,
        report: Callable[[Record], None],
        facts: Mapping[str, Any],
    ) -> None:
        self.plan, self.stages, self.batches, self.run = plan, stages, batches, run
        self.accelerator, self.options, self.weights = accelerator, options, weights
        self.validate, self.report, self.facts = validate, report, dict(facts)
        self.model = model.to(accelerator.device)
        groups = parameter_groups(self.model, stages, "backbone", options.weight_decay)
        # Prepared for the sake of the fp16 gradient scaler; the model itself stays unwrapped.
        self.optimizer = accelerator.prepare(torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999)))
        self.step = 0
        self.best: float | None = None
        self.best_step = 0
        self.sums: dict[str, float] = {}

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, cut short by ``limit_steps``."""
        total = self.plan.config.epochs * self.plan.config.steps_per_epoch
        return total if self.options.limit_steps is None else min(total, self.options.limit_steps)

    def fit(self) -> Record:
        """Train from the current step to the end; returns the ``end`` record."""
        begin = time.perf_counter()
        self._emit("start", total=self.total_steps, steps_per_epoch=self.plan.config.steps_per_epoch)
        if not checkpoints(self.run):
            self._save()  # a run that is killed in its first epoch can be resumed too
        while self.step < self.total_steps:
            epoch, first = divmod(self.step, self.plan.config.steps_per_epoch)
            self._open_stages(epoch, announce=first == 0)
            started = time.perf_counter()
            for batch in self.batches.batches(epoch, first):
                try:
                    self._train_step(batch.to(self.accelerator.device), self.plan.at(self.step))
                except torch.OutOfMemoryError as error:
                    blocks = self.plan.at(self.step).open_blocks
                    raise TrainingError(f"{OUT_OF_MEMORY} (step {self.step}, {blocks} blocks open: {error})") from None
                if self.step >= self.total_steps:
                    break
                # Never between an epoch's last step and its end: a run resumed there would skip the validation.
                every = self.options.checkpoint_steps
                if every and self.step % every == 0 and self.step % self.plan.config.steps_per_epoch:
                    self._average_buffers()  # so that all processes go on from what the checkpoint holds
                    self._save()
            self._end_epoch(epoch, time.perf_counter() - started)
        return self._emit(
            "end", best=self.best, best_step=self.best_step, metric=self.options.best_metric,
            seconds=time.perf_counter() - begin,
        )

    def _train_step(self, batch: Batch, point: PlanPoint) -> None:
        began = time.perf_counter()
        set_learning_rates(self.optimizer, point)
        torch.manual_seed(self._step_seed())
        counts = self._global_counts(batch)
        losses: list[Losses] = []
        for part in split(batch, self.options.accumulate):
            with self.accelerator.autocast():
                output = self.model(part.images, part.boxes, part.image_index)
            terms = gaze_losses(
                output, part, counts, self.weights, distill_weight=point.distill_weight, temperature=point.temperature
            )
            losses.append(terms)
            self._refuse_not_finite(terms, part)
            self.accelerator.backward(terms.total)
        norm = self._reduce_and_clip()
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise TrainingError(self._not_finite("gradient norm", norm, batch))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        summed = self._summed([sum(values) for values in zip(*losses, strict=True)])
        record = {**loss_record(summed, self.weights, point.distill_weight), "grad_norm": norm}
        seconds = time.perf_counter() - began
        for name, value in {**record, "images": float(self._count(len(batch.images))), "steps": 1.0, "seconds": seconds}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.step % self.options.log_every == 0 or self.step == self.total_steps:
            taught = batch.teacher_heatmap if point.distill_weight else None
            mass = None if taught is None else float(mass_near_peak(taught, point.temperature))
            self._emit(
                "step", epoch=point.epoch, seconds=seconds, **record, weight=point.distill_weight, temperature=point.temperature,
                open_blocks=point.open_blocks, stem_open=point.stem_open, lr_head=point.lr_head,
                lr_backbone=point.lr_stages[0] if point.lr_stages else 0.0, target_mass=mass,
            )

    def _end_epoch(self, epoch: int, seconds: float) -> None:
        self._average_buffers()
        steps = self.sums.pop("steps", 0.0)
        images = self.sums.pop("images", 0.0)
        busy = self.sums.pop("seconds", 0.0)
        if steps:
            means = {name: value / steps for name, value in self.sums.items()}
            self._emit("epoch", epoch=epoch, **means, images_per_s=images / max(busy, 1e-9), seconds=seconds)
        self.sums = {}
        if (epoch + 1) % self.options.validate_every == 0 or self.step >= self.total_steps:
            self._validate(epoch)
        self._save()

    def _validate(self, epoch: int) -> None:
        if self.accelerator.is_main_process and self.validate is None:
            self._keep_student({})
        elif self.accelerator.is_main_process and self.validate is not None:
            self.model.eval()
            with torch.inference_mode():
                metrics = dict(self.validate(self.model))
            value = metrics.get(self.options.best_metric)
            if value is None:
                raise TrainingError(
                    f"validation gives no {self.options.best_metric!r} to choose the best student by (it has "
                    f"{', '.join(name for name, found in metrics.items() if found is not None)}); choose one with --best-metric"
                )
            higher = self.options.best_metric in ("auc", "ap")
            best = self.best is None or (value > self.best if higher else value < self.best)
            if best:
                self.best, self.best_step = value, self.step
                self._keep_student(metrics)
            self._emit("validation", epoch=epoch, best=best, **metrics)
        self.accelerator.wait_for_everyone()

    def _keep_student(self, metrics: Mapping[str, float | None]) -> None:
        facts = {**self.facts, "step": self.step, **({"validation": dict(metrics)} if metrics else {})}
        save_model(self.run / "student", self.model, str(self.facts.get("name", self.run.name)), facts)

    def _open_stages(self, epoch: int, *, announce: bool) -> None:
        """Bring every stage to the state that the plan wants at ``epoch``: open and training, or frozen."""
        point = self.plan.at(epoch * self.plan.config.steps_per_epoch)
        self.model.train()
        self.stages.apply(self.model.backbone, point.open_blocks, point.stem_open)
        opened = dict(self.plan.thaw_events).get(epoch, [])
        if announce and opened:
            names = [self.stages[index].name for index in opened]
            trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            self._emit("thaw", epoch=epoch, opened=names, open_blocks=point.open_blocks, trainable=trainable)

    def _step_seed(self) -> int:
        """What dropout and drop-path draw from: a function of seed, step and process, so that no generator needs saving."""
        key = struct.pack("<qqq", self.options.seed, self.step, self.accelerator.process_index)
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1

    def _refuse_not_finite(self, terms: Losses, batch: Batch) -> None:
        total = float(terms.total.detach())
        if not math.isfinite(total):
            bad = [name for name, value in terms._asdict().items() if name != "total" and not math.isfinite(float(value))]
            raise TrainingError(self._not_finite(" and ".join(bad) or "total loss", total, batch))

    def _not_finite(self, what: str, value: float, batch: Batch) -> str:
        scenes = ", ".join(batch.scenes[:8]) + (", …" if len(batch.scenes) > 8 else "")
        return (
            f"{what} is {value} at step {self.step} on scenes {scenes}; nothing was updated and the last checkpoint stands: look at "
            f"these scenes, or lower --lr or --backbone-lr, then resume with --resume {self.run}"
        )

    def _global_counts(self, batch: Batch) -> HeadCounts:
        counts = HeadCounts.of(batch)
        if self.accelerator.num_processes == 1:
            return counts
        return HeadCounts(*self.accelerator.reduce(torch.stack([c.float() for c in counts]), "sum").unbind())

    def _reduce_and_clip(self) -> float:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if self.accelerator.num_processes > 1:
            # One sum for all: the gradients, and behind them in how many processes each parameter has one. Where none has, none
            # is made up: a gradient of zeros would let weight decay move a parameter that takes no part.
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            present = gradients[0].new_tensor([float(p.grad is not None) for p in parameters])
            flat = self.accelerator.reduce(torch.cat([*(gradient.flatten() for gradient in gradients), present]), "sum")
            *sums, present = flat.split([*(p.numel() for p in parameters), len(parameters)])
            for parameter, summed, count in zip(parameters, sums, present.tolist(), strict=True):
                parameter.grad = summed.view_as(parameter).clone() if count else None
        self.accelerator.unscale_gradients(self.optimizer)
        limit = self.options.grad_clip_norm or math.inf
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def _summed(self, values: list[Tensor]) -> list[float]:
        stacked = torch.stack([value.detach().float() for value in values])
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, "sum")
        return [float(value) for value in stacked]

    def _count(self, number: int) -> int:
        if self.accelerator.num_processes == 1:
            return number
        return int(self.accelerator.reduce(torch.tensor(number, device=self.accelerator.device), "sum"))

    def _average_buffers(self) -> None:
        """BatchNorm statistics that moved apart on several processes become their mean, the same everywhere."""
        if self.accelerator.num_processes > 1:
            # What is frozen, or a constant, is the same everywhere, and stays as it is to the bit.
            kept = set(self.model.state_dict())
            for place, module in self.model.named_modules():
                for name, buffer in module.named_buffers(place, recurse=False):
                    if module.training and name in kept and buffer.is_floating_point():
                        buffer.copy_(self.accelerator.reduce(buffer.clone(), "mean"))

    def _emit(self, kind: str, **values: Any) -> Record:
        record: Record = {"kind": kind, "step": self.step, **values}
        if self.accelerator.is_main_process:
            self.report(record)
        return record

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(
                self.model.state_dict(),
                optimizer_state_by_name(self.optimizer.optimizer),
                {
                    "step": self.step, "best": self.best, "best_step": self.best_step, "sums": self.sums,
                    "plan": self.plan.config.to_dict(), "threads": torch.get_num_threads(),
                    "model": self.model.config.to_json(), "lineage": dict(self.batches.lineage),
                },
            )
            path = save_checkpoint(self.run, checkpoint, self.step, keep=self.options.keep_checkpoints)
            self._emit("checkpoint", path=path.name)
        self.accelerator.wait_for_everyone()

    def resume(self) -> list[str]:
        """Go back to the newest intact checkpoint of the run; returns sentences about what is not as it was."""
        checkpoint, path, notes = newest_intact(self.run)
        facts = checkpoint.facts
        config = facts["model"]
        mine = self.model.config.to_json()
        if _plain(config) != _plain(mine):
            differing = sorted(key for key in set(config) | set(mine) if _plain(config.get(key)) != _plain(mine.get(key)))
            raise RunError(
                f"{path} is of another student: it differs in {', '.join(differing)} (e.g. {differing[0]} {config.get(differing[0])!r} "
                f"there, {mine.get(differing[0])!r} here); resume with the student that the run was started with"
            )
        if facts["lineage"] != dict(self.batches.lineage):
            raise RunError(
                f"{self.run} was trained on other data or another cache ({_difference(facts['lineage'], self.batches.lineage)}); resume "
                "with the same --data and --cache, or start a new run"
            )
        load_strictly(self.model, checkpoint.model, str(path))
        load_optimizer_state_by_name(self.optimizer.optimizer, {k: dict(v) for k, v in checkpoint.optimizer.items()})
        self.step, self.best, self.best_step = facts["step"], facts["best"], facts["best_step"]
        self.sums = dict(facts["sums"])
        if facts["threads"] != torch.get_num_threads():
            notes.append(
                f"the run was made with {facts['threads']} threads and goes on with {torch.get_num_threads()}: results may differ in "
                "the last bits"
            )
        return notes


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    for key in sorted(set(there) | set(here)):
        if there.get(key) != here.get(key):
            return f"{key}: {there.get(key)} there, {here.get(key)} here"
    return "order of keys"


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in ``parts`` of whole images (fewer where there are fewer images)."""
    if parts <= 1:
        return [batch]
    pieces = []
    for images in torch.arange(len(batch.images)).chunk(parts):
        low, high = int(images[0]), int(images[-1]) + 1
        heads = (batch.image_index >= low) & (batch.image_index < high)

        def pick(value: Tensor | None, mask: Tensor = heads) -> Tensor | None:
            return None if value is None else value[mask]

        pieces.append(
            Batch(
                batch.images[low:high], batch.boxes[heads], batch.image_index[heads] - low, batch.target[heads],
                batch.has_target[heads], batch.inout[heads], batch.scenes[low:high],
                pick(batch.teacher_heatmap), pick(batch.teacher_inout),
            )
        )
    return pieces
