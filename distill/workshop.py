"""The folder that a command writes to: files appear in it only when all of them are done."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import ConfigurationError


@contextmanager
def workshop(out: Path) -> Iterator[Path]:
    """A temporary folder inside ``out``, from where finished files are moved to ``out`` by renaming.

    ``out`` is made where it is absent. Afterwards the temporary folder is gone, with what was left in it, and so is every folder that was made here
    and in which nothing lies. Raises :class:`ConfigurationError` for a folder that cannot be made or written to.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        bench = Path(tempfile.mkdtemp(prefix=".workshop.", dir=out))
    except (FileExistsError, NotADirectoryError):
        raise ConfigurationError(f"{out} is a file or lies below one, and a folder is to be written; choose another --out") from None
    except OSError as error:
        raise ConfigurationError(f"folder {out} cannot be written to ({error.strerror}); choose another --out") from None
    try:
        yield bench
    finally:
        shutil.rmtree(bench, ignore_errors=True)
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def refuse_unwritable(out: Path) -> None:
    """Raise :class:`ConfigurationError` where nothing can be written to ``out``, before minutes are spent on what would be."""
    with workshop(out):
        pass
