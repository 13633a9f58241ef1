"""Precisions and formats: each runs in its own runtime on raw pictures, each has its tolerance, and what is withheld says why."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from distill.cli import main
from distill.errors import ConfigurationError, MissingExtraError
from distill.exporting import default_name, export_run, tolerance_of
from distill.gate_scenes import GateScenes, gate_of
from distill.predicting import load_gaze
from students.errors import ExportError
from students.export import Wanted
from students.onnx_precision import INT8_PARTS, after_boxes, of_boxes, stem, to_int8
from students.onnx_runtime import OnnxGaze, read_export
from students.parity import Parity, Tolerance
from students.raw_pictures import RawGaze, answer, prepend_resize
from students.torch_program import TorchProgram
from tests.export_world import already_traced, core_graph, tiny_export, tiny_model, tiny_run
from tests.fixtures import write_folder

# An untrained model's maps are flat: its highest cell says nothing, and small differences move it.
ANY = {"mean_shift": 99.0, "auc_loss": 1.0, "avg_l2_gain": 1.0, "inout_flips": 1.0}


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    with already_traced():
        yield


def raw(height: int, width: int, pictures: int = 1, heads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dice = np.random.default_rng(height + width)
    left = np.linspace(0.0, 0.7, heads, dtype=np.float32)
    boxes = np.stack((left, left, left + 0.2, left + 0.3), axis=1)
    return dice.integers(0, 256, (pictures, height, width, 3), dtype=np.uint8), boxes, np.arange(heads, dtype=np.int64) % pictures


def from_torch(pictures: np.ndarray, boxes: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        output = RawGaze(tiny_model().eval(), (32, 48))(*(torch.from_numpy(each) for each in (pictures, boxes, index)))
    return output.heatmap.numpy(), output.inout.numpy()


# Shrunk, enlarged, one axis each way, its own size, and a single pixel.
SIZES = [(480, 640), (20, 30), (16, 300), (32, 48), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_raw_pictures_are_resized_as_training_does(height: int, width: int) -> None:
    given = raw(height, width, pictures=2, heads=3)
    heatmap, inout = OnnxGaze(tiny_export().path, threads=1).run(*given)
    wanted = from_torch(*given)
    assert inout is not None
    np.testing.assert_allclose(heatmap, wanted[0], atol=2e-5)
    np.testing.assert_allclose(inout, wanted[1], atol=2e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resizing_by_matrix_products_is_the_same(tmp_path: Path, height: int, width: int) -> None:
    import onnxruntime

    prepend_resize(core_graph(), tmp_path / "products.onnx", (32, 48), products=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "products.onnx"), providers=["CPUExecutionProvider"])
    given = raw(height, width, pictures=2, heads=2)
    heatmap, _ = session.run(None, dict(zip(("pictures", "boxes", "image_index"), given, strict=True)))
    np.testing.assert_allclose(heatmap, from_torch(*given)[0], atol=5e-5)


def test_pictures_of_several_sizes_go_in_one_batch() -> None:
    """Grouped by size inside, and the rows come back in the order of the heads."""
    from students.parity import SceneBatch

    runtime = OnnxGaze(tiny_export().path, threads=1)
    sizes = [(40, 60), (20, 20), (40, 60)]
    pictures = [raw(height, width)[0][0] + np.uint8(number) for number, (height, width) in enumerate(sizes)]
    boxes, owners = torch.from_numpy(raw(1, 1, heads=4)[1]), torch.tensor([2, 0, 1, 2])
    batch = SceneBatch(torch.zeros(3, 3, 32, 48), boxes, owners, ("a", "b", "c"), pictures)
    got = answer(runtime, batch)
    assert got.inout is not None
    for row, owner in enumerate(owners.tolist()):
        heatmap, inout = runtime.run(pictures[owner][None], boxes.numpy()[row : row + 1], np.zeros(1, np.int64))
        assert inout is not None
        np.testing.assert_allclose(got.heatmap[row].numpy(), heatmap[0], atol=1e-5)
        assert got.inout[row].item() == pytest.approx(inout[0], abs=1e-5)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_smaller_numbers(tmp_path: Path, precision: str) -> None:
    exported = export_run(tiny_run(), tmp_path / "small.onnx", wanted=Wanted(precision=precision), scenes=12, tolerance=ANY)
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph)
    description = read_export(exported.path)
    assert (description["precision"], description["inputs"][0]["type"], description["tolerance"]["inout_flips"]) == (precision, "uint8", 1.0)
    assert set(description["tolerance_changed"]) == {name for name, value in ANY.items() if value != getattr(tolerance_of(precision, {}), name)}
    assert exported.description["bytes"] < tiny_export().description["bytes"]
    kinds = {node.op_type for node in graph.graph.node}
    halves = sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.graph.initializer)
    if precision == "int8":
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds and not halves
        assert description["calibration"]["views"] == 64 and description["int8_part"] in INT8_PARTS
    else:
        assert halves > 10 and description["float16_part"] == "all"
        assert exported.parity.heatmap_probability <= 1e-2
    # Any number of pictures of any size, any number of heads.
    runtime = OnnxGaze(exported.path, threads=1)
    for given in (raw(50, 70), raw(20, 30, pictures=3, heads=5), raw(32, 48, pictures=1, heads=100)):
        heatmap, inout = runtime.run(*given)
        assert inout is not None
        assert heatmap.shape == (len(given[1]), 16, 20) and np.isfinite(heatmap).all() and np.isfinite(inout).all()
        np.testing.assert_allclose(1 / (1 + np.exp(-heatmap)), 1 / (1 + np.exp(-from_torch(*given)[0])), atol=0.01 if precision == "float16" else 0.2)


def test_float16_falls_back_to_weights_alone(tmp_path: Path) -> None:
    run, wanted = tiny_run(), Wanted(precision="float16")
    whole = export_run(run, tmp_path / "all.onnx", wanted=wanted, scenes=12, tolerance=ANY)
    assert whole.parity is not None
    tight = {**ANY, "probability": 0.9 * whole.parity.heatmap_probability}
    exported = export_run(run, tmp_path / "weights.onnx", wanted=wanted, scenes=12, tolerance=tight)
    description = read_export(exported.path)
    assert description["float16_part"] == "weights" and "float16 in all: heatmap |Δp|" in description["float16_refused"][0]
    assert exported.parity is not None and exported.parity.heatmap_probability <= tight["probability"]
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph)
    halves = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    exact = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(core_graph()).graph.initializer}
    for name, values in halves.items():
        np.testing.assert_array_equal(values, exact[name.removesuffix(".float16")].astype(np.float16))
    assert halves and exported.description["bytes"] < tiny_export().description["bytes"]


def test_what_comes_from_boxes_alone_stays_float32() -> None:
    graph = onnx.load(core_graph()).graph
    alone, behind = of_boxes(graph), after_boxes(graph)
    assert alone and alone < behind
    kinds = {node.name: node.op_type for node in graph.node}
    assert {"Round"} <= {kinds[name] for name in alone}
    assert not {"Conv", "ConvTranspose", "MatMul"} & {kinds[name] for name in alone}
    assert "Conv" in {kind for name, kind in kinds.items() if name not in behind}


def test_int8_of_the_scene_alone_leaves_the_heads_float(tmp_path: Path) -> None:
    (batch,) = list(GateScenes(gate_of(tiny_run(), 1).shown, (32, 48)))
    feeds = [{"images": batch.images.numpy(), "boxes": batch.boxes.numpy(), "image_index": batch.image_index.numpy()}]
    counts = {}
    for part in INT8_PARTS:
        to_int8(core_graph(), tmp_path / "q.onnx", feeds, part)
        counts[part] = sum(node.op_type == "DequantizeLinear" for node in onnx.load(tmp_path / "q.onnx").graph.node)
        kept = {node.name: node for node in onnx.load(tmp_path / "q.onnx").graph.node}
        first = next(node for node in onnx.load(core_graph()).graph.node if node.op_type == "Conv")
        assert kept[first.name].input[0] == first.input[0], "the first convolution stays float32"
    assert 0 < counts["scene"] < counts["all"] and 0 < counts["products"] < counts["all"]


def test_what_cuts_values_off_is_merged_into_the_convolution_before_it(tmp_path: Path) -> None:
    """A convolution's output is counted in steps of what is left after the cut: no Clip stays between two of them."""
    (batch,) = list(GateScenes(gate_of(tiny_run(), 1).shown, (32, 48)))
    feeds = [{"images": batch.images.numpy(), "boxes": batch.boxes.numpy(), "image_index": batch.image_index.numpy()}]
    to_int8(core_graph(), tmp_path / "q.onnx", feeds, "all")
    before, after = (onnx.load(path).graph for path in (core_graph(), tmp_path / "q.onnx"))

    def behind_convolutions(graph: onnx.GraphProto) -> int:
        made_by = {name: node for node in graph.node for name in node.output}
        ends = ("Conv", "QuantizeLinear", "DequantizeLinear")
        return sum(node.op_type == "Clip" and node.input[0] in made_by and made_by[node.input[0]].op_type in ends for node in graph.node)

    assert behind_convolutions(before) > 1 and behind_convolutions(after) == 1, "the first alone, which is float32"


