"""Gradient accumulation: a batch as several smaller ones."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from students.batch import Batch

_OF_IMAGES = ("images", "scenes")


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in ``parts`` of whole images (fewer where there are fewer images); every other tensor has a row for each head."""
    if parts <= 1:
        return [batch]
    pieces = []
    for images in torch.arange(len(batch.images)).chunk(parts):
        low, high = int(images[0]), int(images[-1]) + 1
        heads = (batch.image_index >= low) & (batch.image_index < high)
        values: dict[str, Any] = {}
        for field in fields(batch):
            value = getattr(batch, field.name)
            if field.name in _OF_IMAGES:
                values[field.name] = value[low:high]
            else:
                values[field.name] = value[heads] if isinstance(value, Tensor) else value
        values["image_index"] = values["image_index"] - low
        pieces.append(Batch(**values))
    return pieces
