"""From a run's configuration to a finished run directory: the parts are put together here, the work is the trainer's.

A run directory holds ``config.json`` (resolved), ``plan.json``, ``metrics.jsonl``, ``checkpoints/``, ``student/`` (the best one) and what
`eval`, `export` and `report` add later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from distill.augment import Augment
from distill.cached_teacher import CachedTeacher, data_of_cache, open_cached_teacher
from distill.configuration import RunConfig
from distill.console import warn
from distill.errors import ConfigurationError, DataError
from distill.evaluation import evaluate, protocol_of
from distill.feeding import SceneBatches
from distill.readers import open_data
from distill.runlog import RunLog, writing
from distill.scenes import Scene
from distill.views import ViewPolicy
from schedules.plan import Plan, compile_plan
from schedules.stages import Stages, discover_stages
from students.catalogue import build_student, student_config
from students.errors import RunError
from students.losses import LossWeights
from students.trainer import Record, Trainer, TrainOptions
from teachers.cache.ensemble import Space
from teachers.catalogue import load_teacher
from teachers.model import GazeModel
from teachers.model_teacher import ModelTeacher
from teachers.pretrained import load_pretrained_backbone
from teachers.weights import load_model, load_strictly, write_atomically

METRICS = ("auc", "avg_l2", "avg_l2_mean_of", "min_l2", "ap")  # what the best student may be chosen by


def run_directory(config: RunConfig) -> Path:
    """Where a run is kept; its name comes from the configuration."""
    if not config.name or Path(config.name).name != config.name:
        raise ConfigurationError(f"the run's name is {config.name!r}; give a plain name with --name")
    return Path(config.runs) / config.name


def make_accelerator(config: RunConfig, run: Path) -> Accelerator:
    """The accelerator for a run: device, mixed precision and trackers."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device is cuda, but torch sees no GPU here; use --device cpu, or look at `distill doctor`")
    precision = "no"
    if config.use_amp:
        gpu = torch.cuda.is_available() and config.device != "cpu"
        precision = "bf16" if not gpu or torch.cuda.is_bf16_supported() else "fp16"
    # Launched by torchrun on a machine without a GPU, accelerate joins the processes only if it is told to use the CPU.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cpu = config.device == "cpu" or (world > 1 and not torch.cuda.is_available())
    if cpu and world > 1:
        os.environ["ACCELERATE_USE_CPU"] = "1"
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=precision, log_with=_trackers(config.tracker), project_dir=run
    )
    if accelerator.num_processes != world:
        raise ConfigurationError(
            f"{world} processes were launched, but they are not joined ({accelerator.num_processes} here); launch with `accelerate "
            "launch` on GPUs, with `ACCELERATE_USE_CPU=1 torchrun` on a CPU"
        )
    return accelerator


def _trackers(wanted: str) -> list[str] | None:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import is_tensorboard_available

    if wanted == "none":
        return None
    if wanted == "auto":
        return ["tensorboard"] if is_tensorboard_available() else None
    available = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if wanted not in available:
        raise ConfigurationError(f"tracker {wanted!r} is not installed (here: {', '.join(available) or 'none'}); install it, or --tracker none")
    return [wanted]


def initial_student(config: RunConfig) -> tuple[GazeModel, dict[str, Any]]:
    """The student before its first step, and where its weights come from."""
    torch.manual_seed(config.seed)
    model = build_student(student_config(config.student))
    if config.student_weights:
        stored, description = load_model(stored_model_path(Path(config.student_weights)))
        load_strictly(model, stored.state_dict(), config.student_weights)
        return model, {"student_weights": description["weights_digest"]}
    if config.random_backbone:
        return model, {"backbone_weights": "random"}
    if config.backbone_from:
        return model, {"backbone_weights": take_backbone(model, load_teacher(config.backbone_from))}
    file = Path(config.backbone_weights) if config.backbone_weights else None
    return model, {"backbone_weights": load_pretrained_backbone(model, file)}


