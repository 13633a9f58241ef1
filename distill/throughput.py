"""How much a teacher computes, how fast, and how near that is to what the machine can do.

Operations are counted by ``torch.utils.flop_counter``: matrix products, convolutions and attention, two for a
multiply-add. MFU is operations a second over the peak of the device in that precision: its data sheet's, without sparsity,
where the GPU is in :data:`PEAKS`, else that of a large matrix product measured in the same process.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from teachers.contract import Teacher
from teachers.model import GazeModel
from teachers.model_teacher import PRECISIONS, ModelTeacher
from teachers.shard_draft import answer

# TFLOP/s, dense, from NVIDIA's data sheets; fp32 is without TF32, fp16 and bf16 with float32 sums. The first name found in
# the GPU's own counts.
PEAKS: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("H200", {"fp32": 67.0, "fp16": 989.4, "bf16": 989.4}),
    ("H100 PCIe", {"fp32": 51.2, "fp16": 756.4, "bf16": 756.4}),
    ("H100 NVL", {"fp32": 60.0, "fp16": 835.5, "bf16": 835.5}),
    ("H100", {"fp32": 66.9, "fp16": 989.4, "bf16": 989.4}),
    ("A100", {"fp32": 19.5, "fp16": 312.0, "bf16": 312.0}),
    ("A30", {"fp32": 10.3, "fp16": 165.0, "bf16": 165.0}),
    ("L40S", {"fp32": 91.6, "fp16": 362.0, "bf16": 362.0}),
    ("L4", {"fp32": 30.3, "fp16": 121.0, "bf16": 121.0}),
    ("RTX 4090", {"fp32": 82.6, "fp16": 165.2, "bf16": 165.2}),
    ("RTX 3090", {"fp32": 35.6, "fp16": 71.0, "bf16": 71.0}),
    ("V100-SXM2", {"fp32": 15.7, "fp16": 125.0}),
    ("T4", {"fp32": 8.1, "fp16": 65.0}),
)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a forward pass: ``per_image`` once an image, ``per_head`` for each head in it."""

    per_image: float
    per_head: float

    def of(self, images: int, heads: int) -> float:
        """Operations for ``images`` with ``heads`` in all."""
        return images * self.per_image + heads * self.per_head


@dataclass(frozen=True)
class Peak:
    """Operations a second that the device can do, and where the figure is from ("data sheet of …" or "measured: …")."""

    per_second: float
    source: str


@dataclass(frozen=True)
class Batch:
    """Noise pictures with ``heads`` heads each, for timing: ``images [B,3,H,W]``, ``boxes [B·heads,4]``, ``image_index [B·heads]``."""

    images: torch.Tensor
    boxes: np.ndarray
    image_index: np.ndarray

    def run(self, teacher: Teacher) -> tuple[np.ndarray, np.ndarray | None]:
        """One pass, its answers on the CPU."""
        return answer(teacher, self.images, self.boxes, self.image_index)


def noise(size: tuple[int, int], images: int, heads: int) -> Batch:
    """The same pictures and boxes at every call; ``size`` is (height, width)."""
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(images, 3, *size, generator=generator), np.tile(head_boxes(heads), (images, 1)), np.repeat(np.arange(images), heads))


def head_boxes(heads: int) -> np.ndarray:
    """``[heads,4]`` boxes in [0,1] side by side."""
    left = (np.arange(heads) + 0.25) / heads
    return np.stack((left, np.full(heads, 0.1), left + 0.5 / heads, np.full(heads, 0.4)), axis=1).astype(np.float32)


def work_of(model: GazeModel) -> Work:
    """Count the operations of ``model``, from one pass with one head and one with two."""
    device = next(model.parameters()).device

    def count(heads: int) -> float:
        batch = noise(model.input_size, 1, heads)
        given = batch.images.to(device), torch.from_numpy(batch.boxes).to(device), torch.from_numpy(batch.image_index).to(device)
        # Attention as plain products: not every torch knows how to count every fused kernel.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*given)
        return float(counter.get_total_flops())

    one, two = count(1), count(2)
    return Work(2.0 * one - two, two - one)


def peak_of(device: torch.device, precision: str) -> Peak:
    """What ``device`` can do in ``precision``: by the name of the GPU, else measured now, on as many threads as torch uses."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, rates in PEAKS:
            if re.search(rf"\b{known}\b(?!.*Laptop)", name) and precision in rates:
                return Peak(rates[precision] * 1e12, f"data sheet of {known}")
    side = 1024 if device.type == "cpu" else 8192
    left, right = (torch.rand(side, side, device=device).to(PRECISIONS[precision]) for _ in range(2))

    def product() -> None:
        result = left @ right
        result[0, 0].item()  # waits for a GPU

    best = min(time_each({"product": product}, rounds=5)["product"].wall)
    return Peak(2.0 * side**3 / best, f"measured: {side} x {side} matrix product in {precision}")


@dataclass(frozen=True)
class Times:
    """Seconds of one call in each round: on the clock, and of processor time of all threads (which another program's load leaves alone)."""

    wall: list[float]
    cpu: list[float]


# ONNX Runtime's threads spin after a call, on the cores that the next session's call needs: for about 50 ms of processor time each, which
# is three times as long on the clock where the cores are shared.
REST, LONGEST_REST = 0.02, 1.0


def rest() -> None:
    """Sleep until this process uses no processor time (less than a twentieth of :data:`REST`), but at most :data:`LONGEST_REST` seconds."""
    for _ in range(round(LONGEST_REST / REST)):
        busy = time.process_time()
        time.sleep(REST)
        if time.process_time() - busy < REST / 20:
            return


def time_each(calls: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1, settle: int = 0) -> dict[str, Times]:
    """Time each call in each round, the calls in turn, so that whatever else the machine does hits all alike.

    ``settle``: :func:`rest` and call so many times untimed before each timed call. That is for calls with threads of their
    own, of which the last one's would be charged to the next.
    """
    times = {name: Times([], []) for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            if settle:
                rest()
            for _ in range(settle):
                call()
            began, busy = time.perf_counter(), time.process_time()
            call()
            if number >= warm_up:
                times[name].wall.append(time.perf_counter() - began)
                times[name].cpu.append(time.process_time() - busy)
    return times


def ratios(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Median, least and largest of the rounds' ratios."""
    # Where processor time is counted in ticks (Windows: 16 ms), a short call may have taken none.
    each = [a / max(b, 1e-9) for a, b in zip(over, under, strict=True)]
    return statistics.median(each), min(each), max(each)


def use_of_device(teacher: Teacher, images: int, heads: int, seconds: float) -> dict[str, Any]:
    """Operations counted, achieved and possible, as plain JSON, for a pass over ``images`` with ``heads`` in all.

    None where they cannot be counted, as in a black box.
    """
    if not isinstance(teacher, ModelTeacher):
        return {"gflop_image": None, "gflop_head": None, "tflop_s": None, "peak_tflop_s": None, "peak_source": None, "mfu": None}
    work = work_of(teacher.model)
    peak = peak_of(torch.device(teacher.device), teacher.precision)
    rate = work.of(images, heads) / seconds
    return {
        "gflop_image": round(work.per_image / 1e9, 3), "gflop_head": round(work.per_head / 1e9, 3), "tflop_s": round(rate / 1e12, 4),
        "peak_tflop_s": round(peak.per_second / 1e12, 4), "peak_source": peak.source, "mfu": round(rate / peak.per_second, 4),
    }
