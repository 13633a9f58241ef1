"""ONNX files as teachers: against a direct computation, through every convention an adapter can declare, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from distill.predicting import load_gaze
from teachers.adapter import BUILT_IN, read_adapter
from teachers.catalogue import load_teacher
from teachers.errors import BlackBoxError, DeviceError, WeightsError
from teachers.onnx_teacher import OnnxTeacher, split_name
from tests.fixtures import write_folder
from tests.onnx_world import SIZE, expected, write_black_box
from tests.test_catalogue import run

TOML = """\
[image]
input = "picture"
layout = "NHWC"
colour = "RGB"
range = 255
mean = [51.0, 0, 25.5]
std = [2, 1, 0.5]

[boxes]
input = "heads_px"
unit = "pixels"
nesting = "flat"

[heatmap]
output = "maps"

[inout]
output = "away"
means = "out"
"""


def batch(pictures: int = 3, owners: tuple[int, ...] = (2, 0, 0, 2)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    corners = torch.rand(len(owners), 2, generator=dice) * 0.5
    boxes = torch.cat((corners, corners + 0.1 + torch.rand(len(owners), 2, generator=dice) * 0.3), dim=1)
    return torch.rand(pictures, 3, SIZE, SIZE, generator=dice), boxes, torch.tensor(owners)


def compare(teacher: OnnxTeacher, tolerance: float = 2e-5) -> None:
    """Four heads of two of three pictures, in no order, and no head at all."""
    given = batch()
    output = teacher(*given)
    maps, inout = expected(*(each.numpy() for each in given))
    assert output.heatmap.dtype == torch.float32 and output.heatmap.shape == (4, *teacher.heatmap_size)
    assert np.abs(output.heatmap.numpy() - maps).max() < tolerance
    assert (output.inout is not None) == teacher.has_inout
    if output.inout is not None:
        assert np.abs(output.inout.numpy() - inout).max() < tolerance
    empty = teacher(given[0], torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert empty.heatmap.shape == (0, *teacher.heatmap_size)


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("with_inout", [True, False])
def test_a_file_of_gazelle_dinov3_works_by_itself(tmp_path: Path, sigmoid: bool, with_inout: bool) -> None:
    teacher = OnnxTeacher(write_black_box(tmp_path / "gazelle_x.onnx", sigmoid=sigmoid, with_inout=with_inout))
    assert teacher.adapter.name == "gazelle-dinov3" and teacher.adapter.heatmap.values == ("probabilities" if sigmoid else "logits")
    assert (teacher.input_size, teacher.heatmap_size, teacher.has_inout, teacher.device) == ((16, 16), (8, 8), with_inout, "cpu")
    compare(teacher)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_fixed_number_of_heads_is_filled_up(tmp_path: Path, heads: int) -> None:
    compare(OnnxTeacher(write_black_box(tmp_path / "fixed.onnx", heads=heads)))


def test_every_convention_that_an_adapter_declares(tmp_path: Path) -> None:
    path = write_black_box(
        tmp_path / "odd.onnx", names=("picture", "heads_px", "maps", "away"), nhwc=True, red=0, rank=2, scale=0.05, box_scale=1 / SIZE
    )
    (tmp_path / "odd.adapter.toml").write_text(TOML)
    teacher = OnnxTeacher(path)
    images, boxes, index = batch()
    output = teacher(images, boxes, index)
    fed = (images.numpy().astype(np.float64) * 255 - np.array([51, 0, 25.5]).reshape(1, 3, 1, 1)) / np.array([2, 1, 0.5]).reshape(1, 3, 1, 1)
    maps, inout = expected(fed * 0.05, boxes.numpy(), index.numpy())
    limit = np.log((1 - 1e-6) / 1e-6)
    assert np.abs(maps).max() > limit  # the clamp is reached, on both sides
    assert np.abs(output.heatmap.numpy() - maps.clip(-limit, limit)).max() < 0.1
    close = np.abs(maps) < 5
    assert close.any() and np.abs(output.heatmap.numpy() - maps)[close].max() < 1e-4
    assert output.inout is not None and np.allclose(output.inout.numpy(), -inout.clip(-limit, limit), atol=0.1)


@pytest.mark.parametrize(("kind", "tolerance"), [(TensorProto.FLOAT16, 0.02), (TensorProto.UINT8, 0.02), (TensorProto.DOUBLE, 2e-5)])
def test_the_graph_says_what_type_its_picture_has(tmp_path: Path, kind: int, tolerance: float) -> None:
    compare(OnnxTeacher(write_black_box(tmp_path / "typed.onnx", kind=kind)), tolerance)


def test_one_head_a_call_and_a_size_that_the_adapter_says(tmp_path: Path) -> None:
    path = write_black_box(tmp_path / "open.onnx", sides=("height", "width"), rank=2)
    adapter = tmp_path / "mine.json"
    facts = {
        "image": {"input": "image_bgr", "colour": "BGR", "range": 255, "size": [SIZE, SIZE]}, "clamp": 1e-4,
        "boxes": {"input": "bboxes_x1y1x2y2", "nesting": "head"}, "heatmap": {"output": "heatmap", "values": "probabilities"},
    }
    adapter.write_text(json.dumps(facts))
    teacher = OnnxTeacher(path, adapter=str(adapter))
    assert teacher.heatmap_size == (8, 8) and not teacher.has_inout and teacher.adapter.clamp == 1e-4
    compare(teacher)
    with pytest.raises(BlackBoxError, match=r"leaves the picture's size open; give \[image\] size"):
        OnnxTeacher(write_black_box(tmp_path / "open3.onnx", sides=("height", "width")))


def test_the_fingerprint_is_of_file_adapter_and_provider(tmp_path: Path) -> None:
    path = write_black_box(tmp_path / "box.onnx")
    first = OnnxTeacher(path).fingerprint
    json.dumps(first)
    assert first["name"] == "box" and first["runtime"] == "onnxruntime CPUExecutionProvider" and first["adapter"]["image"]["colour"] == "BGR"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/box.onnx").write_bytes(path.read_bytes())
    assert OnnxTeacher(tmp_path / "elsewhere/box.onnx").fingerprint == first
    # The same words in a file of another name are the same adapter; another word is another teacher.
    words = {key: value for key, value in BUILT_IN["gazelle-dinov3"].to_json().items() if value is not None}
    words["image"].pop("size")
    words["boxes"].pop("image_index")
    (tmp_path / "same.json").write_text(json.dumps(words))
    assert OnnxTeacher(path, adapter=str(tmp_path / "same.json")).fingerprint == first
    words["clamp"] = 1e-5
    (tmp_path / "other.json").write_text(json.dumps(words))
    assert OnnxTeacher(path, adapter=str(tmp_path / "other.json")).fingerprint != first
    other = write_black_box(tmp_path / "elsewhere/box.onnx", with_inout=False)
    assert OnnxTeacher(other).fingerprint["weights"] != first["weights"]


def test_external_weights_belong_to_the_file(tmp_path: Path) -> None:
    path = write_black_box(tmp_path / "large.onnx", external=True)
    first = OnnxTeacher(path)
    compare(first)
    weights = tmp_path / "large.weights"
    content = bytearray(weights.read_bytes())
    place = content.index(np.float32(3.0).tobytes())
    content[place : place + 4] = np.float32(2.0).tobytes()
    weights.write_bytes(content)
    assert OnnxTeacher(path).fingerprint["weights"] != first.fingerprint["weights"]
    weights.unlink()
    with pytest.raises(BlackBoxError, match=r"keeps weights in large\.weights, which is not beside it; put .*large\.weights there"):
        OnnxTeacher(path)
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../outside" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    (tmp_path.parent / "outside").write_bytes(content)
    with pytest.raises(BlackBoxError, match=r"keeps weights in '\.\./outside', which is not beside it"):
        OnnxTeacher(path)


def test_names_of_onnx_teachers(tmp_path: Path) -> None:
    assert split_name("onnx:a/b.onnx") == (Path("a/b.onnx"), "")
    assert split_name("onnx:a/b.onnx?adapter=mine.toml") == (Path("a/b.onnx"), "mine.toml")
    path = write_black_box(tmp_path / "box.onnx")
    model, name = load_gaze(f"onnx:{path}?adapter=gazelle-dinov3")
    assert isinstance(model, OnnxTeacher) and name == "box"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "--precision bf16 cannot be used"),
        ({"compiled": True, "weights": Path("x")}, "--weights, --compile cannot be used"),
        ({"device": "cuda"}, "cannot run on cuda .*CPUExecutionProvider"),
        ({"device": "mps"}, "cannot run on mps"),
        ({"adapter": "gazelle"}, "adapter 'gazelle' is neither a file nor one of gazelle-dinov3, gaze-distill"),
    ],
)
def test_options_that_a_black_box_has_not(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write_black_box(tmp_path / "box.onnx")
    with pytest.raises((BlackBoxError, DeviceError, WeightsError), match=message):
        load_teacher(f"onnx:{path}", **options)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="--adapter describes an ONNX file"):
        load_teacher("demo", adapter="gazelle-dinov3")


@pytest.mark.parametrize(
    ("graph", "adapter", "message"),
    [
        ({"names": ("a", "b", "c", "d")}, "", r"of no kind that is known by itself \(it has inputs a, b and outputs c, d\); describe it in box\.adapter\.toml"),
        ({"names": ("a", "b", "c", "d")}, "gazelle-dinov3", r"input 'image_bgr', which adapter gazelle-dinov3 declares, is not in the graph; .*has inputs a, b"),
        ({"names": ("image_bgr", "bboxes_x1y1x2y2", "map", "inout")}, "", "output 'heatmap', which adapter gazelle-dinov3 declares, is not in the graph"),
        ({"extra_input": True}, "gazelle-dinov3", "input 'threshold' of the graph is not declared"),
        ({"rank": 2}, "", r"input 'bboxes_x1y1x2y2' is \[\?,4\], nesting 'image' of adapter gazelle-dinov3 is \[1,N,4\]; correct boxes.nesting"),
        ({"nhwc": True}, "", "input 'image_bgr' has 16 channels as NCHW; correct image.layout"),
        ({"ending": "Softmax"}, "", "cannot be seen whether output 'heatmap' holds logits or probabilities; declare values"),
        ({}, TOML, "input 'picture', which adapter"),
        ({}, "[image]\ninput = 3", r"image\.input is 3; give the name"),
        ({}, "[image]\ncolour = 'CMYK'", r"image\.colour is 'CMYK'; give one of RGB, BGR"),
        ({}, "[image]\ninput = 'x'\nmean = [0, 1]", r"image\.mean is \[0, 1\]; give 3 numbers"),
        ({}, "[image]\ninput = 'x'\nstd = [0, 1, 1]", r"image\.std is \[0, 1, 1\]; give 3 numbers above 0"),
        ({}, "[image]\ninput = 'x'\nsize = [448.0, 448]", r"image\.size is \[448\.0, 448\]; give 2 numbers above 0"),
        ({}, "[image]\ninput = 'x'\nflip = 1", r"image\.flip is unknown; \[image\] has input, layout"),
        ({}, "[picture]\ninput = 'x'", r"\[picture\] is unknown; there are \[image\], \[boxes\]"),
        ({}, "[image]\ninput = 'x'", r"lacks \[boxes\], \[heatmap\]"),
        ({}, "clamp = 0.5", "clamp is 0.5; give a number above 0 and below 0.5"),
        ({}, "boxes = 4", "boxes is 4, and is to be a table"),
        ({}, "[image", "cannot be read"),
        ({}, "[boxes]\ninput = 'b'\nnesting = 'image'\nimage_index = 'i'\n[image]\ninput = 'x'\n[heatmap]\noutput = 'y'", "image_index goes with nesting 'flat'"),
    ],
)
def test_what_does_not_fit_is_one_line_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], graph: dict[str, object], adapter: str, message: str
) -> None:
    path = write_black_box(tmp_path / "box.onnx", **graph)  # type: ignore[arg-type]
    words = ["teachers", "check", f"onnx:{path}"]
    if adapter in BUILT_IN:
        words += ["--adapter", adapter]
    elif adapter:
        (tmp_path / "box.adapter.toml").write_text(adapter)
    status, out, err = run(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err


@pytest.mark.parametrize("content", [b"", b"this is no ONNX file", b"\x80\x02code", "cut"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str) -> None:
    path = write_black_box(tmp_path / "box.onnx")
    path.write_bytes(path.read_bytes()[:300] if isinstance(content, str) else content)
    status, out, err = run(capsys, "cache", "build", "--images", str(write_folder(tmp_path / "p")), "--teacher", f"onnx:{path}", "--out", str(tmp_path / "c"))
    assert (status, out, err.count("\n")) == (2, "", 1) and "is no ONNX file, or is cut short" in err, err
    assert not (tmp_path / "c").exists()
    status, _, err = run(capsys, "teachers", "check", f"onnx:{tmp_path / 'gone.onnx'}")
    assert status == 2 and "does not exist" in err


def test_two_adapters_beside_a_file_are_refused(tmp_path: Path) -> None:
    path = write_black_box(tmp_path / "box.onnx")
    for suffix in ("toml", "json"):
        (tmp_path / f"box.adapter.{suffix}").write_text("")
    with pytest.raises(BlackBoxError, match=r"two adapters beside it, box\.adapter\.toml and box\.adapter\.json"):
        OnnxTeacher(path)


def test_logits_declared_as_probabilities_are_refused(tmp_path: Path) -> None:
    path = write_black_box(tmp_path / "box.onnx", sigmoid=False)
    facts = BUILT_IN["gazelle-dinov3"].to_json()
    facts = {"image": {"input": "image_bgr", "range": 255}, "boxes": {"input": facts["boxes"]["input"]}, "heatmap": {"output": "heatmap", "values": "probabilities"}}
    (tmp_path / "box.adapter.json").write_text(json.dumps(facts))
    assert read_adapter(tmp_path / "box.adapter.json").inout is None
    with pytest.raises(BlackBoxError, match=r"output 'heatmap' gave .*, which is no probability; declare values = \"logits\""):
        OnnxTeacher(path)(*batch())


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str) -> None:
    path = write_black_box(tmp_path / "box.onnx")
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = run(capsys, "teachers", "check", f"onnx:{path}")
    assert status == 2 and f"needs {module}," in err and "pip install 'gaze-distill[export]'" in err


def test_a_black_box_from_check_to_cache_to_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = write_folder(tmp_path / "pictures")
    path = write_black_box(tmp_path / "box.onnx")
    status, out, _ = run(capsys, "teachers", "check", f"onnx:{path}", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["finite"] and facts["adapter"]["name"] == "gazelle-dinov3" and facts["mfu"] is None
    base = ["cache", "build", "--images", str(pictures), "--teacher", f"onnx:{path}", "--adapter", "gazelle-dinov3", "--views", "2", "--out", "cache"]
    status, out, _ = run(capsys, *base, "--json")
    assert status == 0 and json.loads(out)["rows"] == 8 and json.loads(out)["complete"]
    status, out, _ = run(capsys, "cache", "verify", "cache", "--rows", "8", "--json")
    assert status == 0 and json.loads(out)["ok"]
    status, out, _ = run(capsys, "info", "cache", "--json")
    assert status == 0 and next(link for link in json.loads(out)["links"] if link["what"] == "teacher")["status"] == "ok"
    status, out, _ = run(capsys, "predict", f"onnx:{path}", str(pictures), "--out", "answers", "--no-overlays", "--json")
    assert status == 0 and json.loads(out)["model"] == "box" and json.loads(out)["people"] == 4
    # Another file under that name is another teacher.
    write_black_box(path, sigmoid=False)
    status, _, err = run(capsys, *base)
    assert status == 2 and "teacher" in err
    status, out, _ = run(capsys, "info", "cache", "--json")
    assert status == 1 and next(link for link in json.loads(out)["links"] if link["what"] == "teacher")["status"] == "CHANGED"


@pytest.mark.parametrize(("ending", "constant"), [("Sub", "one"), ("Mul", "gain")])
def test_a_probability_that_was_reckoned_with_is_not_taken_for_a_logit(tmp_path: Path, ending: str, constant: str) -> None:
    path = write_black_box(tmp_path / "box.onnx")
    model = onnx.load(str(path))
    last = next(node for node in model.graph.node if node.output[0] == "heatmap")
    last.input[0] = "reckoned"
    model.graph.node.insert(list(model.graph.node).index(last), onnx.helper.make_node(ending, [constant, "answers"], ["reckoned"]))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    with pytest.raises(BlackBoxError, match="cannot be seen whether output 'heatmap' holds logits or probabilities; declare values"):
        OnnxTeacher(path)


def test_a_home_behind_the_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert split_name("onnx:~/models/a.onnx?adapter=mine") == (Path("/home/me/models/a.onnx"), "mine")
