"""What an exported page was made from: `distill info` on its folder, and on the run that it lies in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from distill.cli import main
from distill.errors import ConfigurationError
from distill.lineage import ABSENT, CHANGED, OK, UNCHECKED, Link, lineage
from distill.web_export import write_web_folder
from distill.web_runtime import WebRuntime
from students.onnx_runtime import file_digest
from teachers.model import GazeModel, ModelConfig
from teachers.weights import save_model

RUNTIME = WebRuntime("9.9.9", b"library", b"glue", b"wasm", checked=False)
TINY = ModelConfig(
    backbone="tf_efficientnet_lite0", input_size=(32, 32), levels=(1,), stride=4, dim=16, layers=1, attention_heads=2, heatmap_size=(8, 8), drop_path=0.0,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was trained on annotations that are no longer there, with an exported file and a page made of it."""
    run = tmp_path / "runs" / "first"
    made_of = {"data": "d0", "reader": "folder", "split": "train"}
    (run / "exports").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"data": {"data": str(tmp_path / "gone")}, "facts": {"lineage": made_of}}))
    torch.manual_seed(2)
    weights = save_model(run / "student", GazeModel(TINY), "tiny", {"lineage": made_of})
    onnx = run / "exports" / "student_web.onnx"
    onnx.write_bytes(b"a graph")
    described = {
        "schema": 1, "format": "onnx", "name": "tiny", "precision": "float32", "input_size": [32, 32], "heatmap_size": [8, 8], "has_inout": False,
        "inputs": [], "outputs": [], "digest": file_digest(onnx), "weights_digest": weights, "lineage": made_of,
    }
    onnx.with_suffix(".json").write_text(json.dumps(described))
    write_web_folder(onnx, run / "exports" / "web", RUNTIME)
    return run


def told(path: Path) -> list[tuple[str, str]]:
    return [(link.what, link.status) for link in lineage(str(path)).links]


def last(path: Path) -> Link:
    return lineage(str(path)).links[-1]


def test_a_page_in_its_run_has_the_runs_chain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(run) == [("data", ABSENT), ("run", OK), ("export", OK), ("web page", OK)]
    page = run / "exports" / "web"
    assert lineage(str(page)).kind == "web page"
    assert told(page) == [("data", ABSENT), ("run", OK), ("web page", OK)]
    assert last(page).digest == file_digest(run / "exports" / "student_web.onnx")
    assert "float32 model, ONNX Runtime Web 9.9.9" in last(page).note
    assert main(["info", str(page), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kind"], printed["whole"], printed["links"][-1]["what"]) == ("web page", True, "web page")


def test_a_page_elsewhere_says_what_was_recorded(run: Path, tmp_path: Path) -> None:
    away = tmp_path / "served"
    shutil.move(run / "exports" / "web", away)
    assert told(run) == [("data", ABSENT), ("run", OK), ("export", OK)]
    assert told(away) == [("data", UNCHECKED), ("run", ABSENT), ("web page", OK)]
    assert (lineage(str(away)).links[0].digest, lineage(str(away)).links[1].name) == ("d0", "tiny")


def test_a_file_that_was_changed_or_is_missing_is_named(run: Path) -> None:
    page = run / "exports" / "web"
    (page / "page.js").write_text("alert(1)")
    assert (last(page).status, last(page).note) == (CHANGED, "page.js is not the file that was exported")
    assert main(["info", str(page)]) == 1
    (page / "page.js").unlink()
    assert (last(run).status, last(run).note) == (CHANGED, "page.js is not in it")


def test_a_page_of_an_earlier_student_of_the_run(run: Path) -> None:
    torch.manual_seed(3)
    newer = save_model(run / "student", GazeModel(TINY), "tiny", {"lineage": {"data": "d0", "reader": "folder", "split": "train"}})
    assert told(run) == [("data", ABSENT), ("run", OK), ("export", CHANGED), ("web page", CHANGED)]
    assert f"the run's student is now {newer}: export it again" in last(run / "exports" / "web").note


def test_records_that_say_less(run: Path) -> None:
    record = run / "exports" / "web" / "web.json"
    written = json.loads(record.read_text())
    assert sorted(written["files"]) == sorted(path.name for path in record.parent.iterdir() if path != record)
    del written["files"]
    record.write_text(json.dumps(written))
    assert (last(record.parent).status, last(record.parent).note) == (UNCHECKED, "its web.json has no digests of files; export it again")
    record.write_text("{")
    with pytest.raises(ConfigurationError, match=r"web\.json cannot be read .* export the page again"):
        lineage(str(record.parent))
    record.write_text("[]")
    with pytest.raises(ConfigurationError, match="does not describe an exported web page"):
        lineage(str(record.parent))
