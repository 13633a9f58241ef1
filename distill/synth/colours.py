"""Colours that go together: one palette a scene, and the tones of skin and hair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.synth.camera import Array


def rgb(code: str) -> Array:
    """`"#rrggbb"` as float32 `[3]` in [0,1]."""
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32) / 255.0


def mix(a: Array, b: Array, share: float) -> Array:
    """`share` of b and the rest of a."""
    return (a * (1.0 - share) + b * share).astype(np.float32)


def where(mask: NDArray[np.bool_], a: Array, b: Array) -> Array:
    """Colours `[3,n]`: a where `mask` `[n]`, else b."""
    return np.where(mask, a[:, None], b[:, None])


def filled(colour: Array, q: Array) -> Array:
    """One colour for every point of `q` `[3,n]`, to be painted over."""
    out = np.empty(q.shape, dtype=np.float32)
    out[:] = colour[:, None]
    return out


@dataclass(frozen=True)
class Palette:
    """Muted surroundings and eight stronger colours for things and clothes."""

    wall: Array
    floor: Array
    wood: Array
    accents: tuple[Array, ...]

    def accent(self, rng: np.random.Generator) -> Array:
        """One of the strong colours, slightly varied."""
        base = self.accents[int(rng.integers(len(self.accents)))]
        return np.clip(base * rng.uniform(0.9, 1.08) + rng.uniform(-0.02, 0.02, 3), 0.02, 0.98).astype(np.float32)


def _palette(wall: str, floor: str, wood: str, accents: str) -> Palette:
    return Palette(rgb(wall), rgb(floor), rgb(wood), tuple(rgb(c) for c in accents.split()))


PALETTES = (
    _palette("#d9d2c3", "#a98b6c", "#b98a5a", "#d1495b #edae49 #00798c #30638e #8d5a97 #66a182 #f4f1de #3d405b"),
    _palette("#c3d0cf", "#9c8f80", "#a67c52", "#e07a5f #3d405b #81b29a #f2cc8f #577590 #c1666b #faf3dd #4d908e"),
    _palette("#cfd6e0", "#b4a48f", "#c49a6c", "#ef476f #ffd166 #06a77d #118ab2 #073b4c #f78c6b #f1faee #7b6d8d"),
    _palette("#d8cbc0", "#8f8a85", "#8b5e3c", "#bc4749 #6a994e #f2e8cf #386641 #e9c46a #457b9d #a8577e #2f3e46"),
    _palette("#bfc9bd", "#b59e7d", "#9c6b3f", "#ee6c4d #3d5a80 #98c1d9 #f6bd60 #84a59d #f28482 #5b5f97 #f7ede2"),
    _palette("#dcd3dd", "#988a92", "#b0835c", "#5f0f40 #fb8b24 #0f7173 #e36414 #3a6ea5 #9a7aa0 #f0ead2 #7a9e7e"),
)
SKINS = tuple(rgb(c) for c in "#f3cfb3 #ecbe9c #dfa67f #c98d63 #a86f48 #875636 #6b4330".split())
HAIRS = tuple(rgb(c) for c in "#1d1815 #2e211a #4a2f1e #6d4526 #8f5a2c #c89a4e #8a8784 #5a2a1c".split())
EYES = tuple(rgb(c) for c in "#4a2f1c #3a2618 #2f5573 #4a6b45 #5a4a35".split())
