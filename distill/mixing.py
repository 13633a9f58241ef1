"""How labelled and unlabelled scenes share the batches of a run: which scene is where is a pure function of (seed, epoch, step).

Every batch of ``batch_size`` pictures holds the same number of each kind, ``unlabelled_share`` of them unlabelled. An **epoch** is one pass
over the labelled scenes, so a schedule in epochs means what it means without unlabelled data; the unlabelled scenes are walked beside it at
their own pace, pass after pass, from where the epoch before left them. The number of the pass takes the epoch's place where a view or an
augmentation is drawn. A pass shows whole batches only: what is left over at its end (less than a batch's part) is left out of it, other scenes
each time.

The default share is one half, not the share that the scenes have in the data. Both ends of the proportion are what people have: a hundred
pictures of their own camera beside the 120,000 of GazeFollow, where proportional batches would hold none of them, and ten thousand frames
beside a hundred that somebody labelled, where the mean over labelled heads would be over one or two heads and mostly noise.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import NamedTuple

import torch

from distill.errors import ConfigurationError


class Draw(NamedTuple):
    """One picture of a batch: ``scene`` of the labelled or of the ``unlabelled`` ones, by its place, in its ``turn``-th showing (from 0)."""

    unlabelled: bool
    scene: int
    turn: int


def parts_of(batch_size: int, share: float, labelled: int, unlabelled: int) -> tuple[int, int]:
    """(labelled, unlabelled) pictures of every batch; no batch holds a scene twice, so a small side gives its place to the other one.

    Raises :class:`ConfigurationError` for a batch that cannot hold both.
    """
    if not unlabelled or not labelled:
        return min(batch_size, labelled), min(batch_size, unlabelled)
    if batch_size < 2:
        raise ConfigurationError("a batch of 1 picture cannot hold labelled and unlabelled ones; set --batch-size 2 or more")
    second = min(max(round(batch_size * share), 1), batch_size - 1, unlabelled)
    first = min(batch_size - second, labelled)
    return first, min(batch_size - first, unlabelled)


@dataclass(frozen=True)
class Mixture:
    """The draws of every batch, for ``labelled`` and ``unlabelled`` scenes in all; one of the two may be 0."""

    labelled: int
    unlabelled: int
    batch_size: int
    share: float
    seed: int

    @property
    def parts(self) -> tuple[int, int]:
        """(labelled, unlabelled) pictures of every batch."""
        return parts_of(self.batch_size, self.share, self.labelled, self.unlabelled)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: a last, smaller one would weigh its heads more than the others."""
        first, second = self.parts
        return self.labelled // first if first else self.unlabelled // second

    def order(self, epoch: int) -> list[int]:
        """The scenes that an epoch is a pass over (the labelled ones, if there are any), in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.labelled or self.unlabelled, generator=generator).tolist()

    def beside(self, turn: int) -> list[int]:
        """The unlabelled scenes in the order of their ``turn``-th pass, where they are walked beside labelled ones."""
        key = hashlib.blake2b(b"unlabelled" + struct.pack("<qq", self.seed, turn), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
        return torch.randperm(self.unlabelled, generator=generator).tolist()

    def passes(self, steps: int) -> float:
        """How many passes over the unlabelled scenes so many steps are, where there are labelled ones too."""
        return steps / (self.unlabelled // self.parts[1])


class Walk:
    """The batches of one epoch, in order; the permutations are kept while they are needed."""

    def __init__(self, mixture: Mixture, epoch: int) -> None:
        self.mixture, self.epoch = mixture, epoch
        self._order = mixture.order(epoch)
        self._beside: tuple[int, list[int]] = (-1, [])

    def batch(self, number: int) -> list[Draw]:
        """The ``number``-th batch of the epoch, over all processes: labelled pictures first, then unlabelled ones."""
        first, second = self.mixture.parts
        size = first or second
        draws = [Draw(not first, index, self.epoch) for index in self._order[number * size : (number + 1) * size]]
        if first and second:
            turn, place = divmod(self.epoch * self.mixture.steps_per_epoch + number, self.mixture.unlabelled // second)
            if self._beside[0] != turn:
                self._beside = turn, self.mixture.beside(turn)
            draws += [Draw(True, index, turn) for index in self._beside[1][place * second : (place + 1) * second]]
        return draws


def spread(draws: list[Draw]) -> list[Draw]:
    """The same draws with the unlabelled ones spread evenly among the others, so that the parts of an accumulated batch are alike."""
    kinds = ([draw for draw in draws if not draw.unlabelled], [draw for draw in draws if draw.unlabelled])
    places = [((number + 0.5) / len(kind), draw) for kind in kinds for number, draw in enumerate(kind)]
    return [draw for _, draw in sorted(places, key=lambda each: each[0])]
