"""What can go wrong between a run's directory and its report."""

from __future__ import annotations


class ReportError(ValueError):
    """A directory that holds no run, or a file in it that cannot be read; the message names it."""

    mendable = True
