"""`distill doctor`: what is right passes, what is wrong is found and names its remedy."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from distill import doctor
from distill.cli import main
from distill.doctor import FAIL, OK, WARN, Check

ROOT = Path(__file__).parents[1]


def test_the_lists_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tuple(Requirement(line).name for line in project["dependencies"]) == doctor.RUNTIME
    extras = project["optional-dependencies"]
    assert {name: tuple(Requirement(line).name for line in extras[name]) for name in extras if name != "dev"} == doctor.EXTRAS
    assert project["name"] == doctor.DISTRIBUTION


def test_an_old_python_fails() -> None:
    assert doctor.check_python((3, 11, 0)).state == OK
    assert doctor.check_python((3, 10, 9)).state == FAIL


@pytest.mark.parametrize(
    ("asked", "found", "state"),
    [
        ("torch==2.6.0", "2.6.0", OK),
        ("torch==2.6.0", "2.6.0+cu124", OK),
        ("torch==2.6.0", "2.7.1", FAIL),
        ("torch>=2.14.0", "2.15.0", OK),
        ("torch>=2.14.0", "2.13.1", FAIL),
        ("torch>=2.0", "2.8.0.dev20250601", OK),
        ("torch", "1.0", OK),
    ],
)
def test_torchvision_must_take_the_torch_that_is_there(asked: str, found: str, state: str) -> None:
    versions = {"torchvision": "0.1", "torch": found}
    check = doctor.check_pair("torchvision", "torch", versions.get, lambda name: [Requirement("numpy"), Requirement(asked)])
    assert check.state == state
    assert found in check.found or asked == "torch"
    assert (check.remedy != "") == (state == FAIL)


def test_a_missing_half_of_a_pair_fails() -> None:
    check = doctor.check_pair("torchvision", "torch", {"torch": "2.6"}.get, lambda name: [])
    assert (check.state, check.found) == (FAIL, "torchvision is not installed")


def test_missing_and_old_packages_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda name: [Requirement("torch>=2.6"), Requirement("timm>=1.0.20")])
    there = {**dict.fromkeys(doctor.RUNTIME, "9.9"), doctor.DISTRIBUTION: "1", "timm": "1.0.19"}
    del there["torch"]
    found = {check.name: check for check in doctor.check_packages(there.get)}
    assert [name for name, check in found.items() if check.state != OK] == ["torch", "timm"]
    assert (found["torch"].state, found["torch"].remedy) == (FAIL, "pip install 'torch>=2.6'")
    assert (found["timm"].state, found["timm"].found) == (FAIL, "1.0.19, needs >=1.0.20")


def test_a_missing_extra_is_a_warning_that_names_the_command() -> None:
    there = dict.fromkeys(("onnx", "onnxscript", "tensorboard"), "1.0")
    found = {check.name: check for check in doctor.check_extras(there.get)}
    export, report, tracking = (found[f"extra {name}"] for name in ("export", "report", "tracking"))
    assert export == Check("extra export", WARN, "not installed: onnxruntime", "pip install 'gaze-distill[export]'")
    assert report.state == OK
    assert tracking == Check("extra tracking", WARN, "not installed: wandb", "pip install 'gaze-distill[tracking]'")


def test_a_library_that_does_not_load_fails_and_ends_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    load = doctor.importlib.import_module

    def broken(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return load(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    checks = list(doctor.examine())
    loads, rest = checks[-2:]
    assert (loads.name, loads.state) == ("torchvision loads", FAIL)
    assert "nms" in loads.found
    assert (rest.name, rest.state) == ("the rest", FAIL)


def test_a_folder_is_proved_writable_and_left_as_it_was(tmp_path: Path) -> None:
    assert doctor.check_folder("x", tmp_path / "not" / "made" / "yet", "X").state == OK
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a file where a folder should be")
def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    check = doctor.check_folder("hub cache", file / "below", "HF_HOME")
    assert (check.state, "HF_HOME" in check.remedy) == (FAIL, True)


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e30)
    assert doctor.check_folder("x", tmp_path, "X").state == WARN


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory", lambda: (16e9, 1e9))
    assert doctor.check_memory() == Check(
        "memory", WARN, "16.0 GB, 1.0 GB free", "close other programs, or lower --batch-size and --batch"
    )


def test_the_self_test_passes() -> None:
    assert [(check.name, check.state) for check in doctor.self_test()] == [
        ("self-test: model", OK), ("self-test: plan", OK), ("self-test: cache", OK),
    ]  # fmt: skip


def test_the_self_test_finds_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from schedules.clock import ThawClock
    from teachers.cache.codecs import codec_named

    class Sloppy:
        """Decodes to something else than was encoded."""

        def __init__(self, codec: object) -> None:
            self.codec = codec

        def __getattr__(self, name: str) -> object:
            return getattr(self.codec, name)

        def decode(self, *arguments: object) -> object:
            return self.codec.decode(*arguments) + 0.01  # type: ignore[attr-defined]

    monkeypatch.setattr("teachers.cache.reader.codec_named", lambda name: Sloppy(codec_named(name)))
    monkeypatch.setattr(ThawClock, "open_blocks", lambda self, epoch: 4)
    states = {check.name: check.state for check in doctor.self_test()}
    assert states == {"self-test: model": OK, "self-test: plan": FAIL, "self-test: cache": FAIL}


def test_the_command_exits_with_1_when_a_check_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Check("torch", OK, "2.6"), Check("timm", FAIL, "[old]", "pip install timm")
    monkeypatch.setattr(doctor, "examine", lambda: iter([good]))
    assert main(["doctor"]) == 0
    assert "all 1 checks passed" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda: iter([good, bad]))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "[old]" in shown
    assert "→ pip install timm" in shown
    assert main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False
    assert facts["checks"][1] == {"name": "timm", "state": "fail", "found": "[old]", "remedy": "pip install timm"}
