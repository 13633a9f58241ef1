"""LiteRT and Core ML: a fixed number of people a call, any number by as many calls, and what is said where a converter or a system is absent."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from distill.cli import main
from distill.exporting import default_name, export_run
from distill.lineage import CHANGED, OK, lineage
from distill.tensorrt_recipe import recipe
from students import coreml_runtime, export, litert_runtime
from students.errors import ExportError
from students.export_description import describe
from students.fixed_people import FixedPeople, fixed_program, in_calls
from students.onnx_precision import PRECISIONS
from students.onnx_runtime import read_export
from students.wanted import LACKS, OF_FORMAT, PEOPLE, Wanted
from tests.export_world import already_traced, tiny_model, tiny_run

CONVERTER = os.environ.get(litert_runtime.VARIABLE)


def test_more_people_are_more_calls_and_places_left_over_are_filled() -> None:
    """Heads of two pictures in mixed order: each call has one picture and three boxes, and rows come back in the order of the heads."""
    pictures = np.arange(2, dtype=np.float32).reshape(2, 1)
    boxes = np.arange(7, dtype=np.float32)[:, None].repeat(4, axis=1)
    owners = np.array([1, 0, 1, 1, 0, 1, 1])
    calls: list[tuple[float, list[float]]] = []

    def call(picture: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append((float(picture[0, 0]), asked[:, 0].tolist()))
        return (100 * picture[0, 0] + asked[:, :1])[:, :, None], -asked[:, 0]

    heatmaps, inouts = in_calls(call, 3, pictures, boxes, owners)
    assert calls == [(0.0, [1, 4, 1]), (1.0, [0, 2, 3]), (1.0, [5, 6, 5])]
    assert heatmaps[:, 0, 0].tolist() == [100, 1, 102, 103, 4, 105, 106]
    assert inouts is not None and inouts.tolist() == [0, -1, -2, -3, -4, -5, -6]
    assert in_calls(lambda picture, asked: (asked[:, None], None), 3, pictures, boxes, owners)[1] is None


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_fixed_graph_is_the_student(channels_last: bool) -> None:
    model = tiny_model().eval()
    images, boxes = torch.rand(1, 3, 32, 48), torch.tensor([[0.1, 0.1, 0.4, 0.6], [0.5, 0.2, 0.9, 0.7]])
    given = images.permute(0, 2, 3, 1) if channels_last else images
    program = fixed_program(model, 2, channels_last=channels_last)
    with torch.inference_mode():
        wanted = model(images, boxes, torch.zeros(2, dtype=torch.int64))
        for answers in (FixedPeople(model, channels_last=channels_last)(given, boxes), program.module()(images=given, boxes=boxes)):
            torch.testing.assert_close(answers["heatmap"], wanted.heatmap, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(answers["inout"], wanted.inout, atol=1e-5, rtol=1e-4)


def test_what_may_be_wanted() -> None:
    assert (Wanted("litert").pixels, Wanted("litert").people, Wanted("coreml", people=2).people, Wanted().people) == ("float32", PEOPLE, 2, None)
    assert [default_name(Wanted(*kind)) for kind in (("litert",), ("litert", "float16"), ("coreml", "float16"))] == [
        "student-litert.tflite", "student-litert-float16.tflite", "student-coreml-float16.mlpackage",
    ]
    for wrong in ({"format": "litert", "pixels": "uint8"}, {"format": "coreml", "precision": "int8"}, {"format": "litert", "precision": "int8"}, {"people": 3}, {"format": "litert", "people": -1}):
        with pytest.raises(ExportError, match=r"takes pixels float32|as float32 or float16|only litert and coreml|from 1 on"):
            Wanted(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"not as int8: .*makes inputs and outputs int8 as well.*; use --precision float16, or --format onnx or openvino"):
        Wanted("litert", "int8")
    # Every precision that a format lacks says why.
    assert set(LACKS) == {(kind, precision) for kind, there in OF_FORMAT.items() for precision in PRECISIONS if precision not in there}


def test_a_converter_that_is_absent_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ai_edge_litert", reason="the litert extra is not installed")
    monkeypatch.delenv(litert_runtime.VARIABLE, raising=False)
    assert importlib.util.find_spec("litert_torch") is None, "its torch would be ours"
    assert main(["export", str(tiny_run()), "--format", "litert", "--out", str(tmp_path / "a.tflite")]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()  # nothing says that it is converting
    assert "pip install litert-torch" in said and "--converter-python" in said
    with pytest.raises(ExportError, match="no Python that can be run"):
        litert_runtime.converter_python(str(tmp_path / "absent"))
    with pytest.raises(ExportError, match=r"not in .*pip install"):
        litert_runtime.converter_python(sys.executable)
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_gives_up_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script, run by a Python without the converter, fails as one whose converter fails does."""
    with pytest.raises(ExportError, match="gave up: ModuleNotFoundError: No module named 'litert_torch'"):
        litert_runtime.write_litert(
            tiny_model().eval(), tmp_path / "a.tflite", people=2, precision="float32", python=sys.executable, plain=tmp_path / "p.tflite"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not CONVERTER, reason=f"{litert_runtime.VARIABLE} names no Python with litert-torch")