def take_backbone(model: GazeModel, teacher: ModelTeacher) -> dict[str, str]:
    """Start ``model``'s backbone from its teacher's, cut where the student is cut; returns where it came from.

    Source: DistilBERT, arXiv 1910.01108, section 3, which starts its student from the teacher's own layers.
    """
    mine, theirs = model.config.backbone, teacher.model.config.backbone
    if mine != theirs:
        raise ConfigurationError(
            f"the student's backbone is {mine}, that of teacher {teacher.name} is {theirs}: leave --backbone-from out, or choose a "
            f"student on {theirs} (`distill students list`)"
        )
    trunk = model.backbone.trunk
    wanted = trunk.state_dict()
    tensors = {name: tensor for name, tensor in teacher.model.backbone.trunk.state_dict().items() if name in wanted}
    load_strictly(trunk, tensors, f"the backbone of teacher {teacher.name}")
    return {"source": f"teacher {teacher.name}", "digest": teacher.fingerprint["weights"]}


def stored_model_path(path: Path) -> Path:
    """The directory with ``model.safetensors``: ``path`` itself, or the best student of the run that it is."""
    return path / "student" if (path / "student" / "model.json").exists() else path


def prepare_run(config: RunConfig, run: Path, *, resuming: bool) -> None:
    """Refuse a run directory that already holds a run (when starting), or that holds none (when resuming)."""
    held = (run / "config.json").exists()
    if resuming and not held:
        raise RunError(f"{run} holds no run to resume; start one with `distill train RUN.toml --name {run.name}`")
    if not resuming and held:
        raise RunError(
            f"{run} already holds a run; go on with it by `distill train --resume {run}`, give this one another --name, or "
            "remove the directory"
        )
    if not resuming and run.exists() and any(run.iterdir()):
        raise RunError(f"{run} is not empty and holds no run; give this run another --name")


