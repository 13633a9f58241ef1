"""The catalogue of students, ``timm:NAME``, and re-parametrisation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.cli import main
from distill.picture_sizes import memory_file as sizes_file
from distill.student_times import REFERENCE_MACHINE, memory_file, remember, remembered
from distill.web_runtime import cached_package
from students.catalogue import STUDENTS, build_student, student_config
from students.reparametrise import has_branches, reparametrised
from teachers.catalogue import store
from teachers.errors import UnknownModelError, WeightsError
from teachers.model import GazeModel, ModelConfig, parameter_count


def test_students_of_the_demo_keep_their_architecture() -> None:
    sizes = {}
    for name in ("lite0_tiny", "lite0_small", "lite0_large", "vit_tiny"):
        with torch.device("meta"):
            sizes[name] = parameter_count(build_student(STUDENTS[name]))
        assert STUDENTS[name].decoder == "gazelle"
    assert {name: round(size / 1e6, 2) for name, size in sizes.items()} == {"lite0_tiny": 0.99, "lite0_small": 3.7, "lite0_large": 4.56, "vit_tiny": 6.23}


def test_the_catalogue_spans_its_sizes_with_both_kinds_of_backbone() -> None:
    sizes = {}
    for name, config in STUDENTS.items():
        if config.decoder == "query":
            with torch.device("meta"):
                sizes[name] = parameter_count(build_student(config)) / 1e6
    assert min(sizes.values()) < 1.3 and 30 < max(sizes.values()) < 35
    assert {bool(STUDENTS[name].levels) for name in sizes} == {True, False}


def test_a_student_of_any_backbone() -> None:
    config = student_config("timm:resnet18")
    assert (config.levels, config.stride, config.input_size, config.decoder) == ((3, 4), 16, (224, 224), "query")
    vit = student_config("timm:vit_tiny_patch16_224", inout="none")
    assert (vit.levels, vit.input_size, vit.mean, vit.inout) == ((), (224, 224), (0.5, 0.5, 0.5), "none")
    assert student_config("timm:hgnetv2_pico").levels == (2,)
    with torch.no_grad():
        answer = build_student(replace(config, input_size=(64, 64))).eval()(torch.rand(1, 3, 64, 64), torch.tensor([[0.1, 0.1, 0.3, 0.3]]), torch.tensor([0]))
    assert answer.heatmap.shape == (1, 64, 64) and answer.heatmap.isfinite().all()


def test_a_backbone_without_a_map_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WeightsError, match=r"timm:crossvit_tiny_240 yields no feature map .*strides 12, 17, none of them 16.*choose a convolutional network"):
        student_config("timm:crossvit_tiny_240")
    with pytest.raises(WeightsError, match=r"timm:coat_tiny cannot be opened block by block: .*yields no stages"):
        student_config("timm:coat_tiny")
    with pytest.raises(UnknownModelError, match="unknown backbone 'resnet81'"):
        student_config("timm:resnet81")
    assert main(["students", "list", "timm:resnet81"]) == 2
    assert "resnet81" in capsys.readouterr().err
    assert main(["students", "list", "--rounds", "1"]) == 2
    assert "--rounds is 1" in capsys.readouterr().err


def test_the_list_counts_operations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", "list", "hgnet_atto", "lite0_small", "--json"]) == 0
    query, gazelle = json.loads(capsys.readouterr().out)
    assert query["name"] == "hgnet_atto" and query["decoder"] == "query 1+2x128"
    assert query["gflop"] > 0 and query["gflop_further"] < 0.03 * query["gflop"]
    assert gazelle["gflop_further"] > 0.1 * gazelle["gflop"]


def test_a_home_may_be_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GAZE_DISTILL_HOME", "~/elsewhere")
    for file in (memory_file(), sizes_file(tmp_path, upright=False), cached_package(), store()):
        assert file.is_relative_to(tmp_path / "elsewhere")
    monkeypatch.delenv("GAZE_DISTILL_HOME")
    assert memory_file().parent == tmp_path / ".cache/gaze-distill"


def test_every_student_has_milliseconds_of_the_reference_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student whose description changes wants measuring anew: ``distill students list NAME --measure --json``."""
    monkeypatch.setenv("GAZE_DISTILL_HOME", str(tmp_path))
    for name, config in STUDENTS.items():
        times = remembered(config)
        assert times["ms"] is not None, name
        assert 0 < times["ms_further"] < times["ms"] and times["timing"]["machine"] == REFERENCE_MACHINE


def test_milliseconds_are_of_this_machine_once_they_were_measured_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAZE_DISTILL_HOME", str(tmp_path / "home"))
    atto = STUDENTS["hgnet_atto"]
    timing = {"onnxruntime": "1.32.0", "threads": 2, "rounds": 11, "load": 0.5}
    words = ["students", "list", "hgnet_atto"]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    reference = row["ms"]
    assert reference != 11.4 and row["timing"]["machine"] == REFERENCE_MACHINE
    assert main(words) == 0
    shown = capsys.readouterr()
    assert f"{reference:.1f}" in shown.out and REFERENCE_MACHINE in " ".join(shown.out.split()) and "--measure" in shown.err
    remember([(atto, {"ms": 11.4, "ms_further": 0.141, "timing": timing}), (replace(atto, dim=64), {"ms": 9.0, "ms_further": 0.1, "timing": timing})])
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["ms"], row["ms_further"], row["timing"]) == (11.4, 0.141, {**timing, "machine": "this"})
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "11.4" in shown.out and "0.14" in shown.out and "this machine" in shown.out and "--measure" not in shown.err
    assert remembered(replace(atto, dim=32))["ms"] is None  # a student that was changed since
    for damaged in ("{", '{"version": 1, "times": {"a": 1}}', "[]", '{"version": 2, "times": {}}'):
        memory_file().write_text(damaged)
        assert remembered(atto)["ms"] == reference


@pytest.mark.parametrize(("backbone", "branches"), [("repvit_m0_9", True), ("fastvit_t8", True), ("hgnetv2_b0", False)])
def test_merged_branches_answer_as_before(backbone: str, branches: bool) -> None:
    torch.manual_seed(0)
    model = GazeModel(ModelConfig(backbone=backbone, input_size=(64, 64), levels=(2,), decoder="query", dim=16, layers=1, attention_heads=2)).train()
    for module in model.modules():  # as after training: statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    assert has_branches(model) == branches
    before = parameter_count(model)
    merged = reparametrised(model)
    assert model.training and parameter_count(model) == before and not merged.training
    assert (parameter_count(merged) < before) == branches
    images, boxes, index = torch.rand(1, 3, 64, 64), torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.5, 0.2, 0.9, 0.6]]), torch.tensor([0, 0])
    with torch.no_grad():
        wanted, got = model.eval()(images, boxes, index), merged(images, boxes, index)
    assert float(wanted.heatmap.std()) > 1e-3
    torch.testing.assert_close(got.heatmap, wanted.heatmap, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.inout, wanted.inout, atol=1e-4, rtol=1e-4)
