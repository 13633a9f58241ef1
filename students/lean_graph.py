"""An ONNX graph that does less: the same function in fewer or cheaper steps than the exporter writes by itself.

Runtimes merge and fold what they recognise. What they do not, on the CPU, is written here in a form that they do, for every model alike:

- GELU with its factor ½ last, the form that ONNX Runtime has one kernel for; the exporter's multiplies the error function by it, and stays
  five passes over the data.
- Attention without a mask transposes the keys in one step; the exporter's asks for their shape first, a dozen steps to transpose any rank.
- Bilinear resizing to a known size is a product with a constant matrix on either side: ONNX Runtime's Resize costs three times as much on
  maps as small as these.
- Picking rows by one index is Gather.
- What depends on weights alone is computed (:func:`fold_constants`).
- An axis of one that is put in and taken out again is left out (:func:`drop_single_axes`).
- Division by the standard deviation of pixels goes into the convolution behind it (:func:`fold_division`).

Left out: fusing by operators of ONNX Runtime's own, which no other runtime reads; and two 1×1 convolutions one after the other as one
(there is one such pair in EfficientNet-Lite), which was no faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

LARGEST_CONSTANT = 1 << 24  # numbers; the exporter alone stops at a few thousand
LARGEST_MAP = 128  # cells a side: beyond it a product with a matrix, which is mostly zeros, costs more than Resize


def translations() -> dict[Any, Callable[..., Any]]:
    """What ``torch.onnx.export`` is to write for operators of torch in place of its own (``custom_translation_table``)."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops import core, nn

    op: Any = opset18  # its types are those of eager calls, in which a tensor is an array

    def gelu(self: Any, approximate: str = "none") -> Any:
        if approximate != "none":
            return nn.aten_gelu(self, approximate)
        share = op.Add(op.Erf(op.Div(self, _like(math.sqrt(2.0), self))), _like(1.0, self))
        return op.Mul(op.Mul(self, share), _like(0.5, self))

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        wide = query.shape[-1]
        if attn_mask is not None or dropout_p or is_causal or enable_gqa or len(query.shape) != 4 or not (scale or isinstance(wide, int)):
            return nn.aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        factor = _like(scale or wide**-0.5, query)
        products = op.Mul(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), factor)
        return op.MatMul(op.Softmax(products, axis=-1), value)

    def resize(self: Any, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None) -> Any:
        before = tuple(self.shape[-2:])
        sizes = (*before, *(output_size or ()))
        if align_corners or len(sizes) != 4 or not all(isinstance(size, int) and size <= LARGEST_MAP for size in sizes):
            return nn.aten_upsample_bilinear2d_vec(self, output_size, align_corners, scale_factors)
        rows, columns = (_constant(resize_matrix(*pair), self) for pair in ((sizes[0], sizes[2]), (sizes[1], sizes[3])))
        # Constants on the left in both: int8 is for products with constants on the right, and would count logits in steps here.
        one = self.shape[1] == 1
        # Without the axis of a single channel, as its reader will want it: dropping it from the result would copy that.
        maps, swap = (op.Squeeze(self, [1]), [0, 2, 1]) if one else (self, [0, 1, 3, 2])
        resized = op.MatMul(rows, op.Transpose(op.MatMul(columns, op.Transpose(maps, perm=swap)), perm=swap))
        return op.Unsqueeze(resized, [1]) if one else resized

    def index(self: Any, indices: Sequence[Any]) -> Any:
        import onnx_ir

        only = indices[0] if len(indices) == 1 else None
        if only is None or only.dtype != onnx_ir.DataType.INT64 or len(only.shape) != 1:
            return core.aten_index(self, indices)
        return op.Gather(self, only, axis=0)

    def _like(value: float, other: Any) -> Any:
        return _constant(np.array(value), other)

    def _constant(values: np.ndarray, other: Any) -> Any:
        import onnx_ir

        return op.Constant(value=onnx_ir.tensor(values.astype(other.dtype.numpy())))

    aten = torch.ops.aten
    return {
        aten.gelu.default: gelu, aten.scaled_dot_product_attention.default: attention, aten.upsample_bilinear2d.vec: resize,
        aten.index.Tensor: index,
    }


