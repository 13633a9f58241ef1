"""Codecs: how heatmap logits are stored, with the error that each may make.

``fp16`` keeps half-precision logits; ``q8`` one byte a cell with a step and an offset of each map. Neither ever clips: a
logit that a codec cannot hold is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from teachers.errors import CacheError

Tensors = Mapping[str, np.ndarray]
Label = Callable[[int], str]

FP16_MAX = 65504.0
# Below this a float32 step has lost so many bits that the map is constant for every purpose.
TINY_STEP = 2.0**-100


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to store heatmaps.

    ``encode(logits [R,h,w] float32, label)`` gives the tensors; ``label(row)`` names a row in the :class:`CacheError` for logits
    that are not finite or do not fit. ``decode(tensors, start, stop)`` gives rows as fresh float32 logits ``[stop-start,h,w]``;
    ``restore(logits, columns)`` does the same in place for stored values that are float32 already, with the tensors that
    ``columns`` names beside the heatmaps, each ``[R]``.
    ``bound(tensors, start, stop, logits)`` is the largest |decoded - logits| ``[stop-start]`` that the codec may cause.
    ``tensors`` names them with their safetensors dtypes; ``row_bytes`` is what one row takes beside its cells' ``cell_bytes``.
    """

    name: str
    tensors: Mapping[str, str]
    cell_bytes: int
    row_bytes: int
    promise: str
    encode: Callable[[np.ndarray, Label], dict[str, np.ndarray]]
    decode: Callable[[Tensors, int, int], np.ndarray]
    restore: Callable[[np.ndarray, Sequence[np.ndarray]], None]
    bound: Callable[[Tensors, int, int, np.ndarray], np.ndarray]

    @property
    def columns(self) -> tuple[str, ...]:
        """The tensors beside the heatmaps that decoding needs, each one float32 a row."""
        return tuple(name for name in self.tensors if name != "heatmaps")


def _peak(logits: np.ndarray) -> np.ndarray:
    """max |logit| of each map ``[R]`` float64."""
    return np.abs(logits).max(axis=(1, 2), initial=0.0).astype(np.float64)


def _refuse(logits: np.ndarray, limit: float, label: Label, remedy: str) -> None:
    peaks = _peak(logits)
    # Written so that a NaN is refused as well.
    bad = np.flatnonzero(~(peaks <= limit))
    if len(bad):
        row, value = int(bad[0]), float(peaks[bad[0]])
        if not np.isfinite(value):
            remedy = "the teacher's answer is not finite: check its weights, or use --precision fp32"
        raise CacheError(f"{label(row)}: largest |logit| is {value:g}, beyond {limit:g}; {remedy}")


def _fp16_encode(logits: np.ndarray, label: Label) -> dict[str, np.ndarray]:
    _refuse(logits, FP16_MAX, label, "half precision cannot hold it: use --codec q8")
    return {"heatmaps": logits.astype(np.float16)}


def _fp16_decode(tensors: Tensors, start: int, stop: int) -> np.ndarray:
    return tensors["heatmaps"][start:stop].astype(np.float32)


def _fp16_restore(logits: np.ndarray, columns: Sequence[np.ndarray]) -> None:
    """Nothing to do: every half-precision number is a float32."""


def _fp16_bound(tensors: Tensors, start: int, stop: int, logits: np.ndarray) -> np.ndarray:
    # Half a unit in the last of 11 significant bits; 2^-25 is half a subnormal step.
    return np.maximum(_peak(logits) * 2.0**-11, 2.0**-25)


def _q8_encode(logits: np.ndarray, label: Label) -> dict[str, np.ndarray]:
    _refuse(logits, float(np.finfo(np.float32).max), label, "")
    flat = logits.reshape(len(logits), logits.shape[1] * logits.shape[2])
    low = flat.min(axis=1).astype(np.float64) if len(flat) else np.zeros(0)
    high = flat.max(axis=1).astype(np.float64) if len(flat) else np.zeros(0)
    scale = ((high - low) / 255.0).astype(np.float32)
    scale[scale < TINY_STEP] = 0.0
    divisor = np.where(scale > 0.0, scale, np.float32(1.0)).astype(np.float64)
    steps = np.where(scale[:, None] > 0.0, (flat - low[:, None]) / divisor[:, None], 0.0)
    values = np.clip(np.rint(steps), 0, 255).astype(np.uint8).reshape(logits.shape)
    return {"heatmaps": values, "scale": scale, "offset": low.astype(np.float32)}


def _q8_decode(tensors: Tensors, start: int, stop: int) -> np.ndarray:
    logits = tensors["heatmaps"][start:stop].astype(np.float32)
    # Copied: torch warns of memory that cannot be written, as a mapped file's is.
    _q8_restore(logits, (tensors["scale"][start:stop].copy(), tensors["offset"][start:stop].copy()))
    return logits


def _q8_restore(logits: np.ndarray, columns: Sequence[np.ndarray]) -> None:
    import torch  # a third of NumPy's time for a batch; and not at the top, as who asks for a cache's facts need not wait for it

    # Product and sum, each rounded: fused, they would not be the numbers that the format states.
    scale, offset = (torch.from_numpy(column)[:, None, None] for column in columns)
    torch.from_numpy(logits).mul_(scale).add_(offset)


def _q8_bound(tensors: Tensors, start: int, stop: int, logits: np.ndarray) -> np.ndarray:
    # Half a step; the rest is float32 rounding of step, product and sum.
    return tensors["scale"][start:stop].astype(np.float64) * 0.5 + _peak(logits) * 2.0**-21 + 255.0 * TINY_STEP


CODECS: Mapping[str, Codec] = {
    "fp16": Codec(
        "fp16",
        {"heatmaps": "F16"},
        2,
        0,
        "|error| <= 2^-11 * max|logit| of the map",
        _fp16_encode,
        _fp16_decode,
        _fp16_restore,
        _fp16_bound,
    ),
    "q8": Codec(
        "q8",
        {"heatmaps": "U8", "scale": "F32", "offset": "F32"},
        1,
        8,
        "|error| <= half a step, (max - min) / 510 of the map",
        _q8_encode,
        _q8_decode,
        _q8_restore,
        _q8_bound,
    ),
}


def codec_named(name: str) -> Codec:
    """The codec of that name; :class:`CacheError` with the names there are."""
    if name not in CODECS:
        raise CacheError(f"unknown codec {name!r}; give --codec {' or '.join(CODECS)}")
    return CODECS[name]
