"""How a name or a path becomes a teacher, and where pulled teachers are kept.

A teacher is named by an entry of :mod:`teachers.published` (``gazelle_dinov2_vitb14``, ...), as ``demo``, by the directory of a stored
model or of a run, or as ``timm:BACKBONE`` with a file of decoder weights: any DINOv2 or DINOv3 backbone of timm.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from teachers.convert import assemble
from teachers.download import fetch
from teachers.errors import UnknownModelError, WeightsError
from teachers.model import ModelConfig
from teachers.model_teacher import ModelTeacher
from teachers.published import CATALOGUE
from teachers.weights import load_model, read_checkpoint, save_model, tensors_digest

DEMO = Path(__file__).parent / "demo"


def store() -> Path:
    """Where pulled teachers are kept: ``$GAZE_DISTILL_HOME/teachers``, by default below ``~/.cache/gaze-distill``."""
    home = os.environ.get("GAZE_DISTILL_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "gaze-distill") / "teachers"


def pull(name: str) -> Path:
    """Fetch and convert the catalogue's teacher ``name`` into the store, unless it is there; returns its directory."""
    if name not in CATALOGUE:
        raise UnknownModelError.of("teacher", name, CATALOGUE, "`distill teachers list` lists them all")
    directory = store() / name
    if not (directory / "model.json").exists():
        entry = CATALOGUE[name]
        file = store() / "downloads" / entry.url.rpartition("/")[2]
        if not file.exists():
            fetch(entry.url, file)
        model = assemble(entry.config, file, None)
        save_model(directory, model, name, {"source": entry.url, "licence": entry.licence})
    return directory


def load_teacher(
    name: str, *, device: str = "cpu", precision: str = "fp32", weights: Path | None = None, backbone_weights: Path | None = None
) -> ModelTeacher:
    """The teacher ``name``: a catalogue entry, a directory, or ``timm:BACKBONE`` with ``weights``, a Gaze-LLE decoder file.

    ``device`` "auto" is a GPU where there is one. Raises :class:`UnknownModelError` (with the nearest names) and
    :class:`WeightsError`.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("timm:"):
        if weights is None:
            raise WeightsError(f"teacher {name} needs --weights FILE, the decoder that was trained on this backbone")
        tensors = read_checkpoint(weights)
        inout = "none" if "inout_token.weight" not in tensors else "mlp" if "inout_head.3.weight" in tensors else "linear"
        pixels = (448, 448)
        dim = tensors["linear.weight"].shape[0] if "linear.weight" in tensors else 256
        model = assemble(
            ModelConfig(backbone=name.removeprefix("timm:"), input_size=pixels, inout=inout, dim=dim), weights, backbone_weights
        )
        return ModelTeacher(model, name, tensors_digest(model.state_dict()), device=device, precision=precision)
    if name == "demo":
        directory = DEMO
    elif name in CATALOGUE:
        directory = pull(name)
    else:
        directory = Path(name) / "student" if (Path(name) / "student" / "model.json").exists() else Path(name)
        if not (directory / "model.json").exists():
            raise UnknownModelError.of(
                "teacher", name, ["demo", *CATALOGUE],
                "or give a directory that holds model.json; `distill teachers list` lists them all",
            )
    model, description = load_model(directory)
    return ModelTeacher(model, description["name"], description["weights_digest"], device=device, precision=precision)
