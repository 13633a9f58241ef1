"""From raw pictures on: resizing as part of the exported graph, and how a file that has it inside is asked.

The resizing is that of training, :data:`RESIZE`. In ONNX it is one ``Resize`` (opset 18) with antialiasing whose weights are
renormalised at the borders (``exclude_outside``): without that ONNX Runtime counts samples outside the picture, and values differ by
up to .06 of 1 where one axis shrinks. OpenVINO reads that operator and samples otherwise (an argmax 30 cells away was seen), so what is
written for it resizes by two matrix products, whose weights the graph computes from the picture's size; they cost more on large
pictures. In torch it is the function that training uses.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from students.parity import SceneBatch
from teachers.contract import GazeOutput

PICTURES = "pictures"
RESIZE = (
    "Squash the whole picture to the input size, aspect ratio not kept, by separable bilinear interpolation with antialiasing: a "
    "triangle filter over half-pixel centres whose support is max(1, scale) source pixels on either side, scale = source size / "
    "target size for each axis, weights normalised to sum 1 at the borders. In floating point on values in [0,1], nothing rounded "
    "in between. This is torch.nn.functional.interpolate(x, size, mode='bilinear', align_corners=False, antialias=True), and "
    "Pillow's resize with BILINEAR on mode 'F' channels; on 8-bit pictures Pillow rounds, which moves values by up to 1/255."
)


class Runtime(Protocol):
    """An exported file, opened in its runtime. ``pixels`` is "uint8" (raw pictures) or "float32" (resized ones)."""

    @property
    def pixels(self) -> str: ...

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """``[B,h,w,3]`` uint8 RGB or ``[B,3,H,W]`` float32 in [0,1], ``[N,4]`` float32, ``[N]`` int64, N >= 1, to logits."""
        ...


class RawGaze(nn.Module):
    """The student behind the resizing: ``pictures [B,h,w,3]`` uint8 RGB of any one size, boxes and image index as ever."""

    def __init__(self, core: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.core, self.size = core, size

    def forward(self, pictures: Tensor, boxes: Tensor, image_index: Tensor) -> Any:
        # Scaled before it is resized, as training does: 255 times as large values would be rounded elsewhere.
        images = pictures.permute(0, 3, 1, 2).contiguous().float() / 255.0
        images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return self.core(images.clamp(0.0, 1.0), boxes, image_index)


def prepend_resize(source: Path, target: Path, size: tuple[int, int], *, products: bool = False) -> None:
    """Write the ONNX graph at ``source``, whose input ``images`` is resized floats, to ``target`` with raw ``pictures`` as input.

    ``products``: resize by matrix products instead of the operator ``Resize``.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    constants: dict[str, np.ndarray] = {
        "raw.scale": np.array(255.0, np.float32), "raw.zero": np.array(0.0, np.float32), "raw.one": np.array(1.0, np.float32),
    }
    nodes: list[Any] = []

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    planes = node("Transpose", [PICTURES], "raw.planes", perm=[0, 3, 1, 2])
    unit = node("Div", [node("Cast", [planes], "raw.floats", to=TensorProto.FLOAT), "raw.scale"], "raw.unit")
    if products:
        down = _weights(node, constants, "raw.rows", 1, size[0])
        across = node("Transpose", [_weights(node, constants, "raw.columns", 2, size[1])], "raw.across", perm=[1, 0])
        resized = node("MatMul", [node("MatMul", [down, unit], "raw.lower"), across], "raw.resized")
    else:
        constants["raw.size"] = np.array([3, *size], np.int64)
        shape = node("Concat", [node("Shape", [PICTURES], "raw.count", start=0, end=1), "raw.size"], "raw.shape", axis=0)
        resized = node(
            "Resize", [unit, "", "", shape], "raw.resized", mode="linear", antialias=1, coordinate_transformation_mode="half_pixel",
            exclude_outside=1,
        )
    node("Clip", [resized, "raw.zero", "raw.one"], "images")
    for position, each in enumerate(nodes):
        graph.node.insert(position, each)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    kept = [value for value in graph.input if value.name != "images"]
    del graph.input[:]
    raw = helper.make_tensor_value_info(PICTURES, TensorProto.UINT8, ["images", "rows", "columns", 3])
    graph.input.extend([raw, *kept])
    # A reader that knows nothing of the JSON beside the file finds the size that pictures are brought to.
    helper.set_model_props(model, {"input_size": f"{size[0]},{size[1]}"})
    onnx.save(model, str(target))


