"""``--compile``: the backbone through ``torch.compile``.

The backbone alone: its shapes are the same at every step, while the decoder's change with the number of heads. A thaw changes
what is differentiated, so each compiles anew; torch keeps only so many versions of one function and then goes on uncompiled
without a word, so the old ones are dropped first.
"""

from __future__ import annotations

import torch
from torch import nn

from students.errors import TrainingError


def compile_backbone(backbone: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Compile ``backbone`` in place, names of parameters unchanged.

    :class:`TrainingError` where the backend cannot compile here, found out on a function of one line.
    """
    try:
        torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # each backend has its own kinds, none of them public
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TrainingError(
            f"--compile: torch.compile does not work on {device.type} here ({reason[:200]}); install a C++ compiler (CPU) or triton "
            "(GPU), or leave --compile out"
        ) from None
    backbone.compile(backend=backend)


def forget_compiled() -> None:
    """Drop what was compiled before: at a thaw it no longer fits."""
    torch._dynamo.reset()
