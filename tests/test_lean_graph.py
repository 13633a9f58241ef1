"""The traced graph after it was made to do less: the same answers, the steps gone, and what does not fit left as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from students.lean_graph import make_lean, resize_matrix, translations
from teachers.model import GazeModel, ModelConfig

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

STUDENT = ModelConfig(
    backbone="test_efficientnet", input_size=(32, 48), levels=(2,), decoder="query", dim=16, layers=1, attention_heads=2, heatmap_size=(10, 9), drop_path=0.0
)


@pytest.mark.parametrize(("before", "after"), [(20, 64), (7, 9), (5, 5), (9, 4), (1, 6)])
def test_the_matrix_resizes_as_torch_does(before: int, after: int) -> None:
    line = torch.randn(3, before, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(line[:, None, None], size=(1, after), mode="bilinear", align_corners=False)[:, 0, 0]
    torch.testing.assert_close(line @ torch.from_numpy(resize_matrix(before, after)).T, wanted, atol=1e-12, rtol=0)


def written(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Any:
    program = torch.onnx.export(
        module.eval(), inputs, dynamo=True, verbose=False, opset_version=18, input_names=["images", "other"][: len(inputs)],
        custom_translation_table=translations(),
    )
    assert program is not None
    make_lean(program.model)
    program.save(path, external_data=False)
    return onnx.load(str(path)).graph


def answer(path: Path, inputs: tuple[Tensor, ...]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, dict(zip(("images", "other"), (tensor.numpy() for tensor in inputs), strict=False)))[0]
    return found


class Plain(nn.Module):
    """One function as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("std", torch.tensor([0.2, 0.5, 3.0]).view(3, 1, 1))
        self.register_buffer("line", torch.tensor([0.2, 0.5, 3.0, 1.0]))

    def forward(self, x: Tensor, *other: Tensor) -> Tensor:
        std: Any = self.std
        match self.name:
            case "gelu":
                return F.gelu(x)
            case "gelu of tanh":
                return F.gelu(x, approximate="tanh")
            case "attention":
                return F.scaled_dot_product_attention(x, x + 1, x * 2)
            case "attention, scaled":
                return F.scaled_dot_product_attention(x, x + 1, x * 2, scale=0.3)
            case "attention, causal":
                return F.scaled_dot_product_attention(x, x + 1, x * 2, is_causal=True)
            case "resize":
                return F.interpolate(x, size=(7, 11), mode="bilinear", align_corners=False)
            case "resize, by corners":
                return F.interpolate(x, size=(7, 11), mode="bilinear", align_corners=True)
            case "resize to many cells":
                return F.interpolate(x, size=(7, 200), mode="bilinear", align_corners=False)
            case "rows":
                return x[other[0]]
            case "rows and columns":
                return x[other[0], other[0]]
            case "divided":
                return self.convolution((x - 0.4) / std)
            case "divided, without an offset":
                return self.convolution(x / std)
            case "divided, read twice":
                quotient = x / std
                return self.convolution(quotient).mean() + quotient.mean()
            case "divided by columns":
                return self.convolution(x / self.line)
            case "axis":
                return (x * 2).unsqueeze(1).squeeze(1)
            case "axes":
                return (x * 2)[:1].unsqueeze(1).squeeze(0)
        raise AssertionError(self.name)


@pytest.mark.parametrize(
    ("name", "there", "gone"),
    [
        ("gelu", "Erf", "Tanh"), ("gelu of tanh", "Tanh", "Erf"), ("attention", "Softmax", "Shape Slice"), ("attention, scaled", "Softmax", "Shape Slice"),
        ("attention, causal", "Softmax", ""), ("resize", "MatMul", "Resize Shape"), ("resize, by corners", "Resize", "MatMul"),
        ("resize to many cells", "Resize", "MatMul"), ("rows", "Gather", "GatherND"), ("rows and columns", "GatherND", "Gather"),
        ("divided", "Conv Sub", "Div"), ("divided, without an offset", "Conv", "Div"), ("divided, read twice", "Conv Div", ""),
        ("divided by columns", "Conv Div", ""), ("axis", "Mul", "Squeeze Unsqueeze"), ("axes", "Squeeze", ""),
    ],
)
def test_each_step_answers_as_torch_does(name: str, there: str, gone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, inputs = Plain(name), (torch.randn(2, 3, 5, 4),)
    if name.startswith("rows"):
        inputs = (*inputs, torch.tensor([1, 0, 1]))  # type: ignore[assignment]
    graph = written(module, inputs, tmp_path / "graph.onnx")
    with torch.inference_mode():
        wanted = module(*inputs).numpy()
    np.testing.assert_allclose(answer(tmp_path / "graph.onnx", inputs), wanted, atol=2e-6, rtol=2e-6)
    kinds = {node.op_type for node in graph.node}
    assert set(there.split()) <= kinds and not set(gone.split()) & kinds


@pytest.mark.parametrize("decoder", ["query", "gazelle"])
def test_a_student_is_traced_into_few_steps(decoder: str, tmp_path: Path) -> None:
    from students.export import trace

    torch.manual_seed(0)
    model = GazeModel(replace(STUDENT, decoder=decoder)).eval().requires_grad_(False)
    trace(model, tmp_path / "student.onnx")
    graph = onnx.load(str(tmp_path / "student.onnx")).graph
    assert [value.name for value in graph.output] == ["heatmap", "inout"]
    assert not {"Resize", "GatherND"} & {node.op_type for node in graph.node}
    constants = {tensor.name for tensor in graph.initializer}
    assert [node.op_type for node in graph.node if all(name in constants for name in node.input if name)] == []
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "merged.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(str(tmp_path / "merged.onnx")).graph.node)
    assert not kinds["Erf"] and kinds["Gelu"] + kinds["BiasGelu"] == {"query": 5, "gazelle": 1}[decoder]  # one kernel for each
    images, boxes, index = torch.rand(2, 3, 32, 48), torch.tensor([[0.1, 0.2, 0.4, 0.5], [0.5, 0.5, 0.5, 0.5], [0.0, 0.3, 0.9, 1.0]]), torch.tensor([1, 0, 1])
    with torch.inference_mode():
        wanted = model(images, boxes, index)
    heatmap, inout = session.run(None, {"images": images.numpy(), "boxes": boxes.numpy(), "image_index": index.numpy()})
    torch.testing.assert_close(torch.from_numpy(heatmap), wanted.heatmap, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(torch.from_numpy(inout), wanted.inout, atol=2e-5, rtol=2e-5)
