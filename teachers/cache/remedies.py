"""The command lines that mend a cache, for the ends of its error messages: each can be pasted as it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from teachers.cache.format import Manifest

# More shards than this are no longer a command line that anyone pastes.
NAMED = 20


def build_command(path: Path, manifest: Manifest) -> str:
    """How cache ``path`` was last asked for."""
    return f"{manifest.command or 'distill cache build'} --out {shlex.quote(str(path))}"


def other_command(mend: str, manifest: Manifest) -> str:
    """``mend`` (a :attr:`ViewSource.mend`: the data and views that are wanted) with the teacher, number of views and codec of ``manifest``."""
    words = shlex.split(manifest.command)
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
        return f"{len(shards)} shards are affected: build another cache with `{manifest.command or 'distill cache build'} --out OTHER_PATH`"
    numbers = ",".join(map(str, shards))
    that = "that shard is" if len(shards) == 1 else "those shards are"
    return f"run `{build_command(path, manifest)} --rebuild {numbers}`: just {that} computed again"


def retry_remedy(path: Path, manifest: Manifest) -> str:
    """What to do about a skipped scene once its picture is mended."""
    return f"run `{build_command(path, manifest)} --retry-skipped`: the shards of scenes that can be read by then are computed again"
