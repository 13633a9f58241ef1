"""Writing a cache so that what is visible is whole: temporary name, flush, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace as with_changes
from pathlib import Path
from typing import IO, Any

import numpy as np

from teachers.cache.container import shard_chunks
from teachers.cache.format import MANIFEST, SHARDS, SPARE, Manifest, Span, canonical, differences, digest_of, shard_name
from teachers.cache.remedies import build_command
from teachers.errors import CacheError

try:
    import fcntl
except ImportError:  # Windows: two first writers of one cache then need --part jobs started one after the other.
    fcntl = None  # type: ignore[assignment]

LOCK, LOCK_NOW = (0, 0) if fcntl is None else (fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB)
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
# A temporary file of another machine is taken for abandoned when nobody has written to it for a day: whether its writer lives cannot be
# asked from here, locks do not reach across every network file system, and no shard takes a day to write.
ABANDONED_SECONDS = 24 * 3600.0
_TEMPORARY = re.compile(r"\..*\.(?P<host>[\w-]+)\.(?P<process>\d+)\.[0-9a-f]+\.tmp")


def _host() -> str:
    """This machine's name as a part of a file's name."""
    return re.sub(r"[^\w-]", "-", socket.gethostname(), flags=re.ASCII)[:64] or "unnamed"


def _lock(file: IO[Any], how: int) -> None:
    """Lock an open file, where its file system knows locks: one that knows none (Lustre as it is often mounted) loses no more than a
    system without them."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _flush_directory(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Write ``path`` so that it appears whole or not at all; returns its size in bytes.

    On failure the temporary file is removed and an OSError names ``path``.
    """
    temporary = path.with_name(f".{path.stem}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    size = 0
    try:
        with temporary.open("xb") as file:
            # Held while this process lives: its number alone may be of another container, or be given again.
            _lock(file, LOCK_NOW)
            for chunk in chunks:
                size += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        _flush_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            remedy = "writing failed, what was there before is whole; make room or choose another place, and run the same command again"
            raise _named(error, path, remedy) from error
        raise
    return size


def remove_abandoned(directory: Path) -> int:
    """Remove temporary files that nobody is writing; returns how many.

    Those of this machine whose process has ended, and any that are a day old; none that a living process has locked.
    """
    count = 0
    for path in directory.glob(".*.tmp") if fcntl is not None else ():
        with contextlib.suppress(OSError):
            if not _writer_ended(path):
                continue
            with path.open("rb") as file:
                _lock(file, LOCK_NOW)
                path.unlink()
                count += 1
    return count


def _writer_ended(path: Path) -> bool:
    """Whether a temporary file's writer is known to have ended, or must have."""
    named = _TEMPORARY.fullmatch(path.name)
    if named is not None and named["host"] == _host():
        try:
            os.kill(int(named["process"]), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # it lives, and is another user's
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One process at a time changes the manifest; the lock goes with the process that holds it."""
    try:
        file = (cache / ".lock").open("a")
    except OSError as error:
        raise _named(error, cache / ".lock", "the cache cannot be added to; make its directory writable, or give another --out") from error
    with file:
        _lock(file, LOCK)
        yield


def _request(
    cache: Path, wanted: Manifest, keys: Sequence[str], views: int, scenes_per_shard: int
) -> tuple[Manifest, bool]:
    """(the manifest that serves the request, whether it is what ``cache`` holds already)."""
    if not len(keys):
        raise CacheError("the data set has no scenes; check --data and --split")
    if cache.exists() and not cache.is_dir():
        raise CacheError(f"{cache} is a file, and a cache is a directory; give another --out")
    # The files first, the manifest after: another process may make the cache between the two looks, and a manifest never goes away.
    occupied = cache.is_dir() and any(not path.name.startswith(".") for path in cache.iterdir())
    if not (cache / MANIFEST).exists():
        if occupied:
            raise CacheError(f"{cache} is not empty and no cache (it has no {MANIFEST}); give another --out")
        return wanted.grown(keys, views, scenes_per_shard), False
    there = Manifest.load(cache)
    if there.identity() != wanted.identity():
        raise CacheError(
            f"cache {cache} holds something else: {differences(there.identity(), wanted.identity(), ('cache', 'asked for'))}; "
            f"give another --out, or go on with what the cache holds: `{build_command(cache, there)}`"
        )
    grown = there.grown(keys, views, scenes_per_shard)
    return (there, True) if grown is there else (with_changes(grown, command=wanted.command), False)


def _make_directory(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _named(error, cache, "no cache can be made there; give another --out") from error


def refuse_unwritable(cache: Path) -> None:
    """Raise OSError if the directory of ``cache``'s shards takes no file, as far as can be told without writing one: before a shard is
    computed in vain."""
    directory = next((path for path in (cache / SHARDS, cache) if path.is_dir()), cache)
    if directory.is_dir() and not os.access(directory, os.W_OK | os.X_OK):
        read_only = hasattr(os, "ST_RDONLY") and os.statvfs(directory).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, f"{os.strerror(number)}: no shard can be written; make the directory writable, or give another --out", str(directory))


def _named(error: OSError, path: Path, remedy: str) -> OSError:
    """``error`` again, with the file's name and what to do."""
    return OSError(error.errno, f"{error.strerror or error}: {remedy}", str(path))


def plan_manifest(cache: Path, wanted: Manifest, keys: Sequence[str], views: int, scenes_per_shard: int) -> Manifest:
    """The manifest that :func:`settle_manifest` would leave; nothing is written."""
    return _request(cache, wanted, keys, views, scenes_per_shard)[0]


def settle_manifest(cache: Path, wanted: Manifest, keys: Sequence[str], views: int, scenes_per_shard: int) -> Manifest:
    """Create or grow ``cache``'s manifest so that it covers ``keys`` × ``views``; an identical request changes nothing.

    ``wanted`` carries the identity and no segments. Raises :class:`CacheError` if ``cache`` holds anything else.
    """
    manifest, current = _request(cache, wanted, keys, views, scenes_per_shard)
    if not current:
        _make_directory(cache)
        with _locked(cache):
            manifest, current = _request(cache, wanted, keys, views, scenes_per_shard)
            if not current:
                write_whole(cache / MANIFEST, [manifest.to_json()])
    # Also where nothing was to be written: the manifest may be whole, and its copy may have been in flight when a process was killed.
    remove_abandoned(cache)
    _keep_spare(cache)
    return manifest


def _keep_spare(cache: Path) -> None:
    """Copy the manifest, which was read or written just now, for the day when a bit of it flips; a place that takes nothing has no copy."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()

    with contextlib.suppress(OSError):
        if not (cache / SPARE).exists() or digest(cache / SPARE) != digest(cache / MANIFEST):
            with (cache / MANIFEST).open("rb") as file:
                write_whole(cache / SPARE, iter(lambda: file.read(1 << 13), b""))


def shard_path(cache: Path, shard: int) -> Path:
    return cache / SHARDS / shard_name(shard)


def shard_metadata(identity: str, span: Span, key_bytes: bytes, reasons: bytes = b"[]") -> Mapping[str, str]:
    """The metadata of a shard without its digests. ``identity`` is the manifest's identity digest, ``key_bytes`` are the key digests of
    the shard's scenes."""
    return {
        "format": "gaze-teacher-cache/1",
        "identity": identity,
        "shard": str(span.shard),
        "scenes": f"{span.scene_start}:{span.scene_stop}",
        "views": f"{span.view_start}:{span.view_stop}",
        "keys": digest_of(key_bytes),
        "reasons": reasons.decode("ascii"),
    }


def skipped_reasons(entries: Sequence[tuple[int, str, str]]) -> bytes:
    """The ``reasons`` member of a shard's metadata, of (scene position, key, reason)."""
    return canonical([list(entry) for entry in entries])


def write_shard(
    cache: Path, span: Span, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, replace: bool = False
) -> int:
    """Write one shard whole; returns its size in bytes. One that is there already is left alone (size 0) without ``replace``."""
    path = shard_path(cache, span.shard)
    if path.exists() and not replace:
        return 0
    _make_directory(path.parent)
    return write_whole(path, shard_chunks(tensors, metadata))
