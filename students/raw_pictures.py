"""From raw pictures on: resizing as part of the exported graph, and how a file that has it inside is asked.

The resizing is that of training, :data:`RESIZE`. In ONNX it is one ``Resize`` (opset 18) with antialiasing whose weights are
renormalised at the borders (``exclude_outside``): without that ONNX Runtime counts samples outside the picture, and values differ by
up to .06 of 1 where one axis shrinks. In torch it is the function that training uses.
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


def prepend_resize(source: Path, target: Path, size: tuple[int, int]) -> None:
    """Write the ONNX graph at ``source``, whose input ``images`` is resized floats, to ``target`` with raw ``pictures`` as input."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    constants = {
        "raw.size": np.array([3, *size], np.int64), "raw.scale": np.array(255.0, np.float32),
        "raw.zero": np.array(0.0, np.float32), "raw.one": np.array(1.0, np.float32),
    }
    nodes = [
        helper.make_node("Shape", [PICTURES], ["raw.count"], name="raw.count", start=0, end=1),
        helper.make_node("Concat", ["raw.count", "raw.size"], ["raw.shape"], name="raw.shape", axis=0),
        helper.make_node("Transpose", [PICTURES], ["raw.planes"], name="raw.planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["raw.planes"], ["raw.floats"], name="raw.floats", to=TensorProto.FLOAT),
        helper.make_node("Div", ["raw.floats", "raw.scale"], ["raw.unit"], name="raw.unit"),
        helper.make_node(
            "Resize", ["raw.unit", "", "", "raw.shape"], ["raw.resized"], name="raw.resized", mode="linear", antialias=1,
            coordinate_transformation_mode="half_pixel", exclude_outside=1,
        ),
        helper.make_node("Clip", ["raw.resized", "raw.zero", "raw.one"], ["images"], name="raw.clip"),
    ]
    for position, node in enumerate(nodes):
        graph.node.insert(position, node)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    kept = [value for value in graph.input if value.name != "images"]
    del graph.input[:]
    raw = helper.make_tensor_value_info(PICTURES, TensorProto.UINT8, ["images", "rows", "columns", 3])
    graph.input.extend([raw, *kept])
    # A reader that knows nothing of the JSON beside the file finds the size that pictures are brought to.
    helper.set_model_props(model, {"input_size": f"{size[0]},{size[1]}"})
    onnx.save(model, str(target))


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
