"""The catalogue of students: one line of plain data each, and how a name becomes a model."""

from __future__ import annotations

from dataclasses import replace

from teachers.errors import UnknownModelError
from teachers.model import HALF, GazeModel, ModelConfig

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


def student_config(name: str, *, inout: str | None = None) -> ModelConfig:
    """The description of student ``name``; an unknown name is an error that offers the nearest ones."""
    if name not in STUDENTS:
        raise UnknownModelError.of("student", name, STUDENTS, "`distill students list` lists them all")
    config = STUDENTS[name]
    return config if inout is None else replace(config, inout=inout)


def build_student(config: ModelConfig) -> GazeModel:
    """A student with random weights; backbone weights are loaded apart (:mod:`teachers.pretrained`)."""
    return GazeModel(config)
