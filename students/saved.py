"""What autograd saves for the backward pass, in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Any], besides: Iterable[Tensor] = ()) -> int:
    """Bytes that ``forward()`` leaves saved for its backward pass: each storage once, at its whole size.

    ``besides`` are tensors that are there anyhow, such as parameters: what shares their storage is not counted. Source:
    ``torch.autograd.graph.saved_tensors_hooks``. Kernels that save outside autograd's own slots are not seen.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known:
            held[pointer] = tensor  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    del result
    return total
