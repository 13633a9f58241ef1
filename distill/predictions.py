"""Stored predictions: a model's answers as a file, scored by the same code as the model itself.

``predictions.npz`` is NumPy's archive of arrays, read without pickle:

``scene [N]`` text
    the scene's key: the picture's path within the data set, as ``distill data check`` and every error name it
``box [N,4]`` float
    the head box that the answer is for, xyxy in [0,1] of the picture
``heatmap [N,h,w]`` float32 or float16
    logits, row by row from the top left; probabilities p go in as log(p / (1 - p))
``inout [N]`` float, where the model has it
    logits of the target being in the picture
``model`` text, optional
    what the model is called in tables

Rows may stand in any order, and there may be more of them than a data set has. A head of the data set takes the row of its scene whose box is
nearest, at most 0.01 of the picture's sides away in any coordinate (whole pixels, float16); a head without such a row is an error, never left
out. ``distill eval MODEL --save-predictions FILE`` writes the format with float32 logits, so that the file scores exactly as the model did.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import DataError, MetricError
from distill.evaluation import GazeFunction, SceneAnswer, answers
from distill.pictures import picture_size
from distill.scenes import Scene
from distill.source import refuse_outside
from teachers.contract import GazeOutput

SUFFIX = ".npz"
# What damaged archives give rise to: bits flipped in a header, in compressed data, in an array's own header.
_DAMAGE = (
    ValueError, KeyError, OSError, EOFError, TypeError, SyntaxError, OverflowError, NotImplementedError, RuntimeError, MemoryError, zipfile.BadZipFile,
    zlib.error,
)
TOLERANCE = 0.01  # of the picture's sides; a pixel of a small picture, and far less than a head


class StoredPredictions:
    """The answers in a file, for :func:`distill.evaluation.answers`. Raises :class:`DataError` for a file that is not of the format.

    Heatmaps stay on disk until they are asked for, where the archive is not compressed.
    """

    stored = True

    def __init__(self, path: Path) -> None:
        self.path = path
        scene, self.box, self.heatmap, self.inout, self.name = _read(path)
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, key in enumerate(scene.tolist()):
            self._rows[key].append(row)

    @property
    def input_size(self) -> tuple[int, int]:
        """The heatmaps' (height, width): pictures are not looked at."""
        return int(self.heatmap.shape[1]), int(self.heatmap.shape[2])

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        raise MetricError(f"{self.path} holds answers for its own scenes and cannot look at other pictures; give the model itself")

    def scene_answers(self, scenes: Sequence[Scene], *, exif: bool = False, **_: Any) -> Iterator[SceneAnswer]:
        """The stored answer for every scene, in order; pictures are opened for their sizes only.

        Raises :class:`DataError` for a scene or head that the file has no answer for.
        """
        for scene in scenes:
            flat = scene.normalised(*picture_size(scene.picture, exif=exif))
            refuse_outside(scene, flat)
            rows = self._matched(flat)
            heatmap = _real(self.heatmap[rows], np.float32).reshape(len(rows), *self.heatmap.shape[1:])
            yield SceneAnswer(flat, heatmap, None if self.inout is None else self.inout[rows])

    def _matched(self, scene: Scene) -> list[int]:
        """The row of each head; of rows that fit alike the first not yet taken."""
        there = self._rows.get(scene.key, [])
        if not there and scene.heads:
            raise DataError(
                f"{self.path} has no answer for scene {scene.key} (of {len(self._rows)} scenes in it); predict on all scenes of the split, by "
                "the keys of this data set"
            )
        taken: list[int] = []
        for number, box in enumerate(scene.boxes()):
            away = np.abs(self.box[there] - box).max(axis=1)
            near = np.flatnonzero(away <= TOLERANCE)
            if not len(near):
                raise DataError(
                    f"{self.path}: scene {scene.key}: no answer for head {scene.heads[number].person or number} with box "
                    f"{', '.join(f'{value:.4f}' for value in box)} (the nearest is {away.min():.3f} of the picture away, {TOLERANCE} is allowed); "
                    "give one row a head, with its box in [0,1]"
                )
            # Two heads may share a box; a model that knows the box alone answers for both alike.
            best = min(near, key=lambda place: (there[place] in taken, away[place], place))
            taken.append(there[best])
        return taken


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, str]:
    if not path.is_file():
        raise DataError(f"predictions {path} do not exist; check the path, or write them with `distill eval MODEL --save-predictions {path}`")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in ("scene", "box", "heatmap") if name not in archive.files]
            if missing:
                raise DataError(f"{path} has no {', '.join(missing)}; predictions hold scene [N], box [N,4], heatmap [N,h,w] and, optionally, inout [N]")
            scene, box = archive["scene"], _real(archive["box"], np.float64)
            inout = _real(archive["inout"], np.float32) if "inout" in archive.files else None
            name = str(archive["model"]) if "model" in archive.files else ""
            heatmap = _mapped(path, "heatmap.npy")
            if heatmap is None:
                heatmap = archive["heatmap"]
    except _DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as predictions ({error}); write it again with numpy.savez, without object arrays") from None
    count = len(scene) if scene.ndim == 1 else -1
    shapes = {"scene": scene.shape == (count,), "box": box.shape == (count, 4), "heatmap": heatmap.ndim == 3 and len(heatmap) == count}
    if inout is not None:
        shapes["inout"] = inout.shape == (count,)
    wrong = [name for name, right in shapes.items() if not right]
    if wrong or scene.dtype.kind != "U" or heatmap.dtype.kind != "f":
        arrays = {"scene": scene, "box": box, "heatmap": heatmap, "inout": inout}
        given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items() if array is not None)
        raise DataError(f"{path} holds {given}; predictions are scene text[N], box [N,4], heatmap float[N,h,w] and inout [N], all of the same N")
    if not np.isfinite(box).all() or (count and (box.min() < -TOLERANCE or box.max() > 1 + TOLERANCE)):
        raise DataError(f"{path}: boxes are to be xyxy in [0,1] of the picture, these reach from {box.min():g} to {box.max():g}; divide by its sides")
    return scene, box, heatmap, inout, name


