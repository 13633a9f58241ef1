"""What several processes do together: sums of gradients, of counts and of losses, and one mean of BatchNorm's statistics.

By hand rather than by a wrapper: stages open while the run goes on, and a wrapper's buckets are fixed when it is made. Every
process gets the same bits from a sum, so what is computed from sums alone is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from students.batch import Batch
from students.losses import HeadCounts

T = TypeVar("T")


class Processes:
    """The group of processes of a training; with one process every method is the identity."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.several = accelerator.num_processes > 1

    def sum(self, values: Tensor) -> Tensor:
        """Element by element over processes."""
        return self.accelerator.reduce(values, "sum") if self.several else values

    def first(self, number: int) -> int:
        """The first process's whole number, everywhere."""
        mine = number if self.accelerator.is_main_process else 0
        return int(self.sum(torch.tensor(mine, device=self.accelerator.device)))

    def counts(self, batch: Batch) -> HeadCounts:
        """How many heads each mean of this step is over, in all processes."""
        counts = HeadCounts.of(batch)
        return HeadCounts(*self.sum(torch.stack([c.float() for c in counts])).unbind()) if self.several else counts

    def tally(self, batch: Batch, refused: bool) -> tuple[int, bool]:
        """Pictures of this step in all processes, and whether any process has refused its share; one sum for both."""
        images, refusals = self.sum(torch.tensor([len(batch.images), int(refused)], device=self.accelerator.device)).tolist()
        return int(images), refusals > 0

    def told(self, mine: Sequence[T]) -> list[T]:
        """What every process has to tell, in the order of the processes; all of them must ask."""
        return list(gather_object(list(mine))) if self.several else list(mine)

    def losses(self, parts: Sequence[Sequence[Tensor]]) -> list[float]:
        """Each term summed over micro-batches and processes."""
        stacked = torch.stack([torch.stack([value.detach().float() for value in values]).sum() for values in zip(*parts, strict=True)])
        return self.sum(stacked).tolist()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the sum over processes in the place of each gradient."""
        if not self.several:
            return
        # One sum for all: the gradients, and behind them in how many processes each parameter has one. Where none has, none
        # is made up: a gradient of zeros would let weight decay move a parameter that takes no part.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = gradients[0].new_tensor([float(p.grad is not None) for p in parameters])
        flat = self.sum(torch.cat([*(gradient.flatten() for gradient in gradients), present]))
        *sums, present = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, summed, count in zip(parameters, sums, present.tolist(), strict=True):
            parameter.grad = summed.view_as(parameter).clone() if count else None

    def average_buffers(self, model: nn.Module) -> None:
        """BatchNorm statistics that moved apart become their mean, the same everywhere."""
        if not self.several:
            return
        # What is frozen, or a constant, is the same everywhere, and stays as it is to the bit.
        kept = set(model.state_dict())
        for place, module in model.named_modules():
            for name, buffer in module.named_buffers(place, recurse=False):
                if module.training and name in kept and buffer.is_floating_point():
                    buffer.copy_(self.accelerator.reduce(buffer.clone(), "mean"))