class Run:
    """One training, put together: data, cache, student, plan, trainer."""

    def __init__(self, config: RunConfig, *, resuming: bool = False, watch: Callable[[Record], None] | None = None) -> None:
        if not config.data:
            config = replace(config, data=data_of_cache(config.cache))
        if config.best_metric not in METRICS:
            raise ConfigurationError(f"best_metric is {config.best_metric!r}; choose one of {', '.join(METRICS)}")
        self.config, self.path = config, run_directory(config)
        prepare_run(config, self.path, resuming=resuming)
        self.scenes = open_data(config.data, config.train_split)
        self.validation = self._validation_scenes()
        self.accelerator = make_accelerator(config, self.path)
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked at the directory
        set_seed(config.seed)
        self.model, origin = initial_student(config)
        teacher: CachedTeacher | None = None
        policy, kept = ViewPolicy(seed=config.seed), self.scenes.scenes
        if config.cache:
            space: Space = "probability" if config.ensemble_space == "probability" else "logit"
            teacher = open_cached_teacher(config.cache, self.scenes, self.model.heatmap_size, config.views, space)
            policy, kept = teacher.policy, teacher.scenes
            self.config = config = replace(config, views=teacher.views)
            for note in teacher.notes:
                warn(note)
        lineage = self._lineage(teacher)
        self.batches = SceneBatches(
            kept, policy=policy, input_size=self.model.input_size, heatmap_size=self.model.heatmap_size,
            batch_size=config.batch_size, seed=config.seed, lineage=lineage, cache=teacher,
            augment=_augment(config.augment), rank=self.accelerator.process_index, world=self.accelerator.num_processes,
            workers=config.workers, exif=self.scenes.reader == "folder",
        )
        self.stages: Stages = discover_stages(self.model.backbone)
        plan_config = config.plan_config(self.batches.steps_per_epoch)
        self.plan: Plan = compile_plan(plan_config, self.stages.blocks)
        taught = max(plan_config.weight_curve.levels()) > 0
        if taught and teacher is None:
            raise ConfigurationError("distill_weight is not 0 but there is no teacher: give --cache PATH, or --distill-weight 0")
        if teacher is not None and not taught:
            warn("a cache is given but distill_weight is 0: the teacher is not listened to; set --distill-weight, e.g. 1.0")
        self.facts = {
            "name": config.student, "run": config.name, "config": config.to_json(), "lineage": lineage, **origin
        }
        self.log = RunLog(self.path, self.plan, self.accelerator, watch)
        self.trainer = Trainer(
            self.model, self.stages, self.plan, self.batches, self.path, self.accelerator,
            options=_train_options(config),
            weights=LossWeights(inout=config.inout_weight, bce=config.bce_weight, softmax=config.softmax_weight),
            validate=self.validate if self.validation else None, report=self.log, facts=self.facts,
        )

    def _validation_scenes(self) -> tuple[Scene, ...]:
        config = self.config
        if self.scenes.reader == "folder":
            warn("pictures without gaze labels: nothing to validate on, the newest student is kept; score it on labelled data")
            return ()
        scenes = open_data(config.data, config.val_split).scenes
        overlap = {scene.key for scene in scenes} & {scene.key for scene in self.scenes.scenes}
        if overlap:
            raise DataError(
                f"{len(overlap)} scenes are in both {config.train_split} and {config.val_split} (first: {min(overlap)}); choose "
                "splits that do not overlap"
            )
        return scenes[: config.val_scenes] if config.val_scenes else scenes

    def _lineage(self, teacher: CachedTeacher | None) -> dict[str, Any]:
        lineage: dict[str, Any] = {"data": self.scenes.digest(), "reader": self.scenes.reader, "split": self.config.train_split}
        if teacher is not None:
            lineage |= teacher.lineage()
        return lineage

    def validate(self, model: GazeModel) -> Mapping[str, float | None]:
        """Metrics of the student on the validation scenes."""
        from dataclasses import asdict

        result = evaluate(
            model, self.validation, protocol=protocol_of(self.scenes.reader), device=str(self.accelerator.device),
            workers=self.config.workers, exif=self.scenes.reader == "folder",
        )
        return asdict(result.metrics)

    def start(self) -> Record:
        """Write the resolved configuration and the plan, then train to the end."""
        if self.accelerator.is_main_process:
            self._write(self.config.to_json(), {key: value for key, value in self.facts.items() if key != "config"})
        self.accelerator.wait_for_everyone()
        self.log.begin(self.config)
        return self._finish()

    def resume(self) -> Record:
        """Go on from the newest intact checkpoint; lines of metrics past it are cut off."""
        for note in self.trainer.resume():
            warn(note)
        self._keep_overrides()
        self.log.begin(self.config, from_step=self.trainer.step)
        return self._finish()

    def _write(self, sections: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        with writing(self.path, self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _write_json(self.path / "plan.json", {**self.plan.to_json(), "events": self._events()})
            _write_json(self.path / "config.json", {**sections, "facts": facts})

    def _keep_overrides(self) -> None:
        """What was overridden on this resumption holds for the next one too; name and place stay as the run was started with."""
        if not self.accelerator.is_main_process:
            return
        saved = json.loads((self.path / "config.json").read_text())
        facts = saved.pop("facts", {})
        mine = self.config.to_json()
        mine["run"] |= {key: saved["run"][key] for key in ("name", "runs")}
        if mine != saved:
            self._write(mine, facts)

    def _finish(self) -> Record:
        try:
            return self.trainer.fit()
        finally:
            self.log.close()

    def _events(self) -> list[dict[str, Any]]:
        return [
            {"epoch": epoch, "opened": [self.stages[index].name for index in opened]} for epoch, opened in self.plan.thaw_events
        ]


def _write_json(path: Path, values: Any) -> None:
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def _augment(strength: float) -> Augment | None:
    if strength == 0:
        return None
    plain = Augment()
    return replace(
        plain, brightness=plain.brightness * strength, contrast=plain.contrast * strength,
        saturation=plain.saturation * strength, grey=plain.grey * strength, box=plain.box * strength,
    )


def _train_options(config: RunConfig) -> TrainOptions:
    return TrainOptions(
        weight_decay=config.weight_decay, grad_clip_norm=config.grad_clip_norm, accumulate=config.accumulate,
        best_metric=config.best_metric, checkpoint_steps=config.checkpoint_steps, validate_every=config.validate_every,
        log_every=config.log_every, limit_steps=config.limit_steps or None, seed=config.seed,
    )
