"""Milliseconds of a student in ONNX Runtime by number of people, with one decoder and with another.

Weights are random: the time does not depend on them. Every model is written by the exporter that students leave by, opened with a fixed
number of threads, and called in turn with all others, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distill.exporting import require_extra
from distill.throughput import head_boxes, time_each
from students.catalogue import build_student
from students.reparametrise import reparametrised
from teachers.model import ModelConfig

PUBLISHED = {"decoder": "gazelle", "dim": 256, "layers": 3, "attention_heads": 8}  # Gaze-LLE's size
# The first calls after another session's are slower than those that follow, and most so with the quicker decoder: of lite0_query after
# 50 ms, the first took 1.7 times as long as the sixth, the second 1.1 times, the third as long; of its gazelle 1.2, 1.02 and 1.02.
UNTIMED = 2
MODULES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class PeopleTimes:
    """Seconds of every round by number of people in one picture, on the clock."""

    seconds: Mapping[int, Sequence[float]]

    def ms(self, people: int) -> float:
        """Median milliseconds with ``people``."""
        return 1000.0 * statistics.median(self.seconds[people])

    def quartiles(self, people: int) -> tuple[float, float]:
        """Lower and upper quartile in milliseconds."""
        low, _, high = statistics.quantiles(self.seconds[people], n=4, method="inclusive")
        return 1000.0 * low, 1000.0 * high

    @property
    def further(self) -> float:
        """Milliseconds of each further person: from the fewest people to the most, by the medians. Below 0 where it drowns in noise."""
        few, many = min(self.seconds), max(self.seconds)
        return (self.ms(many) - self.ms(few)) / (many - few)

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "ms": {str(people): round(self.ms(people), 3) for people in self.seconds},
            "quartiles_ms": {str(people): [round(value, 3) for value in self.quartiles(people)] for people in self.seconds},
            "further_ms": round(self.further, 4), "further_share": round(self.further / self.ms(min(self.seconds)), 4),
        }


def ratio(slow: PeopleTimes, quick: PeopleTimes, people: int) -> tuple[float, float, float]:
    """Median and quartiles, over the rounds, of how many times ``quick`` is faster with ``people``."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(slow.seconds[people], quick.seconds[people], strict=True)], n=4, method="inclusive"
    )
    return middle, low, high


def onnx_call(config: ModelConfig, folder: Path, threads: int) -> Callable[[int], Any]:
    """Write a student with random weights to ``folder`` and open it; the answer runs it on one picture with so many people."""
    require_extra("export", *MODULES)
    import onnxruntime

    from students.export import trace

    torch.manual_seed(0)
    file = folder / "student.onnx"
    trace(reparametrised(build_student(config)).requires_grad_(False), file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    file.unlink()
    picture = torch.rand(1, 3, *config.input_size, generator=torch.Generator().manual_seed(0)).numpy()

    def call(people: int) -> Any:
        index = torch.zeros(people, dtype=torch.int64).numpy()
        return session.run(None, {"images": picture, "boxes": head_boxes(people), "image_index": index})

    return call


def time_students(configs: Mapping[str, ModelConfig], folder: Path, *, people: Sequence[int], rounds: int, threads: int) -> dict[str, PeopleTimes]:
    """Time every student with every number of people, in turn; those that are compared are neighbours."""
    opened = {name: onnx_call(config, folder, threads) for name, config in configs.items()}
    calls: dict[str, Callable[[], Any]] = {f"{name} {count}": partial(call, count) for count in people for name, call in opened.items()}
    times = time_each(calls, rounds=rounds, settle=UNTIMED)
    return {name: PeopleTimes({count: times[f"{name} {count}"].wall for count in people}) for name in configs}


def with_published_decoder(config: ModelConfig) -> ModelConfig:
    """The same student with Gaze-LLE's decoder as published: 256 wide, 3 layers."""
    return replace(config, **PUBLISHED)  # type: ignore[arg-type]
