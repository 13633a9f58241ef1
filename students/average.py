"""An exponential moving average of the weights, evaluated beside the raw ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def decay_at(decay: float, step: int) -> float:
    """The decay in force after ``step`` steps: small at first, so that the average does not hang on to the start.

    Source: TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``, min(decay, (1 + step)/(10 + step)).
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """average ← decay·average + (1 − decay)·weights after every step, BatchNorm's statistics included.

    ``values`` has every floating-point tensor of the state dict by name. What is frozen is equal to its average, so only what
    moves is averaged: call :meth:`follow` whenever a stage has opened.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items() if value.is_floating_point()}
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])

    def follow(self) -> None:
        """Average what moves from now on: what requires a gradient, and buffers of modules in train mode."""
        moving: dict[str, Tensor] = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        for place, module in self.model.named_modules():
            if module.training:
                moving |= dict(module.named_buffers(place, recurse=False))
        names = [name for name in moving if name in self.values]
        self._pairs = ([self.values[name] for name in names], [moving[name] for name in names])

    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        if self._pairs[0]:
            torch._foreach_lerp_(self._pairs[0], self._pairs[1], 1.0 - decay_at(self.decay, step))

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Put back what a checkpoint holds; names and shapes are the model's."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights; afterwards it has its own again, to the bit."""
        raw = {name: value.clone() for name, value in self.model.state_dict().items() if name in self.values}
        self._fill(self.values)
        try:
            yield
        finally:
            self._fill(raw)

    def _fill(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            held = self.model.state_dict()
            for name, value in values.items():
                held[name].copy_(value)
