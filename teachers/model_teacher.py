"""A gaze model of this project as a teacher: on a device, in a precision, compiled if wished."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from teachers.contract import GazeOutput
from teachers.errors import DeviceError, UnknownModelError
from teachers.model import GazeModel

# Heads in one run of the decoder: at Gaze-LLE's 32 × 32 cells a head takes 14 MB on its way, and sixteen pictures of a crowd would take all there is.
HEADS_AT_ONCE = 128
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> str:
    """The device ``name``; ``auto`` is this process's GPU, else Apple's, else the CPU. Raises :class:`DeviceError` for one that is not here."""
    if name != "auto":
        check_device(name)
        return name
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(name: str, precision: str = "fp32") -> torch.device:
    """The torch device ``name``, if it is there and can compute in ``precision``.

    A GPU without bf16 units is refused, as its emulation is slower than fp32. A CPU does bf16 and fp16 whether or not it has units
    for them: the answers are those of the precision, the speed may be less than fp32's (:func:`has_units` tells).
    Raises :class:`DeviceError`.
    """
    if precision not in PRECISIONS:
        raise UnknownModelError.of("precision", precision, PRECISIONS, "use one of these")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown; give auto, cpu, cuda, cuda:1 or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r} is not supported; give auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device is {name}, but torch sees no GPU here; use --device cpu, or look at `distill doctor`")
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"device is {name}, but torch sees {torch.cuda.device_count()} GPU(s) here, from cuda:0 on; give one of them")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device is {name}, but torch sees no Apple GPU here; use --device cpu")
    if precision == "bf16" and not has_units(device, precision) and device.type != "cpu":
        raise DeviceError(f"{name} has no bf16 units; use --precision fp16 or fp32")
    return device


def has_units(device: torch.device, precision: str) -> bool:
    """Whether ``device`` computes in ``precision`` faster than in float32, as far as torch says."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return precision == "fp16" or torch.backends.mps.is_macos_or_newer(14, 0)
    # torch names these tests privately; a build without one of them does not use such units either.
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if precision == "bf16" else ("_is_avx512_fp16_supported", "_is_amx_fp16_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)


class ModelTeacher:
    """A :class:`~teachers.model.GazeModel` that keeps the teacher contract: frozen, on its device, in its precision.

    ``compiled`` runs it through ``torch.compile``: the same function up to the order of its sums, so it is no part of the fingerprint, while
    the precision is. It is compiled at the first pass, and again when the number of images or heads first changes. Raises
    :class:`DeviceError` where the device cannot do what is asked.
    """

    def __init__(
        self, model: GazeModel, name: str, weights_digest: str, *, device: str = "cpu", precision: str = "fp32", compiled: bool = False
    ) -> None:
        self._device = check_device(device, precision)
        self.model = model.eval().requires_grad_(False).to(self._device)
        self.name, self.device, self.precision = name, device, precision
        self._digest = weights_digest
        self._forward: Any = torch.compile(self.model) if compiled else self.model
        self._unproven = compiled

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

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        """``[3,H,W]`` pictures as one batch, for a GPU in page-locked memory: written there once, it is copied without the CPU."""
        if self._device.type != "cuda":
            return torch.stack(list(images))
        batch = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=True)
        return torch.stack(list(images), out=batch)

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        device = self._device
        # TF32 would make the same weights another function on a GPU; "fp32" means float32 there too.
        tf32 = torch.backends.cudnn.flags(allow_tf32=self.precision != "fp32")
        with tf32, torch.inference_mode(), torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            given = images.to(device, non_blocking=True), boxes.to(device), image_index.to(device)
            if len(boxes) > HEADS_AT_ONCE:
                output = self._crowd(*given)
            else:
                output = self._first(*given) if self._unproven else self._forward(*given)
        return GazeOutput(output.heatmap.float(), None if output.inout is None else output.inout.float())

    def _crowd(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        """Many heads: the backbone once, the decoder (never compiled here) over some of them at a time."""
        features = self.model.backbone((images - self.model.mean) / self.model.std)
        parts = [self.model.decoder(features, *some) for some in zip(boxes.split(HEADS_AT_ONCE), image_index.split(HEADS_AT_ONCE), strict=True)]
        inout = [part.inout for part in parts if part.inout is not None]
        return GazeOutput(torch.cat([part.heatmap for part in parts]), torch.cat(inout) if inout else None)

    def _first(self, *given: Tensor) -> GazeOutput:
        """The first pass of a compiled model, which is when it is compiled."""
        try:
            output = self._forward(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
            raise DeviceError(f"--compile failed here ({reason}); leave it out, or install a C++ compiler") from None
        self._unproven = False
        return output
