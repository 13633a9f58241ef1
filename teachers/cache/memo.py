"""Which pictures were last seen as the cache has them: a side file of a writer's, never needed for reading.

``.pictures`` holds 8 bytes for each scene in the cache's order: BLAKE2b-8 of the picture's digest and of its file's stamp (see
:meth:`teachers.contract.ViewSource.picture_stamp`), or zeros. A mark that fits says that the file is the one whose digest was computed;
any other, and a file that is cut, damaged or not there, says nothing: the picture is then read and digested again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

MEMO = ".pictures"
MARK_BYTES = 8


def _mark(digest: bytes, stamp: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(digest + stamp, digest_size=MARK_BYTES).digest(), "little") or 1


class PictureMemo:
    """The marks of ``scenes`` scenes of ``cache``; 9 bytes a scene. Threads may ask and note different scenes at once."""

    def __init__(self, cache: Path, scenes: int, *, writes: bool = True) -> None:
        self._path, self._writes = cache / MEMO, writes
        self._marks, self._noted = np.zeros(scenes, dtype="<u8"), np.zeros(scenes, dtype=bool)
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            there = np.frombuffer(file.read(MARK_BYTES * scenes), np.uint8)
            self._marks.view(np.uint8)[: len(there)] = there

    def knows(self, place: int, digest: bytes, stamp: bytes) -> bool:
        """Whether the picture of the scene at ``place`` had this digest when its file had this stamp."""
        return bool(stamp) and int(self._marks[place]) == _mark(digest, stamp)

    def note(self, place: int, digest: bytes, stamp: bytes) -> None:
        """A file that has this stamp has this digest; an empty stamp notes nothing."""
        if stamp:
            self._marks[place], self._noted[place] = _mark(digest, stamp), True

    def save(self) -> None:
        """Write what was noted since, and nothing else: other processes write theirs into the same file.

        A place that takes nothing is no error: what is not noted is computed again.
        """
        places = np.flatnonzero(self._noted)
        if not self._writes or not len(places):
            return
        with contextlib.suppress(OSError), os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
                file.seek(MARK_BYTES * int(run[0]))
                file.write(self._marks[run[0] : run[-1] + 1].tobytes())
        self._noted[places] = False
