"""The web page's folder, without a browser: what is in it, what it refuses, and where ONNX Runtime Web comes from."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from distill.cli import main
from distill.errors import ConfigurationError, MissingExtraError
from distill.web_export import PAGE, write_web_folder
from distill.web_runtime import GLUE, LIBRARY, WASM, cached_package, open_runtime
from students.errors import ExportError
from students.onnx_runtime import file_digest

FILES = {"package.json": json.dumps({"name": "onnxruntime-web", "version": "9.9.9"}), LIBRARY: "library", GLUE: "glue", WASM: "wasm"}


def package(path: Path, **changed: str) -> Path:
    """What `npm pack` writes, with the files that a page needs."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {**FILES, **changed}.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"a graph")
    facts = {
        "schema": 1, "format": "onnx", "name": "tiny", "precision": "fp32", "input_size": [48, 64], "heatmap_size": [12, 16], "has_inout": False,
        "inputs": [], "outputs": [], "digest": file_digest(path), "weights_digest": "w", "lineage": {"cache": "c"},
    }
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def script(path: Path, variable: str) -> dict:
    text = path.read_text()
    assert text.startswith(f"self.{variable} = ") and text.endswith(";\n")
    return json.loads(text.removeprefix(f"self.{variable} = ").rstrip(";\n"))


def test_the_folder_holds_everything_that_the_page_asks_for(onnx: Path, tmp_path: Path) -> None:
    folder = write_web_folder(onnx, tmp_path / "web", open_runtime(package(tmp_path / "ort.tgz")))
    assert sorted(path.name for path in folder.path.iterdir()) == sorted([*PAGE, "model.js", "runtime.js", "sample.js", "NOTICE.txt", "web.json"])
    assert folder.bytes == sum(path.stat().st_size for path in folder.path.iterdir())
    model = script(folder.path / "model.js", "GAZE_MODEL")
    assert gzip.decompress(base64.b64decode(model["onnx"])) == b"a graph"
    assert (model["facts"]["name"], model["facts"]["heatmap_size"], model["palette"][0]) == ("tiny", [12, 16], "#56b4e9")
    runtime = script(folder.path / "runtime.js", "GAZE_RUNTIME")
    assert runtime["version"] == "9.9.9"
    assert [gzip.decompress(base64.b64decode(runtime[name])).decode() for name in ("library", "glue", "wasm")] == ["library", "glue", "wasm"]
    sample = script(folder.path / "sample.js", "GAZE_SAMPLE")
    assert len(sample["boxes"]) == 3 and all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in sample["boxes"])
    assert folder.record["model"] == {"name": "tiny", "digest": file_digest(onnx), "weights_digest": "w", "precision": "fp32", "lineage": {"cache": "c"}}
    assert folder.record["runtime"] == {"package": "onnxruntime-web", "version": "9.9.9", "checked": False}
    page = (folder.path / "index.html").read_text()
    assert [name for name in ("http:", "https:", "//") if name in page] == []
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    write_web_folder(onnx, tmp_path / "web", open_runtime(tmp_path / "ort.tgz"))
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_what_is_no_web_page_is_left_alone(onnx: Path, tmp_path: Path) -> None:
    runtime = open_runtime(package(tmp_path / "ort.tgz"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match=r"mine holds thesis\.txt"):
        write_web_folder(onnx, tmp_path / "mine", runtime)
    with pytest.raises(ConfigurationError, match="is a file"):
        write_web_folder(onnx, onnx, runtime)
    onnx.write_bytes(b"another graph")
    with pytest.raises(ExportError, match="digest"):
        write_web_folder(onnx, tmp_path / "web", runtime)
    assert not (tmp_path / "web").exists()


def test_packages_that_are_given(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    for name, text in FILES.items():
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_text(text)
    assert open_runtime(unpacked) == open_runtime(package(tmp_path / "a.tgz"))
    (unpacked / WASM).unlink()
    with pytest.raises(ConfigurationError, match=r"unpacked lacks ort-wasm-simd-threaded\.wasm"):
        open_runtime(unpacked)
    with pytest.raises(ConfigurationError, match="is the npm package 'left-pad'"):
        open_runtime(package(tmp_path / "b.tgz", **{"package.json": '{"name": "left-pad"}'}))
    (tmp_path / "c.tgz").write_bytes(b"no archive")
    with pytest.raises(ConfigurationError, match="is no package of npm"):
        open_runtime(tmp_path / "c.tgz")
    with pytest.raises(ConfigurationError, match="does not exist"):
        open_runtime(tmp_path / "d.tgz")


def test_a_cached_package_is_compared_with_what_npm_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GAZE_DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="npm, which fetches it, is not installed"):
        open_runtime()
    cached_package().parent.mkdir(parents=True, exist_ok=True)
    package(cached_package())
    with pytest.raises(ConfigurationError, match=r"is not the onnxruntime-web 1\.30\.0 that npm published; delete it"):
        open_runtime()
    assert main(["export", str(tmp_path / "nowhere"), "--format", "web"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
