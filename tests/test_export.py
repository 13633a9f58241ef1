"""The exported file against the student, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distill.cli import main
from distill.errors import ConfigurationError, DataError, MissingExtraError
from distill.evaluation import evaluate
from distill.exported import ExportedFile
from distill.exporting import export_run, student_directory
from distill.gate_scenes import GateScenes, Shown, gate_scenes
from distill.readers import open_data
from distill.scenes import Scene
from distill.views import IDENTITY
from students import export
from students.errors import ExportError
from students.export import Exported, export_student
from students.onnx_runtime import OnnxGaze, file_digest, read_export
from students.parity import Parity, SceneBatch, Tolerance, compare
from teachers.catalogue import load_teacher
from teachers.model import GazeModel
from teachers.onnx_teacher import OnnxTeacher
from tests.export_world import CONFIG, already_traced, core_graph, tiny_export, tiny_model, tiny_run
from tests.fixtures import write_folder


@pytest.fixture(scope="module")
def model() -> GazeModel:
    return tiny_model()


@pytest.fixture(scope="module")
def run() -> Path:
    return tiny_run()


@pytest.fixture(scope="module")
def exported() -> Exported:
    return tiny_export()


@pytest.fixture
def traced() -> Iterator[None]:
    with already_traced():
        yield


def shown(scenes: Sequence[Scene]) -> GateScenes:
    return GateScenes([Shown(scene, "val") for scene in scenes], (32, 48))


def as_pictures(images: Tensor) -> list[np.ndarray]:
    return [np.ascontiguousarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()) for image in images]


def heads(images: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images * 100 + count)
    corner = torch.rand(count, 2, generator=generator) * 0.5
    boxes = torch.cat((corner, corner + 0.1 + torch.rand(count, 2, generator=generator) * 0.3), dim=1)
    index = torch.randint(0, images, (count,), generator=generator)
    return torch.randint(0, 256, (images, 3, 32, 48), generator=generator) / 255, boxes, index  # 8 bits, as pictures have


# --- the exported file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "count"), [(1, 1), (1, 5), (3, 5), (3, 1), (2, 100)])
def test_any_number_of_pictures_and_heads(exported: Exported, model: GazeModel, images: int, count: int) -> None:
    scene = heads(images, count)
    with torch.inference_mode():
        wanted = model.eval()(*scene)
    got = OnnxGaze(exported.path, threads=1)(*scene)
    assert wanted.inout is not None
    assert got.inout is not None
    assert got.heatmap.shape == (count, 16, 20)
    torch.testing.assert_close(got.heatmap, wanted.heatmap, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(got.inout, wanted.inout, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("images", "count"), [(1, 1), (4, 7)])
def test_as_a_black_box_it_gives_the_same(exported: Exported, images: int, count: int) -> None:
    """``onnx:student.onnx`` as a teacher, its adapter chosen by the graph's inputs."""
    teacher = load_teacher(f"onnx:{exported.path}")
    assert isinstance(teacher, OnnxTeacher) and teacher.adapter.name == "gaze-distill-raw"
    assert (teacher.input_size, teacher.heatmap_size, teacher.has_inout) == ((32, 48), (16, 20), True)
    assert teacher.fingerprint["weights"] == exported.description["digest"]
    given = heads(images, count)
    own, other = OnnxGaze(exported.path)(*given), teacher(*given)
    assert own.inout is not None and other.inout is not None
    assert (own.heatmap - other.heatmap).abs().max() < 1e-4 and (own.inout - other.inout).abs().max() < 1e-4


