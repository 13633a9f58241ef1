"""Run by a Python that has LiteRT's converter, in an environment of its own: a ``torch.export`` program to a ``.tflite`` file.

    python litert_script.py PROGRAM.pt2 FLOAT32.tflite [FLOAT16.tflite]

Nothing of this project is imported: the converter pins a torch of its own. The second file, with weights in
float16, is made from the first. Left out: int8 of activations, whose recipe makes inputs and outputs int8 as well.
"""

from __future__ import annotations

import sys


def convert(program: str, target: str) -> None:
    """Write the program, whose example inputs are named, as float32."""
    import litert_torch
    import torch

    exported = torch.export.load(program)
    _, named = exported.example_inputs
    litert_torch.convert(exported.module(), sample_kwargs=named).export(target)


def narrow(source: str, target: str) -> None:
    """Write the float32 file ``source`` with weights in float16."""
    from ai_edge_quantizer import quantizer

    work = quantizer.Quantizer(source)
    work.load_quantization_recipe([{
        "regex": ".*", "operation": "*", "algorithm_key": "float_casting",
        "op_config": {
            "weight_tensor_config": {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"},
            "compute_precision": "FLOAT", "explicit_dequantize": True, "skip_checks": False,
        },
    }])
    work.quantize().export_model(target)


if __name__ == "__main__":
    convert(*sys.argv[1:3])
    if len(sys.argv) > 3:
        narrow(sys.argv[2], sys.argv[3])
