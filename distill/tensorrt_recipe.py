"""A TensorRT engine from an exported ONNX file: the command, with the file's own names and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_PICTURES, MOST_HEADS = 8, 64


def recipe(path: Path, description: Mapping[str, Any]) -> list[str]:
    """The lines of one ``trtexec`` command for the ONNX file at ``path``, whose inputs ``description`` lists.

    Sizes that vary get a range: 1 picture to :data:`MOST_PICTURES`, 1 head to :data:`MOST_HEADS`, built for one picture with five.
    The engine has the file's own numbers (``--stronglyTyped``, which 10.x is to be told and 11 always is): for float16 give a float16 file.
    """
    def shapes(pictures: int, heads: int) -> str:
        sizes = {"images": pictures, "heads": heads}
        return ",".join(
            f"{entry['name']}:" + "x".join(str(sizes.get(size, size)) for size in entry["shape"]) for entry in description["inputs"]
        )

    return [
        f"trtexec --onnx={path} --saveEngine={path.with_suffix('.engine')} --stronglyTyped \\",
        f"  --minShapes={shapes(1, 1)} --optShapes={shapes(1, 5)} \\",
        f"  --maxShapes={shapes(MOST_PICTURES, MOST_HEADS)}",
    ]
