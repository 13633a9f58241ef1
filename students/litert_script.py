"""Run by a Python that has LiteRT's converter, in an environment of its own: a ``torch.export`` program to a ``.tflite`` file.

    python litert_script.py PROGRAM.pt2 FLOAT32.tflite [PRECISION OTHER.tflite [FEEDS.npz]]

Nothing of this project is imported: the converter pins a torch of its own. The second file, in float16 or int8 (calibrated on
the feeds ``images [V,H,W,3]`` and ``boxes [V,people,4]``), is made from the first.
"""

from __future__ import annotations

import sys
from typing import Any


def convert(program: str, target: str) -> None:
    """Write the program, whose example inputs are named, as float32."""
    import litert_torch
    import torch

    exported = torch.export.load(program)
    _, named = exported.example_inputs
    litert_torch.convert(exported.module(), sample_kwargs=named).export(target)


def narrow(source: str, precision: str, target: str, feeds: str | None) -> None:
    """Write the float32 file ``source`` in float16 (weights) or int8 (weights by channel, activations static)."""
    from ai_edge_quantizer import quantizer, recipe

    work = quantizer.Quantizer(source)
    if precision == "float16":
        work.load_quantization_recipe([{
            "regex": ".*", "operation": "*", "algorithm_key": "float_casting",
            "op_config": {
                "weight_tensor_config": {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"},
                "compute_precision": "FLOAT", "explicit_dequantize": True, "skip_checks": False,
            },
        }])
        ranges = None
    else:
        work.load_quantization_recipe(recipe.static_wi8_ai8())
        ranges = work.calibrate({"serving_default": _feeds(feeds)}, num_threads=1)
    work.quantize(ranges).export_model(target)


def _feeds(path: str | None) -> list[dict[str, Any]]:
    import numpy as np

    with np.load(str(path)) as held:
        return [{"images": image[None], "boxes": boxes} for image, boxes in zip(held["images"], held["boxes"], strict=True)]


if __name__ == "__main__":
    convert(*sys.argv[1:3])
    if len(sys.argv) > 3:
        narrow(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5] if len(sys.argv) > 5 else None)
