"""Downloads: whole, verified, and continued where they broke off.

Bytes go to ``.NAME.part`` beside the file, with ``.NAME.part.json`` (address, validator, size); the file gets its name by a
rename when it is whole and its SHA-256 is the expected one. A download that breaks off, or whose process is killed, goes on
from the part with ``Range`` and ``If-Range`` (RFC 9110, sections 13.1.5 and 14). A server that ignores ``Range``, or whose
file has changed, starts again; so does one that gives no validator, unless the expected digest would tell a mixed file.

The digest is expected from the catalogue, else from ``NAME.sha256`` beside the file (what ``sha256sum`` writes), which
:func:`record_digest` writes once the file has proved to be what it should be: trust on first use.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachers.errors import WeightsError

try:
    import fcntl
except ImportError:  # Windows: two processes that fetch one file there are the user's to keep apart
    fcntl = None  # type: ignore[assignment]

BLOCK = 1 << 18
CATALOGUE, RECORDED, FIRST_USE = "catalogue", "recorded", "first use"


@dataclass(frozen=True, slots=True)
class DownloadRecord:
    """How far a download is: ``done`` of ``total`` bytes (None: the server does not say), ``resumed`` were there before."""

    name: str
    done: int
    total: int | None
    resumed: int


@dataclass(frozen=True, slots=True)
class Landed:
    """A file that is there: its SHA-256 (hex), who vouches for it (:data:`CATALOGUE`, :data:`RECORDED` or
    :data:`FIRST_USE`: nobody yet), and whether it was fetched now."""

    path: Path
    sha256: str
    trust: str
    fetched: bool


def digest_file(path: Path) -> Path:
    """Where the SHA-256 of ``path`` is recorded."""
    return path.with_name(f"{path.name}.sha256")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_digest(path: Path) -> str | None:
    """What :func:`record_digest` wrote for ``path``, or None; :class:`WeightsError` for a record that is no digest."""
    record = digest_file(path)
    if not record.is_file():
        return None
    digest = record.read_text("utf-8", errors="replace").split(maxsplit=1)[:1]
    if not digest or not re.fullmatch(r"[0-9a-f]{64}", digest[0]):
        raise WeightsError(f"{record} holds no SHA-256; delete it to trust the next download of {path.name}, or restore it")
    return digest[0]


def record_digest(landed: Landed) -> None:
    """Record the digest of a file that nobody vouched for, so that it is verified ever after."""
    if landed.trust == FIRST_USE:
        temporary = landed.path.with_name(f".{landed.path.name}.{os.getpid()}.tmp")
        temporary.write_text(f"{landed.sha256}  {landed.path.name}\n", "utf-8")
        os.replace(temporary, digest_file(landed.path))


def verify(path: Path, sha256: str | None = None) -> Landed:
    """The file at ``path`` against ``sha256``, or against its record; :class:`WeightsError` where they differ."""
    return _checked(path, path, sha256, fetched=False)


def _checked(file: Path, path: Path, sha256: str | None, *, fetched: bool) -> Landed:
    expected = sha256 or recorded_digest(path)
    found = sha256_of(file)
    if expected is None:
        return Landed(path, found, FIRST_USE, fetched)
    if found != expected:
        who = "the catalogue" if sha256 else digest_file(path).name
        what = "what was fetched was thrown away: run the command again" if fetched else f"delete {path} and pull again"
        other = "" if sha256 else f"; if its publisher has replaced it, delete {digest_file(path)} as well"
        raise WeightsError(f"{path.name} has SHA-256 {found}, {who} says {expected}: it is damaged, or another file; {what}{other}")
    return Landed(path, found, CATALOGUE if sha256 else RECORDED, fetched)


def obtain(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    report: Callable[[DownloadRecord], None] | None = None,
    retries: int = 3,
    pause: float = 1.0,
) -> Landed:
    """The file at ``path``, fetched from ``url`` unless it is there, whole and verified (against ``sha256`` or its record).

    A connection that breaks off is taken up again ``retries`` times, ``pause`` seconds apart, as long as bytes arrive.
    Another process that fetches the same file is waited for. Raises :class:`WeightsError`: without a network with the place to
    put the file at by hand, for a download that stays cut, and for one whose digest is not the expected one.
    """
    if path.exists():
        return verify(path, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with alone(part):
        if path.exists():
            return verify(path, sha256)
        verifiable = (sha256 or recorded_digest(path)) is not None
        download = _Download(url, path, part, report, verifiable)
        try:
            download.run(retries, pause)
        except WeightsError:
            if not download.resumable:
                _discard(part)
            raise
        try:
            landed = _checked(part, path, sha256, fetched=True)
        except WeightsError:
            _discard(part)
            raise
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _discard(part)
    return landed


def _facts(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _facts(part).unlink(missing_ok=True)


@contextmanager
def alone(part: Path) -> Iterator[None]:
    """Hold the file ``part`` (made if it is not there) for this process; the system lets go of it when the process ends, however it ends.

    Whoever holds it may rename or remove it.
    """
    if fcntl is None:
        yield
        return
    while True:
        file = part.open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held it may have renamed or removed it meanwhile: then this lock is on another file.
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == part.stat().st_ino:
                break
        file.close()
    try:
        yield
    finally:
        file.close()


class _Download:
    """One file on its way: what is there of it, and the requests that bring the rest."""

    def __init__(
        self, url: str, path: Path, part: Path, report: Callable[[DownloadRecord], None] | None, verifiable: bool
    ) -> None:
        self.url, self.path, self.part, self.report, self.verifiable = url, path, part, report, verifiable
        self.validator: str | None = None
        self.total: int | None = None
        self.done = self.resumed = 0
        facts = self._read_facts()
        if facts.get("url") == url:
            self.validator, self.total = facts.get("validator"), facts.get("total")
            there = part.stat().st_size if part.exists() else 0
            if (self.validator or verifiable) and (self.total is None or there <= self.total):
                self.done = self.resumed = there

    @property
    def resumable(self) -> bool:
        """Whether another call can go on from what is there."""
        return self.done > 0 and bool(self.validator or self.verifiable)

    def run(self, retries: int, pause: float) -> None:
        """Request until all is there; raises :class:`WeightsError` when no more bytes arrive."""
        left = retries
        while True:
            if self.total is not None and self.done == self.total:
                return
            before = self.done
            reason = self._request()
            if reason is None:
                return
            if left == 0 or self.done <= before:
                size = "an unknown number of" if self.total is None else str(self.total)
                raise WeightsError(
                    f"{self.url} ended after {self.done} of {size} bytes ({reason}); run the command again: it goes on from there where the "
                    f"server can, or download it elsewhere and put it at {self.path}"
                )
            left -= 1
            time.sleep(pause)

    def _request(self) -> str | None:
        """Ask for the rest once; None if the file is whole, else why it is not."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "gaze-distill"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self.validator:
                headers["If-Range"] = self.validator
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=30) as answer:
                return self._take(answer)
        except urllib.error.HTTPError as error:
            if error.code == 416 and self.done:
                # Nothing is left of the file that the part belonged to: the next request starts again.
                self._start_again()
                return self._request()
            raise self._unreachable(error) from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            if self.done:
                return _line(error)
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> WeightsError:
        return WeightsError(f"{self.url} could not be fetched ({_line(error)}); download it elsewhere and put it at {self.path}")

    def _take(self, answer: Any) -> str | None:
        partial = getattr(answer, "status", None) == 206
        if partial:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            size = int(span[2]) if span and span[2] != "*" else self.total
            if not self.done:
                raise WeightsError(f"{self.url} answered with a part of the file that was not asked for; download it and put it at {self.path}")
            if span is None or int(span[1]) != self.done or self.total not in (None, size):
                self._start_again()
                return self._request()
            self.total = size
        else:
            length = answer.headers.get("Content-Length")
            self.total, self.done, self.resumed = int(length) if length else None, 0, 0
            self.validator = _validator(answer.headers)
            self.part.write_bytes(b"")
            facts = {"url": self.url, "validator": self.validator, "total": self.total}
            _facts(self.part).write_text(json.dumps(facts), "utf-8")
        with self.part.open("ab") as file:
            self._tell()
            while True:
                try:
                    block = answer.read(BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    return _line(error)
                if not block:
                    break
                file.write(block)
                file.flush()  # what was counted is there for the next process, should this one be killed
                self.done += len(block)
                self._tell()
        if self.total is not None and self.done > self.total:
            self._start_again()
            raise WeightsError(f"{self.url} sent more bytes than the {self.total} that it announced; run the command again")
        return None if self.total is None or self.done == self.total else "the connection was closed"

    def _start_again(self) -> None:
        self.done = self.resumed = 0
        self.validator, self.total = None, None
        self.part.write_bytes(b"")
        _facts(self.part).unlink(missing_ok=True)

    def _tell(self) -> None:
        if self.report is not None:
            self.report(DownloadRecord(self.path.name, self.done, self.total, self.resumed))

    def _read_facts(self) -> dict[str, Any]:
        try:
            facts = json.loads(_facts(self.part).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}


def _validator(headers: Any) -> str | None:
    """What ``If-Range`` may name: a strong entity tag, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:140] or type(error).__name__