def test_litert_answers_as_the_student(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the litert extra is not installed")
    exported = export_run(tiny_run(), tmp_path / "a.tflite", wanted=Wanted("litert", people=2), scenes=12)
    assert exported.parity is not None and exported.parity.heatmap_probability <= 1e-3
    description = read_export(exported.path)
    assert [entry["shape"] for entry in description["inputs"]] == [[1, 32, 48, 3], [2, 4]]
    assert lineage(str(exported.path)).links[-1].status == OK


@pytest.mark.soak
def test_a_core_ml_package_is_checked_and_says_that_no_gate_saw_it(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="the coreml extra is not installed")
    if coreml_runtime.can_predict():
        pytest.skip("macOS runs the gate")
    path = tmp_path / "a.mlpackage"
    path.mkdir()
    (path / "old").write_text("before")
    exported = export_run(tiny_run(), path, wanted=Wanted("coreml", people=2), scenes=2)
    description = read_export(path)
    assert exported.parity is None and description["parity"] is None
    assert description["gate"] == "not run: Core ML predicts on macOS only"
    assert [(entry["name"], entry["shape"]) for entry in description["inputs"]] == [("images", [1, 3, 32, 48]), ("boxes", [2, 4])]
    assert [(entry["name"], entry["shape"]) for entry in description["outputs"]] == [("heatmap", [2, 16, 20]), ("inout", [2])]
    assert description["bytes"] == sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) > 1000
    # The old package is gone, a changed file of the new one is found.
    assert not (path / "old").exists() and sorted(each.name for each in tmp_path.iterdir()) == ["a.json", "a.mlpackage"]
    assert lineage(str(path)).links[-1].status == OK
    with pytest.raises(ExportError, match=r"withheld: as a mlProgram it has .*'boxes': \[2, 4\].*, not .*'boxes': \[3, 4\]"):
        coreml_runtime.check_structure(tiny_model(), path, people=3)
    (path / "Manifest.json").write_text("{}")
    assert lineage(str(path)).links[-1].status == CHANGED
    with pytest.raises(ExportError, match="digest"):
        read_export(path)
    with pytest.raises(ExportError, match="macOS only"):
        coreml_runtime.CoreMlGaze(path, people=2)


def test_core_ml_where_it_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS the gate runs: with the library's model replaced by the student, the runtime hands it what the package takes."""
    model = tiny_model().eval()

    class Model:
        def __init__(self, path: str) -> None:
            assert path == str(tmp_path / "a.mlpackage")

        def predict(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert {name: value.shape for name, value in given.items()} == {"images": (1, 3, 32, 48), "boxes": (2, 4)}
            with torch.inference_mode():
                output = model(torch.from_numpy(given["images"]), torch.from_numpy(given["boxes"]), torch.zeros(2, dtype=torch.int64))
            return {"heatmap": output.heatmap.numpy(), "inout": output.inout.numpy()}

    monkeypatch.setattr(coreml_runtime, "can_predict", lambda: True)
    monkeypatch.setitem(sys.modules, "coremltools", SimpleNamespace(models=SimpleNamespace(MLModel=Model)))
    assert export.can_run(Wanted("coreml"))
    runtime = export.open_runtime(tmp_path / "a.mlpackage", Wanted("coreml", people=2))
    images, boxes = np.random.default_rng(0).random((1, 3, 32, 48), np.float32), np.array([[0.1, 0.1, 0.4, 0.6]] * 3, np.float32)
    heatmap, inout = runtime.run(images, boxes, np.zeros(3, np.int64))
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images), torch.from_numpy(boxes[:1]), torch.zeros(1, dtype=torch.int64))
    np.testing.assert_allclose(heatmap, wanted.heatmap.repeat(3, 1, 1).numpy(), atol=1e-5)
    assert inout is not None and inout.shape == (3,)


def test_the_recipe_of_an_engine_has_the_files_own_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.onnx"
    with already_traced():
        assert main(["export", str(tiny_run()), "--format", "tensorrt", "--out", str(out), "--scenes", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    command = " ".join(facts["tensorrt"])
    assert "--minShapes=images:1x3x32x48,boxes:1x4,image_index:1 --optShapes=images:1x3x32x48,boxes:5x4,image_index:5" in command
    assert f"--onnx={out} --saveEngine={tmp_path / 'a.engine'} --stronglyTyped" in command and "--fp16" not in command
    assert [entry.name for entry in onnx.load(out).graph.input] == ["images", "boxes", "image_index"]
    assert recipe(out, facts) == facts["tensorrt"]
    # As lines of a shell they are one command.
    words = subprocess.run(["sh", "-c", "\n".join(facts["tensorrt"]).replace("trtexec", "printf '%s\\n'", 1)], capture_output=True, text=True, check=True)
    assert len(words.stdout.split()) == 6
    assert main(["export", str(tiny_run()), "--format", "tensorrt", "--precision", "int8"]) == 2
    assert "symmetric" in capsys.readouterr().err


def test_the_description_of_a_fixed_number(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"x")
    said = describe(tiny_model(), tmp_path / "a.tflite", name="a", weights_digest="0", kind="litert", precision="float32", pixels="float32", people=4)
    assert said["people"] == 4 and said["preprocessing"]["layout"] == "images, rows, columns, channels"
    assert [entry["name"] for entry in said["inputs"]] == ["images", "boxes"] and "always 4" in said["inputs"][1]["meaning"]
