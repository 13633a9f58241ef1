"""Checkpoints: one safetensors file each, written whole or not at all, with a digest, never unpickled.

``checkpoints/step-0000120.safetensors`` holds ``model/<name>``, ``optimizer/<parameter>/<key>`` and, where the weights are averaged,
``average/<name>`` tensors; its metadata is JSON text: ``facts`` (step, best value, running sums, the watch with its holds, the
fp16 scaler, digests, plan) and ``digest`` over all tensors and facts. The state of the optimizer is keyed by parameter name, so a
checkpoint loads on either side of any thaw. No random generator is in it: what is drawn at a step is a function of seed and step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from students.errors import RunError
from teachers.weights import tensors_digest

FOLDER = "checkpoints"
FORMAT = "2"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on to the bit."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor | float]]
    facts: Mapping[str, Any]
    average: Mapping[str, Tensor] = field(default_factory=dict)


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    return tensors_digest({**tensors, "facts": torch.frombuffer(bytearray(facts.encode()), dtype=torch.uint8)})


def save_checkpoint(run: Path, checkpoint: Checkpoint, step: int, *, keep: int = 2) -> Path:
    """Write the checkpoint of ``step``; of it and the older ones the newest ``keep`` stay.

    :class:`RunError` where it cannot be written (a full disk, say); what was there before then stays as it is.
    """
    folder = run / FOLDER
    tensors = {f"model/{name}": value.detach().cpu().contiguous() for name, value in checkpoint.model.items()}
    tensors |= {f"average/{name}": value.detach().cpu().contiguous() for name, value in checkpoint.average.items()}
    for name, state in checkpoint.optimizer.items():
        for key, value in state.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            tensors[f"optimizer/{name}/{key}"] = tensor.detach().cpu().contiguous()
    facts = json.dumps(dict(checkpoint.facts), sort_keys=True)
    path = folder / f"step-{step:07d}.safetensors"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        access = temporary.stat().st_mode  # as the user's other new files: safetensors would keep it from everybody else
        save_file(tensors, temporary, metadata={"format": FORMAT, "facts": facts, "digest": _digest(tensors, facts)})
        temporary.chmod(access)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"checkpoint {path} cannot be written ({error}); make room on the disk, then go on with `distill train --resume {run}` from "
            "the last one"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    # A newer file is one that was damaged and passed over: it must not push out the checkpoint just written.
    for old in [each for each in checkpoints(run) if each.name <= path.name][keep:]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(run: Path) -> list[Path]:
    """All visible checkpoints of a run, newest first."""
    return sorted((run / FOLDER).glob("step-*.safetensors"), reverse=True)


def newest_step(run: Path) -> int:
    """The step of a run's newest checkpoint by its name, whole or not; 0 where there is none."""
    return max((int(number) for path in checkpoints(run) if (number := path.stem.removeprefix("step-")).isdecimal()), default=0)


def read_checkpoint_file(path: Path) -> Checkpoint:
    """One checkpoint, its digest verified; a damaged file is a :class:`RunError` that names it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"checkpoint {path} is damaged or cut short ({error})") from None
    facts = metadata.get("facts", "")
    if metadata.get("digest") != _digest(tensors, facts):
        raise RunError(f"checkpoint {path} does not match its own digest")
    if metadata.get("format") != FORMAT:
        raise RunError(f"checkpoint {path} has format {metadata.get('format')}, this version reads {FORMAT}; start the run again with another --name")
    model: dict[str, Tensor] = {}
    average: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor | float]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "model":
            model[rest] = tensor
        elif kind == "average":
            average[rest] = tensor
        elif kind == "optimizer":
            parameter, _, key = rest.rpartition("/")
            optimizer.setdefault(parameter, {})[key] = tensor
    return Checkpoint(model, optimizer, json.loads(facts), average)


def newest_intact(run: Path) -> tuple[Checkpoint, Path, list[str]]:
    """The newest checkpoint that is whole, its path, and one sentence for each damaged one passed over."""
    found = checkpoints(run)
    if not found:
        raise RunError(f"{run} holds no checkpoint to resume from; start it again with another --name, or remove it")
    passed: list[str] = []
    for path in found:
        try:
            return read_checkpoint_file(path), path, [f"{text}; the older {path.name} is used instead" for text in passed]
        except RunError as error:
            passed.append(str(error))
    raise RunError(f"no checkpoint of {run} is intact: {'; '.join(passed)}; start the run again with another --name, or remove it")
