"""An exported student as a web page: a folder of plain files that works offline, from a disk or any web server.

The folder holds the page (``index.html``, ``page.css``, ``engine.js``, ``picture.js``, ``people.js``, ``page.js``: the files of
``distill/web``), three scripts that carry data, and ``web.json``, which says what it was made from and carries the digest of every other file:

``model.js``
    ``GAZE_MODEL``: the exported file (gzip, base64), the facts of the JSON beside it that the page needs, and the colours of drawings.
``runtime.js``
    ``GAZE_RUNTIME``: ONNX Runtime Web for the CPU (gzip, base64) and its version.
``sample.js``
    ``GAZE_SAMPLE``: a generated scene with its head boxes in [0,1].

Data are scripts because a page that is opened from a disk may run scripts beside it and fetch nothing.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import ConfigurationError

if TYPE_CHECKING:
    from distill.web_runtime import WebRuntime

PAGE = ("index.html", "page.css", "engine.js", "picture.js", "people.js", "page.js")
RECORD = "web.json"
SAMPLE = (2024, 22, 960, 720)  # seed, index, width and height of the generated scene: two look at things in it, one out of it
FACTS = ("name", "format", "precision", "input_size", "heatmap_size", "has_inout", "inputs", "outputs", "digest")

NOTICE = """\
runtime.js holds ONNX Runtime Web {version}, unchanged and compressed: https://github.com/microsoft/onnxruntime

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in
the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of
the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR
A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class WebFolder:
    """A folder that was written: its path, the page to open, its size in bytes, and ``web.json`` as a dictionary."""

    path: Path
    page: Path
    bytes: int
    record: dict[str, Any]


def write_web_folder(onnx: Path, out: Path, runtime: WebRuntime) -> WebFolder:
    """Write the page for the exported file ``onnx`` (its JSON beside it) to the folder ``out``; an earlier page there is replaced when the new one is whole.

    Raises :class:`students.errors.ExportError` for an exported file that is missing or was changed, and :class:`ConfigurationError` where
    ``out`` holds something else.
    """
    from distill.overlay import COLOUR_MAP, PALETTE
    from students.onnx_runtime import file_digest, read_export

    description = read_export(onnx)
    refuse_strangers(out)
    model = {
        "facts": {key: description[key] for key in FACTS}, "colours": COLOUR_MAP.astype(int).tolist(),
        "palette": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in PALETTE], "onnx": _packed(onnx.read_bytes()),
    }
    library = {"version": runtime.version, "library": _packed(runtime.library), "glue": _packed(runtime.glue), "wasm": _packed(runtime.wasm)}
    record: dict[str, Any] = {
        "format": "web", "schema": 1, "model": {key: description.get(key) for key in ("name", "digest", "weights_digest", "precision", "lineage")},
        "runtime": {"package": "onnxruntime-web", "version": runtime.version, "checked": runtime.checked},
        "sample": dict(zip(("seed", "index", "width", "height"), SAMPLE, strict=True)),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    workshop.chmod(0o755)  # as any other folder: a web server may run as another user
    try:
        for name in PAGE:
            (workshop / name).write_bytes(files("distill").joinpath("web", name).read_bytes())
        for name, variable, value in (("model.js", "GAZE_MODEL", model), ("runtime.js", "GAZE_RUNTIME", library), ("sample.js", "GAZE_SAMPLE", _sample())):
            (workshop / name).write_text(f"self.{variable} = {json.dumps(value, allow_nan=False)};\n", encoding="utf-8")
        (workshop / "NOTICE.txt").write_text(NOTICE.format(version=runtime.version), encoding="utf-8")
        record["files"] = {file.name: file_digest(file) for file in sorted(workshop.iterdir())}
        (workshop / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in workshop.iterdir())
        if out.exists():
            shutil.rmtree(out)
        os.replace(workshop, out)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return WebFolder(out, out / "index.html", size, record)


def refuse_strangers(out: Path) -> None:
    """Raise :class:`ConfigurationError` where ``out`` is a file, or a folder with anything but an earlier page."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigurationError(f"{out} is a file; give a folder for the web page with --out")
    ours = {*PAGE, "model.js", "runtime.js", "sample.js", "NOTICE.txt", RECORD}
    strangers = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if strangers:
        raise ConfigurationError(f"folder {out} holds {strangers[0]}, which is no part of a web page; give an empty folder with --out")


def _packed(data: bytes) -> str:
    # No time of day inside: the same files give the same folder.
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _sample() -> dict[str, Any]:
    from distill.synth.config import SynthConfig
    from distill.synth.dataset import encode_picture
    from distill.synth.scene import draw_scene

    seed, index, width, height = SAMPLE
    drawn = draw_scene(seed, index, SynthConfig(width=width, height=height))
    boxes = [[x0 / width, y0 / height, x1 / width, y1 / height] for x0, y0, x1, y1 in sorted(head.box for head in drawn.heads)]
    return {"type": "image/jpeg", "picture": base64.b64encode(encode_picture(drawn.picture)).decode(), "boxes": boxes}
