"""The JavaScript of docs/export.md, taken from the page as it stands and run in headless Chromium, against the Python runtime on the same picture."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from students.gaze_predictor import GazePredictor
from tests.web_world import BOXES, COLUMNS, PACKAGE, ROWS, chromium, data_url, encoded, export_tiny, served

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
# What a bundler would do for `import ... from "onnxruntime-web"`.
PAGE = """\
<!doctype html>
<script type="importmap">{"imports": {"onnxruntime-web": "./ort.wasm.bundle.min.mjs"}}</script>
<script type="module">
%s
window.gaze = gaze;
</script>
"""
DRAW = """async ([url, boxes]) => {
  const bitmap = await createImageBitmap(await (await fetch(url)).blob());
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return gaze(canvas, boxes);
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be served: the snippet's page, ONNX Runtime Web's module and its WebAssembly, and an exported file that takes raw pictures."""
    folder = tmp_path_factory.mktemp("site")
    export_tiny(folder / "student.onnx", "uint8")
    snippets = re.findall(r"```js\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 1
    (folder / "index.html").write_text(PAGE % snippets[0], encoding="utf-8")
    with tarfile.open(PACKAGE) as package:
        for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
            file = package.extractfile(f"package/dist/{name}")
            assert file is not None
            (folder / name).write_bytes(file.read())
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Any]:
    with chromium() as browser, served(folder) as address:
        page = browser.new_page()
        page.goto(f"{address}/index.html")
        page.wait_for_function("typeof window.gaze === 'function'")
        yield page


@pytest.mark.parametrize("size", [(64, 48), (400, 90), (33, 77)], ids=str)
def test_the_snippet_answers_as_python(folder: Path, page: Any, size: tuple[int, int]) -> None:
    width, height = size
    noise = np.random.default_rng(8).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = page.evaluate(DRAW, [data_url(encoded(Image.fromarray(noise), "PNG"), "png"), BOXES])
    wanted = GazePredictor(folder / "student.onnx", threads=1)(noise, BOXES, normalised=True)
    assert wanted[0].point != wanted[1].point
    for here, there in zip(found, wanted, strict=True):
        assert here["x"] * width == pytest.approx(there.point[0], abs=width / COLUMNS * 0.01)
        assert here["y"] * height == pytest.approx(there.point[1], abs=height / ROWS * 0.01)
        assert here["inout"] == pytest.approx(there.inout, abs=1e-3)


def test_nobody_gives_no_answer(page: Any) -> None:
    assert page.evaluate("gaze(new OffscreenCanvas(5, 5), [])") == []
