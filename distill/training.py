"""From a run's configuration to a finished run directory: the parts are put together here, the work is the trainer's.

A run directory holds ``config.json`` (resolved), ``plan.json``, ``metrics.jsonl``, ``checkpoints/``, ``student/`` (the best one) and what
`eval`, `export` and `report` add later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from distill.accelerating import make_accelerator
from distill.agreement import AGREEMENT, TeacherAgreement
from distill.augment import Augment
from distill.cached_teacher import CachedTeacher, open_cached_teacher
from distill.configuration import RunConfig
from distill.console import say, warn
from distill.errors import ConfigurationError, DataError
from distill.evaluation import evaluate, protocol_of
from distill.feeding import SceneBatches
from distill.loss_options import loss_weights
from distill.readers import open_data
from distill.runlog import RunLog, scores, writing
from distill.scenes import Scene
from distill.selection import refuse_test_selection, refuse_unmeasurable, selection
from distill.student_start import initial_student, resumed_student
from distill.unlabelled import gather, has_labels, refuse_unheard, with_data
from distill.views import ViewPolicy
from schedules.plan import Plan, compile_plan
from schedules.stages import Stages, discover_stages
from students.catalogue import stored_student
from students.errors import RunError
from students.options import TrainOptions
from students.trainer import Record, Trainer
from teachers.cache.ensemble import Space
from teachers.model import GazeModel
from teachers.weights import write_atomically

METRICS = ("auc", "avg_l2", "avg_l2_mean_of", "min_l2", "ap")  # what the best student may be chosen by


def run_directory(config: RunConfig) -> Path:
    """Where a run is kept; its name comes from the configuration."""
    if not config.name or Path(config.name).name != config.name:
        raise ConfigurationError(f"the run's name is {config.name!r}; give a plain name with --name")
    return Path(config.runs) / config.name


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
        config = with_data(config)
        if config.best_metric not in (*METRICS, *AGREEMENT):
            raise ConfigurationError(f"best_metric is {config.best_metric!r}; choose one of {', '.join((*METRICS, *AGREEMENT))}")
        refuse_test_selection(config)
        self.config, self.path = config, run_directory(config)
        prepare_run(config, self.path, resuming=resuming)
        self.scenes = open_data(config.data, config.train_split)
        self.judge = self.scenes.reader  # whose pictures the student is validated on
        self.validation = self._validation_scenes()
        self.accelerator = make_accelerator(config, self.path)
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked at the directory
        set_seed(config.seed)
        self.model, origin = resumed_student(config, self.path) if resuming else initial_student(config)
        teacher: CachedTeacher | None = None
        policy = ViewPolicy(seed=config.seed)
        if config.cache:
            space: Space = "probability" if config.ensemble_space == "probability" else "logit"
            teacher = open_cached_teacher(config.cache, self.scenes, self.model.heatmap_size, config.views, space)
            policy = teacher.policy
            config = replace(config, views=teacher.views)
            for note in teacher.notes:
                warn(note)
        self.material = gather(
            config, self.scenes, teacher, self.validation, self.model.heatmap_size,
            inout=self.model.has_inout and config.inout_weight > 0,
        )
        for note in self.material.notes:
            warn(note)
        self.validation = self.validation[: config.val_scenes or None]
        self.agreement = TeacherAgreement(self.material.held_out, workers=config.workers)
        lineage = self._lineage(teacher)
        self.batches = SceneBatches(
            self.material.labelled, unlabelled=self.material.pools, unlabelled_share=config.unlabelled_share,
            policy=policy, input_size=self.model.input_size, heatmap_size=self.model.heatmap_size,
            batch_size=config.batch_size, seed=config.seed, lineage=lineage, cache=teacher,
            augment=_augment(config.augment), target_sigma=config.target_sigma, rank=self.accelerator.process_index, world=self.accelerator.num_processes,
            workers=config.workers, exif=self.scenes.reader == "folder",
        )
        self.stages: Stages = discover_stages(self.model.backbone)
        plan_config = config.plan_config(self.batches.steps_per_epoch)
        self.plan: Plan = compile_plan(plan_config, self.stages.blocks)  # as far as known: holds are added while the run goes on
        taught = max(plan_config.weight_curve.levels()) > 0
        refuse_unheard(config, self.material, taught, teacher is not None)
        self.config = config = replace(config, unlabelled_views=self.material.views, best_metric=self._best_metric())
        if self.material.pools:
            say(self.material.sentence(self.batches.mixture))
        if teacher is not None and not taught:
            warn("a cache is given but distill_weight is 0: the teacher is not listened to; set --distill-weight, e.g. 1.0")
        self.facts = {
            "name": config.student, **origin, "student": config.student, "run": config.name, "config": config.to_json(), "model": self.model.config.to_json(),
            "lineage": lineage, "selection": selection(config), "scenes": {**self.material.counts(), "validation": len(self.validation)},
        }
        self.log = RunLog(self.path, self.plan, self.accelerator, watch)
        self.trainer = Trainer(
            self.model, self.stages, self.plan, self.batches, self.path, self.accelerator,
            options=_train_options(config),
            weights=loss_weights(config),
            validate=self.validate if self.validation or self.material.held_out else None, report=self._take, facts=self.facts,
        )

    def _validation_scenes(self) -> tuple[Scene, ...]:
        config = self.config
        if not config.val_data and not has_labels(self.scenes.scenes):
            return ()
        judged = open_data(config.val_data or config.data, config.val_split)
        if config.val_data and not has_labels(judged.scenes):
            raise ConfigurationError(f"no head of {config.val_data} {judged.split} has a gaze label to validate on; give --val-data another data set")
        scenes = judged.scenes
        overlap = {scene.key for scene in scenes} & {scene.key for scene in self.scenes.scenes}
        if overlap and not config.val_data:  # another data set's pictures are told apart by their digests
            raise DataError(
                f"{len(overlap)} scenes are in both {config.train_split} and {config.val_split} (first: {min(overlap)}); choose "
                "splits that do not overlap"
            )
        if config.val_split == "test":
            warn(
                "the best student is chosen on the split 'test': what it scores there is no test result any more; give --val-split val, "
                "or another split that is not reported"
            )
        self.judge = judged.reader
        return scenes

    def _best_metric(self) -> str:
        """What the best student is chosen by; agreement with the teacher, if there are no labels to validate on."""
        wanted, held_out = self.config.best_metric, self.material.counts()["held_out"]
        if wanted in AGREEMENT and not held_out:
            raise ConfigurationError(
                f"best_metric is {wanted}, which is measured on unlabelled scenes, and there are none; choose one of {', '.join(METRICS)}"
            )
        if self.validation:
            refuse_unmeasurable(wanted, self.validation, f"{self.config.val_data or self.config.data} {self.config.val_split}", inout=self.model.has_inout)
        if self.validation or wanted in AGREEMENT:
            return wanted
        if held_out:
            say(
                f"no labels to validate on: the best student is the one with the lowest {AGREEMENT[0]}, its divergence from the teacher on "
                f"{held_out} scenes that are held out; --val-data DATA validates on labels"
            )
            return AGREEMENT[0]
        warn("nothing to validate on: the newest student is kept; score it on labelled data, or give --val-data")
        return wanted

    def _lineage(self, teacher: CachedTeacher | None) -> dict[str, Any]:
        config = self.config
        lineage: dict[str, Any] = {"data": self.scenes.digest(), "reader": self.scenes.reader, "split": config.train_split}
        if teacher is not None:
            lineage |= teacher.lineage()
        if config.val_data:
            lineage["labelled"] = len(self.material.labelled)  # less what is validated on
        if self.material.lineage:
            lineage["unlabelled"] = [dict(entry) for entry in self.material.lineage]
        return lineage

    def validate(self, model: GazeModel) -> Mapping[str, float | None]:
        """Metrics of the student on the validation scenes, and its agreement with the teacher on what is held out."""
        from dataclasses import asdict

        device = str(self.accelerator.device)
        metrics: dict[str, float | None] = {}
        if self.validation:
            result = evaluate(
                model, self.validation, protocol=protocol_of(self.judge), device=device, workers=self.config.workers,
                exif=self.judge == "folder",
            )
            metrics = asdict(result.metrics)
        if self.material.held_out:
            metrics |= self.agreement(model, device)
        return metrics

    def start(self) -> Record:
        """Write the resolved configuration and the plan, then train to the end."""
        if self.accelerator.is_main_process:
            if stored_student(self.config.student):
                self._say_before()
            self._write(self.config.to_json(), {key: value for key, value in self.facts.items() if key != "config"})
        self.accelerator.wait_for_everyone()
        self.log.begin(self.config)
        return self._finish()

    def _say_before(self) -> None:
        """What a student that goes on from a run scores before its first step: whether training was worth it is read against that."""
        self.model.eval()
        with torch.inference_mode():
            self.facts["before"] = self.trainer.facts["before"] = dict(self.validate(self.model))
        if self.facts["before"]:
            say(f"before training: {scores(self.facts['before'])}")

    def resume(self) -> Record:
        """Go on from the newest intact checkpoint; lines of metrics past it are cut off."""
        for note in self.trainer.resume():
            warn(note)
        self.plan = self.log.plan = self.trainer.plan  # with the holds of the steps that stand
        self._keep_overrides()
        self.log.begin(self.config, from_step=self.trainer.step)
        return self._finish()

    def _take(self, record: Record) -> None:
        """A record of the trainer's, into the log; a thaw that it held is in the stored plan from then on."""
        if record["kind"] == "spike" and record["held"]:
            self.plan = self.log.plan = self.trainer.plan
            self._write_plan()
        self.log(record)

    def _write(self, sections: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self._write_plan()
        with writing(self.path, self.path):
            _write_json(self.path / "config.json", {**sections, "facts": facts})

    def _write_plan(self) -> None:
        with writing(self.path, self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _write_json(self.path / "plan.json", {**self.plan.to_json(), "events": self._events()})

    def _keep_overrides(self) -> None:
        """What was overridden on this resumption holds for the next one too; name and place stay as the run was started with.

        So do the facts of how it began; by what the best student is chosen, and on how many scenes, is what is in force now.
        """
        if not self.accelerator.is_main_process:
            return
        saved = json.loads((self.path / "config.json").read_text())
        facts = saved.pop("facts", {})
        mine = self.config.to_json()
        mine["run"] |= {key: saved["run"][key] for key in ("name", "runs")}
        facts_now = {**facts, **{name: self.facts[name] for name in ("selection", "scenes")}}
        if mine != saved or facts_now != facts:
            self._write(mine, facts_now)
        elif self.plan.holds:
            self._write_plan()  # that on the disk may have holds of steps that were lost

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
    """The options that both records know by the same name."""
    shared = {item.name: getattr(config, item.name) for item in fields(TrainOptions) if hasattr(config, item.name)}
    return TrainOptions(**{**shared, "limit_steps": config.limit_steps or None})
