"""Errors of the students package that a user can mend; drawn as a tree in ``distill/errors.py``."""

from __future__ import annotations


class RunError(ValueError):
    """A run directory that holds something else, or a checkpoint that is damaged or of another student."""

    mendable = True


class TrainingError(ValueError):
    """Training that cannot go on: a loss that is not finite, nothing to learn from."""

    mendable = True


class ExportError(ValueError):
    """An exported file that does not agree with its student; it is withheld."""

    mendable = True