def _real(array: np.ndarray, dtype: type) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"an array of {array.dtype} where real numbers are expected")
    with np.errstate(over="ignore"):  # what becomes infinite is refused as such
        return np.asarray(array, dtype=dtype)


def _mapped(path: Path, member: str) -> np.ndarray | None:
    """An uncompressed array of the archive as a memory map, None where it is compressed or not in C order."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
        start = stream.seek(name + extra, os.SEEK_CUR)
        major, _ = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if fortran or dtype.hasobject or 0 in shape:
            return None
        begin = stream.tell()
        # Whoever reads the archive's way is told of a flipped bit; a memory map is not, so the sum is checked here (a second for a gigabyte).
        stream.seek(start)
        left, found = info.file_size, 0
        while left and (part := stream.read(min(left, 1 << 22))):
            left, found = left - len(part), zlib.crc32(part, found)
        if left or found != info.CRC:
            raise ValueError(f"{member} is damaged, its checksum does not match")
        return np.memmap(path, dtype=dtype, mode="r", offset=begin, shape=shape)


class RecordedModel:
    """``model``, whose answers are kept in a file as well: whole when every scene was answered, and only then."""

    def __init__(self, model: GazeFunction, path: Path, name: str) -> None:
        if path.suffix != SUFFIX:
            raise DataError(f"predictions {path} are to end in {SUFFIX}; choose such a name")
        self._model, self.path, self.name = model, path, name
        self.model = getattr(model, "model", None)

    @property
    def input_size(self) -> tuple[int, int]:
        return self._model.input_size

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        return self._model(images, boxes, image_index)

    def scene_answers(self, scenes: Sequence[Scene], **options: Any) -> Iterator[SceneAnswer]:
        """The model's own answers, in order."""
        yield from recorded(answers(self._model, scenes, **options), self.path, self.name, sum(len(scene.heads) for scene in scenes))


def recorded(given: Iterator[SceneAnswer], path: Path, name: str, heads: int, dtype: type = np.float32) -> Iterator[SceneAnswer]:
    """Pass answers on, and write them to ``path`` when all ``heads`` of them have been; until then what was there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    keys: list[str] = []
    boxes: list[np.ndarray] = []
    inout: list[np.ndarray] = []
    heatmap: np.ndarray | None = None
    try:
        for answer in given:
            count = len(answer.scene.heads)
            if count:
                if heatmap is None:
                    # On disk from the start: a video's maps are more than many a machine's memory.
                    shape = (heads, *answer.heatmap.shape[1:])
                    heatmap = np.lib.format.open_memmap(workshop / "heatmap.npy", mode="w+", dtype=dtype, shape=shape)
                heatmap[len(keys) : len(keys) + count] = answer.heatmap
                keys += [answer.scene.key] * count
                boxes.append(answer.scene.boxes())
                if answer.inout is not None:
                    inout.append(answer.inout)
            yield answer
        if heatmap is None or len(keys) != heads:
            raise DataError(f"{len(keys)} answers were given for {heads} heads, and {path} is not written; give scenes with heads")
        arrays = {"scene": np.array(keys), "box": np.concatenate(boxes), "model": np.array(name)}
        if inout:
            arrays["inout"] = np.concatenate(inout).astype(np.float32)
        for entry, array in arrays.items():
            np.save(workshop / f"{entry}.npy", array)
        heatmap.flush()  # type: ignore[attr-defined]
        with zipfile.ZipFile(workshop / "all.npz", "w", zipfile.ZIP_STORED) as archive:
            for entry in (*arrays, "heatmap"):
                archive.write(workshop / f"{entry}.npy", f"{entry}.npy")
        os.replace(workshop / "all.npz", path)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def save_predictions(path: Path, model: GazeFunction, scenes: Sequence[Scene], name: str, *, half: bool = False, **options: Any) -> None:
    """Write ``model``'s answers for ``scenes`` to ``path``, whole or not at all; ``half`` keeps logits in float16, half the size.

    ``options`` are those of :func:`distill.evaluation.answers`.
    """
    heads = sum(len(scene.heads) for scene in scenes)
    with torch.inference_mode():
        for _ in recorded(answers(model, scenes, **options), path, name, heads, np.float16 if half else np.float32):
            pass
