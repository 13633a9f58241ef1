"""People followed through a video, and their answers smoothed: boxes are matched by overlap, values by an exponential mean in time.

A box that was found continues the person whose last box it overlaps most (intersection over union of at least :data:`SAME`, pairs
taken in falling order); else it begins a new one. A person who is not found keeps their last box for :data:`PATIENCE` seconds and is then
gone. Box, heatmap (as probabilities) and in/out
probability follow ``mean += (1 - exp(-dt / tau)) * (value - mean)`` with dt the seconds since the person's last frame; tau = 0 smooths
nothing. The gaze point is
the smoothed heatmap's highest cell, so that point and drawing agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.detecting import Found, overlap
from distill.scenes import Box

SAME, PATIENCE = 0.3, 0.5


@dataclass
class Track:
    """One person: ``found`` is the last box that was found, ``box`` the smoothed one, both in pixels; ``heatmap`` ``[h,w]`` and ``inout`` are
    smoothed probabilities. ``seen``, ``time`` and ``answered`` are the seconds of the last match, the last frame and the last answer.
    """

    number: int
    found: Box
    box: Box
    seen: float
    time: float
    heatmap: np.ndarray | None = None
    inout: float | None = None
    answered: float | None = None


class Tracker:
    """Follows people; ``tau`` is the time constant of the smoothing in seconds, at least 0."""

    def __init__(self, tau: float) -> None:
        self.tau = tau
        self.tracks: list[Track] = []
        self._count = 0

    def _share(self, since: float) -> float:
        return 1.0 if self.tau <= 0 else 1.0 - math.exp(-max(since, 0.0) / self.tau)

    def boxes(self, found: Sequence[Found], time: float) -> list[Track]:
        """Take the boxes found at ``time`` (seconds); the people who are there now, in the order in which they appeared."""
        pairs = [(overlap(track.found, each.box), row, column) for row, track in enumerate(self.tracks) for column, each in enumerate(found)]
        rows: set[int] = set()
        columns: set[int] = set()
        for share, row, column in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
            if share < SAME or row in rows or column in columns:
                continue
            rows.add(row)
            columns.add(column)
            track, new = self.tracks[row], found[column].box
            follow = self._share(time - track.time)
            x0, y0, x1, y1 = (old + follow * (value - old) for old, value in zip(track.box, new, strict=True))
            track.box, track.found, track.seen = (x0, y0, x1, y1), new, time
        self.tracks = [track for track in self.tracks if time - track.seen <= PATIENCE]
        for column, each in enumerate(found):
            if column not in columns:
                self._count += 1
                self.tracks.append(Track(self._count, each.box, each.box, time, time))
        for track in self.tracks:
            track.time = time
        return list(self.tracks)

    def answer(self, track: Track, heatmap: np.ndarray, inout: float | None, time: float) -> None:
        """Take the model's answer for ``track`` at ``time``: ``heatmap`` ``[h,w]`` and ``inout`` as probabilities."""
        follow = 1.0 if track.answered is None else self._share(time - track.answered)
        track.heatmap = heatmap if track.heatmap is None else track.heatmap + follow * (heatmap - track.heatmap)
        if inout is not None:
            track.inout = inout if track.inout is None else track.inout + follow * (inout - track.inout)
        track.answered = time
