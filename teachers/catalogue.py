"""How a name or a path becomes a teacher, and where pulled teachers are kept.

A teacher is named by an entry of :mod:`teachers.published` (``gazelle_dinov2_vitb14``, ...), as ``demo``, by the directory of a stored
model or of a run, as ``timm:BACKBONE`` with a file of decoder weights (any plain ViT of timm), or as ``onnx:FILE``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachers.convert import assemble
from teachers.decoder_file import config_of
from teachers.download import DownloadRecord, Landed, alone, obtain, record_digest, verify
from teachers.errors import UnknownModelError, WeightsError
from teachers.home import home
from teachers.model import GazeModel
from teachers.model_teacher import ModelTeacher, check_device, resolve_device
from teachers.onnx_teacher import OnnxTeacher, is_onnx, split_name
from teachers.published import CATALOGUE, TeacherEntry
from teachers.weights import load_model, save_model, tensors_digest

DEMO = Path(__file__).parent / "demo"
LIST = "`distill teachers list` lists them all"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A published teacher in the store: its directory, the digest of its weights as stored, and the file that it came from
    (None if that is no longer there)."""

    directory: Path
    weights_digest: str
    file: Landed | None


def store() -> Path:
    """Where pulled teachers are kept: ``$GAZE_DISTILL_HOME/teachers``, by default below ``~/.cache/gaze-distill``."""
    return home() / "teachers"


def published_file(entry: TeacherEntry) -> Path:
    """Where the entry's published file is kept, or is put by hand."""
    return store() / "downloads" / entry.url.rpartition("/")[2]


def pull(name: str, *, backbone: Path | None = None, report: Callable[[DownloadRecord], None] | None = None) -> Pulled:
    """Fetch and convert the catalogue's teacher ``name`` into the store; one that is there already is verified.

    A file put by hand where :func:`published_file` says is taken instead of a download. Its SHA-256 is compared with the catalogue's, else
    with the one recorded beside it when it first proved to be this teacher. ``backbone`` is a file for an entry that is a decoder alone.
    Another process that pulls the same teacher is waited for.
    Raises :class:`UnknownModelError` and :class:`WeightsError`.
    """
    if name == "demo":
        raise UnknownModelError("teacher 'demo' comes with this package: there is nothing to fetch; `distill teachers check demo` runs it")
    if name not in CATALOGUE:
        raise UnknownModelError.of("teacher", name, CATALOGUE, LIST)
    if (store() / name / "model.json").exists():
        return _verified(name)
    store().mkdir(parents=True, exist_ok=True)
    lock = store() / f".{name}.lock"
    with alone(lock):  # the processes of one launch all ask for their teacher at once
        try:
            return _verified(name) if (store() / name / "model.json").exists() else _fetched(name, backbone, report)
        finally:
            lock.unlink(missing_ok=True)


def _verified(name: str) -> Pulled:
    entry, directory = CATALOGUE[name], store() / name
    file = published_file(entry)
    try:
        _, description = load_model(directory)
    except WeightsError as error:
        raise WeightsError(f"{error}; delete {directory} first") from None
    return Pulled(directory, description["weights_digest"], verify(file, getattr(entry, "sha256", None)) if file.exists() else None)


def _fetched(name: str, backbone: Path | None, report: Callable[[DownloadRecord], None] | None) -> Pulled:
    entry, directory = CATALOGUE[name], store() / name
    file = published_file(entry)
    landed = obtain(entry.url, file, sha256=getattr(entry, "sha256", None), report=report)
    try:
        model = assemble(entry.config, file, backbone)
    except WeightsError as error:
        # A backbone that cannot be had, or is not wanted, is no fault of the file.
        again = f" (its file is {file}: delete it to fetch it again)" if str(file) in str(error) and backbone is None else ""
        raise WeightsError(f"{error}{again}") from None
    record_digest(landed)
    digest = save_model(directory, model, name, {"source": entry.url, "licence": entry.licence, "sha256": landed.sha256})
    return Pulled(directory, digest, landed)


