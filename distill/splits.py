"""Carving a validation split out of a training file that has none.

GazeFollow and VideoAttentionTarget publish a training and a test split only. Choosing the best checkpoint on the test
split flatters, so a part of the training file is set aside, the same one on every machine and in every run:

* **Pictures** (scenes without a group): a scene is held out when the digest of its key, read as a fraction in [0,1), is
  below the share. Membership depends on the key alone, so a data set that grows never moves a scene across.
* **Video** (scenes with a group, e.g. a show): whole groups are held out, because frames of one show resemble each
  other. Groups are walked in the order of their digests, and one is taken whenever that brings the number of held-out
  scenes nearer to the share.

Neither uses a seed or the order of the scenes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from distill.errors import DataError
from distill.scenes import Scene

VALIDATION_SHARE = 0.1


def fraction(name: str) -> float:
    """The digest of ``name`` as a fraction in [0,1), evenly spread over names."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


def carve(scenes: Sequence[Scene], share: float = VALIDATION_SHARE) -> tuple[list[Scene], list[Scene]]:
    """Divide ``scenes`` into (training, validation), each in the given order; ``share`` in (0,1) is held out.

    With two units (scenes, or groups of them) or more neither side is empty, however small the data set: the smallest
    unit is held out, or the largest kept, and the digest decides between equals. One unit alone is training. Raises :class:`DataError` for a bad share.
    """
    if not 0 < share < 1:
        raise DataError(f"validation share {share} is not between 0 and 1; give a fraction such as 0.1")
    units = [_unit(scene) for scene in scenes]
    held = held_out(Counter(units), share)
    train = [scene for scene, unit in zip(scenes, units, strict=True) if unit not in held]
    return train, [scene for scene, unit in zip(scenes, units, strict=True) if unit in held]


def _unit(scene: Scene) -> tuple[bool, str]:
    """What moves as a whole: the scene's group, or the scene itself where it has none."""
    return (True, scene.group) if scene.group else (False, scene.key)


def held_out(units: Counter[tuple[bool, str]], share: float) -> set[tuple[bool, str]]:
    """The units to hold out; ``units`` counts the scenes of each (is a group, name)."""
    place = {unit: fraction(unit[1]) for unit in units}
    groups = sorted((unit for unit in units if unit[0]), key=lambda unit: (place[unit], unit))
    held = {unit for unit in units if not unit[0] and place[unit] < share}
    target, taken = share * sum(units[unit] for unit in groups), 0
    for unit in groups:
        if abs(taken + units[unit] - target) < abs(taken - target):
            held.add(unit)
            taken += units[unit]
    # Only a tiny data set, or one of a few very unequal shows, gets past here.
    if len(units) >= 2 and not held:
        held = {min(units, key=lambda unit: (units[unit], place[unit], unit))}
    elif len(units) >= 2 and len(held) == len(units):
        held.discard(max(units, key=lambda unit: (units[unit], place[unit], unit)))
    return held
