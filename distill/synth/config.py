"""What a generated data set is made from."""

from __future__ import annotations

from dataclasses import dataclass

from distill.synth.errors import SynthError

GENERATOR_VERSION = 1
"""Raised whenever the same (seed, index) gives another picture or annotation."""


@dataclass(frozen=True)
class SynthConfig:
    """Size, seed and picture format of a generated data set.

    Raises:
        SynthError: a value is out of range.
    """

    scenes: int = 2000
    """Number of pictures, training and test together."""
    seed: int = 0
    """Scene i depends on (seed, i) and the picture size only."""
    test_fraction: float = 0.1
    """Share of the scenes offered to the test split, spread evenly; one without an in-frame head goes to training."""
    width: int = 480
    """Picture width in pixels."""
    height: int = 360
    """Picture height in pixels."""

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise SynthError(f"scenes is {self.scenes}; ask for at least 1")
        if self.seed < 0:
            raise SynthError(f"seed is {self.seed}; give a number >= 0")
        if not 0.0 <= self.test_fraction <= 1.0:
            raise SynthError(f"test_fraction is {self.test_fraction}; give a share between 0 and 1")
        if min(self.width, self.height) < 120 or max(self.width, self.height) > 2048:
            raise SynthError(f"picture size is {self.width}x{self.height}; give sides between 120 and 2048 pixels")
        if not 1.0 <= self.width / self.height <= 2.0:
            raise SynthError(f"picture size is {self.width}x{self.height}; give a width of 1 to 2 times the height")
