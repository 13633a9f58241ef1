"""Weights on disk: safetensors plus a JSON description, strictly loaded, with a digest that caches and runs record.

A stored model is a directory with ``model.safetensors`` and ``model.json``: ``{"format": 1, "name", "config",
"weights_digest", "facts"}``. The digest covers names, shapes and values of all tensors as stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from teachers.errors import WeightsError
from teachers.model import GazeModel, ModelConfig

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
NEXT = ".model.json.next"  # the description of weights that are about to be renamed into place


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest (hex) of names, types, shapes and bytes, in sorted order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load ``tensors`` into ``module``; a missing, unexpected or misshapen one is an error that lists the names."""
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    extra = sorted(set(tensors) - set(wanted))
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(tensors))
        if tensors[name].shape != wanted[name].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"{len(names)} {word}: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
            for word, names in (("missing", missing), ("unexpected", extra), ("misshapen", shapes))
            if names
        ]
        raise WeightsError(f"{where} does not fit this architecture ({'; '.join(parts)}); choose the one it was made for")
    module.load_state_dict(dict(tensors), strict=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary name, flush, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it was
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file and flush it to the disk."""
    path.touch()
    access = path.stat().st_mode  # as the user's other new files: safetensors would keep it from everybody else
    try:
        save_file(tensors, path)
        path.chmod(access)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except SafetensorError as error:
        raise WeightsError(f"{path} could not be written ({error}); free space there or write elsewhere") from None


def save_model(
    directory: Path, model: GazeModel, name: str, facts: Mapping[str, Any], *, half: bool = False
) -> str:
    """Store ``model`` in ``directory`` and return its weights digest. ``half`` stores floating tensors in float16.

    A model that is stored there already stays whole until the new one is: the new description is there before the new weights,
    so that whichever weights are in place have theirs (see :func:`read_description`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if half:
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        overflow = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if overflow:
            raise WeightsError(f"{', '.join(overflow[:6])} cannot be stored in float16; store in float32")
    digest = tensors_digest(tensors)
    description = {
        "format": 1, "name": name, "config": model.config.to_json(), "weights_digest": digest, "facts": dict(facts)
    }
    temporary = directory / f".{WEIGHTS}.{os.getpid()}.tmp"
    try:
        _write_tensors(temporary, tensors)
        write_atomically(directory / NEXT, (json.dumps(description, indent=1) + "\n").encode())
        os.replace(temporary, directory / WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    os.replace(directory / NEXT, directory / DESCRIPTION)
    return digest


def read_description(directory: Path) -> dict[str, Any]:
    """The JSON beside stored weights, checked for its format.

    Where a save was cut off between its two renames, the description that belongs to the weights is the one waiting.
    """
    path = directory / DESCRIPTION
    if (directory / NEXT).exists() and (directory / WEIGHTS).exists():
        waiting = _parsed(directory / NEXT)
        if waiting["weights_digest"] == tensors_digest(read_tensors(directory / WEIGHTS)):
            return waiting
    return _parsed(path)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} holds no stored model ({path.name} is missing); give a directory that has one") from None
    except ValueError as error:
        raise WeightsError(f"{path} cannot be read ({error}); convert or train the model again") from None
    if not isinstance(description, dict) or description.get("format") != 1:
        raise WeightsError(f"{path} is not of format 1; it was written by another version")
    kinds = {"name": str, "config": dict, "weights_digest": str, "facts": dict}
    if wrong := [key for key, kind in kinds.items() if not isinstance(description.get(key), kind)]:
        raise WeightsError(f"{path} lacks {', '.join(wrong)}, or holds something else there; convert or train the model again")
    return description


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a damaged or missing file is an error that names it."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist; convert, pull or train the model again") from None
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or cut short ({error}); convert, pull or train the model again") from None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a foreign checkpoint (``.safetensors`` or ``.pt``, the latter without unpickling code).

    A dictionary wrapped in an entry ``model`` is unwrapped; what a trainer stored beside it is dropped.
    """
    if not path.exists():
        raise WeightsError(f"{path} does not exist; give the checkpoint's path")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    _check_container(path)
    try:
        with torch.serialization.safe_globals(_NUMPY_VALUES):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here (zip, pickle, EOF, key); all mean: not a plain checkpoint
        # Torch's own words begin with how to load such a file all the same, which runs the code in it.
        code = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", str(error)) if "Weights only load failed" in str(error) else None
        reason = f"it would run {code[1]}" if code else next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise WeightsError(f"{path} is no plain checkpoint of tensors ({reason}); only tensors are ever loaded") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise WeightsError(f"{path} holds something else than named tensors; give a checkpoint's state dictionary")
    return loaded


# What torch.save writes: a zip archive, or before version 1.6 a pickle that begins with this number.
ZIP, LEGACY = b"PK\x03\x04", b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def _check_container(path: Path) -> None:
    """Refuse what torch.save did not write, and an archive that was cut short or damaged since: torch compares no checksums."""
    with path.open("rb") as file:
        start = file.read(32)
    if not start.startswith(ZIP):
        if LEGACY not in start:
            code = _code_in_pickle(path)
            reason = "it is empty" if not start else f"it would run {code}" if code else "torch.save did not write it"
            raise WeightsError(f"{path} is no plain checkpoint of tensors ({reason}); only tensors are ever loaded")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # A checksum of 0 is none: torch can be told not to reckon them.
            for record in (each for each in archive.infolist() if each.CRC):
                with archive.open(record) as content:
                    while content.read(1 << 20):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged or cut short ({error}); fetch or make it again") from None


def _code_in_pickle(path: Path) -> str | None:
    """The first thing that unpickling the file at ``path`` would call, found without unpickling; None if it is no pickle, or calls nothing."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name in ("GLOBAL", "INST"):
                    return str(argument).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(texts[-2:])
                if isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # pickletools raises several kinds for bytes that are no pickle
        return None
    return None


class _NumpyValue:
    """Stands for NumPy's numbers and arrays beside the tensors (gazelle-dinov3 stores random states and scores so), which are dropped.

    Nothing of NumPy's is called, whose constructors do not expect input from strangers.
    """

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# NumPy 1 and 2 name the module differently.
_NUMPY_NAMES = ("ndarray", "dtype", *(f"{package}.multiarray.{name}" for package in ("core", "_core") for name in ("_reconstruct", "scalar")))
_NUMPY_VALUES: list[Any] = [(_NumpyValue, f"numpy.{name}") for name in _NUMPY_NAMES]


def load_model(directory: Path) -> tuple[GazeModel, dict[str, Any]]:
    """The stored model in ``directory``, in float32 and eval mode, and its description; the digest is verified."""
    description = read_description(directory)
    tensors = read_tensors(directory / WEIGHTS)
    found = tensors_digest(tensors)
    if found != description["weights_digest"]:
        raise WeightsError(
            f"{directory / WEIGHTS} has digest {found}, {DESCRIPTION} says {description['weights_digest']}: one of the "
            "two was changed; convert, pull or train the model again"
        )
    model = GazeModel(ModelConfig.from_json(description["config"]))
    load_strictly(model, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, str(directory / WEIGHTS))
    return model.eval(), description
