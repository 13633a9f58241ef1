"""What a step costs with some stages closed, relative to a step with all of them open: an estimate from counted work.

Every part's forward pass is counted once; the backward pass of what trains is counted as two forward passes (the gradient by
its input and the one by its weights, each a product as large as the forward's); a closed stage has no backward pass. Memory
traffic, the optimizer and reading data are not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from schedules.stages import Stages

BACKWARD = 2.0


@dataclass(frozen=True)
class StageSizes:
    """Parameters and forward work of each stage in opening order, the stem last, and of what lies outside the backbone."""

    parameters: tuple[int, ...]
    work: tuple[float, ...]
    head_parameters: int = 0
    head_work: float = 0.0

    def trainable(self, open_blocks: int, stem_open: bool) -> int:
        """Parameters that train."""
        return self.head_parameters + sum(self.parameters[i] for i in self._open(open_blocks, stem_open))

    def cost(self, open_blocks: int, stem_open: bool) -> float:
        """Work of one step, in (0,1] of the work with everything open."""
        opened = sum(self.work[i] for i in self._open(open_blocks, stem_open))
        least = self.head_work * (1 + BACKWARD) + sum(self.work)
        return (least + BACKWARD * opened) / (least + BACKWARD * sum(self.work))

    def _open(self, open_blocks: int, stem_open: bool) -> list[int]:
        return [*range(open_blocks), *([len(self.work) - 1] if stem_open else [])]


def equal_blocks(blocks: int) -> StageSizes:
    """Where there is no model to measure: every block weighs the same, stem and head nothing; parameters are unknown (0)."""
    return StageSizes((0,) * (blocks + 1), (1.0,) * blocks + (0.0,))


def measure_stages(model: nn.Module, stages: Stages, forward: Callable[[], object]) -> StageSizes:
    """Sizes of ``stages``, whose names are those of ``model``; work is the FLOPs that ``forward()`` runs.

    Works on the ``meta`` device as well, where it takes milliseconds and no memory.
    """
    import torch  # here, because a plan without a model needs none of it
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    home = {name: index for index, stage in enumerate(stages) for name in stage.modules}
    # Attention as plain products: not every fused kernel is known to the counter.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    inclusive = {name: float(sum(found.values())) for name, found in counter.get_flop_counts().items()}
    work, head_work = [0.0] * len(stages), 0.0
    root = type(model).__name__
    for name, flops in inclusive.items():
        if name != root and not name.startswith(f"{root}."):
            continue
        # Its own: a module's figure holds those of the modules called inside it.
        children = {
            other for other in inclusive
            if other.startswith(f"{name}.") and not any(between in inclusive for between in _between(name, other))
        }
        own = flops - sum(inclusive[child] for child in children)
        place = home.get(name.removeprefix(root).removeprefix("."))
        if place is None:
            head_work += own
        else:
            work[place] += own
    owned = {name: index for index, stage in enumerate(stages) for name in stage.parameters}
    parameters, head_parameters = [0] * len(stages), 0
    for name, parameter in model.named_parameters():
        if name in owned:
            parameters[owned[name]] += parameter.numel()
        else:
            head_parameters += parameter.numel()
    return StageSizes(tuple(parameters), tuple(work), head_parameters, head_work)


def _between(above: str, below: str) -> list[str]:
    """Dotted names strictly between two: `a`, `a.b.c.d` gives `a.b`, `a.b.c`."""
    steps = below.removeprefix(f"{above}.").split(".")
    return [".".join((above, *steps[:count])) for count in range(1, len(steps))]
