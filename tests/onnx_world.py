"""Tiny ONNX graphs in the interfaces that black boxes come with, and what they compute, in NumPy.

Each graph's map of a head is ``gain · red − blue + Σ(box) − 1`` of the picture at its own size, brought to half of it by picking every
other cell; its in/out is the mean of that map. Colour order, range, box unit and nesting each change the answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
GAIN = 3.0


def constant(name: str, values: object, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def write_black_box(
    path: Path,
    *,
    names: tuple[str, str, str, str] = ("image_bgr", "bboxes_x1y1x2y2", "heatmap", "inout"),
    scale: float = 1 / 255,
    red: int = 2,
    nhwc: bool = False,
    rank: int = 3,
    heads: int | str = "heads",
    sides: tuple[int | str, int | str] = (SIZE, SIZE),
    box_scale: float = 1.0,
    sigmoid: bool = True,
    with_inout: bool = True,
    ending: str = "Sigmoid",
    external: bool = False,
    kind: int = TensorProto.FLOAT,
    extra_input: bool = False,
) -> Path:
    """A black box: by default with the interface of gazelle-dinov3's files (one BGR picture 0–255, boxes [1,N,4], probabilities)."""
    image, boxes, heatmap, inout = names
    nodes = []

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    values = node("Cast", [image], "floats", to=TensorProto.FLOAT)
    values = node("Transpose", [values], "planes", perm=[0, 3, 1, 2]) if nhwc else values
    values = node("Mul", [values, "scale"], "scaled")
    picture = node("Sub", [node("Mul", [node("Gather", [values, "red"], "reds", axis=1), "gain"], "strong"), node("Gather", [values, "blue"], "blues", axis=1)], "scene")
    flat = node("Reshape", [boxes, "rows"], "flat")  # [N,4]
    total = node("Mul", [node("ReduceSum", [flat, "last"], "sum", keepdims=1), "box_scale"], "normal")  # [N,1]
    offset = node("Unsqueeze", [node("Sub", [total, "one"], "offset"), "last"], "offset3")  # [N,1,1]
    maps = node("Add", [picture, offset], "sums")  # [N,H,W]
    maps = node("Slice", [maps, "starts", "ends", "axes", "steps"], "coarse")
    node(ending if sigmoid else "Identity", [maps], "answers")
    # A resampling by nothing behind the sigmoid, as the published files have.
    node("Reshape", ["answers", "same"], heatmap)
    outputs = [helper.make_tensor_value_info(heatmap, TensorProto.FLOAT, [heads, *(s // 2 if isinstance(s, int) else None for s in sides)])]
    if with_inout:
        mean = node("ReduceMean", [maps, "grid"], "mean", keepdims=0)
        node("Sigmoid" if sigmoid else "Identity", [mean], inout)
        outputs.append(helper.make_tensor_value_info(inout, TensorProto.FLOAT, [heads]))
    shape = [1, *sides, 3] if nhwc else [1, 3, *sides]
    box_shape = [heads, 4] if rank == 2 else [1, heads, 4]
    inputs = [helper.make_tensor_value_info(image, kind, shape), helper.make_tensor_value_info(boxes, TensorProto.FLOAT, box_shape)]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("threshold", TensorProto.FLOAT, [1]))
    constants = [
        constant("scale", scale), constant("red", red, np.int64), constant("blue", 2 - red, np.int64), constant("gain", GAIN),
        constant("rows", [-1, 4], np.int64), constant("last", [-1], np.int64), constant("box_scale", box_scale), constant("one", 1.0),
        constant("starts", [0, 0], np.int64), constant("ends", [2**31 - 1] * 2, np.int64), constant("axes", [1, 2], np.int64),
        constant("steps", [2, 2], np.int64), constant("grid", [1, 2], np.int64), constant("same", [0, 0, 0], np.int64),
    ]
    graph = helper.make_graph(nodes, "black box", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    if external:
        # The gain alone: shapes have to be in the graph.
        tensor = next(each for each in model.graph.initializer if each.name == "gain")
        onnx.external_data_helper.set_external_data(tensor, f"{path.stem}.weights")
    onnx.save(model, str(path))
    return path


def expected(images: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``[N,h,w]`` and ``[N]`` for RGB pictures in [0,1] and boxes in [0,1]."""
    picture = GAIN * images[:, 0].astype(np.float64) - images[:, 2]
    maps = (picture[image_index] + (boxes.astype(np.float64).sum(axis=1) - 1.0)[:, None, None])[:, ::2, ::2]
    return maps, maps.mean(axis=(1, 2))
