"""Exported files, opened: a file and the JSON beside it as a gaze model like any other; ONNX files in ONNX Runtime on the CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from students.errors import ExportError
from teachers.contract import GazeOutput

# The formats that exist, and how their files end.
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml", "litert": ".tflite", "coreml": ".mlpackage"}


def description_path(path: Path) -> Path:
    """The JSON beside an exported file: ``student.onnx`` has ``student.json``."""
    return path.with_suffix(".json")


def export_files(path: Path) -> list[Path]:
    """The files that an export consists of: one, but for OpenVINO, whose weights lie in a ``.bin`` beside it, and Core ML, whose package
    is a folder."""
    if path.suffix == SUFFIXES["coreml"] and path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    return [path, path.with_suffix(".bin")] if path.suffix == SUFFIXES["openvino"] else [path]


def export_entries(path: Path) -> list[Path]:
    """What of an export lies in its directory, to be moved as a whole: files, or the folder that is a package."""
    return [path] if path.is_dir() else export_files(path)


def file_digest(path: Path) -> str:
    """Digest (hex) of an exported file: BLAKE2b of 16 bytes, what ``b2sum -l 128`` prints."""
    return _digest([path])


def export_digest(path: Path) -> str:
    """Digest of all files of the export at ``path``, one after the other; of one file it is :func:`file_digest`."""
    return _digest(export_files(path))


def _digest(paths: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_export(path: Path) -> dict[str, Any]:
    """The description beside the exported file ``path``, checked against the file.

    Files of schema 1, whose ``images`` are resized by the caller, are described in the terms of schema 2 (``pixels``). Raises
    :class:`ExportError` where either is missing, the description is no export's, or the digest does not match.
    """
    beside = description_path(path)
    for file in export_files(path):
        if not file.is_file():
            raise ExportError(f"exported file {file} does not exist; check the path, or run `distill export RUN`")
    try:
        description = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(
            f"{path} has no {beside.name} beside it, which says how to use it; copy it along, run `distill export RUN` again, "
            f"or write onnx:{path} if it is another project's"
        ) from None
    except ValueError as error:
        raise ExportError(f"{beside} cannot be read ({error}); run `distill export RUN` again") from None
    known = isinstance(description, dict) and description.get("format") in SUFFIXES and description.get("schema") in (1, 2)
    if not known or SUFFIXES[description["format"]] != path.suffix:
        raise ExportError(f"{beside} does not describe an exported {path.suffix} file of schema 1 or 2; run `distill export RUN` again")
    found = export_digest(path)
    if description.get("digest") != found:
        raise ExportError(
            f"{path} has digest {found}, {beside.name} says {description.get('digest')}: one of the two was changed or cut short; "
            "run `distill export RUN` again"
        )
    return {"pixels": "float32", **description}


class ExportedGaze:
    """An exported student in whatever runtime: ``images [B,3,H,W]``, ``boxes [N,4]``, ``image_index [N]`` to :class:`GazeOutput` on the CPU.

    It keeps the teacher contract; a file that takes raw pictures is given such images rounded to 8 bits, and from the pictures
    themselves :meth:`run` answers. Raises :class:`ExportError` for a file that does not fit its description.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = read_export(path)
        self._inputs = [entry["name"] for entry in self.description["inputs"]]
        self._outputs = [entry["name"] for entry in self.description["outputs"]]

    @property
    def name(self) -> str:
        return str(self.description["name"])

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        keys = ("name", "format", "precision", "digest", "weights_digest", "config")
        return {key: self.description[key] for key in keys}

    @property
    def pixels(self) -> str:
        """ "uint8": raw pictures go in; "float32": resized ones."""
        return str(self.description["pixels"])

    @property
    def input_size(self) -> tuple[int, int]:
        height, width = self.description["input_size"]
        return int(height), int(width)

    @property
    def heatmap_size(self) -> tuple[int, int]:
        height, width = self.description["heatmap_size"]
        return int(height), int(width)

    @property
    def has_inout(self) -> bool:
        return "inout" in self._outputs

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What the graph takes, as it takes it (see :class:`students.raw_pictures.Runtime`), to logits."""
        raise NotImplementedError

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        if len(boxes) == 0:
            return GazeOutput(torch.zeros(0, *self.heatmap_size), torch.zeros(0) if self.has_inout else None)
        if self.pixels == "uint8":
            pictures = _array(images.mul(255.0).round().clamp(0.0, 255.0).permute(0, 2, 3, 1), np.uint8)
        else:
            pictures = _array(images, np.float32)
        heatmap, inout = self.run(pictures, _array(boxes, np.float32), _array(image_index, np.int64))
        return GazeOutput(torch.from_numpy(heatmap), None if inout is None else torch.from_numpy(inout))


class OnnxGaze(ExportedGaze):
    """An exported ONNX file in ONNX Runtime; ``threads`` is its number of threads (None: one a core).

    Raises ``ImportError`` where ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        import onnxruntime

        super().__init__(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            reason = str(error).splitlines()[0][:160]
            raise ExportError(f"ONNX Runtime {onnxruntime.__version__} cannot open {path} ({reason}); update it, or export again") from None

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        answers = self._session.run(self._outputs, dict(zip(self._inputs, (pictures, boxes, image_index), strict=True)))
        return answers[0], answers[1] if self.has_inout else None


def _array(tensor: Tensor, kind: type) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=kind)
