"""Gradient checkpointing: open blocks keep their input alone and compute the rest again in the backward pass.

Source: Chen et al., arXiv 1604.06174. The stages name every backbone's blocks, so it works for all of them; timm's own
``set_grad_checkpointing`` does not reach the pyramid features of its convolutional networks (timm 1.0), and where it does,
BatchNorm's statistics move twice a step. Here they move once: the second pass leaves them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from schedules.stages import Stages


def recompute_blocks(backbone: nn.Module, stages: Stages) -> None:
    """Let every block of ``backbone`` recompute itself while it is open; closed ones save nothing as it is."""
    for stage in stages:
        if stage.counted:
            _wrap(backbone.get_submodule(stage.name))


def _wrap(block: nn.Module) -> None:
    plain: Callable[..., Any] = block.forward
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _still(norms)

    def forward(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in block.parameters()):
            return plain(*inputs, **named)
        return checkpoint(plain, *inputs, use_reentrant=False, context_fn=contexts, **named)

    block.forward = forward


@contextmanager
def _still(norms: list[nn.modules.batchnorm._NormBase]) -> Iterator[None]:
    """BatchNorm's second pass moves copies of its statistics, which are thrown away."""
    own = [(norm, dict(norm._buffers)) for norm in norms if norm.training and norm.track_running_stats]
    for norm, buffers in own:
        norm._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in own:
            norm._buffers.update(buffers)
