"""Smaller numbers for an exported ONNX graph: float16 weights and arithmetic, or int8 calibrated on training views.

Both work on the graph whose input is resized pictures (the resizing comes in front of it later and stays float32) and keep inputs and
outputs float32. What is computed from head boxes alone (which cells a head covers, where it lies) stays float32 too: in float16
a box edge moves by up to 1/4096 of the picture, and with it whole cells.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from students.errors import ExportError

PRECISIONS = ("float32", "float16", "int8")
# What a precision is used for, tried in this order until the gate lets a file pass. float16: weights and arithmetic, or weights alone, at
# half the size as well. int8: all, what is computed once a picture and not for each head, or matrix products alone.
FLOAT16_PARTS = ("all", "weights")
INT8_PARTS = ("all", "scene", "products")
PARTS: Mapping[str, tuple[str, ...]] = {"float16": FLOAT16_PARTS, "int8": INT8_PARTS}
PRODUCTS = ("MatMul", "Gemm")
HEAVY = ("Conv", "ConvTranspose", *PRODUCTS)
SMALL = 256  # numbers; biases and norms are a percent of a file, and what they lose adds to every cell
# Merged into the convolution before them: its output is then counted in steps of what is left after them. Counted before, with range
# for what they cut off, a student of EfficientNet-Lite lost .007 of AUC and .029 of avg L2 (.0003 and nothing so), and was half as fast.
MERGED = ("Clip", "Relu")


def to_float16(source: Path, target: Path, part: str = "all") -> None:
    """Write ``source`` to ``target`` with float16 inside, but for the first five convolutions one after the other.

    ``part`` is one of :data:`FLOAT16_PARTS`. With "weights" alone each is cast to float32 before it is used, which runtimes do once,
    when the file is opened.

    Where batch normalisation is folded into these, EfficientNet-Lite's have weights up to 18 that cancel: the second alone moved
    probabilities of a trained student by .0117 in float16, all behind the fifth moved them by .0075 together. The five are 10 kB.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(source))
    left_out = of_boxes(model.graph) | stem(model.graph, 5)
    if part == "weights":
        _halve_weights(model.graph, left_out)
        onnx.save(model, str(target))
        return
    with warnings.catch_warnings(), _quiet():
        # Weights below float16's least value become that value; the gate sees what it does.
        warnings.simplefilter("ignore")
        converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(left_out))
    _sort(converted.graph)
    onnx.save(converted, str(target))


def _halve_weights(graph: Any, left_out: Set[str]) -> None:
    """Store the weights of ``graph`` in float16, each with a cast to float32; those of the nodes in ``left_out`` stay, and small ones, and
    any with a value beyond float16."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kept = {name for node in graph.node if node.name in left_out for name in node.input}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in kept:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < SMALL or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name, half = tensor.name, f"{tensor.name}.float16"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *(type(node).FromString(node.SerializeToString()) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)


def to_int8(source: Path, target: Path, calibration: Iterable[Mapping[str, np.ndarray]], part: str) -> None:
    """Write ``source`` to ``target`` with convolutions and matrix products in int8 (QDQ, weights by channel, activations static).

    ``calibration`` are feeds of the graph; the range of every activation is the least and the largest value over them. ``part``
    is one of :data:`INT8_PARTS`. The first convolution stays float32: it is a few percent of the arithmetic, and of the in/out answers
    that int8 flipped on 64 pictures two thirds were its doing.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Feeds(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds: Iterator[Mapping[str, np.ndarray]] = iter(calibration)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    graph = onnx.load(str(source)).graph
    left_out = of_boxes(graph) | stem(graph, 1)
    if part == "scene":
        left_out |= after_boxes(graph)
    kinds = PRODUCTS if part == "products" else HEAVY + MERGED
    with _quiet():
        quantize_static(
            str(source), str(target), Feeds(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, op_types_to_quantize=list(kinds), nodes_to_exclude=sorted(left_out),
            # Products of two activations (attention) gain nothing on the CPU and lose most.
            extra_options={"MatMulConstBOnly": True},
        )


def of_boxes(graph: Any) -> set[str]:
    """Names of the nodes that compute from boxes and image index alone (and constants), no picture among what they depend on."""
    plain = {"boxes", "image_index"} | {tensor.name for tensor in graph.initializer}
    constant = {tensor.name for tensor in graph.initializer}
    found = set()
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if all(name in plain for name in inputs):
            plain.update(node.output)
            if all(name in constant for name in inputs):
                constant.update(node.output)
            else:
                found.add(node.name)
    return found


def after_boxes(graph: Any) -> set[str]:
    """Names of the nodes whose values depend on a head: everything behind the point where boxes or image index come in."""
    tainted = {"boxes", "image_index"}
    found = set()
    for node in graph.node:
        if any(name in tainted for name in node.input):
            tainted.update(node.output)
            found.add(node.name)
    return found


def stem(graph: Any, convolutions: int) -> set[str]:
    """Names of the nodes that the picture runs through up to and with the first ``convolutions`` one after the other."""
    passed = {"images": 0}
    found = set()
    for node in graph.node:
        before = [passed[name] for name in node.input if name in passed]
        if not before or node.op_type in PRODUCTS:
            continue
        count = max(before) + (node.op_type == "Conv")
        if max(before) < convolutions:
            found.add(node.name)
        if count <= convolutions:
            passed.update((name, count) for name in node.output)
    return found


def _sort(graph: Any) -> None:
    """Every node behind those that it needs: the converter appends its casts at the end, which ONNX does not allow."""
    known = {""} | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if all(name in known for name in node.input)]
        if not ready:
            raise ExportError(f"the float16 graph has a circle at node {waiting[0].name}; update onnxruntime")
        for node in ready:
            known.update(node.output)
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
        ordered += ready
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converters log advice (that shapes could be inferred before, that values were cut) on the root logger."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
