"""``distill bench export``: every row has its figures, and a file that the gate withholds has its reason."""

from __future__ import annotations

import io
import json
from argparse import Namespace
from pathlib import Path

import pytest
from rich.console import Console

import students.export
from distill import exporting
from distill.benchmarks.export import KINDS, entrants
from distill.benchmarks.export_table import figures, show
from distill.cli import main
from tests.export_world import already_traced, tiny_export, tiny_run


@pytest.mark.soak
def test_one_row_for_each_file_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with already_traced():
        assert main(["bench", "export", str(tiny_run()), str(tiny_export().path), "--quick", "--people", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    kinds = {(row["format"], row["precision"]) for row in facts["rows"]} | {(each["format"], each["precision"]) for each in facts["withheld"]}
    assert kinds == {("student", "float32"), ("onnx", "float32"), ("onnx", "float16"), ("onnx", "int8"), ("black box", "as exported")}
    assert facts["pictures"] == 16
    assert facts["base"] == "onnx float32" and facts["rounds"] == 8
    for row in facts["rows"]:
        assert row["people"] == 2 and 0 < row["least_ms"] <= row["median_ms"] <= row["p95_ms"]
        assert row["pictures_per_s"] > 0 and row["peak_mb"] >= 0 and row["mb"] > 0 and 0 <= row["avg_l2"] <= 1.5
    by_kind = {(row["format"], row["precision"]): row for row in facts["rows"]}
    assert by_kind["onnx", "float32"]["speed_over_base"] == 1.0
    assert by_kind["onnx", "float32"]["avg_l2"] == pytest.approx(by_kind["student", "float32"]["avg_l2"], abs=1e-3)
    assert by_kind["black box", "as exported"]["mb"] == by_kind["onnx", "float32"]["mb"]
    assert all("withheld" in each["reason"] for each in facts["withheld"])


def fact(model: str, kind: str, precision: str, people: int, **others: float | None) -> dict[str, object]:
    figures = {"mb": 7.064, "median_ms": 1234.56, "p95_ms": 2345.67, "cpu_ms": 2469.1, "speed_over_base": 12.345, "pictures_per_s": 123.45, "peak_mb": 1234.5}
    figures |= {"auc": 0.91234, "avg_l2": 0.09312, "mean_shift": 0.0123, "flips": 0.0}
    return {"model": model, "format": kind, "precision": precision, "people": people, **figures, **others}


def test_the_table_fits_a_hundred_columns_and_says_what_is_not_in_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    about = {"run": "runs/a", "threads": 2, "rounds": 40, "load": 1.2, "base": "onnx float32", "pictures": 128}
    rows = [
        fact("student", "student", "float32", 1), fact("student", "openvino", "float32", 1), fact("student", "openvino", "float32", 5),
        fact("other[v2].onnx", "black box", "as exported", 1, mean_shift=None, flips=None),
    ]
    why = "not run: Core ML predicts on macOS only"
    withheld = [{"format": "coreml", "precision": precision, "reason": why} for precision in ("float32", "float16")]
    withheld.append({"format": "onnx", "precision": "int8", "reason": "student-int8.onnx is withheld"})
    with Console(width=100, file=(written := io.StringIO())) as console:
        console.print(figures(about, rows))
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    assert max(map(len, lines)) <= 100
    assert lines[1].split() == ["file", "heads", "MB", "ms", "p95", "CPU", "ms", "speed", "pict/s", "peak", "MB", "AUC", "avg", "L2", "shift", "flips"]
    call = ["1234.6", "2345.7", "2469.1", "12.35", "123.5", "1234"]
    assert [line.split() for line in lines[3:]] == [
        ["student", "in", "torch", "1", "7.06", *call, "0.9123", "0.0931", "0.012", "0.000"],
        ["openvino", "float32", "1", "7.06", *call, "0.9123", "0.0931", "0.012", "0.000"],
        ["5", *call],  # of the file as such nothing again
        ["other[v2].onnx", "1", "7.06", *call, "0.9123", "0.0931", "-", "-"],
    ]
    show(about, rows, withheld)
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f"not in the table: coreml float32, float16: {why}", "not in the table: onnx int8: student-int8.onnx is withheld"]
    for name in ("ms, p95:", "CPU ms:", "speed: onnx float32 = 1", "pict/s:", "peak MB:", "AUC, avg L2: on 128 pictures", "shift:", "flips:"):
        assert name in "\n".join(said), name


def test_a_format_without_a_runtime_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is exported: every format but Core ML, which has no runtime on this side, stands in with a missing extra."""
    monkeypatch.setattr(exporting, "export_run", lambda *_, wanted, **__: exporting.require_extra(wanted.format, f"no_{wanted.format}"))
    monkeypatch.setattr(students.export, "can_run", lambda wanted: wanted.format != "coreml")
    options = Namespace(run_dir=tiny_run(), others=[], data=None, split=None, quick=False, converter_python=None)
    found = {(each.kind, each.precision): each.withheld for each in entrants(options, tmp_path, 2, lambda line: None)}
    assert set(found) == set(KINDS)
    assert "macOS only" in found["coreml", "float32"] and "pip install 'gaze-distill[openvino]'" in found["openvino", "int8"]


def test_another_model_that_cannot_be_opened_is_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporting, "export_run", lambda *_, **__: pytest.fail("exported"))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for name in ("junk.onnx", "absent.onnx"):
        assert main(["bench", "export", str(tiny_run()), str(tmp_path / name), "--quick"]) == 2
        assert name in capsys.readouterr().err


def test_lists_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "a", ""):
        with pytest.raises(SystemExit):
            main(["bench", "export", "runs/a", "--people", wrong])
        assert "no list of numbers" in capsys.readouterr().err
