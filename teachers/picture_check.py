"""Whether the pictures of a cache are still those that it was built from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from teachers.cache.format import Span
from teachers.cache.memo import PictureMemo
from teachers.cache.reader import CacheReader
from teachers.cache.remedies import rebuild_remedy
from teachers.contract import ViewSource
from teachers.errors import CacheError


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """How far a check is: pictures compared, of how many, and how many of them had to be read for it."""

    pictures: int
    pictures_total: int
    read: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PictureCheck:
    """``pictures`` were found unchanged, ``read`` of them by reading the file, the others by its stamp; ``unread`` lists (scene key,
    reason) of those whose file cannot be read any more."""

    pictures: int = 0
    read: int = 0
    unread: tuple[tuple[str, str], ...] = ()


# Scene's place in the cache, its number in the source, the digest that a shard has of its picture.
_Item = tuple[int, int, bytes]


def check_pictures(
    reader: CacheReader,
    source: ViewSource,
    numbers: np.ndarray,
    shards: Sequence[int] | np.ndarray,
    *,
    memo: PictureMemo,
    workers: int = 1,
    skip_unreadable: bool = False,
    report: Callable[[CheckRecord], None] | None = None,
) -> PictureCheck:
    """Compare the pictures of ``shards``, which are on disk, with those that are there now; ``numbers`` as of
    :func:`teachers.build_work.scene_numbers`.

    A file whose stamp is in ``memo`` is not read again; others are, by ``workers`` threads. Raises :class:`CacheError` that names the
    first scene whose picture has changed, and the command that builds every shard anew that holds such a scene; and the source's own
    error for a picture that cannot be read, unless ``skip_unreadable``.
    """
    started, done, read, failed = time.perf_counter(), 0, 0, 0
    workers = max(workers, 1)
    stale: set[int] = set()
    first, told = len(numbers), ""
    unread: dict[str, str] = {}

    def spans() -> Iterator[Span]:
        return (reader.manifest.span(int(shard)) for shard in shards)

    def known(span: Span) -> int:
        return int((numbers[span.scene_start : span.scene_stop] >= 0).sum())

    total = sum(map(known, spans()))

    def compare(items: Sequence[_Item]) -> Iterator[tuple[_Item, bytes | Exception | None]]:
        """What each picture's digest is now; None if it need not be read."""
        for item in items:
            place, number, stored = item
            try:
                stamp = source.picture_stamp(number)
                if memo.knows(place, stored, stamp):
                    yield item, None
                    continue
                found = source.picture_digest(number)
            except Exception as error:
                if not getattr(error, "mendable", False):
                    raise
                yield item, error
                continue
            if found == stored:
                memo.note(place, stored, stamp)
            yield item, found

    with ThreadPoolExecutor(workers, thread_name_prefix="pictures") as pool:
        for span in spans():
            items = list(_items(reader, span, numbers))
            total -= known(span) - len(items)  # skipped scenes have no picture to be compared with
            shares = [items[start::workers] for start in range(workers)]
            for results in pool.map(lambda share: list(compare(share)), shares):
                for (place, number, stored), found in results:
                    done += 1
                    read += isinstance(found, bytes)
                    if isinstance(found, Exception):
                        if not skip_unreadable:
                            raise found
                        failed += 1
                        unread[source.keys[number]] = str(found)
                    elif found is not None and found != stored:
                        stale.add(place)
                        if place < first:
                            both = f"was built from {stored.hex()}, it is now {found.hex()}"
                            first, told = place, f"the picture of scene {source.keys[number]!r} has changed: cache {reader.path} {both}"
            memo.save()
            if report is not None:
                report(CheckRecord(done, total, read, time.perf_counter() - started))
    if stale:
        missing = set(reader.missing_shards())
        concerned = {shard for place in stale for shard in reader.manifest.shards_of(place)} - missing
        others = f", and those of {len(stale) - 1} more scenes" if len(stale) > 1 else ""
        raise CacheError(f"{told}{others}; put the old picture back, or {rebuild_remedy(reader.path, reader.manifest, concerned)}")
    return PictureCheck(done - failed, read, tuple(unread.items()))


def _items(reader: CacheReader, span: Span, numbers: np.ndarray) -> Iterator[_Item]:
    """The scenes of a shard that the source has and the shard did not skip."""
    for index, digest in enumerate(reader.pictures_in(span.shard)):
        number = int(numbers[span.scene_start + index])
        if number >= 0 and digest.any():
            yield span.scene_start + index, number, digest.tobytes()