def test_the_stem_is_counted_in_convolutions() -> None:
    graph = onnx.load(core_graph()).graph
    kinds = {node.name: node.op_type for node in graph.node}
    one, two = stem(graph, 1), stem(graph, 2)
    assert [sum(kinds[name] == "Conv" for name in part) for part in (one, two)] == [1, 2] and one < two
    assert not any(kinds[name] in ("MatMul", "Gemm") for name in stem(graph, 5))


def test_int8_without_gaze_points_cannot_be_judged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    with pytest.raises(ExportError, match=r"withheld.*loss of AUC is not to be had.*--data"):
        export_run(tiny_run(), tmp_path / "a.onnx", wanted=Wanted(precision="int8"), scenes=4, data=f"folder:{folder}")
    assert not (tmp_path / "a.onnx").exists()


def test_metrics_are_part_of_the_gate() -> None:
    figures = {"scenes": 1, "heads": 1, "finite": True, "heatmap_probability": 0.4, "inout_probability": 0.4, "argmax_equal": 0.0, "mean_argmax_shift": 3.0}
    figures |= {"max_argmax_shift": 3.0, "inout_flips": 0.02, "worst": ()}
    parity = Parity(**figures, reference_metrics={"auc": 0.9, "avg_l2": 0.1}, metrics={"auc": 0.896, "avg_l2": 0.104})
    assert parity.change("auc") == pytest.approx(-0.004) and parity.change("avg_l2") == pytest.approx(0.004)
    assert parity.failures(tolerance_of("int8", {})) == []
    assert len(parity.failures(tolerance_of("int8", {"auc_loss": 0.0039, "avg_l2_gain": 0.0039, "inout_flips": 0.019}))) == 3
    assert len(parity.failures(tolerance_of("float16", {}))) == 4
    assert parity.failures(Tolerance(None, None, 3.0)) == ["in/out flips, share of heads, 2.00% > 0"]


