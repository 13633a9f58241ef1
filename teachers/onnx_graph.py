"""What an ONNX file says of itself, without running it: inputs, outputs, the files that hold its weights, what its answers are."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachers.errors import BlackBoxError

INSTALL = "run `pip install 'gaze-distill[export]'`"
# Operators that move, pick or resample values and leave their meaning.
KEEPING = {
    "Cast", "Clip", "Flatten", "Gather", "Identity", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Upsample",
}
SQUASHING = {"Sigmoid", "HardSigmoid"}
# Behind these it cannot be seen what the values are: a distribution over cells, or a graph within the graph.
OPAQUE = {"Exp", "If", "LogSoftmax", "Loop", "Scan", "Softmax"}
# Behind which a probability is neither one (one less it, a hundred times it) nor a logit.
ARITHMETIC = {"Add", "Concat", "Div", "Max", "Mean", "Min", "Mul", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Sub", "Sum", "Where"}


@dataclass(frozen=True)
class OnnxGraph:
    """``inputs`` and ``outputs`` map names to shapes, an open dimension is None; ``kinds`` maps outputs to "probabilities",
    "logits" or "" (not to be seen); ``digest`` is BLAKE2b of 16 bytes (hex) over the file and its external data."""

    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]
    kinds: Mapping[str, str]
    digest: str


def require(module: str) -> Any:
    """``onnx`` or ``onnxruntime``; :class:`BlackBoxError` says what to install where it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BlackBoxError(f"an ONNX teacher needs {module}, which cannot be imported ({error}); {INSTALL}") from None


def read_graph(path: Path) -> OnnxGraph:
    """Read the ONNX file at ``path``; :class:`BlackBoxError` for none, for something else, and for absent external data."""
    onnx = require("onnx")
    if not path.is_file():
        raise BlackBoxError(f"ONNX file {path} does not exist; check the path")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's decoder raises its own kind, and several builtin ones for odd bytes
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BlackBoxError(f"{path} is no ONNX file, or is cut short ({reason}); fetch or export it again") from None
    graph = model.graph
    if not graph.output:
        raise BlackBoxError(f"{path} is no ONNX file, or is cut short (it holds no graph); fetch or export it again")
    held = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    return OnnxGraph(
        {value.name: _shape(value) for value in graph.input if value.name not in held},
        {value.name: _shape(value) for value in graph.output},
        {value.name: _kind(value.name, makers) for value in graph.output},
        _digest(path, sorted(set(_external(onnx, graph, path)))),
    )


def _shape(value: Any) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims)


def _kind(name: str, makers: Mapping[str, Any]) -> str:
    node = makers.get(name)
    while node is not None and node.op_type in KEEPING and node.input:
        node = makers.get(node.input[0])
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type in OPAQUE:
        return ""
    if node.op_type in SQUASHING:
        return "probabilities"
    return "" if _squashed_before(node, makers) else "logits"


def _squashed_before(node: Any, makers: Mapping[str, Any]) -> bool:
    """Whether a probability reaches ``node`` through arithmetic alone."""
    waiting, seen = [node], set()
    while waiting:
        each = waiting.pop()
        if each.op_type in SQUASHING | OPAQUE:
            return True
        if each.op_type in ARITHMETIC | KEEPING:
            fresh = [name for name in each.input if name in makers and name not in seen]
            seen.update(fresh)
            waiting += [makers[name] for name in fresh]
    return False


def _external(onnx: Any, graph: Any, path: Path) -> Iterator[Path]:
    tensors = [*graph.initializer, *(attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t"))]
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = path.parent / location
        if not location or not file.resolve().is_relative_to(path.parent.resolve()):
            raise BlackBoxError(f"{path} keeps weights in {location!r}, which is not beside it; export it again into one file")
        if not file.is_file():
            raise BlackBoxError(f"{path} keeps weights in {location}, which is not beside it; put {file} there as well")
        yield file


def _digest(path: Path, further: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in (path, *further):
        if file is not path:
            digest.update(f"\0{file.relative_to(path.parent)}\0".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
