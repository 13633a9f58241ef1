"""A graph of one picture and a fixed number of people, for runtimes that want every size known, and how it serves any number.

LiteRT plans its memory, and Core ML its split between processors, before the first call: sizes that vary cost them their fast kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teachers.model import GazeModel

Call = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]]


class FixedPeople(nn.Module):
    """``images [1,3,H,W]`` float32 in [0,1] (``channels_last``: ``[1,H,W,3]``) and ``boxes [people,4]`` to logits ``heatmap
    [people,h,w]`` and ``inout [people]``, by name; without the latter where the model has none."""

    def __init__(self, model: GazeModel, *, channels_last: bool) -> None:
        super().__init__()
        self.model, self.channels_last = model, channels_last

    def forward(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        output = self.model(images, boxes, torch.zeros(boxes.shape[0], dtype=torch.int64))
        return {"heatmap": output.heatmap} if output.inout is None else {"heatmap": output.heatmap, "inout": output.inout}


def fixed_program(student: GazeModel, people: int, *, channels_last: bool) -> torch.export.ExportedProgram:
    """``student`` (on the CPU, in eval mode) traced for ``people`` heads in one picture of its input size."""
    height, width = student.input_size
    images = torch.zeros((1, height, width, 3) if channels_last else (1, 3, height, width))
    boxes = torch.tensor([[0.2, 0.1, 0.4, 0.5]]).repeat(people, 1)
    return torch.export.export(FixedPeople(student, channels_last=channels_last).eval(), (), {"images": images, "boxes": boxes})


def in_calls(
    call: Call, people: int, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Any number of pictures ``[B,...]`` and heads ``[N,4]``, N >= 1, by calls of one picture ``[1,...]`` and ``people`` boxes each.

    Places that are left over are filled with a head that is there, and their answers are dropped.
    """
    heatmaps: list[Any] = [None] * len(boxes)
    inouts: list[Any] = [None] * len(boxes)
    for picture in np.unique(image_index):
        rows = np.flatnonzero(image_index == picture)
        for first in range(0, len(rows), people):
            asked = rows[first : first + people]
            filled = np.concatenate((boxes[asked], np.repeat(boxes[asked[:1]], people - len(asked), axis=0)))
            maps, inout = call(pictures[picture : picture + 1], filled)
            for place, row in enumerate(asked):
                heatmaps[row] = maps[place]
                inouts[row] = None if inout is None else inout[place]
    return np.stack(heatmaps), None if inouts[0] is None else np.array(inouts, np.float32)


def split_answers(answers: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Heatmap and in/out of outputs by name."""
    inout = answers.get("inout")
    return np.asarray(answers["heatmap"], np.float32), None if inout is None else np.asarray(inout, np.float32)
