"""A gaze model of this project as a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from teachers.contract import GazeOutput
from teachers.errors import UnknownModelError
from teachers.model import GazeModel

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ModelTeacher:
    """A :class:`~teachers.model.GazeModel` that keeps the teacher contract: frozen, on its device, in its precision."""

    def __init__(self, model: GazeModel, name: str, weights_digest: str, *, device: str = "cpu", precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise UnknownModelError.of("precision", precision, PRECISIONS, "use one of these")
        self.model = model.eval().requires_grad_(False).to(device)
        self.name, self.device, self.precision = name, device, precision
        self._digest = weights_digest

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        config = self.model.config.to_json()
        return {
            "name": self.name, "weights": self._digest, "architecture": {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
            "input_size": list(self.input_size), "preprocessing": "squash, antialiased bilinear, float", "precision": self.precision,
        }

    @property
    def input_size(self) -> tuple[int, int]:
        return self.model.input_size

    @property
    def heatmap_size(self) -> tuple[int, int]:
        return self.model.heatmap_size

    @property
    def has_inout(self) -> bool:
        return self.model.has_inout

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        device = torch.device(self.device)
        # TF32 would make the same weights another function on a GPU; "fp32" means float32 there too.
        tf32 = torch.backends.cudnn.flags(allow_tf32=self.precision != "fp32")
        with tf32, torch.inference_mode(), torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            output = self.model(images.to(device, non_blocking=True), boxes.to(device), image_index.to(device))
        return GazeOutput(output.heatmap.float(), None if output.inout is None else output.inout.float())
