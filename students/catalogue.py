"""The catalogue of students: one line of plain data each, and how a name becomes a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from students.any_backbone import PREFIX, timm_student
from teachers.errors import UnknownModelError
from teachers.model import HALF, IMAGENET_MEAN, IMAGENET_STD, GazeModel, ModelConfig
from teachers.weights import read_description


def _query(backbone: str, size: int, levels: tuple[int, ...] = (), *, half: bool = False, dim: int = 128, layers: int = 2) -> ModelConfig:
    """A student with the query decoder on square pictures; ``half`` says that the backbone learned on pixels in [-1,1]."""
    return ModelConfig(
        backbone=backbone, input_size=(size, size), levels=levels, decoder="query", dim=dim, layers=layers, attention_heads=dim // 32,
        drop_path=0.0, mean=HALF if half else IMAGENET_MEAN, std=HALF if half else IMAGENET_STD,
    )


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
    # The twin of lite0_query below with Gaze-LLE's decoder as published, to compare the two.
    "lite0_gazelle": ModelConfig(
        backbone="tf_efficientnet_lite0", input_size=(160, 160), levels=(2, 3), mean=HALF, std=HALF,
        dim=256, layers=3, attention_heads=8, drop_path=0.0,
    ),
    # With the query decoder, by size. Levels are feature indices: of five for EfficientNet and MobileNet, of four for the others.
    "hgnet_atto": _query("hgnetv2_atto", 320, (2,)),
    "hgnet_femto": _query("hgnetv2_femto", 320, (2,)),
    "hgnet_pico": _query("hgnetv2_pico", 320, (2,)),
    "lite0_query": _query("tf_efficientnet_lite0", 160, (2, 3), layers=1, half=True),
    "mobilenetv4_small": _query("mobilenetv4_conv_small", 256, (3, 4)),
    "hgnet_b0": _query("hgnetv2_b0", 320, (2, 3)),
    "fastvit_t8": _query("fastvit_t8", 256, (2, 3)),
    "repvit_m0_9": _query("repvit_m0_9", 256, (2, 3)),
    "mobilenetv4_medium": _query("mobilenetv4_conv_medium", 320, (3, 4), dim=192),
    "vit_tiny_query": _query("vit_tiny_patch16_deimv2", 320),
    "vit_tinyplus_query": _query("vit_tinyplus_patch16_deimv2", 320, dim=192),
    "dinov3_small_query": _query("vit_small_patch16_dinov3", 448, dim=256),
    "dinov3_small_plus": _query("vit_small_plus_patch16_dinov3", 448, dim=256),
}


def stored_student(name: str) -> Path | None:
    """The directory of the stored student (or of a run's best one) that ``name`` is, if it is no name of the catalogue."""
    if not name or name in STUDENTS:
        return None
    return next((folder for folder in (Path(name) / "student", Path(name)) if (folder / "model.json").is_file()), None)


def student_config(name: str, *, inout: str | None = None) -> ModelConfig:
    """The description of student ``name``: of the catalogue, ``timm:BACKBONE``, or stored.

    An unknown name is an error that offers the nearest ones; so is a backbone that yields no feature map.
    """
    stored = stored_student(name)
    if stored is not None:
        config = ModelConfig.from_json(read_description(stored)["config"])
    elif name in STUDENTS:
        config = STUDENTS[name]
    elif name.startswith(PREFIX):
        config = timm_student(name.removeprefix(PREFIX))
    else:
        raise UnknownModelError.of(
            "student", name, STUDENTS, "`distill students list` lists them all; timm:BACKBONE and a run may be given too"
        )
    return config if inout is None else replace(config, inout=inout)


def build_student(config: ModelConfig) -> GazeModel:
    """A student with random weights; backbone weights are loaded apart (:mod:`teachers.pretrained`)."""
    return GazeModel(config)
