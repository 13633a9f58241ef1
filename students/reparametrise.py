"""Structural re-parametrisation: branches that a backbone trains apart and runs as one convolution (RepViT, FastViT, MobileOne, ...).

Done on a copy at export, never on what is trained: the parameters change in number and shape, and BatchNorm is folded in. The function
stays the same up to rounding; the gate of every export compares it with the student as it was trained.
"""

from __future__ import annotations

import copy

from timm.utils.model import reparameterize_model

from teachers.model import GazeModel


def reparametrised(model: GazeModel) -> GazeModel:
    """A copy of ``model`` in eval mode with the branches of its backbone merged; a plain copy where it has none.

    The caller's model stays as it is. What timm's backbone has branches for is timm's knowledge (``fuse`` or ``reparameterize`` of its
    modules); the decoder has none.
    """
    merged = copy.deepcopy(model).eval()
    merged.backbone = reparameterize_model(merged.backbone, inplace=True)  # type: ignore[assignment]
    return merged


def has_branches(model: GazeModel) -> bool:
    """Whether re-parametrisation would change anything."""
    names = ("fuse", "reparameterize", "switch_to_deploy")
    return any(callable(getattr(module, name, None)) for module in model.backbone.modules() for name in names)