def resize_matrix(before: int, after: int) -> np.ndarray:
    """``[after,before]`` float64: bilinear resizing of a line, as torch's without antialiasing and with ``align_corners=False``."""
    place = np.maximum((np.arange(after) + 0.5) * (before / after) - 0.5, 0.0)
    low = np.minimum(place.astype(np.int64), before - 1)
    share = place - low
    matrix = np.zeros((after, before))
    matrix[np.arange(after), low] = 1.0 - share
    matrix[np.arange(after), np.minimum(low + 1, before - 1)] += share
    return matrix


def make_lean(model: Any) -> None:
    """All of the above that concern a whole graph, on ``model`` (of ``onnx_ir``), as it was traced with :func:`translations`."""
    fold_constants(model)
    drop_single_axes(model.graph)
    fold_division(model.graph)


def fold_constants(model: Any) -> None:
    """Compute what depends on weights alone, of any size up to :data:`LARGEST_CONSTANT`: whoever reads the file next sees weights."""
    from onnxscript import optimizer

    optimizer.fold_constants(model, input_size_limit=LARGEST_CONSTANT, output_size_limit=LARGEST_CONSTANT)
    optimizer.remove_unused_nodes(model)


def drop_single_axes(graph: Any) -> None:
    """Leave out of ``graph`` (of ``onnx_ir``) every pair of steps that puts an axis of one in and takes it out: at the end of a graph a copy."""
    import onnx_ir

    for squeeze in [node for node in graph if node.op_type == "Squeeze"]:
        unsqueeze = squeeze.inputs[0].producer()
        if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or len(squeeze.inputs[0].uses()) != 1:
            continue
        axes = [node.inputs[1].const_value if len(node.inputs) == 2 else None for node in (squeeze, unsqueeze)]
        if axes[0] is None or axes[1] is None or axes[0].numpy().tolist() != axes[1].numpy().tolist():
            continue
        old, new = squeeze.outputs[0], unsqueeze.inputs[0]
        if old.is_graph_output():
            new.name, old.name = old.name, new.name
        onnx_ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove([squeeze, unsqueeze], safe=True)


def fold_division(graph: Any) -> bool:
    """Take a division by constants between the input ``images`` and its first convolution out of ``graph`` (of ``onnx_ir``), and divide
    the convolution's weights instead; whether there was one to take out.

    The convolution pads with zeros, which are the same divided. Nothing changes where something else reads the quotient.
    """
    import onnx_ir

    images = next(value for value in graph.inputs if value.name == "images")
    division = next((node for node in graph if node.op_type == "Div" and _reads(node, images)), None)
    if division is None or len(division.outputs[0].uses()) != 1 or graph.outputs[0] is division.outputs[0]:
        return False
    (convolution, place), = division.outputs[0].uses()
    divisor, weight = division.inputs[1].const_value, convolution.inputs[1].const_value if convolution.op_type == "Conv" else None
    if place != 0 or divisor is None or weight is None or len(weight.shape) != 4 or tuple(divisor.shape) != (weight.shape[1], 1, 1):
        return False
    values = (weight.numpy().astype(np.float64) / divisor.numpy().astype(np.float64)).astype(weight.numpy().dtype)
    old = convolution.inputs[1]
    folded = onnx_ir.Value(name=f"{old.name}.divided", type=old.type, shape=old.shape, const_value=onnx_ir.tensor(values))
    graph.register_initializer(folded)
    convolution.replace_input_with(0, division.inputs[0])
    convolution.replace_input_with(1, folded)
    if not old.uses():
        graph.initializers.pop(old.name)
    graph.remove(division, safe=True)
    return True


def _reads(node: Any, images: Any) -> bool:
    """Whether ``node`` is fed by ``images`` through at most one subtraction."""
    before = node.inputs[0]
    producer = before.producer()
    return before is images or (producer is not None and producer.op_type == "Sub" and producer.inputs[0] is images)
