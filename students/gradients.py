"""Gradient norms, of the whole and by stage, and clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

HEAD = "head"


class GradientNorms:
    """The gradient's L2 norm at one step. Values are read off the device only where they are asked for."""

    def __init__(self, parameters: Sequence[nn.Parameter], stages: Sequence[str]) -> None:
        """``stages`` names the stage (or ``head``) of each parameter; parameters without a gradient take no part."""
        held = [(p.grad, stage) for p, stage in zip(parameters, stages, strict=True) if p.grad is not None]
        self._stages = [stage for _, stage in held]
        self._norms: Tensor = torch.stack(torch._foreach_norm([grad for grad, _ in held])) if held else torch.zeros(0)
        # As torch.nn.utils.clip_grad_norm_ has it: the norm of the norms.
        self.total: Tensor = torch.linalg.vector_norm(self._norms)

    def by_stage(self) -> dict[str, float]:
        """The norm of the head and of every open stage."""
        squares: dict[str, float] = {}
        for stage, norm in zip(self._stages, self._norms.tolist(), strict=True):
            squares[stage] = squares.get(stage, 0.0) + norm * norm
        return {stage: math.sqrt(square) for stage, square in squares.items()}

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> None:
        """Scale the gradients down to the norm ``limit``; 0 leaves them as they are."""
        if limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, self.total)
