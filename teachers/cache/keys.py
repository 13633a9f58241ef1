"""Scene keys as the cache knows them: eight bytes each, and an index from a key to its place in the cache's order.

Nothing here makes an object a key: at a million scenes that alone would be some hundred megabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from teachers.errors import CacheError

KEY_BYTES = 8
# Keys that are digested at a time: large enough for numpy, small enough not to count.
CHUNK = 1024


def key_digest(key: str) -> bytes:
    """The 8 bytes by which the cache knows a scene's key."""
    return hashlib.blake2b(key.encode(), digest_size=KEY_BYTES).digest()


def _numbers(digests: bytes) -> np.ndarray:
    """Concatenated digests as uint64 (big-endian value of the 8 bytes)."""
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(keys)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def key_digests(keys: Sequence[str]) -> np.ndarray:
    """Digests ``[K]`` uint64 (big-endian value of the 8 bytes) of ``keys``; two equal ones are a :class:`CacheError`."""
    digests = np.empty(len(keys), dtype=np.uint64)
    filled = 0
    for chunk in _chunks(keys):
        digests[filled : filled + len(chunk)] = _numbers(b"".join(map(key_digest, chunk)))
        filled += len(chunk)
    ordered = np.sort(digests)
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        first, second = (keys[int(number)] for number in np.flatnonzero(digests == ordered[same[0]])[:2])
        raise CacheError(f"scene keys {first!r} and {second!r} are not distinct; rename the picture of one of them")
    return digests


class KeyIndex:
    """From keys to places in an order, by concatenated digests in that order; 12 bytes a key."""

    __slots__ = ("_order", "_sorted")

    def __init__(self, digests: bytes) -> None:
        numbers = _numbers(digests)
        self._order = np.argsort(numbers, kind="stable").astype(np.uint32)
        self._sorted = numbers[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def place(self, key: str) -> int | None:
        """A key's place, or None."""
        value = np.uint64(int.from_bytes(key_digest(key), "big"))
        index = int(self._sorted.searchsorted(value))
        if index == len(self._sorted) or self._sorted[index] != value:
            return None
        return int(self._order[index])

    def places(self, keys: Sequence[str]) -> np.ndarray:
        """Places ``[K]`` int64 of ``keys``, -1 where there is none."""
        blake2b = hashlib.blake2b  # key_digest without its call: this is what a batch of rows waits for
        return self.places_of(_numbers(b"".join([blake2b(key.encode(), digest_size=KEY_BYTES).digest() for key in keys])))

    def places_of(self, digests: np.ndarray) -> np.ndarray:
        """Places ``[K]`` int64 of digests ``[K]`` uint64, -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(digests), -1, dtype=np.int64)
        index = np.minimum(self._sorted.searchsorted(digests), len(self._sorted) - 1)
        return np.where(self._sorted[index] == digests, self._order[index].astype(np.int64), -1)

    def numbers_of(self, keys: Iterable[str]) -> np.ndarray:
        """For each place, the number of its key in ``keys`` ``[len(self)]`` int32, or -1."""
        numbers = np.full(len(self), -1, dtype=np.int32)
        first = 0
        for chunk in _chunks(keys):
            places = self.places(chunk)
            known = places >= 0
            numbers[places[known]] = np.flatnonzero(known) + first
            first += len(chunk)
        return numbers
