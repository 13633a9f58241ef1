"""``distill bench export``: every row has its figures, and a file that the gate withholds has its reason."""

from __future__ import annotations

import json

import pytest

from distill.cli import main
from tests.export_world import already_traced, tiny_export, tiny_run


@pytest.mark.soak
def test_one_row_for_each_file_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with already_traced():
        assert main(["bench", "export", str(tiny_run()), str(tiny_export().path), "--quick", "--people", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    kinds = {(row["format"], row["precision"]) for row in facts["rows"]} | {(each["format"], each["precision"]) for each in facts["withheld"]}
    assert kinds == {("student", "float32"), ("onnx", "float32"), ("onnx", "float16"), ("onnx", "int8"), ("black box", "as exported")}
    assert facts["base"] == "onnx float32" and facts["rounds"] == 8
    for row in facts["rows"]:
        assert row["people"] == 2 and 0 < row["least_ms"] <= row["median_ms"] <= row["p95_ms"]
        assert row["pictures_per_s"] > 0 and row["peak_mb"] >= 0 and row["mb"] > 0 and 0 <= row["avg_l2"] <= 1.5
    by_kind = {(row["format"], row["precision"]): row for row in facts["rows"]}
    assert by_kind["onnx", "float32"]["speed_over_base"] == 1.0
    assert by_kind["onnx", "float32"]["avg_l2"] == pytest.approx(by_kind["student", "float32"]["avg_l2"], abs=1e-3)
    assert by_kind["black box", "as exported"]["mb"] == by_kind["onnx", "float32"]["mb"]
    assert all("withheld" in each["reason"] for each in facts["withheld"])


def test_lists_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "a", ""):
        with pytest.raises(SystemExit):
            main(["bench", "export", "runs/a", "--people", wrong])
        assert "no list of numbers" in capsys.readouterr().err