def _weights(node: Any, constants: dict[str, np.ndarray], name: str, axis: int, cells: int) -> str:
    """Name of the weights ``[cells, source]`` by which a picture's ``axis`` is resampled, computed from its size: see :data:`RESIZE`."""
    constants |= {
        f"{name}.cells": np.array(float(cells), np.float32), f"{name}.centres": (np.arange(cells, dtype=np.float32) + 0.5)[:, None],
        f"{name}.half": np.array(0.5, np.float32), f"{name}.last": np.array([1], np.int64), f"{name}.none": np.array([], np.int64),
        f"{name}.from": np.array(0, np.int64), f"{name}.step": np.array(1, np.int64),
    }
    count = node("Shape", [PICTURES], f"{name}.count", start=axis, end=axis + 1)
    scalar = node("Reshape", [count, f"{name}.none"], f"{name}.scalar")
    scale = node("Div", [node("Cast", [scalar], f"{name}.float", to=1), f"{name}.cells"], f"{name}.scale")
    support = node("Max", [scale, "raw.one"], f"{name}.support")
    pixels = node("Cast", [node("Range", [f"{name}.from", scalar, f"{name}.step"], f"{name}.range")], f"{name}.pixels", to=1)
    centres = node("Mul", [f"{name}.centres", scale], f"{name}.at")
    away = node("Abs", [node("Sub", [node("Add", [pixels, f"{name}.half"], f"{name}.middles"), centres], f"{name}.difference")], f"{name}.away")
    fallen = node("Sub", ["raw.one", node("Div", [away, support], f"{name}.share")], f"{name}.fallen")
    triangle = node("Max", [fallen, "raw.zero"], f"{name}.triangle")
    total = node("ReduceSum", [triangle, f"{name}.last"], f"{name}.total", keepdims=1)
    return str(node("Div", [triangle, total], f"{name}.weights"))


def answer(runtime: Runtime, batch: SceneBatch) -> GazeOutput:
    """What the file says of ``batch``: from its raw pictures, those of one size in one call, or from its resized images."""
    boxes = np.ascontiguousarray(batch.boxes.numpy(), np.float32)
    owners = np.ascontiguousarray(batch.image_index.numpy(), np.int64)
    if runtime.pixels == "float32":
        return _output(*runtime.run(np.ascontiguousarray(batch.images.numpy(), np.float32), boxes, owners))
    sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, picture in enumerate(batch.pictures):
        sizes[picture.shape].append(number)
    heatmaps: dict[int, np.ndarray] = {}
    inouts: dict[int, float] = {}
    for numbers in sizes.values():
        rows = np.flatnonzero(np.isin(owners, numbers))
        if not len(rows):
            continue
        place = {number: position for position, number in enumerate(numbers)}
        index = np.array([place[int(owner)] for owner in owners[rows]], np.int64)
        maps, inout = runtime.run(np.stack([batch.pictures[number] for number in numbers]), boxes[rows], index)
        heatmaps |= zip(rows.tolist(), maps, strict=True)
        if inout is not None:
            inouts |= zip(rows.tolist(), inout.tolist(), strict=True)
    order = range(len(owners))
    return _output(np.stack([heatmaps[row] for row in order]), np.array([inouts[row] for row in order], np.float32) if inouts else None)


def _output(heatmap: np.ndarray, inout: np.ndarray | None) -> GazeOutput:
    return GazeOutput(torch.from_numpy(np.array(heatmap, np.float32)), None if inout is None else torch.from_numpy(np.array(inout, np.float32)))
