"""What the tests in a browser share: headless Chromium, a server on this machine, a tiny exported student.

Importing it skips the module that does so, by name, where a part is absent that `make test-web` installs.
"""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is absent: `make test-web`")
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
if CHROMIUM is None:
    pytest.skip("Chromium is absent: `make test-web`", allow_module_level=True)
PACKAGE = Path(os.environ.get("GAZE_ORT_WEB", ""))
if not PACKAGE.is_file():
    pytest.skip("onnxruntime-web is absent (GAZE_ORT_WEB names its .tgz): `make test-web`", allow_module_level=True)

BOXES = [[0.1, 0.15, 0.35, 0.5], [0.55, 0.3, 0.8, 0.72]]
ROWS, COLUMNS = 12, 16


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def served(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address under which a server on this machine hands out ``folder``, with ``headers`` on every answer."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def export_tiny(path: Path, pixels: str) -> Path:
    """A student of random weights, whose answer depends on picture and head, exported to ``path`` for ``pixels`` "float32" or "uint8"."""
    pytest.importorskip("onnxscript", reason="the extra 'export' is absent")
    from students.export import trace
    from students.export_description import describe
    from students.raw_pictures import prepend_resize
    from teachers.model import GazeModel, ModelConfig

    torch.manual_seed(3)
    config = ModelConfig(
        backbone="tf_efficientnet_lite0", input_size=(48, 64), levels=(1,), stride=4, dim=16, layers=1, attention_heads=2,
        heatmap_size=(ROWS, COLUMNS), inout="mlp",
    )
    model = GazeModel(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():  # random features lie close together: spread them, or every person looks at one cell
            if tensor.ndim > 1:
                tensor.mul_(1.5)
        model.decoder.get_parameter("head_token.weight").mul_(10)
    trace(model, path)
    if pixels == "uint8":
        prepend_resize(path, path, model.input_size)
    described = describe(model, path, name="tiny", weights_digest="0", kind="onnx", precision="float32", pixels=pixels)
    path.with_suffix(".json").write_text(json.dumps(described))
    return path


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """The picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str) -> str:
    """A picture's bytes as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
