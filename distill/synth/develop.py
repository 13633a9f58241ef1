"""From canvas and backdrop to the picture: scale down, lay over the shadowed backdrop, add camera noise.

All in whole numbers, as Pillow's `resize` and `ImageChops` reckon, and a band of rows at a time so that the planes stay in the
processor's cache.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.synth.camera import Array
from distill.synth.raster import Canvas

_BAND = 24  # rows
_QUANTILES = [NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)]  # of noise, by an even byte
_ALL_BUT_TOP = np.uint32(0x7F7F7F7F)  # of each byte
_FOUR = np.uint64(0x0001_0001_0001_0001)


def develop(rng: np.random.Generator, canvas: Canvas, backdrop: Array, shadows: Array) -> Image.Image:
    """The picture: the canvas over `backdrop` `[3,height,width]` in [0,1], which `shadows` (any smaller size, in [0,1]) darken.

    `backdrop` is used up.
    """
    height, width = backdrop.shape[1:]
    packed = canvas.colour.reshape(canvas.height, canvas.width)
    shade = np.asarray(
        Image.fromarray((shadows * np.float32(255.0)).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
    )
    level = rng.uniform(1.2, 2.6)
    noise = bytes(round(128 + level * q) for q in _QUANTILES)
    grain = np.frombuffer(rng.bytes(width * height).translate(noise), dtype=np.uint8).reshape(height, width)
    picture = np.empty((height, width, 4), dtype=np.uint8)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        front, part = box_means(packed, height, width, rows), picture[rows]
        for channel, plane in enumerate(backdrop[:, rows]):
            plane *= np.float32(255.0)
            part[..., channel] = np.minimum(plane, np.float32(255.0), out=plane)
        rest = _product(255 - (front >> np.uint32(24)).astype(np.uint16), shade[rows])
        mixed = _product(part.reshape(-1).astype(np.uint16), _fourfold(rest)).view(np.int16)
        # no level exceeds 255 yet: a pixel's levels are at most its cover, and `rest` is at most what that leaves
        mixed += front.astype("<u4", copy=False).view(np.uint8).reshape(-1).astype(np.int16)
        mixed += _fourfold((grain[rows].astype(np.int16) - np.int16(128)).view(np.uint16)).view(np.int16)
        part.reshape(-1)[:] = np.clip(mixed, 0, 255, out=mixed)
    return Image.frombytes("RGB", (width, height), picture, "raw", "RGBX")


def _fourfold(levels: NDArray[np.unsignedinteger]) -> NDArray[np.uint16]:
    """Each level four times in a row `[4*n]`, once for each byte of a pixel."""
    return (levels.astype(np.uint64) * _FOUR).view(np.uint16).reshape(-1)


def _product(a: NDArray[np.uint16], b: NDArray[np.unsignedinteger]) -> NDArray[np.uint16]:
    """a * b / 255 rounded down, of levels in [0,255]; `a` is used up."""
    a *= b
    a += 1
    a += a >> 8
    a >>= 8
    return a


def box_means(packed: NDArray[np.uint32], height: int, width: int, rows: slice) -> NDArray[np.uint32]:
    """Rows of a picture of four bytes a pixel `[H,W]` that Pillow's box filter scales down to `[height,width]`, by less than 2.

    A box then holds the middle of one pixel or of two, and the filter's weights are even.
    """
    tall, wide = packed.shape
    columns, chosen = _boxes(wide, width), _boxes(tall, height)[rows]
    first, pairs = chosen % tall, np.flatnonzero(chosen >= tall)
    band = packed[first[0] : first[-1] + 1 + (chosen[-1] >= tall)]
    both = np.empty((band.shape[0], 2 * wide), dtype=np.uint32)  # pixels, then the means of each and the next
    both[:, :wide] = band
    _mean(band[:, :-1], band[:, 1:], both[:, wide:-1])
    across = both.take(columns, axis=1)
    first -= first[0]
    down = across.take(first, axis=0)
    down[pairs] = _mean(down.take(pairs, axis=0), across.take(first[pairs] + 1, axis=0))
    return down


def _mean(a: NDArray[np.uint32], b: NDArray[np.uint32], out: NDArray[np.uint32] | None = None) -> NDArray[np.uint32]:
    """Mean of each of four bytes, rounded up: a | b less half the bits in which they differ."""
    differ = a ^ b
    differ >>= np.uint32(1)
    differ &= _ALL_BUT_TOP
    out = np.bitwise_or(a, b, out=out)
    out -= differ
    return out


@lru_cache(maxsize=4)
def _boxes(fine: int, coarse: int) -> NDArray[np.intp]:
    """Which of `fine` pixels has its middle in each of `coarse` equal boxes; `fine` more where the next one has, too."""
    ratio = fine / coarse
    middle = (np.arange(coarse) + 0.5) * ratio
    first = np.maximum((middle - ratio / 2 + 0.5).astype(np.intp), 0)
    last = np.minimum((middle + ratio / 2 + 0.5).astype(np.intp), fine) - 1
    # a pixel whose middle is on the edge between two boxes belongs to the first
    first += (first - middle + 0.5) * (1 / ratio) <= -0.5
    last -= (last - middle + 0.5) * (1 / ratio) > 0.5
    return first + fine * (last > first)
