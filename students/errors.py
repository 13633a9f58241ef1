"""Errors of the students package that a user can mend; drawn as a tree in ``distill/errors.py``."""

from __future__ import annotations


class RunError(ValueError):
    """A run directory that holds something else, or a checkpoint that is damaged or of another student."""

    mendable = True


class TrainingError(ValueError):
    """Training that cannot go on: a loss that is not finite, nothing to learn from.

    ``everywhere`` says that every process of the run raises the same: one of them telling it is enough.
    """

    mendable = True

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class ExportError(ValueError):
    """An exported file that does not agree with its student; it is withheld."""

    mendable = True