@pytest.mark.parametrize("format_", ["torch", "openvino"])
def test_other_formats(tmp_path: Path, format_: str) -> None:
    if format_ == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'gaze-distill[openvino]'")
    wanted = Wanted(format_)
    exported = export_run(tiny_run(), tmp_path / default_name(wanted), wanted=wanted, scenes=12)
    assert exported.parity.heatmap_probability <= 1e-3
    assert read_export(exported.path)["format"] == format_
    if format_ == "openvino":
        asked, name = load_gaze(str(exported.path))
        np.testing.assert_allclose(asked.run(*raw(17, 33))[0], from_torch(*raw(17, 33))[0], atol=2e-5)  # type: ignore[attr-defined]
        assert name == "student-openvino.xml"
    if format_ == "torch":
        heatmap, inout = TorchProgram(exported.path).run(*raw(17, 33, pictures=1, heads=1))
        np.testing.assert_allclose(heatmap, from_torch(*raw(17, 33))[0], atol=2e-5)
        assert inout is not None and inout.shape == (1,)


def test_formats_lie_side_by_side() -> None:
    kinds = [Wanted(), Wanted(precision="int8"), Wanted(pixels="float32"), Wanted("torch"), Wanted("openvino", "float16")]
    names = [default_name(kind) for kind in kinds]
    assert names == ["student.onnx", "student-int8.onnx", "student-resized.onnx", "student-torch.pt2", "student-openvino-float16.xml"]
    assert len({Path(name).stem for name in names}) == len(names)


def test_resized_pictures_go_in_where_they_are_asked_for(tmp_path: Path) -> None:
    exported = export_run(tiny_run(), tmp_path / "resized.onnx", wanted=Wanted(pixels="float32"), scenes=4)
    assert [entry["name"] for entry in exported.description["inputs"]] == ["images", "boxes", "image_index"]
    assert OnnxGaze(exported.path).pixels == "float32"


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="torch is written as float32, not as int8"):
        Wanted("torch", "int8")
    with pytest.raises(ConfigurationError, match=r"--tolerance flips is unknown; there are probability, .*inout_flips"):
        tolerance_of("float32", {"flips": 1.0})
    with pytest.raises(ConfigurationError, match="from 0 on"):
        tolerance_of("float32", {"inout_flips": float("nan")})
    with pytest.raises(ExportError, match=r"does not end in \.pt2"):
        export_run(tiny_run(), tmp_path / "a.onnx", wanted=Wanted("torch"))
    (tmp_path / "a.json").write_text(json.dumps({"format": "onnx", "file": "a.onnx"}))
    with pytest.raises(ExportError, match=r"describes the onnx file a\.onnx"):
        export_run(tiny_run(), tmp_path / "a.pt2", wanted=Wanted("torch"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gaze-distill\[openvino\]'"):
        export_run(tiny_run(), wanted=Wanted("openvino"))
    # The short names of a precision are the long ones: what is refused here is the format's.
    assert main(["export", str(tiny_run()), "--format", "torch", "--precision=fp16"]) == 2
    assert "torch is written as float32, not as float16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(tiny_run()), "--tolerance", "inout_flips"])
    assert "is not NAME=VALUE" in capsys.readouterr().err
