"""What a training runs on, by accelerate: device, mixed precision, the group of processes, trackers."""

from __future__ import annotations

import difflib
import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from distill.configuration import RunConfig
from distill.errors import ConfigurationError, MissingExtraError


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
    # A validation runs on the first process while the others wait: longer than the ten minutes that torch would give them.
    patient = InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout_minutes))
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=precision, log_with=trackers(config.tracker), project_dir=run, kwargs_handlers=[patient]
    )
    if accelerator.num_processes != world:
        raise ConfigurationError(
            f"{world} processes were launched, but they are not joined ({accelerator.num_processes} here); launch with `accelerate "
            "launch` on GPUs, with `ACCELERATE_USE_CPU=1 torchrun` on a CPU"
        )
    return accelerator


def trackers(wanted: str) -> list[str] | None:
    """The trackers that accelerate shall feed, by its names; :class:`MissingExtraError` for one whose package is absent."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if wanted == "none":
        return None
    available = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if wanted == "auto":
        return ["tensorboard"] if "tensorboard" in available else None
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=2)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise ConfigurationError(f"tracker {name!r} is not known{hint}; accelerate has {', '.join(LOGGER_TYPE_TO_CLASS)}, or give auto or none")
        if name not in available:
            extra = {"tensorboard": "'gaze-distill[report]'", "wandb": "'gaze-distill[tracking]'"}.get(name, name.replace("_", "-"))
            raise MissingExtraError(f"tracker {name!r} is not installed; install it with `pip install {extra}`, or train with --tracker none")
    return names