def test_no_head_is_no_row(exported: Exported) -> None:
    output = OnnxGaze(exported.path, threads=1)(torch.zeros(1, 3, 32, 48), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert output.heatmap.shape == (0, 16, 20)
    assert output.inout is not None
    assert output.inout.shape == (0,)


def test_caller_keeps_its_model_and_boxes(exported: Exported) -> None:
    images, boxes, index = heads(1, 3)
    before = boxes.clone()
    OnnxGaze(exported.path, threads=1)(images, boxes, index)
    assert torch.equal(boxes, before)


def test_description(exported: Exported, run: Path) -> None:
    assert exported.path == run / "exports" / "student.onnx"
    written = json.loads((run / "exports" / "student.json").read_text())
    assert written == json.loads(json.dumps(exported.description))
    stored = json.loads((run / "student" / "model.json").read_text())
    assert written["weights_digest"] == stored["weights_digest"]
    assert written["digest"] == file_digest(exported.path)
    assert written["bytes"] == exported.path.stat().st_size
    assert (written["name"], written["file"], written["format"]) == ("tiny_student", "student.onnx", "onnx")
    assert [(entry["name"], entry["shape"], entry["type"]) for entry in written["inputs"]] == [
        ("pictures", ["images", "rows", "columns", 3], "uint8"), ("boxes", ["heads", 4], "float32"), ("image_index", ["heads"], "int64"),
    ]
    assert [(entry["name"], entry["shape"]) for entry in written["outputs"]] == [
        ("heatmap", ["heads", 16, 20]), ("inout", ["heads"]),
    ]
    assert written["metrics"] == {"auc": 0.75, "ap": None}
    assert written["lineage"] == {"data": "d" * 32, "weights": stored["weights_digest"]}
    assert written["run"] == "tiny"
    assert written["gate"]["split"] == "val"
    parity = written["parity"]
    assert parity["heatmap_probability"] <= 1e-3
    assert parity["argmax_equal"] >= 0.99
    assert parity["inout_flips"] == 0
    assert parity["scenes"] == 64
    assert sum(written["gate"]["scenes"].values()) + written["gate"]["further_views"] == 64
    assert parity["avg_l2_change"] == 0 and abs(parity["auc_change"]) < 1e-4
    assert written["tolerance_changed"] == {} and written["schema"] == 2
    assert {path.name for path in (run / "exports").iterdir()} >= {"student.json", "student.onnx", "gaze_predictor.py"}


def test_graph_says_what_the_description_says(exported: Exported) -> None:
    import onnx

    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph, full_check=True)

    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    description = exported.description
    assert {entry.name: shape(entry) for entry in graph.graph.input} == {e["name"]: e["shape"] for e in description["inputs"]}
    assert {entry.name: shape(entry) for entry in graph.graph.output} == {e["name"]: e["shape"] for e in description["outputs"]}


def test_evaluation_takes_it_as_any_model(exported: Exported, model: GazeModel, run: Path) -> None:
    scenes = gate_scenes(run, 4).scenes
    onnx = ExportedFile(exported.path, threads=1)
    assert (onnx.input_size, onnx.heatmap_size, onnx.has_inout) == ((32, 48), (16, 20), True)
    assert onnx.fingerprint["weights_digest"] == exported.description["weights_digest"]
    wanted, got = evaluate(model.eval(), scenes).metrics, evaluate(onnx, scenes).metrics
    assert got.avg_l2 == wanted.avg_l2
    assert got.auc == pytest.approx(wanted.auc, abs=1e-4)


