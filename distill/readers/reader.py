"""What a reader is: a name, the splits it knows, how it recognises its layout, and how it reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.readers.findings import Findings
from distill.scenes import Scene


@dataclass(frozen=True, slots=True)
class Listing:
    """The scenes of one split in a stable order, the annotation files they came from, and the split's true name."""

    scenes: tuple[Scene, ...]
    files: tuple[Path, ...]
    split: str


@dataclass(frozen=True, slots=True)
class Reader:
    """One annotation format.

    ``recognises(root)`` looks at names and at the first bytes of annotation files, never at pictures, and is cheap;
    ``available(root)`` says which of ``train``, ``val``, ``test`` (or ``all``) have their annotation files there.
    ``read(root, split, options, findings)`` reads annotations only; it raises :class:`distill.errors.DataError` for what
    cannot be read and adds to ``findings`` what it put right or dropped. ``options`` are the names after ``?`` in the
    user's specification.
    """

    name: str
    title: str
    example: str
    splits: tuple[str, ...]
    options: tuple[str, ...]
    recognises: Callable[[Path], bool]
    available: Callable[[Path], tuple[str, ...]]
    read: Callable[[Path, str, Mapping[str, str], Findings], Listing]
