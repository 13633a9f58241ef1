"""A face or head detector of another project: an ONNX file, and an adapter that says how to ask and read it.

The adapter is the TOML file beside the detector (``detector.onnx``: ``detector.toml``), another one by
``detector.onnx?adapter=FILE.toml``, or a built-in by name (``?adapter=yolo``). Its keys are the fields of :class:`DetectorAdapter`; what
is not said has the default given there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.detecting import FACE, Found, Widening, distinct
from distill.errors import ConfigurationError
from distill.exporting import require_extra
from distill.scenes import Box


@dataclass(frozen=True)
class DetectorAdapter:
    """How a picture goes in and boxes come out.

    The picture is squashed to ``size`` = [height, width] (``fit = "squash"``), or keeps its proportions and is padded with ``pad`` at the
    right and bottom
    (``"corner"``) or all around (``"centre"``); then it is ``(value * range - mean) / std`` with values in [0,1], in ``colour`` "RGB" or "BGR",
    ``layout`` "NCHW" or "NHWC".

    ``boxes`` is the output with one row a candidate, alone or after a first axis of one, or transposed where ``transposed`` says so;
    ``columns`` are the four of
    its columns that hold the box, as ``form`` "xyxy", "xywh" (corner and size) or "cxcywh" (middle and size), in ``unit`` "pixels" of the
    input or "unit" ([0,1]). ``scores`` is the output with the scores (empty: they are in ``boxes``), ``score`` the column; ``logits`` says
    that a sigmoid is still to be taken. Boxes whose score is below ``threshold`` are left out. ``finds`` is "head", or "face": then boxes
    are widened by ``factor``, their middle raised by ``raised``.
    """

    size: tuple[int, int]
    boxes: str = ""
    scores: str = ""
    columns: tuple[int, ...] = (0, 1, 2, 3)
    score: int = 4
    form: str = "xyxy"
    unit: str = "pixels"
    transposed: bool = False
    logits: bool = False
    threshold: float = 0.4
    finds: str = "face"
    factor: float = FACE.factor
    raised: float = FACE.raised
    fit: str = "squash"
    pad: float = 0.0
    colour: str = "RGB"
    layout: str = "NCHW"
    range: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        allowed = {
            "form": ("xyxy", "xywh", "cxcywh"), "unit": ("pixels", "unit"), "finds": ("face", "head"), "fit": ("squash", "corner", "centre"),
            "colour": ("RGB", "BGR"), "layout": ("NCHW", "NHWC"),
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise ConfigurationError(f"adapter of a detector: {key} is {getattr(self, key)!r}; give one of {', '.join(values)}")
        for key, count in (("size", 2), ("columns", 4), ("mean", 3), ("std", 3)):
            if len(getattr(self, key)) != count:
                raise ConfigurationError(f"adapter of a detector: {key} is {list(getattr(self, key))}; give {count} numbers")


# By name; sizes are the graph's own where it has fixed ones.
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    # Ultralytics' exports of one class, without non-maximum suppression: [1, 5, candidates] in pixels of the input.
    "yolo": {"size": [640, 640], "form": "cxcywh", "transposed": True, "finds": "face", "fit": "centre", "pad": 114 / 255},
    "yolo-head": {"size": [640, 640], "form": "cxcywh", "transposed": True, "finds": "head", "fit": "centre", "pad": 114 / 255},
    # Linzaer's Ultra-Light-Fast-Generic-Face-Detector: scores [1, candidates, 2], boxes [1, candidates, 4] in [0,1].
    "ultraface": {
        "size": [240, 320], "boxes": "boxes", "scores": "scores", "score": 1, "unit": "unit", "threshold": 0.7, "range": 255.0,
        "mean": [127.0, 127.0, 127.0], "std": [128.0, 128.0, 128.0],
    },
}


class OnnxDetector:
    """The detector ``FILE.onnx`` or ``FILE.onnx?adapter=NAME``, as a :class:`distill.detecting.HeadDetector`, on the CPU.

    Raises :class:`ConfigurationError` for a file or an adapter that is missing or does not fit the graph, and
    :class:`~distill.errors.MissingExtraError` where ONNX Runtime is absent.
    """

    def __init__(self, spec: str) -> None:
        require_extra("export", "onnxruntime")
        import onnxruntime

        text, _, named = spec.partition("?adapter=")
        self.path = Path(text)
        self.name = self.path.name
        if not self.path.is_file():
            raise ConfigurationError(f"detector {spec} does not exist; give `opencv`, or the path of an ONNX file")
        given = _adapter(self.path, named)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise ConfigurationError(f"ONNX Runtime cannot open detector {self.path} ({_first_line(error)}); give another file") from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ConfigurationError(f"detector {self.path} has inputs {[each.name for each in inputs]}, and one picture is wanted; give another file")
        self._input = inputs[0]
        sides = self._input.shape[1:3] if given.get("layout") == "NHWC" else self._input.shape[2:4]
        if all(isinstance(side, int) for side in sides):
            given = {**given, "size": list(sides)}
        self.adapter = _made(given, self.path)
        outputs = [each.name for each in self._session.get_outputs()]
        self._wanted = [self.adapter.boxes or outputs[0], *([self.adapter.scores] if self.adapter.scores else [])]
        if missing := [name for name in self._wanted if name not in outputs]:
            raise ConfigurationError(f"detector {self.path} has no output {missing[0]!r}, it has {', '.join(outputs)}; correct the adapter")

    def __call__(self, picture: np.ndarray) -> list[Found]:
        adapter, (height, width) = self.adapter, picture.shape[:2]
        values, scale, shift = _placed(picture, adapter)
        kind = np.uint8 if self._input.type == "tensor(uint8)" else np.float16 if self._input.type == "tensor(float16)" else np.float32
        try:
            answers = self._session.run(self._wanted, {self._input.name: np.ascontiguousarray(values[None], kind)})
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise ConfigurationError(f"detector {self.path} cannot be run as its adapter says ({_first_line(error)}); correct size and layout there") from None
        rows = self._rows(answers[0])
        scores = self._rows(answers[1]) if adapter.scores else rows
        most = max(adapter.columns)
        if rows.shape[1] <= most or scores.shape[1] <= adapter.score or len(scores) != len(rows):
            raise ConfigurationError(
                f"detector {self.path} gave {rows.shape} boxes and {scores.shape} scores; correct columns, score or transposed in its adapter"
            )
        chances = scores[:, adapter.score]
        chances = 1 / (1 + np.exp(-chances)) if adapter.logits else chances
        widen = Widening(adapter.factor, adapter.raised) if adapter.finds == "face" else (lambda box: box)
        found = []
        # A value that is no number fails the comparison and is left out.
        for row in np.flatnonzero(chances >= adapter.threshold):
            corners = _corners(rows[row, list(adapter.columns)], adapter)
            if np.isfinite(corners).all():
                x0, y0, x1, y1 = (corners - np.tile(shift, 2)) / np.tile(scale, 2)
                box: Box = (float(x0), float(y0), float(x1), float(y1))
                found.append(Found(widen(box), float(chances[row])))
        return distinct(found, width, height)

    def _rows(self, answer: np.ndarray) -> np.ndarray:
        rows = np.asarray(answer, np.float64)
        while rows.ndim > 2 and rows.shape[0] == 1:
            rows = rows[0]
        if rows.ndim != 2:
            raise ConfigurationError(
                f"detector {self.path} gave an answer of shape {np.shape(answer)}, and rows of boxes are wanted; name another output in its adapter"
            )
        return rows.T if self.adapter.transposed else rows


def _adapter(path: Path, named: str) -> dict[str, Any]:
    if named in BUILT_IN:
        return dict(BUILT_IN[named])
    file = Path(named) if named else path.with_suffix(".toml")
    if not file.is_file():
        raise ConfigurationError(
            f"detector {path} has no adapter {file}, which says how to ask it; write one, or name a built-in: {path}?adapter={'|'.join(BUILT_IN)}"
        )
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is no TOML ({error}); correct the line") from None


def _made(given: Mapping[str, Any], path: Path) -> DetectorAdapter:
    known = [field.name for field in fields(DetectorAdapter)]
    if unknown := [key for key in given if key not in known]:
        raise ConfigurationError(f"adapter of detector {path}: {unknown[0]!r} is unknown; known are {', '.join(known)}")
    if "size" not in given:
        raise ConfigurationError(f"adapter of detector {path} lacks size = [height, width], which the graph leaves open; add it")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return DetectorAdapter(**values)


def _placed(picture: np.ndarray, adapter: DetectorAdapter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture as the graph wants it, and scale and shift (x, y) from the picture's pixels to the input's."""
    rows, columns = adapter.size
    height, width = picture.shape[:2]
    if adapter.fit == "squash":
        wide, high = columns, rows
    else:
        share = min(columns / width, rows / height)
        wide, high = max(1, round(width * share)), max(1, round(height * share))
    left, top = ((columns - wide) // 2, (rows - high) // 2) if adapter.fit == "centre" else (0, 0)
    values = np.full((rows, columns, 3), adapter.pad, np.float32)
    values[top : top + high, left : left + wide] = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.BILINEAR),
    np.float32) / 255
    values = values[..., ::-1] if adapter.colour == "BGR" else values
    mean, std = np.array(adapter.mean, np.float32), np.array(adapter.std, np.float32)
    values = ((values * np.float32(adapter.range) - mean) / std).astype(np.float32)
    values = values.transpose(2, 0, 1) if adapter.layout == "NCHW" else values
    return values, np.array([wide / width, high / height]), np.array([left, top], np.float64)


def _corners(four: np.ndarray, adapter: DetectorAdapter) -> np.ndarray:
    """Two corners, in pixels of the input."""
    a, b, c, d = four
    corners = np.array({"xyxy": (a, b, c, d), "xywh": (a, b, a + c, b + d), "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2)}[adapter.form])
    rows, columns = adapter.size
    return corners * np.array([columns, rows, columns, rows]) if adapter.unit == "unit" else corners


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160]
