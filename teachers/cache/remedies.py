"""The command lines that mend a cache, for the ends of its error messages: each can be pasted as it is, in any directory."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from teachers.cache.command import words_of
from teachers.cache.format import Manifest

# More shards than this are no longer a command line that anyone pastes.
NAMED = 20


def asked_command(manifest: Manifest) -> str:
    """How a cache was last asked for, but for ``--out``."""
    return shlex.join(words_of(manifest.command, anywhere=True)) or "distill cache build"


def build_command(path: Path, manifest: Manifest) -> str:
    """How cache ``path`` was last asked for."""
    return f"{asked_command(manifest)} --out {quoted(path)}"


def quoted(path: Path) -> str:
    """A path as a word of a command line that holds in any directory."""
    # Not resolved: a link's own name is what the user knows it by.
    return shlex.quote(os.path.abspath(path))


def other_command(mend: str, manifest: Manifest) -> str:
    """``mend`` (a :attr:`ViewSource.mend`: the data and views that are wanted) with the teacher, number of views and codec of ``manifest``."""
    words = words_of(manifest.command, anywhere=True)
    start = words.index("--teacher") if "--teacher" in words else len(words)
    seed = words.index("--seed", start) if "--seed" in words[start:] else len(words)
    return " ".join([mend, *map(shlex.quote, words[start:seed] + words[seed + 2 :]), "--out OTHER_PATH"])


def missing_remedy(path: Path, manifest: Manifest) -> str:
    """What to do about a shard that is not there."""
    return f"run `{build_command(path, manifest)}`: only what is missing is computed"


def rebuild_remedy(path: Path, manifest: Manifest, shards: Iterable[int]) -> str:
    """What to do about shards that are there and cannot serve."""
    shards = sorted(set(shards))
    if len(shards) > NAMED:
        return f"{len(shards)} shards are affected: build another cache with `{asked_command(manifest)} --out OTHER_PATH`"
    numbers = ",".join(map(str, shards))
    that = "that shard is" if len(shards) == 1 else "those shards are"
    return f"run `{build_command(path, manifest)} --rebuild {numbers}`: just {that} computed again"


def retry_remedy(path: Path, manifest: Manifest) -> str:
    """What to do about a skipped scene once its picture is mended."""
    return f"run `{build_command(path, manifest)} --retry-skipped`: the shards of scenes that can be read by then are computed again"
