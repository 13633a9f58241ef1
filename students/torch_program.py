"""The student as a ``torch.export`` program (``.pt2``): one file that torch opens without this package."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from students.raw_pictures import RawGaze
from teachers.model import GazeModel


def write_program(student: GazeModel, path: Path) -> None:
    """Write ``student`` (on the CPU, in eval mode) to ``path``: raw pictures of any one size and number, any number of heads from two on
    or one."""
    from students.export import Graph

    pictures = torch.zeros(2, 75, 91, 3, dtype=torch.uint8)
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.4], [0.5, 0.2, 0.8, 0.6], [0.2, 0.5, 0.4, 0.8]])
    count, heads = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    side = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        program = torch.export.export(
            RawGaze(Graph(student), student.input_size).eval(), (pictures, boxes, torch.tensor([0, 0, 1])),
            dynamic_shapes=({0: count, 1: side, 2: side}, {0: heads}, {0: heads}),
        )
        torch.export.save(program, str(path))


class TorchProgram:
    """A program at ``path``, opened and run by torch alone."""

    pixels = "uint8"

    def __init__(self, path: Path) -> None:
        self._module = torch.export.load(str(path)).module()

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.inference_mode():
            heatmap, *inout = self._module(*(torch.from_numpy(np.ascontiguousarray(each)) for each in (pictures, boxes, image_index)))
        return heatmap.numpy(), inout[0].numpy() if inout else None
