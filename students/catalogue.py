"""The catalogue of students: one line of plain data each, and how a name becomes a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from teachers.errors import UnknownModelError
from teachers.model import HALF, GazeModel, ModelConfig
from teachers.weights import read_description

# The rates of drop-path are zero in the smallest students: they are never the ones that overfit.
STUDENTS: dict[str, ModelConfig] = {
    "lite0_tiny": ModelConfig(
        backbone="tf_efficientnet_lite0", input_size=(160, 160), levels=(2, 3), mean=HALF, std=HALF,
        dim=96, layers=2, attention_heads=4, drop_path=0.0,
    ),
    "lite0_small": ModelConfig(
        backbone="tf_efficientnet_lite0", input_size=(160, 160), levels=(2, 3, 4), mean=HALF, std=HALF,
        dim=128, layers=3, attention_heads=4, drop_path=0.0,
    ),
    "lite0_large": ModelConfig(
        backbone="tf_efficientnet_lite0", input_size=(192, 192), levels=(2, 3, 4), mean=HALF, std=HALF,
        dim=192, layers=3, attention_heads=6, drop_path=0.0,
    ),
    "vit_tiny": ModelConfig(
        backbone="vit_tiny_patch16_224", input_size=(224, 224), mean=HALF, std=HALF,
        dim=128, layers=3, attention_heads=4, drop_path=0.0,
    ),
    "dinov3_small": ModelConfig(backbone="vit_small_patch16_dinov3", input_size=(448, 448)),
    "dinov2_small": ModelConfig(backbone="vit_small_patch14_dinov2", input_size=(448, 448)),
}


def stored_student(name: str) -> Path | None:
    """The directory of the stored student (or of a run's best one) that ``name`` is, if it is no name of the catalogue."""
    if not name or name in STUDENTS:
        return None
    return next((folder for folder in (Path(name) / "student", Path(name)) if (folder / "model.json").is_file()), None)


def student_config(name: str, *, inout: str | None = None) -> ModelConfig:
    """The description of student ``name``, of the catalogue or stored; an unknown name is an error that offers the nearest ones."""
    stored = stored_student(name)
    if stored is None and name not in STUDENTS:
        raise UnknownModelError.of("student", name, STUDENTS, "`distill students list` lists them all, and a run may be given too")
    config = STUDENTS[name] if stored is None else ModelConfig.from_json(read_description(stored)["config"])
    return config if inout is None else replace(config, inout=inout)


def build_student(config: ModelConfig) -> GazeModel:
    """A student with random weights; backbone weights are loaded apart (:mod:`teachers.pretrained`)."""
    return GazeModel(config)
