"""Sizes of a data set's pictures, remembered from one command to the next.

Annotations in pixels mean nothing without the picture's size, and opening a hundred thousand files for it takes minutes on a cold disk. What
has been seen is kept below ``$GAZE_DISTILL_HOME/picture-sizes`` (by default ``~/.cache/gaze-distill``), one JSON file a data set:
``{"version": 1, "root": str, "sizes": {path: [width, height, mtime in ns, bytes]}}``. An entry counts as long as the picture's time and length
are those that were recorded, so a picture that is replaced is looked at again. The folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from teachers.home import home

VERSION = 1


def memory_file(root: Path, *, upright: bool) -> Path:
    """Where the sizes of the pictures below ``root`` are kept; ``upright``: as their EXIF orientation says."""
    folder = home() / "picture-sizes"
    name = hashlib.blake2b(str(root.resolve()).encode(), digest_size=10).hexdigest()
    return folder / f"{name}{'-upright' if upright else ''}.json"


class SizeMemory(dict[Path, tuple[int, int]]):
    """(width, height) by picture, as a dictionary that is filled from the last time's file and written back at the end.

    ``get`` gives what was put in, or what is remembered and still true of the file; writing happens on leaving the ``with`` block.
    """

    def __init__(self, root: Path, *, upright: bool = False) -> None:
        super().__init__()
        self.root, self.file = root, memory_file(root, upright=upright)
        self._known: dict[str, list[int]] = _load(self.file)
        self._dropped = False

    def get(self, path: Path, default: Any = None) -> Any:
        """The picture's size if it is known, else ``default``; the picture is not opened."""
        if path in self:
            return self[path]
        entry = self._known.get(str(path))
        if entry is None or entry[2:] != _state(path):
            return default
        size = (entry[0], entry[1])
        super().__setitem__(path, size)
        return size

    def forget(self, path: Path) -> None:
        """A picture that cannot be decoded has no size, whatever its header said earlier."""
        self.pop(path, None)
        self._dropped |= self._known.pop(str(path), None) is not None

    def __enter__(self) -> SizeMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.save()

    def save(self) -> None:
        """Write what is new; where that cannot be, the sizes are looked up again next time."""
        fresh = {str(path): size for path, size in self.items() if self._known.get(str(path), [])[:2] != [*size]}
        new = {path: [*size, *state] for path, size in fresh.items() if (state := _state(Path(path))) is not None}
        if not new and not self._dropped:
            return
        self._known |= new
        text = json.dumps({"version": VERSION, "root": str(self.root.resolve()), "sizes": self._known})
        partial = self.file.with_name(f".{self.file.name}.{os.getpid()}.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.file)
        except OSError:
            # A home that cannot be written to costs time, not a result.
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _state(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]


def _load(file: Path) -> dict[str, list[int]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        sizes = content["sizes"] if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    whole = isinstance(sizes, dict) and all(isinstance(entry, list) and len(entry) == 4 for entry in sizes.values())
    return sizes if whole else {}
