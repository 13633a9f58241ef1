"""The chain from annotations to an exported file: whole when nothing was touched, broken at exactly the link that was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.cli import main
from distill.errors import ConfigurationError, DataError
from distill.lineage import lineage
from distill.links import ABSENT, CHANGED, OK, UNCHECKED, Link
from distill.readers import open_data
from students.onnx_runtime import file_digest
from teachers.cache.reader import CacheReader
from teachers.model import GazeModel, ModelConfig
from teachers.weights import save_model
from tests.fixtures import write_gazefollow

TINY = ModelConfig(
    backbone="tf_efficientnet_lite0", input_size=(32, 32), levels=(1,), stride=4, dim=16, layers=1, attention_heads=2,
    heatmap_size=(8, 8), drop_path=0.0,
)  # fmt: skip
DATA = "gazefollow:data"


def tiny_model(seed: int) -> GazeModel:
    torch.manual_seed(seed)
    return GazeModel(TINY)


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, teacher, cache, run and export below one directory, which every path in them is relative to."""
    root = tmp_path_factory.mktemp("built")
    before = Path.cwd()
    os.chdir(root)
    try:
        write_gazefollow(Path("data"))
        save_model(Path("teachers/tiny"), tiny_model(1), "tiny", {"source": "here", "licence": "MIT"})
        command = ["cache", "build", "--data", DATA, "--teacher", "teachers/tiny", "--views", "2", "--out", "caches/tiny"]
        assert main(command) == 0
        manifest = CacheReader(Path("caches/tiny")).manifest
        facts = {
            "name": "tiny_student", "backbone_weights": {"source": "package x", "digest": "ab" * 16},
            "lineage": {
                "data": open_data(DATA, "train").digest(), "reader": "gazefollow", "split": "train",
                "cache": manifest.identity_digest(), "teacher": manifest.teacher,
            },
        }  # fmt: skip
        run = Path("runs/first")
        write_json(run / "config.json", {"data": {"data": DATA, "cache": "caches/tiny"}, "facts": facts})
        weights = save_model(run / "student", tiny_model(2), "tiny_student", facts)
        exports = run / "exports"
        exports.mkdir()
        (exports / "student.onnx").write_bytes(b"a graph")
        described = {"format": "onnx", "digest": file_digest(exports / "student.onnx"), "weights_digest": weights}
        write_json(exports / "student.json", {**described, "name": "tiny_student", "lineage": facts["lineage"]})
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def world(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all of it that a test may spoil, as the working directory."""
    root = tmp_path / "world"
    shutil.copytree(built, root)
    monkeypatch.chdir(root)
    return root


def by_what(text: str) -> dict[str, Link]:
    links = lineage(text).links
    named = {link.what: link for link in links}
    assert len(named) == len(links)
    return named


def statuses(text: str) -> dict[str, str]:
    return {name: link.status for name, link in by_what(text).items()}


WHOLE = {"data": OK, "teacher": OK, "cache": OK, "backbone": UNCHECKED, "run": OK, "export": OK}


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("runs/first", "run", WHOLE),
        ("runs/first/exports/student.onnx", "export", WHOLE),
        ("runs/first/student", "model", {name: WHOLE[name] for name in WHOLE if name != "export"}),
        ("caches/tiny", "cache", {"data": OK, "teacher": OK, "cache": OK}),
        ("teachers/tiny", "model", {"weights": OK}),
    ],
)
def test_an_untouched_chain_is_whole(world: Path, path: str, kind: str, expected: dict[str, str]) -> None:
    chain = lineage(path)
    found = [(link.what, link.status) for link in chain.links if not (path == "teachers/tiny" and link.name == "here")]
    assert (chain.kind, found) == (kind, list(expected.items()))
    assert chain.whole


def test_every_link_states_the_digest_that_the_next_was_made_from(world: Path) -> None:
    links = by_what("runs/first")
    manifest = CacheReader("caches/tiny").manifest
    assert links["data"].digest == open_data(DATA, "train").digest()
    assert links["teacher"].digest == manifest.teacher["weights"]
    assert links["cache"].digest == manifest.identity_digest()
    assert links["run"].digest == json.loads(Path("runs/first/student/model.json").read_text())["weights_digest"]
    assert links["export"].digest == file_digest(Path("runs/first/exports/student.onnx"))


def test_a_data_set_has_a_link_a_split(world: Path) -> None:
    chain = lineage("data")
    assert chain.kind == "data set"
    assert [link.name.split()[-1] for link in chain.links] == ["train", "val", "test"]
    assert {link.name.split()[-1]: link.digest for link in chain.links}["train"] == open_data(DATA, "train").digest()


def test_moved_annotations_break_the_data_link_of_run_and_cache(world: Path) -> None:
    file = world / "data/train_annotations_release.txt"
    lines = file.read_text().splitlines()
    # Every line, as the chosen one could be in the validation scenes; column 9 is the gaze point's y.
    moved = [",".join([*line.split(",")[:9], "0.123", *line.split(",")[10:]]) for line in lines]
    file.write_text("\n".join(moved) + "\n")
    assert statuses("runs/first") == {**WHOLE, "data": CHANGED}
    assert open_data(DATA, "train").digest() in by_what("runs/first")["data"].note
    assert statuses("caches/tiny") == {"data": CHANGED, "teacher": OK, "cache": OK}
    assert "gaze points" in by_what("caches/tiny")["data"].note


def test_another_teacher_of_that_name(world: Path) -> None:
    found = save_model(Path("teachers/tiny"), tiny_model(7), "tiny", {})
    assert statuses("runs/first") == {**WHOLE, "teacher": CHANGED}
    assert found in by_what("caches/tiny")["teacher"].note


def test_a_cache_built_again_of_another_seed(world: Path) -> None:
    shutil.rmtree("caches/tiny")
    command = ["cache", "build", "--data", DATA, "--teacher", "teachers/tiny", "--views", "2", "--seed", "5", "--out", "caches/tiny"]
    assert main(command) == 0
    assert statuses("runs/first") == {**WHOLE, "cache": CHANGED}


def test_a_cache_that_grew_still_matches(world: Path) -> None:
    assert main(["cache", "build", "--data", DATA, "--teacher", "teachers/tiny", "--views", "3", "--out", "caches/tiny"]) == 0
    assert statuses("runs/first") == WHOLE
    assert "x 3 views" in by_what("runs/first")["cache"].note


def test_a_bit_flipped_in_a_shards_tables(world: Path) -> None:
    shard = world / "caches/tiny/shards/00000.safetensors"
    data = bytearray(shard.read_bytes())
    boxes = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["boxes"]["data_offsets"][0]
    data[8 + int.from_bytes(data[:8], "little") + boxes] ^= 1
    shard.write_bytes(data)
    assert statuses("runs/first")["cache"] == CHANGED
    assert "index digest" in by_what("runs/first")["cache"].note


def test_a_student_trained_on_leaves_its_export_behind(world: Path) -> None:
    facts = json.loads(Path("runs/first/student/model.json").read_text())["facts"]
    found = save_model(Path("runs/first/student"), tiny_model(3), "tiny_student", facts)
    assert statuses("runs/first") == {**WHOLE, "export": CHANGED}
    assert found in by_what("runs/first/exports/student.onnx")["export"].note


def test_a_student_of_another_run(world: Path) -> None:
    file = world / "runs/first/student/model.json"
    description = json.loads(file.read_text())
    description["facts"]["lineage"]["data"] = "0" * 32
    file.write_text(json.dumps(description))
    link = by_what("runs/first")["run"]
    assert (link.status, "another data" in link.note) == (CHANGED, True)


@pytest.mark.parametrize(
    ("file", "what"),
    [("runs/first/student/model.safetensors", "run"), ("runs/first/exports/student.onnx", "export")],
)
def test_a_changed_file_breaks_its_own_link(world: Path, file: str, what: str) -> None:
    data = bytearray(Path(file).read_bytes())
    data[-1] ^= 1
    Path(file).write_bytes(data)
    assert statuses("runs/first") == {**WHOLE, what: CHANGED}


def test_what_is_not_here_is_said_to_be_so(world: Path) -> None:
    for gone in ("data", "teachers", "caches"):
        shutil.rmtree(gone)
    assert statuses("runs/first") == {**WHOLE, "data": ABSENT, "teacher": ABSENT, "cache": ABSENT}
    assert lineage("runs/first").whole


def test_an_export_alone_says_what_its_run_recorded(world: Path) -> None:
    for name in ("student.onnx", "student.json"):
        shutil.move(f"runs/first/exports/{name}", name)
    assert statuses("student.onnx") == {"data": UNCHECKED, "teacher": UNCHECKED, "cache": UNCHECKED, "run": ABSENT, "export": OK}
    Path("student.json").unlink()
    assert statuses("student.onnx") == {"export": UNCHECKED}


def test_a_run_is_found_whole_from_another_directory(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = statuses(str(world / "runs/first"))
    assert (found["cache"], found["run"], found["export"]) == (OK, OK, OK)


def test_a_run_without_a_student_yet(world: Path) -> None:
    shutil.rmtree("runs/first/student")
    shutil.rmtree("runs/first/exports")
    link = by_what("runs/first")["run"]
    assert (link.status, link.digest) == (UNCHECKED, "")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("runs/frist", "nearest: runs/first"),
        ("runs", "below it there are runs/first"),
        ("caches", "below it there are caches/tiny"),
        ("runs/first/student/model.json", "no run, cache"),
        ("nowhere/at/all", "give a run, a cache"),
    ],
)
def test_a_path_that_is_none_of_these(world: Path, path: str, says: str) -> None:
    with pytest.raises((ConfigurationError, DataError), match=says):
        lineage(path)


def test_an_unknown_reader_is_named(world: Path) -> None:
    with pytest.raises(DataError, match="gazefollow"):
        lineage("gazefolow:data")


def test_the_command_prints_the_chain_and_its_verdict(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "runs/first"]) == 0
    shown = capsys.readouterr().out
    for word in ("data", "teacher", "cache", "backbone", "run", "export", "tiny", open_data(DATA, "train").digest()[:16]):
        assert word in shown
    Path("runs/first/exports/student.onnx").write_bytes(b"another graph")
    assert main(["info", "runs/first", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["whole"] is False
    assert [link["what"] for link in facts["links"] if link["status"] == CHANGED] == ["export"]
    assert main(["info", "runs/frist"]) == 2


def test_a_comma_in_a_caches_path_divides_nothing(world: Path) -> None:
    shutil.copytree("caches/tiny", "caches/hall, north")
    shutil.copytree("caches/tiny", "caches/b")
    config = json.loads(Path("runs/first/config.json").read_text())
    whole = {**config["facts"]["lineage"]}
    both = [{"cache": whole["cache"], "teacher": whole["teacher"], "weight": 0.5}] * 2
    for stated, made_of, named in (
        ("caches/hall, north", whole, ["caches/hall, north"]),
        ("caches/hall, north:0.6,caches/b:0.4", {**whole, "teacher": {"members": both}}, ["caches/hall, north", "caches/b"]),
        ("caches/b:0.4,caches/hall, north:0.6", {**whole, "teacher": {"members": both}}, ["caches/b", "caches/hall, north"]),
        ("caches/b,caches/gone", {**whole, "teacher": {"members": both}}, ["caches/b", "caches/gone"]),
    ):
        config["data"]["cache"], config["facts"]["lineage"] = stated, made_of
        write_json(Path("runs/first/config.json"), config)
        found = [link for link in lineage("runs/first").links if link.what == "cache"]
        assert [link.name for link in found] == named, stated
        assert [link.status for link in found] == [ABSENT if "gone" in name else OK for name in named]


def test_a_cache_is_verified_and_its_data_found_from_another_directory(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded words are relative; the directory that they were typed in is recorded too."""
    cache = Path("caches/own").absolute()
    assert main(["cache", "build", "--data", DATA, "--teacher", "teachers/tiny", "--views", "2", "--out", "caches/own"]) == 0
    assert statuses(str(cache)) == {"data": OK, "teacher": OK, "cache": OK}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert statuses(str(cache)) == {"data": OK, "teacher": OK, "cache": OK}
    assert main(["cache", "verify", str(cache), "--rows", "3"]) == 0
