"""Collecting what is wrong with a data set while it is read."""

from __future__ import annotations

from distill.scenes import Finding


class Findings:
    """Counts defects by name and keeps the first example of each, in the order in which they were met."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str, str]] = {}

    def add(self, name: str, example: str, action: str) -> None:
        """One more defect called ``name``; ``action`` says what was done about it (dropped, clamped, kept, put right)."""
        count, first, done = self._kinds.get(name, (0, example, action))
        self._kinds[name] = (count + 1, first, done)

    def result(self) -> tuple[Finding, ...]:
        return tuple(Finding(name, count, example, action) for name, (count, example, action) in self._kinds.items())
