"""The JSON beside an exported file: what goes in, what comes out, how a picture is prepared, where the file comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from students.errors import ExportError
from students.onnx_runtime import SUFFIXES, description_path, export_digest, export_files
from students.raw_pictures import PICTURES, RESIZE
from teachers.model import GazeModel

SCHEMA = 2


def describe(
    student: GazeModel, path: Path, *, name: str, weights_digest: str, kind: str, precision: str, pixels: str, people: int | None = None
) -> dict[str, Any]:
    """What the JSON beside the file at ``path`` says of it: inputs, outputs, preprocessing, digests. ``people``: how many heads a call
    has, where that is fixed; then it has one picture, and no image index."""
    height, width = student.input_size
    rows, columns = student.heatmap_size
    outputs: list[dict[str, Any]] = [
        {
            "name": "heatmap", "shape": ["heads", rows, columns], "type": "float32",
            "meaning": "logits; the sigmoid is each cell's probability. Rows are y, columns x. The gaze point is the highest cell: "
            "x = column / columns, y = row / rows of the picture, as benchmarks count; add half a cell to draw at its centre",
        },
        {
            "name": "inout", "shape": ["heads"], "type": "float32",
            "meaning": "logit; the sigmoid is the probability that the gaze target is within the picture",
        },
    ]
    raw: dict[str, Any] = {
        "name": PICTURES, "shape": ["images", "rows", "columns", 3], "type": "uint8",
        "meaning": "whole pictures as decoded, RGB, of any one size a call; any number of them. Nothing is to be resized or normalised",
    }
    resized: dict[str, Any] = {
        "name": "images", "shape": ["images", 3, height, width], "type": "float32",
        "meaning": "pictures in RGB, values in [0,1], resized as `preprocessing` says, not normalised; any number",
    }
    boxes: dict[str, Any] = {
        "name": "boxes", "shape": ["heads", 4], "type": "float32",
        "meaning": "head boxes xmin, ymin, xmax, ymax in [0,1] of their picture; any number from one on",
    }
    index = {"name": "image_index", "shape": ["heads"], "type": "int64", "meaning": "which picture, from 0, each head is in"}
    first = raw if pixels == "uint8" else resized
    layout = "images, rows, columns, channels" if pixels == "uint8" else "images, channels, rows, columns"
    fixed: dict[str, Any] = {}
    if people is not None:
        first = resized | {"shape": [1, 3, height, width], "meaning": resized["meaning"].replace("pictures", "one picture").removesuffix("; any number")}
        if kind == "litert":
            layout = "images, rows, columns, channels"
            first["shape"] = [1, height, width, 3]
        boxes |= {
            "shape": [people, 4],
            "meaning": f"head boxes xmin, ymin, xmax, ymax in [0,1] of the picture; always {people}: fill what is left over with one that is "
            "there and drop its answer, and call again for more",
        }
        for output in outputs:
            output["shape"] = [people, *output["shape"][1:]]
        fixed = {"people": people}
    files = export_files(path)
    return {
        "schema": SCHEMA, "format": kind, "precision": precision, "pixels": pixels, **fixed,
        "file": path.name, "files": [file.relative_to(path.parent).as_posix() for file in files],
        "digest": export_digest(path), "bytes": sum(file.stat().st_size for file in files),
        "name": name, "weights_digest": weights_digest, "config": student.config.to_json(),
        "input_size": [height, width], "heatmap_size": [rows, columns], "has_inout": student.has_inout,
        "inputs": [first, boxes] if fixed else [first, boxes, index],
        "outputs": outputs[: 1 + student.has_inout],
        "preprocessing": {
            "colour": "RGB", "range": [0, 255] if pixels == "uint8" else [0.0, 1.0],
            "layout": layout,
            "size": "any" if pixels == "uint8" else [height, width], "keep_aspect_ratio": False,
            "resize": "inside the graph" if pixels == "uint8" else "bilinear, antialiased, in floating point", "resize_exactly": RESIZE,
            "normalisation": "inside the graph", "mean": list(student.config.mean), "std": list(student.config.std),
            "upright": "turn a photograph as its EXIF orientation says first; put a transparent one on white",
        },
    }


def refuse_strangers(path: Path, kind: str) -> None:
    """Raise :class:`ExportError` where ``path`` has another ending than ``kind`` wants, or something else's JSON lies beside it."""
    wanted = SUFFIXES[kind]
    if path.suffix != wanted:
        raise ExportError(f"{path} does not end in {wanted}, as files of format {kind} do; give a file name that does")
    beside = description_path(path)
    if not beside.exists():
        return
    try:
        held = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        held = None
    # A stored model's description has the name model.json: an export beside it must not take its place.
    if not isinstance(held, dict) or held.get("format") not in SUFFIXES:
        raise ExportError(f"{beside} is there and describes no exported file; give the export another name")
    if held["format"] != kind:
        raise ExportError(f"{beside} describes the {held['format']} file {held.get('file')}; give the export another name, by --out")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """``values`` as JSON; what is not finite is a defect and is refused."""
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
