"""A black box as a teacher: an ONNX file in ONNX Runtime, asked and read as its adapter says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachers.adapter import Adapter, InoutOutput, MapOutput, choose_adapter
from teachers.contract import GazeOutput
from teachers.errors import BlackBoxError, DeviceError
from teachers.onnx_graph import OnnxGraph, read_graph, require

PREFIX = "onnx:"
KINDS: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}
# A value this far outside [0,1] is no rounding of a probability.
OUTSIDE = 1e-3


def is_onnx(name: str) -> bool:
    """Whether ``name`` is that of an ONNX teacher: ``onnx:FILE``, ``onnx:FILE?adapter=NAME``, or a path that ends in ``.onnx``."""
    return name.startswith(PREFIX) or name.endswith(".onnx")


def split_name(name: str) -> tuple[Path, str]:
    """Path and adapter (empty: none is named) in the name of an ONNX teacher."""
    text = name.removeprefix(PREFIX)
    if text.startswith("~"):
        text = str(Path(text).expanduser())  # which no shell does behind a colon
    path, mark, adapter = text.partition("?adapter=")
    return (Path(path), adapter) if mark and not Path(text).exists() else (Path(text), "")


class OnnxTeacher:
    """The ONNX file ``path``, with the teacher contract.

    ``adapter`` is a built-in's name or a file; without it the one beside the file, or the built-in that fits the graph. ``device`` is
    "cpu", "cuda", "cuda:1" or "auto" (a GPU if the installed runtime has one). Raises :class:`BlackBoxError` for a file that is none,
    an adapter that does not fit it, absent external data or an absent ONNX Runtime, and :class:`DeviceError`.
    """

    def __init__(self, path: Path, *, adapter: str = "", device: str = "auto") -> None:
        self.path, self.name = path, path.stem
        self._graph = read_graph(path)
        chosen = choose_adapter(path, adapter, list(self._graph.inputs), list(self._graph.outputs))
        self.adapter = _with_kinds(chosen, self._graph, path)
        self._session, self._provider, self.device = _open(path, device)
        self._types = {each.name: _array_kind(each.type, each.name, path) for each in self._session.get_inputs()}
        self._input_size = self._read_input_size()
        self._heads = self._heads_a_call()
        self._heatmap_size = self._read_heatmap_size()

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "name": self.name, "weights": self._graph.digest, "architecture": "onnx", "adapter": self.adapter.to_json(),
            "input_size": list(self.input_size), "preprocessing": "squash, antialiased bilinear, float", "precision": "of the graph",
            "runtime": f"onnxruntime {self._provider}",
        }

    @property
    def input_size(self) -> tuple[int, int]:
        return self._input_size

    @property
    def heatmap_size(self) -> tuple[int, int]:
        return self._heatmap_size

    @property
    def has_inout(self) -> bool:
        return self.adapter.inout is not None

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        count = len(boxes)
        heatmap = np.zeros((count, *self.heatmap_size), np.float32)
        inout = np.zeros(count, np.float32) if self.has_inout else None
        pictures = images.detach().cpu().float().numpy()
        corners, owners = boxes.detach().cpu().float().numpy(), image_index.cpu().numpy()
        for rows, picture, index in self._calls(owners, len(pictures)):
            maps, scores = self._run(pictures[picture], corners[rows], index)
            heatmap[rows] = maps
            if inout is not None:
                inout[rows] = scores
        return GazeOutput(torch.from_numpy(heatmap), None if inout is None else torch.from_numpy(inout))

    def _calls(self, owners: np.ndarray, pictures: int) -> Iterator[tuple[np.ndarray, slice, np.ndarray]]:
        """(rows, pictures, which of those pictures each row is in) of each run of the graph."""
        fixed = self._graph.inputs[self.adapter.image.input][0]
        if self.adapter.boxes.image_index and fixed is None and self._heads is None:
            if len(owners):
                yield np.arange(len(owners)), slice(0, pictures), owners
            return
        for picture in range(pictures):
            rows = np.flatnonzero(owners == picture)
            step = self._heads or max(len(rows), 1)
            for start in range(0, len(rows), step):
                chunk = rows[start : start + step]
                yield chunk, slice(picture, picture + 1), np.zeros(len(chunk), np.int64)

    def _run(self, pictures: np.ndarray, boxes: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits of the heatmaps ``[N,h,w]`` and of in/out ``[N]`` for the heads of one run."""
        count = len(boxes)
        if self._heads is not None and count < self._heads:
            # The graph has a fixed number of heads: the last one again fills it up, and those answers are left out.
            boxes = np.concatenate([boxes, np.repeat(boxes[-1:], self._heads - count, axis=0)])
            index = np.concatenate([index, np.repeat(index[-1:], self._heads - count)])
        feeds = self._feeds(pictures, boxes, index)
        try:
            answers = self._session.run(list(self.adapter.outputs), feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise BlackBoxError(
                f"{self.path} cannot be run as adapter {self.adapter.name} says ({_first_line(error)}); correct sizes, layout and nesting there"
            ) from None
        maps = self._reshaped(answers[0], self.adapter.heatmap.output, len(boxes))[:count]
        scores = None
        if self.adapter.inout is not None:
            scores = np.asarray(answers[1])
            if scores.size != len(boxes):
                raise BlackBoxError(f"{self.path}: output {self.adapter.inout.output!r} gave {scores.shape} for {len(boxes)} heads; correct the adapter")
            scores = self._logits(scores.reshape(-1)[:count], self.adapter.inout)
            scores = -scores if self.adapter.inout.means == "out" else scores
        return self._logits(maps, self.adapter.heatmap), scores

    def _feeds(self, pictures: np.ndarray, boxes: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
        image, box = self.adapter.image, self.adapter.boxes
        mean, std = (np.array(each, np.float32).reshape(1, 3, 1, 1) for each in (image.mean, image.std))
        values = (pictures * np.float32(image.range) - mean) / std
        values = values[:, ::-1] if image.colour == "BGR" else values
        values = values.transpose(0, 2, 3, 1) if image.layout == "NHWC" else values
        if self._types[image.input] is np.uint8:
            values = np.rint(values).clip(0, 255)
        if box.unit == "pixels":
            height, width = self.input_size
            boxes = boxes * np.array([width, height, width, height], np.float32)
        if len(self._graph.inputs[box.input]) == 3:
            boxes = boxes[None]
        feeds = {image.input: values, box.input: boxes}
        if box.image_index:
            return {name: np.ascontiguousarray(value, self._types[name]) for name, value in feeds.items()} | {
                box.image_index: np.ascontiguousarray(index, np.int64)
            }
        return {name: np.ascontiguousarray(value, self._types[name]) for name, value in feeds.items()}

    def _reshaped(self, maps: np.ndarray, name: str, heads: int) -> np.ndarray:
        if maps.ndim < 2 or maps.size != heads * maps.shape[-2] * maps.shape[-1]:
            raise BlackBoxError(f"{self.path}: output {name!r} gave {maps.shape} for {heads} heads, and one map a head is wanted; correct the adapter")
        return maps.reshape(heads, *maps.shape[-2:])

    def _logits(self, values: np.ndarray, output: MapOutput | InoutOutput) -> np.ndarray:
        if output.values == "logits":
            return values.astype(np.float32)
        wide = values.astype(np.float64)
        # A NaN passes, and is named with its scene where the map is stored.
        if ((wide < -OUTSIDE) | (wide > 1.0 + OUTSIDE)).any():
            raise BlackBoxError(
                f"{self.path}: output {output.output!r} gave {float(np.nanmax(np.abs(wide))):.4g}, which is no probability; declare values = \"logits\" "
                "for it in the adapter"
            )
        clipped = wide.clip(self.adapter.clamp, 1.0 - self.adapter.clamp)
        return (np.log(clipped) - np.log1p(-clipped)).astype(np.float32)

    def _read_input_size(self) -> tuple[int, int]:
        image = self.adapter.image
        shape = self._graph.inputs[image.input]
        where = f"{self.path}: input {image.input!r}"
        if len(shape) != 4:
            raise BlackBoxError(f"{where} has {len(shape)} dimensions and is to have 4, {image.layout}; correct image.input in the adapter")
        batch, channels, *sides = shape if image.layout == "NCHW" else (shape[0], shape[3], *shape[1:3])
        if channels not in (3, None):
            raise BlackBoxError(f"{where} has {channels} channels as {image.layout}; correct image.layout in the adapter")
        if batch not in (1, None):
            raise BlackBoxError(f"{where} takes exactly {batch} pictures a call; export it for 1, or for any number")
        size = image.size or (sides[0], sides[1])
        if None in size:
            raise BlackBoxError(f"{where} leaves the picture's size open; give [image] size = [height, width] in the adapter")
        if any(side not in (None, given) for side, given in zip(sides, size, strict=True)):
            raise BlackBoxError(f"{where} is {sides[0]} x {sides[1]} pixels, adapter {self.adapter.name} says {size[0]} x {size[1]}; correct image.size")
        return int(size[0] or 0), int(size[1] or 0)

    def _heads_a_call(self) -> int | None:
        """How many heads a run takes; None: any number."""
        box = self.adapter.boxes
        shape = self._graph.inputs[box.input]
        ranks = {"image": (3,), "flat": (2,), "head": (2, 3)}[box.nesting]
        wanted = {"image": "[1,N,4]", "flat": "[N,4]", "head": "[1,4] or [1,1,4]"}[box.nesting]
        if len(shape) not in ranks or shape[-1] not in (4, None) or (len(shape) == 3 and shape[0] not in (1, None)):
            found = "[" + ",".join("?" if side is None else str(side) for side in shape) + "]"
            raise BlackBoxError(
                f"{self.path}: input {box.input!r} is {found}, nesting {box.nesting!r} of adapter {self.adapter.name} is {wanted}; correct boxes.nesting"
            )
        return 1 if box.nesting == "head" else shape[-2]

    def _read_heatmap_size(self) -> tuple[int, int]:
        shape = self._graph.outputs[self.adapter.heatmap.output]
        sides = shape[-2:]
        if len(shape) >= 2 and None not in sides:
            return int(sides[0] or 0), int(sides[1] or 0)
        # The graph leaves it open: one run on a grey picture tells.
        grey = np.full((1, 3, *self.input_size), 0.5, np.float32)
        maps, _ = self._run(grey, np.array([[0.25, 0.25, 0.5, 0.5]], np.float32), np.zeros(1, np.int64))
        return int(maps.shape[-2]), int(maps.shape[-1])


def _with_kinds(adapter: Adapter, graph: OnnxGraph, path: Path) -> Adapter:
    """The adapter with every "auto" replaced by what the graph shows."""

    def kind(output: MapOutput | InoutOutput) -> str:
        if output.values != "auto":
            return output.values
        if not graph.kinds[output.output]:
            raise BlackBoxError(
                f"{path}: it cannot be seen whether output {output.output!r} holds logits or probabilities; declare values for it in the adapter"
            )
        return graph.kinds[output.output]

    inout = adapter.inout and replace(adapter.inout, values=kind(adapter.inout))
    return replace(adapter, heatmap=replace(adapter.heatmap, values=kind(adapter.heatmap)), inout=inout)


def _open(path: Path, device: str) -> tuple[Any, str, str]:
    """ONNX Runtime's session, its provider, and the device it runs on."""
    runtime = require("onnxruntime")
    kind, _, number = device.partition(":")
    there = runtime.get_available_providers()
    gpu = "CUDAExecutionProvider"
    if kind not in ("auto", "cpu", "cuda") or (kind == "cuda" and gpu not in there):
        raise DeviceError(
            f"ONNX Runtime {runtime.__version__} as installed here cannot run on {device} (it has {', '.join(there)}); use --device cpu, or "
            "install onnxruntime-gpu for CUDA"
        )
    # TF32 would make the same weights another function, as for the models of this project.
    cuda = (gpu, {"device_id": number or "0", "use_tf32": "0"})
    wanted = [cuda, "CPUExecutionProvider"] if gpu in there and kind != "cpu" else ["CPUExecutionProvider"]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise BlackBoxError(f"ONNX Runtime {runtime.__version__} cannot open {path} ({_first_line(error)}); update it, or export the file again") from None
    found = session.get_providers()[0]
    if kind == "cuda" and found != gpu:
        raise DeviceError(f"ONNX Runtime could not start on {device} and fell back to {found}; its CUDA libraries do not load: use --device cpu")
    return session, found, (f"cuda:{number or 0}" if found == gpu else "cpu")


def _array_kind(kind: str, name: str, path: Path) -> Any:
    if kind == "tensor(int64)":
        return np.int64
    if kind not in KINDS:
        raise BlackBoxError(f"{path}: input {name!r} is a {kind}, which is not supported; export it with float32 inputs")
    return KINDS[kind]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]