def test_resizing_is_what_the_description_says() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (70, 45, 3), dtype=np.uint8)
    ours = IDENTITY.picture(picture, (32, 48)).numpy()  # shrinks one axis, enlarges the other
    for channel in range(3):
        flat = Image.fromarray(picture[..., channel].astype(np.float32) / 255.0)
        theirs = np.asarray(flat.resize((48, 32), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(ours[channel], theirs, atol=2e-6)


class Patches(nn.Module):
    """A backbone of one layer, quick to trace."""

    channels, grid = 8, (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.cut(pixels)


def test_without_inout_there_is_no_such_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachers.model.build_backbone", lambda *_: Patches())
    model = GazeModel(replace(CONFIG, inout="none", heatmap_size=(8, 12))).train()
    scene = heads(2, 3)
    result = export_student(
        model, tmp_path / "mute.onnx", [SceneBatch(*scene, ("a", "b"), as_pictures(scene[0]))], name="mute", weights_digest="0", facts={"note": 1}
    )
    assert model.training  # the caller's model is as it was
    assert [entry["name"] for entry in result.description["outputs"]] == ["heatmap"]
    assert result.description["parity"]["inout_flips"] is None
    assert result.description["note"] == 1
    onnx = OnnxGaze(result.path, threads=1)
    assert not onnx.has_inout
    output = onnx(*scene)
    assert output.inout is None
    with torch.inference_mode():
        torch.testing.assert_close(output.heatmap, model.eval()(*scene).heatmap, atol=2e-5, rtol=1e-4)


# --- what is withheld and refused ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("traced")
def test_a_file_that_differs_is_withheld(tmp_path: Path, model: GazeModel, run: Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"before")
    other = GazeModel(CONFIG)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.decoder.heatmap_head[1].weight.mul_(1.5)
    scenes = gate_scenes(run, 2).scenes
    with pytest.raises(ExportError, match=r"withheld.*heatmap \|Δp\| .* > 0\.001.*differ most: .*\.jpg"):
        export_student(other, path, shown(scenes), name="x", weights_digest="0")
    assert [entry.name for entry in tmp_path.iterdir()] == ["student.onnx"]
    assert path.read_bytes() == b"before"


def test_branches_are_merged_for_the_file_and_not_for_the_gate(tmp_path: Path, model: GazeModel, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced is the merged copy; what its file is compared with is the student itself, so a merge that went wrong is found."""
    scenes, traced_models = shown(gate_scenes(run, 2).scenes), []

    def merge(student: GazeModel) -> GazeModel:
        broken = copy.deepcopy(student)
        with torch.no_grad():
            broken.decoder.heatmap_head[1].weight.mul_(1.5)
        return broken

    def traced_as(answers: Path) -> None:
        monkeypatch.setattr(export, "trace", lambda student, path: (traced_models.append(student), shutil.copyfile(answers, path)))

    monkeypatch.setattr(export, "has_branches", lambda student: True)
    monkeypatch.setattr(export, "reparametrised", merge)
    traced_as(core_graph())
    export_student(model, tmp_path / "a.onnx", scenes, name="x", weights_digest="0")
    weights = traced_models[0].decoder.heatmap_head[1].weight
    torch.testing.assert_close(weights, 1.5 * model.decoder.heatmap_head[1].weight)
    graph = onnx.load(core_graph())
    (changed,) = [tensor for tensor in graph.graph.initializer if tensor.name.endswith("heatmap_head.1.weight")]
    changed.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(changed), changed.name))
    onnx.save(graph, tmp_path / "merged.onnx")
    traced_as(tmp_path / "merged.onnx")
    with pytest.raises(ExportError, match=r"withheld.*heatmap \|Δp\| .* > 0\.001"):
        export_student(model, tmp_path / "b.onnx", scenes, name="x", weights_digest="0")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.usefixtures("traced")
def test_one_picture_asked_in_several_ways_is_no_mean_over_scenes(
    tmp_path: Path, model: GazeModel, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first picture is repeated to see other numbers of heads: a highest cell that moves there moves in all of these at once."""
    scenes, seen = shown(gate_scenes(run, 2).scenes), []

    def moved(reference: object, candidate: object, batches: object, **rest: object) -> Parity:
        parity = compare(reference, candidate, batches, **rest)  # type: ignore[arg-type]
        seen.append(parity)
        return replace(parity, mean_argmax_shift=0.3) if len(seen) % 2 else parity

    monkeypatch.setattr(export, "compare", moved)
    result = export_student(model, tmp_path / "a.onnx", scenes, name="x", weights_digest="0", tolerance=Tolerance(0.01, None, 0.25))
    assert len(seen) == 2 and result.parity is seen[1]


@pytest.mark.usefixtures("traced")
def test_a_file_that_agrees_takes_the_place_of_the_old_one(tmp_path: Path, exported: Exported, model: GazeModel, run: Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"before")
    export_student(model, path, shown(gate_scenes(run, 2).scenes), name="x", weights_digest="0")
    assert path.read_bytes() == exported.path.read_bytes()
    assert read_export(path)["name"] == "x"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["gaze_predictor.py", "student.json", "student.onnx"]


def test_other_files_are_not_taken_for_exports(tmp_path: Path, model: GazeModel) -> None:
    (tmp_path / "model.json").write_text('{"format": 1}')
    with pytest.raises(ExportError, match="describes no exported file"):
        export_student(model, tmp_path / "model.onnx", [], name="x", weights_digest="0")
    with pytest.raises(ExportError, match=r"end in \.onnx"):
        export_student(model, tmp_path / "model.pt", [], name="x", weights_digest="0")
    with pytest.raises(ExportError, match="no scene"):
        export_student(model, tmp_path / "student.onnx", [], name="x", weights_digest="0")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.json"]


def test_damaged_and_lonely_files_are_named(tmp_path: Path, exported: Exported) -> None:
    path = tmp_path / "student.onnx"
    with pytest.raises(ExportError, match="does not exist"):
        OnnxGaze(path)
    data = bytearray(exported.path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ExportError, match=r"no student\.json beside it"):
        OnnxGaze(path)
    shutil.copyfile(exported.path.with_suffix(".json"), tmp_path / "student.json")
    with pytest.raises(ExportError, match="digest"):
        OnnxGaze(path)
    (tmp_path / "student.json").write_text("{")
    with pytest.raises(ExportError, match="cannot be read"):
        OnnxGaze(path)
    (tmp_path / "student.json").write_text("{}")
    with pytest.raises(ExportError, match="does not describe"):
        OnnxGaze(path)


def test_files_that_cannot_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "student.pt2").write_bytes(b"")
    assert main(["eval", str(tmp_path / "student.pt2"), "--data", "folder:x"]) == 2
    assert "torch may run what is pickled in one" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module} .*pip install 'gaze-distill\[export\]'"):
        export_run(run)


# --- which scenes, and the command -------------------------------------------------------------------------------------------


def test_gate_scenes_are_spread_over_the_validation_split(run: Path, tmp_path: Path) -> None:
    whole = open_data(f"gazefollow:{run.parents[1] / 'data'}", "trainval").scenes
    chosen = gate_scenes(run, 5, split="trainval").scenes
    assert [scene.key for scene in chosen] == [whole[number].key for number in (0, 6, 12, 18, 24)]
    val = gate_scenes(run, 64)
    assert (val.split, len(val)) == ("val", len(open_data(val.root, "val").scenes))
    folder = write_folder(tmp_path / "photos")
    assert gate_scenes(run, 64, data=f"folder:{folder}").split == "all"


def test_where_there_is_nothing_to_export(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        export_run(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="neither a run nor a stored model"):
        export_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="no student yet"):
        export_run(tmp_path)
    assert student_directory(run) == student_directory(run / "student") == run / "student"
    with pytest.raises(ConfigurationError, match="--data"):
        export_run(run / "student")
    with pytest.raises(DataError, match=r"scenes to check the export on: .*--data SPEC"):
        export_run(run, data=f"gazefollow:{tmp_path / 'moved'}")


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_converted(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file is a file or lies below one, .*choose another --out"):
        export_run(run, tmp_path / "file" / "student.onnx", begin=lambda count: pytest.fail("began"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("traced")
def test_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gaze.onnx"
    assert main(["export", str(run), "--format", "onnx", "--out", str(out), "--scenes", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(out)
    assert facts["parity"]["scenes"] == 3
    assert main(["export", str(run), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "argmax equal" in shown
    assert "MB" in shown
    assert main(["export", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