def load_teacher(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
    weights: Path | None = None,
    backbone_weights: Path | None = None,
    input_size: tuple[int, int] | None = None,
    adapter: str = "",
    report: Callable[[DownloadRecord], None] | None = None,
) -> ModelTeacher | OnnxTeacher:
    """The teacher ``name``: a catalogue entry (fetched if it is not here, ``report`` is told of it), a directory, ``timm:BACKBONE`` with
    ``weights``, a file of Gaze-LLE decoder weights, or ``onnx:FILE``, to which ``adapter`` alone belongs beside ``device``.

    ``device`` "auto" is a GPU where there is one. ``input_size`` (height, width) is for ``timm:`` teachers, whose files may
    leave it open; see :func:`teachers.decoder_file.config_of`. Raises :class:`UnknownModelError` (with the nearest names),
    :class:`WeightsError`, :class:`teachers.errors.BlackBoxError` and :class:`teachers.errors.DeviceError`.
    """
    if is_onnx(name):
        foreign = {"--weights": weights, "--backbone-weights": backbone_weights, "--input-size": input_size, "--compile": compiled}
        if given := [option for option, value in foreign.items() if value]:
            raise WeightsError(f"{', '.join(given)} cannot be used with {name}: an ONNX file holds its weights and its graph as they are; leave it out")
        if precision != "fp32":
            raise WeightsError(f"--precision {precision} cannot be used with {name}: an ONNX file runs in the precision that it was made in; leave it out")
        path, named = split_name(name)
        return OnnxTeacher(path, adapter=adapter or named, device=device)  # ONNX Runtime has its own notion of what devices are there
    if adapter:
        raise WeightsError(f"--adapter describes an ONNX file, and teacher {name} is none; leave it out")
    device = resolve_device(device)
    check_device(device, precision)
    model, title, digest = _model(name, weights, backbone_weights, input_size, report)
    return ModelTeacher(model, title, digest, device=device, precision=precision, compiled=compiled)


def load_model_teacher(name: str, **options: Any) -> ModelTeacher:
    """The teacher ``name`` with :func:`load_teacher`'s ``options``, if it is a model of this project, whose weights can be taken."""
    teacher = None if is_onnx(name) else load_teacher(name, **options)
    if not isinstance(teacher, ModelTeacher):
        raise WeightsError(f"{name} is a black box: it has no weights of its own to take here; give a model of this project")
    return teacher


def _model(
    name: str,
    weights: Path | None,
    backbone_weights: Path | None,
    input_size: tuple[int, int] | None,
    report: Callable[[DownloadRecord], None] | None,
) -> tuple[GazeModel, str, str]:
    """Model, name and weights digest."""
    if name.startswith("timm:"):
        if weights is None:
            raise WeightsError(f"teacher {name} needs --weights FILE, the decoder that was trained on this backbone")
        model = assemble(config_of(weights, name.removeprefix("timm:"), input_size), weights, backbone_weights)
        return model, name, tensors_digest(model.state_dict())
    foreign = {"--weights": weights, "--input-size": input_size, "--backbone-weights": None if name in CATALOGUE else backbone_weights}
    if given := [option for option, value in foreign.items() if value]:
        raise WeightsError(f"{', '.join(given)} cannot be used with teacher {name}, which has its own; leave it out")
    if name == "demo":
        directory = DEMO
    elif name in CATALOGUE:
        there = store() / name
        directory = there if (there / "model.json").exists() else pull(name, backbone=backbone_weights, report=report).directory
    else:
        directory = Path(name) / "student" if (Path(name) / "student" / "model.json").exists() else Path(name)
        if directory.is_file():
            held = directory.parent if (directory.parent / "model.json").exists() else None
            remedy = f"give {held}" if held else f"make one with `distill teachers convert {shlex.quote(name)} --arch NAME --out DIR`"
            raise WeightsError(f"{name} is a file, and a teacher is a directory that holds model.json; {remedy}")
        if not (directory / "model.json").exists():
            raise UnknownModelError.of("teacher", name, ["demo", *CATALOGUE], f"or give a directory that holds model.json, or onnx:FILE; {LIST}")
    model, description = load_model(directory)
    return model, description["name"], description["weights_digest"]
