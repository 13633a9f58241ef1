"""The student before its first step: which network it is, and where its first weights come from.

Pretrained backbone weights, a teacher's backbone, a stored student, noise, or, on a resumption, the run's own checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from distill.configuration import RunConfig
from distill.errors import ConfigurationError
from students.catalogue import build_student, stored_student, student_config
from students.errors import RunError
from teachers.catalogue import load_model_teacher
from teachers.model import GazeModel, ModelConfig
from teachers.model_teacher import ModelTeacher
from teachers.pretrained import load_pretrained_backbone
from teachers.weights import load_model, load_strictly


def initial_student(config: RunConfig) -> tuple[GazeModel, dict[str, Any]]:
    """The student before its first step, and where its weights come from."""
    torch.manual_seed(config.seed)
    if stored_at := stored_student(config.student):
        return _whole_student(config, stored_at)
    model = build_student(student_config(config.student))
    if config.student_weights:
        stored, description = load_model(stored_model_path(Path(config.student_weights)))
        load_strictly(model, stored.state_dict(), config.student_weights)
        return model, {"student_weights": description["weights_digest"]}
    if config.random_backbone:
        return model, {"backbone_weights": "random"}
    if config.backbone_from:
        return model, {"backbone_weights": take_backbone(model, load_model_teacher(config.backbone_from))}
    file = Path(config.backbone_weights) if config.backbone_weights else None
    if file is not None and not file.is_file():
        raise ConfigurationError(
            f"backbone_weights is {file}, and there is no such file; make it as the run file's comments say or give another with "
            "--backbone-weights FILE, or start from noise with --backbone-weights '' --random-backbone"
        )
    return model, {"backbone_weights": load_pretrained_backbone(model, file)}


def resumed_student(config: RunConfig, run: Path) -> tuple[GazeModel, dict[str, Any]]:
    """The student of a run that is resumed, its weights still to come from the checkpoint, and where the first ones came from."""
    facts = json.loads((run / "config.json").read_text()).get("facts")
    if not isinstance(facts, dict):
        raise RunError(f"{run / 'config.json'} has no facts of how the run began; restore it, or start the run again under another --name")
    origin = {name: value for name, value in facts.items() if name not in ("run", "lineage")}
    # The run's own record of the architecture, as what the student was started from may be gone by now; unless another is asked for.
    kept = "model" in facts and facts.get("student") == config.student
    return build_student(ModelConfig.from_json(facts["model"]) if kept else student_config(config.student)), origin


def _whole_student(config: RunConfig, stored_at: Path) -> tuple[GazeModel, dict[str, Any]]:
    """A student that goes on from a run's or a stored one: architecture and every weight are taken from there."""
    starts = [name for name in ("student_weights", "backbone_weights", "backbone_from", "random_backbone") if getattr(config, name)]
    if starts:
        raise ConfigurationError(
            f"student is {config.student}, which brings all its weights, and {', '.join(starts)} is set too; empty it "
            f"(--{starts[0].replace('_', '-')} ''), or name a student of the catalogue"
        )
    model, description = load_model(stored_at)
    return model, {"name": description.get("name", stored_at.name), "student_weights": description["weights_digest"]}


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
