"""Where do these people look? An exported student, with NumPy, Pillow and ONNX Runtime alone; this one file is all that is needed.

    from gaze_predictor import GazePredictor

    predictor = GazePredictor("student.onnx")          # student.json lies beside it
    for gaze in predictor("photo.jpg", [(120, 40, 210, 160)]):
        print(gaze.point, gaze.inout)

Boxes are head boxes xmin, ymin, xmax, ymax in pixels of the picture held upright. What cannot be answered is a ``ValueError`` of one
line; an answer is never NaN.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Gaze:
    """The answer for one person.

    ``box`` and ``point`` are in pixels of the upright picture, the box within its edges, the point at the centre of the heatmap's
    highest cell; ``peak`` is that cell's probability, ``heatmap [h,w]`` float32 the probability of each cell over the whole picture;
    ``inout`` is the probability that the gaze target is in the picture, None where the model does not say.
    """

    box: tuple[float, float, float, float]
    point: tuple[float, float]
    peak: float
    inout: float | None
    heatmap: np.ndarray


class GazePredictor:
    """The ONNX file at ``path`` that ``distill export`` wrote, with its JSON beside it; ``threads`` None: one a core."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        path = Path(path)
        beside = path.with_suffix(".json")
        for file in (path, beside):
            if not file.is_file():
                raise ValueError(f"{file} is not there; an exported model is the two files {path.name} and {beside.name}")
        try:
            self.description: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
            self._raw = self.description.get("pixels", "float32") == "uint8"
            self._size = int(self.description["input_size"][0]), int(self.description["input_size"][1])
            self._inputs = [entry["name"] for entry in self.description["inputs"]]
            self._outputs = [entry["name"] for entry in self.description["outputs"]]
            stated = self.description["digest"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{beside} does not describe an exported model ({error!r}); export it again") from None
        if hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() != stated:
            raise ValueError(f"{path} is not the file that {beside.name} describes, or is damaged; export it again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes, which derive from nothing narrower
            raise ValueError(f"ONNX Runtime cannot open {path} ({' '.join(str(error).split())[:160]}); export it again") from None
        takes, gives = ([entry.name for entry in entries] for entries in (self._session.get_inputs(), self._session.get_outputs()))
        if len(self._inputs) != 3 or set(takes) != set(self._inputs) or not self._outputs or not set(self._outputs) <= set(gives):
            raise ValueError(
                f"{path} takes {', '.join(takes)} and gives {', '.join(gives)}, {beside.name} says {', '.join(self._inputs)} and "
                f"{', '.join(self._outputs)}; give a file that `distill export` wrote"
            )

    def __call__(
        self, image: str | Path | Image.Image | np.ndarray, boxes: Sequence[Sequence[float]] | np.ndarray, *, normalised: bool = False
    ) -> list[Gaze]:
        """One answer a box, in their order; no box, no answer.

        ``image``: a file, a Pillow image, or an array ``[h,w]``, ``[h,w,1]``, ``[h,w,3]`` (RGB) or ``[h,w,4]`` (RGBA) of uint8. Files and
        Pillow images are turned as their EXIF orientation says. ``normalised``: boxes are in [0,1] of the picture instead of pixels.
        """
        picture = _rgb(image)
        height, width = picture.shape[:2]
        scale = np.array([width, height, width, height], np.float64)
        clipped = _clipped(boxes, np.ones(4) if normalised else scale)
        if not len(clipped):
            return []
        given = picture[None] if self._raw else self._resized(picture)
        feeds = (given, clipped.astype(np.float32), np.zeros(len(clipped), np.int64))
        answers = self._session.run(self._outputs, dict(zip(self._inputs, feeds, strict=True)))
        if not all(np.isfinite(answer).all() for answer in answers):
            raise ValueError("the model answers with values that are not finite; export it again")
        found = []
        for number, logits in enumerate(answers[0]):
            rows, columns = logits.shape
            row, column = divmod(int(logits.argmax()), columns)
            point = ((column + 0.5) / columns * width, (row + 0.5) / rows * height)
            inout = float(_sigmoid(answers[1][number])) if len(answers) > 1 else None
            x0, y0, x1, y1 = (float(value) for value in clipped[number] * scale)
            heatmap = _sigmoid(logits)
            found.append(Gaze((x0, y0, x1, y1), point, float(heatmap[row, column]), inout, heatmap))
        return found

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        """For a file that leaves resizing to its caller: as its JSON says, in floating point."""
        height, width = self._size
        planes = [Image.fromarray(np.ascontiguousarray(picture[..., c], np.float32) / np.float32(255)) for c in range(3)]
        resized = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
        return np.stack(resized)[None].clip(0.0, 1.0)


def _rgb(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Upright RGB ``[h,w,3]`` uint8; what is transparent is on white."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
            raise ValueError(f"an array of {image.dtype} {list(image.shape)} is no picture; give uint8 [h,w], [h,w,3] or [h,w,4]")
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    elif not isinstance(image, (Image.Image, str, Path)):
        raise ValueError(f"a {type(image).__name__} is no picture; give a file's path, a Pillow image or an array of uint8")
    elif not isinstance(image, Image.Image):
        try:
            with Image.open(image) as opened:
                opened.load()
                image = opened
        except FileNotFoundError:
            raise ValueError(f"picture {image} does not exist; check the path") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"picture {image} cannot be decoded ({error}); give another file") from None
    upright = _eight_bits(ImageOps.exif_transpose(image), image.format)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.ascontiguousarray(np.asarray(upright.convert("RGB")))


def _eight_bits(picture: Image.Image, form: str | None) -> Image.Image:
    """Grey of 16 bits as 8: Pillow's own conversion cuts off at 255, which turns nearly all of it white."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and form == "PNG"):  # older Pillows read PNG as "I"
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("a picture whose values have 32 bits has no agreed range; save it with 8 or 16 bits")
    return picture


def _clipped(boxes: Sequence[Sequence[float]] | np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Boxes ``[N,4]`` in [0,1], clipped to the picture; ``scale`` is what they count in."""
    try:
        values = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        raise ValueError("boxes are no table of numbers; give (xmin, ymin, xmax, ymax) for each person") from None
    if values.size == 0:
        return np.zeros((0, 4))
    if values.ndim != 2 or values.shape[1] != 4:
        raise ValueError(f"boxes have shape {list(values.shape)}; give (xmin, ymin, xmax, ymax) for each person")
    within = (values / scale).clip(0.0, 1.0)
    for number, (box, kept) in enumerate(zip(values.tolist(), within.tolist(), strict=True)):
        shown = ", ".join(f"{value:g}" for value in box)
        if not all(math.isfinite(value) for value in box):
            raise ValueError(f"box {number} is {shown}; give finite numbers")
        if kept[0] >= kept[2] or kept[1] >= kept[3]:
            raise ValueError(f"box {number} is {shown}: it has no area within the picture; give xmin < xmax and ymin < ymax, inside it")
    return within


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # Written so that no exponential overflows.
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0 / (1.0 + small), small / (1.0 + small)).astype(np.float32)
