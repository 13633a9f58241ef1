"""The trainer: one loop for every student, with or without a teacher's cache.

It prints nothing. Small records (plain JSON) go to a callable: ``start``, ``thaw``, ``step``, ``spike``, ``thaw_loss``, ``epoch``,
``validation``, ``checkpoint`` and ``end``. Several processes each take their share of a global batch (:mod:`students.processes`).
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from schedules.advice import OUT_OF_MEMORY, OUT_OF_MEMORY_FROZEN, REGRESSION, SPIKE
from schedules.optimizer import (
    build_optimizer,
    load_optimizer_state_by_name,
    optimizer_state_by_name,
    parameter_groups,
    set_learning_rates,
)
from schedules.plan import Plan, PlanPoint
from schedules.stages import Stages
from students.accumulation import split
from students.average import WeightAverage
from students.batch import Batch, BatchSource
from students.checkpoint import Checkpoint, checkpoints, newest_intact, save_checkpoint
from students.choice import Choice, Metrics
from students.compiling import compile_backbone, forget_compiled
from students.errors import TrainingError
from students.gradients import HEAD, GradientNorms
from students.losses import Losses, LossWeights, gaze_losses, loss_record, mass_near_peak
from students.options import TrainOptions
from students.processes import Processes
from students.recomputing import recompute_blocks
from students.refusal import Refusal, not_finite, out_of_memory, told_refusals
from students.resuming import refuse_misfit
from students.watch import Watch
from teachers.model import GazeModel
from teachers.weights import load_strictly, save_model

Record = dict[str, Any]
TERMS = ("loss", *Losses._fields[1:])  # the names of the losses in records
MOST_SKIPPED = 25  # fp16: each step that is skipped halves the scale, and 2^16 / 2^25 is far below any that helps


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
        validate: Callable[[GazeModel], Metrics] | None,
        report: Callable[[Record], None],
        facts: Mapping[str, Any],
    ) -> None:
        self.plan, self.stages, self.batches, self.run = plan, stages, batches, run
        self.accelerator, self.options, self.weights = accelerator, options, weights
        self.validate, self.report, self.facts = validate, report, dict(facts)
        self.processes = Processes(accelerator)
        self.model = model.to(accelerator.device)
        groups = parameter_groups(self.model, stages, "backbone", options.weight_decay)
        self._stage_of = {name: HEAD if g["stage"] < 0 else stages[g["stage"]].name for g in groups for name in g["param_names"]}
        # Prepared for the sake of the fp16 gradient scaler; the model itself stays unwrapped.
        self.optimizer = accelerator.prepare(build_optimizer(groups, options.optimizer, options.momentum))
        self.average = WeightAverage(self.model, options.ema_decay) if options.ema_decay else None
        self.watch = Watch(options.spike_factor, options.spike_window)
        self.choice = Choice(options.best_metric, options.patience)
        if options.grad_checkpointing:
            recompute_blocks(self.model.backbone, stages)
        if options.compile:
            compile_backbone(self.model.backbone, accelerator.device)
        self.step = 0
        self.skipped = 0
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
        while self.step < self.total_steps and not self.choice.exhausted:
            epoch, first = divmod(self.step, self.plan.config.steps_per_epoch)
            self._open_stages(epoch, announce=first == 0)
            started = time.perf_counter()
            for batch in self.batches.batches(epoch, first):
                try:
                    self.train_step(batch.to(self.accelerator.device), self.plan.at(self.step))
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    blocks = self.plan.at(self.step).open_blocks
                    advice = OUT_OF_MEMORY if blocks else OUT_OF_MEMORY_FROZEN
                    raise TrainingError(f"{advice} (step {self.step}, {blocks} blocks open: {error})") from None
                if self.step >= self.total_steps:
                    break
                # Never between an epoch's last step and its end: a run resumed there would skip the validation.
                every = self.options.checkpoint_steps
                if every and self.step % every == 0 and self.step % self.plan.config.steps_per_epoch:
                    self.processes.average_buffers(self.model)  # so that all go on from what the checkpoint holds
                    self._save()
            self._end_epoch(epoch, time.perf_counter() - started)
        return self._emit(
            "end", best=self.choice.best, best_step=self.choice.best_step, metric=self.options.best_metric,
            stopped_early=self.choice.exhausted, seconds=time.perf_counter() - begin,
        )

    def train_step(self, batch: Batch, point: PlanPoint) -> None:
        """One optimizer step on a batch that is on the device; stages must be as ``point`` has them."""
        began = time.perf_counter()
        set_learning_rates(self.optimizer, point)
        torch.manual_seed(self._step_seed())
        counts = self.processes.counts(batch)
        losses: list[Losses] = []
        refusals: list[Refusal] = []
        for part in split(batch, self.options.accumulate):
            with self.accelerator.autocast():
                output = self.model(part.images, part.boxes, part.image_index)
            terms = gaze_losses(
                output, part, counts, self.weights, distill_weight=point.distill_weight, temperature=point.temperature
            )
            losses.append(terms)
            if refusals := not_finite(terms, part):
                break
            self.accelerator.backward(terms.total)
        # One process's loss stops them all, here: the others would wait for its gradients.
        images, refused = self.processes.tally(batch, bool(refusals))
        if refused:
            self._stop(refusals)
        norms = self._reduce_and_clip()
        norm = self._norm_or_skip(float(norms.total), batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None and norm is not None:
            self.average.update(self.step)
        record = loss_record(self.processes.losses(losses), self.weights, point.distill_weight)
        seconds = time.perf_counter() - began
        counted = {"images": float(images), "steps": 1.0, "seconds": seconds, "skipped": float(norm is None)}
        for name, value in {**record, "grad_norm": norm or 0.0, **counted}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.step % self.options.log_every == 0 or self.step == self.total_steps:
            taught = batch.teacher_heatmap if point.distill_weight else None
            mass = None if taught is None else float(mass_near_peak(taught, point.temperature))
            self._emit(
                "step", epoch=point.epoch, seconds=seconds, **record, grad_norm=norm, weight=point.distill_weight,
                temperature=point.temperature, open_blocks=point.open_blocks, stem_open=point.stem_open, lr_head=point.lr_head,
                lr_backbone=point.lr_stages[0] if point.lr_stages else 0.0, target_mass=mass,
                lr_stages=self._rates(point), grad_norms={} if norm is None else norms.by_stage(),
            )
        self._watch(record["loss"], point)

    def _rates(self, point: PlanPoint) -> dict[str, float]:
        """The rate of every open stage by its name."""
        return {
            stage.name: rate for index, (stage, rate) in enumerate(zip(self.stages, point.lr_stages, strict=True))
            if stage.parameters and self.stages.is_open(index, point.open_blocks, point.stem_open)
        }

    def _reduce_and_clip(self) -> GradientNorms:
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        parameters = [p for _, p in named]
        self.processes.sum_gradients(parameters)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer.optimizer)
        norms = GradientNorms(parameters, [self._stage_of[name] for name, _ in named])
        norms.clip(parameters, self.options.grad_clip_norm)
        return norms

    def _norm_or_skip(self, norm: float, batch: Batch) -> float | None:
        """The gradient's norm; None where the fp16 scaler will skip the step, as its scale was too high."""
        if math.isfinite(norm):
            self.skipped = 0
            return norm
        self.skipped += 1
        if self.accelerator.scaler is None or self.skipped >= MOST_SKIPPED:
            self._stop([(f"gradient norm is {norm}", batch.scenes)])
        return None

    def _watch(self, loss: float, point: PlanPoint) -> None:
        """Tell a spike after a thaw, and hold the next thaw if that is asked for."""
        if self.watch.step(loss, point.distill_weight) and self.watch.thaw is not None:
            thaw = self.watch.thaw
            left = [e for e in self.plan.clock.opening_epochs if e is not None and e > point.epoch]
            held = self.options.on_spike == "hold" and bool(left)
            if held:
                self.watch.holds = (*self.watch.holds, point.epoch)
                self.plan = replace(self.plan, holds=self.watch.holds)
                left = [e for e in self.plan.clock.opening_epochs if e is not None and e > point.epoch]
            self._emit(
                "spike", epoch=point.epoch, thaw_epoch=thaw.epoch, loss=loss, before=thaw.before, factor=self.options.spike_factor,
                held=held, next_thaw=min(left, default=None), advice=SPIKE if left else REGRESSION,
            )
        self._tell_thaw_loss(ending=self.step >= self.total_steps)

    def _tell_thaw_loss(self, *, ending: bool) -> None:
        summary = self.watch.finished(ending=ending)
        if summary is not None:
            self._emit("thaw_loss", **summary)

    def _end_epoch(self, epoch: int, seconds: float) -> None:
        self.processes.average_buffers(self.model)
        steps = self.sums.pop("steps", 0.0)
        images = self.sums.pop("images", 0.0)
        busy = self.sums.pop("seconds", 0.0)
        skipped = self.sums.pop("skipped", 0.0)
        norm = self.sums.pop("grad_norm", 0.0) / (steps - skipped) if steps > skipped else None
        if steps:
            means = {name: value / steps for name, value in self.sums.items()}
            self._emit(
                "epoch", epoch=epoch, **means, grad_norm=norm, skipped_steps=int(skipped), images_per_s=images / max(busy, 1e-9),
                seconds=seconds,
            )
        self.sums = {}
        if (epoch + 1) % self.options.validate_every == 0 or self.step >= self.total_steps:
            self._validate(epoch)
        # Told before the checkpoint: the next thaw comes after it, and a resumed run would tell this one again.
        self._tell_thaw_loss(ending=self.choice.exhausted or epoch + 1 in dict(self.plan.thaw_events))
        self._save()

    def _validate(self, epoch: int) -> None:
        if self.accelerator.is_main_process:
            found: dict[str, Metrics] = {}
            if self.validate is not None:
                found["raw"] = self._scored(self.validate)
                if self.average is not None:
                    with self.average.applied():
                        found["averaged"] = self._scored(self.validate)
            # With nothing to validate on the newest student is kept, averaged where there is an average.
            kept = self.choice.winner(found) if found else "averaged" if self.average is not None else "raw"
            best = self.choice.judge(found[kept], self.step) if found else True
            if best:
                with self.average.applied() if self.average is not None and kept == "averaged" else nullcontext():
                    self._keep_student(found.get(kept, {}), kept)
            if found:
                averaged = {f"ema_{name}": value for name, value in found.get("averaged", {}).items()}
                self._emit("validation", epoch=epoch, best=best, weights=kept, **found["raw"], **averaged)
        self.choice.stale = self.processes.first(self.choice.stale)
        self.accelerator.wait_for_everyone()

    def _scored(self, validate: Callable[[GazeModel], Metrics]) -> Metrics:
        self.model.eval()
        with torch.inference_mode():
            return dict(validate(self.model))

    def _keep_student(self, metrics: Metrics, weights: str) -> None:
        facts = {**self.facts, "step": self.step, "weights": weights, **({"validation": dict(metrics)} if metrics else {})}
        save_model(self.run / "student", self.model, str(self.facts.get("name", self.run.name)), facts)

    def _open_stages(self, epoch: int, *, announce: bool) -> None:
        """Bring every stage to the state that the plan wants at ``epoch``: open and training, or frozen."""
        point = self.plan.at(epoch * self.plan.config.steps_per_epoch)
        self.model.train()
        self.stages.apply(self.model.backbone, point.open_blocks, point.stem_open)
        if self.average is not None:
            self.average.follow()
        opened = dict(self.plan.thaw_events).get(epoch, [])
        if opened and self.options.compile:
            forget_compiled()
        if announce and opened:
            names = [self.stages[index].name for index in opened]
            trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            before = self.watch.opened(epoch, self.plan.at(max(point.step - 1, 0)).distill_weight)
            self._emit("thaw", epoch=epoch, opened=names, open_blocks=point.open_blocks, trainable=trainable, loss_before=before)

    def _step_seed(self) -> int:
        """What dropout and drop-path draw from: a function of seed, step and process, so that no generator needs saving."""
        key = struct.pack("<qqq", self.options.seed, self.step, self.accelerator.process_index)
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1

    def _stop(self, refusals: Sequence[Refusal]) -> NoReturn:
        """Raise, in every process alike, what was not finite in any of them; all must call it at the same step."""
        raise TrainingError(
            f"{told_refusals(self.processes.told(refusals), self.step)}; nothing was updated and the last checkpoint stands: look at "
            f"these scenes, or lower --lr or --backbone-lr, then resume with --resume {self.run}", everywhere=True
        )

    def _emit(self, kind: str, **values: Any) -> Record:
        record: Record = {"kind": kind, "step": self.step, **values}
        if self.accelerator.is_main_process:
            self.report(record)
        return record

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            facts = {
                **self._identity(), "step": self.step, "sums": self.sums, "skipped": self.skipped, "choice": self.choice.state(),
                "watch": self.watch.state(), "scaler": None if scaler is None else scaler.state_dict(), "selection": self.facts.get("selection"),
                "plan": self.plan.config.to_dict(), "threads": torch.get_num_threads(), "processes": self.accelerator.num_processes,
            }
            state = optimizer_state_by_name(self.optimizer.optimizer)
            average = {} if self.average is None else self.average.values
            checkpoint = Checkpoint(self.model.state_dict(), state, facts, average)
            path = save_checkpoint(self.run, checkpoint, self.step, keep=self.options.keep_checkpoints)
            self._emit("checkpoint", path=path.name)
        self.accelerator.wait_for_everyone()

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with a run that goes on from it."""
        return {"model": self.model.config.to_json(), "lineage": dict(self.batches.lineage), "optimizer": self.options.optimizer}

    def resume(self) -> list[str]:
        """Go back to the newest intact checkpoint of the run; returns sentences about what is not as it was."""
        checkpoint, path, notes = newest_intact(self.run)
        facts = checkpoint.facts
        mine = {**self._identity(), "steps_per_epoch": self.plan.config.steps_per_epoch}
        refuse_misfit(facts, mine, str(path), str(self.run))
        load_strictly(self.model, checkpoint.model, str(path))
        load_optimizer_state_by_name(self.optimizer.optimizer, {k: dict(v) for k, v in checkpoint.optimizer.items()})
        self.step, self.sums, self.skipped = facts["step"], dict(facts["sums"]), facts["skipped"]
        now = self.facts.get("selection")
        before = facts.get("selection", now)  # checkpoints of earlier versions do not say
        if before == now:
            self.choice.load(facts["choice"])
        else:
            # Values by another metric, or on other scenes, do not compare: the best one begins anew.
            notes.append(f"the best student was chosen by {_phrase(before)}, from step {facts['step']} on it is chosen anew by {_phrase(now)}")
        self.watch.load(facts["watch"])
        self.plan = replace(self.plan, holds=self.watch.holds)
        if self.average is not None:
            # A run that is averaged from here on begins with the weights that it has.
            self.average.load({name: value.to(self.accelerator.device) for name, value in (checkpoint.average or checkpoint.model).items()})
        if (self.average is not None) != bool(checkpoint.average):
            notes.append(f"the run's weights were {'not ' if self.average else ''}averaged before: --ema-decay takes effect from step {self.step} on")
        if self.accelerator.scaler is not None and facts["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        for what, now in (("threads", torch.get_num_threads()), ("processes", self.accelerator.num_processes)):
            if facts[what] != now:
                notes.append(f"the run was made with {facts[what]} {what} and goes on with {now}: results may differ in the last bits")
        return notes


def _phrase(selection: Any) -> str:
    """A choice in words: `metric auc, split val`."""
    return ", ".join(f"{name} {value}" for name, value in sorted(selection.items())) if selection else "other rules"
