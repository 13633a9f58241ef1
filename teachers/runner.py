"""The runner: a teacher over the views of a data set, once, into a cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from teachers.build_work import Work, choose_work, no_cache_to_mend, process_part, scene_numbers, wanted_manifest
from teachers.cache.codecs import codec_named
from teachers.cache.format import MANIFEST, SHARDS, Span
from teachers.cache.memo import PictureMemo
from teachers.cache.reader import CacheReader
from teachers.cache.remedies import rebuild_remedy
from teachers.cache.writer import (
    refuse_unwritable,
    remove_abandoned,
    settle_manifest,
    shard_metadata,
    shard_path,
    skipped_reasons,
    write_shard,
)
from teachers.contract import SceneViews, Teacher, ViewSource
from teachers.errors import CacheError
from teachers.launch import Launch, OthersSummary, OthersWork
from teachers.picture_check import CheckRecord, PictureCheck, check_pictures
from teachers.shard_draft import ShardDraft, WaitingViews


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """How far a build is, at the beginning and after each batch: of this process's share, counted from the start of this call.

    ``views`` and ``scenes`` are done (skipped ones included), ``rows`` computed, ``bytes`` written; ``seconds`` since the start. ``shard`` is
    the one worked on, -1 while other processes are waited for; ``others_views`` of ``others_views_total`` are in shards of the launch's other
    processes that are on disk (both 0 but in its first process).
    """

    shard: int
    scenes: int
    scenes_total: int
    views: int
    views_total: int
    rows: int
    bytes: int
    skipped: int
    seconds: float
    others_views: int = 0
    others_views_total: int = 0


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build did. ``skipped`` lists (scene key, reason) of the scenes skipped by this call, ``skipped_before`` counts those in
    shards that were there; ``shards_replaced`` of ``shards_written`` were there; ``shards_elsewhere`` are missing shards that belong to
    other parts, or to scenes or views that were not asked for; ``teacher_seconds`` of ``seconds`` went into the teacher's forward
    passes; ``part`` (index, count) is this process's share; ``pictures`` are those of its shards that were there already;
    ``others`` is what the launch's other processes did, in its first process, which waits for them."""

    shards_written: int
    shards_replaced: int
    shards_present: int
    shards_elsewhere: int
    scenes: int
    views: int
    rows: int
    bytes: int
    seconds: float
    teacher_seconds: float
    part: tuple[int, int]
    skipped_before: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    pictures: PictureCheck = field(default_factory=PictureCheck)
    others: OthersSummary | None = None

    @property
    def complete(self) -> bool:
        """Whether every shard of the cache is on disk."""
        return self.shards_elsewhere == 0


class _Load(NamedTuple):
    """A piece of work in flight: some views of one scene of a span."""

    span: Span
    scene: int
    number: int
    first: bool
    views: range
    future: Future[tuple[SceneViews, bytes]]


def build_cache(
    path: Path | str,
    teacher: Teacher,
    source: ViewSource,
    *,
    views: int,
    codec: str = "fp16",
    scenes_per_shard: int = 64,
    batch_images: int = 16,
    part: tuple[int, int] = (0, 1),
    on_error: str = "stop",
    report: Callable[[BuildRecord], None] | None = None,
    report_check: Callable[[CheckRecord], None] | None = None,
    workers: int = 1,
    command: str = "",
    rebuild: Sequence[int] = (),
    retry_skipped: bool = False,
    launch: Launch | None = None,
) -> BuildSummary:
    """Compute what cache ``path`` lacks of ``source`` × ``views``, and nothing else; create the cache if there is none.

    The share of this process is the shards whose number is ``part[0]`` modulo ``part[1]``, divided further by RANK and WORLD_SIZE.
    ``on_error`` is what an unreadable scene does: ``"stop"`` raises its error (finished shards stay), ``"skip"`` marks it in its shard.
    ``workers`` threads prepare the pictures of the next scenes during the forward pass; at most ``batch_images`` views of a scene, and
    two batches or two scenes a worker, are in memory. ``command`` is recorded for the cache's messages (``source.mend`` if empty).
    ``retry_skipped`` computes the shards again that skipped a scene which can be read now, ``rebuild`` names shards to compute and
    no others; each is computed whole, and takes the old one's place only then. A scene that was skipped and still cannot be read
    stays skipped, whatever ``on_error`` says. Before the first batch the pictures of the shards that are there are compared with those that
    they were built from (not with ``rebuild``), and ``report_check`` is told; one that can no longer be read is an error, or with "skip" listed.

    The first process of a ``launch`` counts what the others do as well, and returns when they have ended.

    Raises :class:`CacheError` if the cache is of another teacher, data set or view policy, if annotations or pictures have changed
    since it was begun, or if a map cannot be stored; OSError if the disk is full or read-only.
    """
    if on_error not in ("stop", "skip"):
        raise CacheError(f"--on-error {on_error!r} is unknown; give stop or skip")
    started, path = time.perf_counter(), Path(path)
    index, count = process_part(part)
    wanted = wanted_manifest(teacher, source, codec, command)
    if rebuild and not (path / MANIFEST).exists():
        raise no_cache_to_mend(path, rebuild)
    settle_manifest(path, wanted, source.keys, views, scenes_per_shard)
    remove_abandoned(path / SHARDS)
    reader = CacheReader(path)
    # The reader's: another process may have grown the cache since.
    manifest, identity = reader.manifest, reader.manifest.identity_digest()
    if not rebuild:
        # A shard that is to be rebuilt may be what is wrong.
        reader.check_annotations(source)
    numbers = scene_numbers(manifest, source)
    present = manifest.shards - len(reader.missing_shards())
    work = choose_work(
        path, manifest, reader, numbers, source, views=views, size=teacher.input_size, part=(index, count), rebuild=rebuild,
        retry_skipped=retry_skipped,
    )
    if len(work.shards):
        refuse_unwritable(path)
    memo, checked = PictureMemo(path, manifest.scenes), PictureCheck()
    if not rebuild:
        checked = check_pictures(
            reader, source, numbers, work.to_check(reader, (index, count)), memo=memo, workers=workers, skip_unreadable=on_error == "skip",
            report=report_check,
        )
    others = OthersWork(path)
    if launch is not None and launch.rank == 0:
        whole = choose_work(
            path, manifest, reader, numbers, source, views=views, size=teacher.input_size, part=part, rebuild=rebuild, retry_skipped=retry_skipped
        )
        others = OthersWork(path, [span for span in whole.spans() if span.shard % count != index], whole.replaced)
    if launch is not None:
        launch.begin()
    totals = sum(span.scenes for span in work.spans()), sum(span.scenes * span.views for span in work.spans())
    scenes_done = views_done = rows = size = written = replaced = 0
    teacher_seconds = 0.0
    skipped: list[tuple[str, str]] = []

    def tell(shard: int) -> None:
        if report is not None:
            others.look()
            seconds = time.perf_counter() - started
            ours = scenes_done, totals[0], views_done, totals[1], rows, size, len(skipped), seconds
            report(BuildRecord(shard, *ours, others.views, others.views_total))

    if len(work.shards):
        tell(int(work.shards[0]))  # that it begins: time is counted from here
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="views") as pool:
        try:
            loads = _loads(pool, path, work, numbers, source, teacher.input_size, batch_images, max(workers, 1))
            for span, pieces in groupby(loads, key=lambda load: load.span):
                draft = ShardDraft.empty(span)
                waiting = WaitingViews(teacher, codec_named(codec), draft)
                given_up = _skipped_there(reader, span) if span.shard in work.replaced else None
                for load in pieces:
                    last = load.views.stop == span.view_stop
                    if not draft.skipped[load.scene]:
                        try:
                            loaded, stamp = load.future.result()
                        except Exception as error:
                            tolerated = on_error == "skip" or (given_up is not None and given_up[load.scene])
                            if not tolerated or not getattr(error, "mendable", False) or not load.first:
                                raise
                            key = source.keys[load.number]
                            draft.skip(load.scene, key, str(error), source.annotation_digests(load.number))
                            skipped.append((key, str(error)))
                        else:
                            _accept(reader, work, draft, waiting, load, loaded, source)
                            if load.first:
                                memo.note(span.scene_start + load.scene, loaded.picture_digest, stamp)
                    views_done += len(load.views)
                    scenes_done += last
                    while len(waiting) >= batch_images:
                        rows += waiting.run(batch_images)
                        tell(span.shard)
                rows += waiting.run(batch_images)
                teacher_seconds += waiting.seconds
                metadata = shard_metadata(identity, span, manifest.keys_of(span), skipped_reasons(draft.reasons))
                again = span.shard in work.replaced
                size += write_shard(path, span, draft.tensors(manifest), metadata, replace=again)
                memo.save()
                if again:
                    reader.replaced(span.shard)
                written += 1
                replaced += again
                tell(span.shard)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    waited = None
    if launch is not None and launch.rank == 0:
        for _ in others.wait(launch):
            tell(-1)
        tell(-1)
        waited = others.summary(reader, launch)
    return BuildSummary(
        written,
        replaced,
        present,
        len(reader.missing_shards()),
        manifest.scenes,
        manifest.views,
        rows,
        size,
        time.perf_counter() - started,
        teacher_seconds,
        (index, count),
        work.skipped,
        tuple(skipped),
        checked,
        waited,
    )


def _loads(
    pool: ThreadPoolExecutor,
    path: Path,
    work: Work,
    numbers: np.ndarray,
    source: ViewSource,
    size: tuple[int, int],
    batch_images: int,
    workers: int,
) -> Iterator[_Load]:
    """The work of all spans in order, loaded ahead by a bounded number of pieces."""

    def submit() -> Iterator[_Load]:
        for span in work.spans():
            # Another process may have been given the same part.
            if span.shard not in work.replaced and shard_path(path, span.shard).exists():
                continue
            for scene in range(span.scenes):
                number = int(numbers[span.scene_start + scene])
                for start in range(span.view_start, span.view_stop, batch_images):
                    views = range(start, min(start + batch_images, span.view_stop))
                    first = start == span.view_start
                    future = pool.submit(_stamped, source, number, views, size, first)
                    yield _Load(span, scene, number, first, views, future)

    ahead: deque[_Load] = deque()
    images = 0
    for load in submit():
        ahead.append(load)
        images += len(load.views)
        while len(ahead) > 2 * workers and images > 2 * batch_images:
            images -= len(ahead[0].views)
            yield ahead.popleft()
    yield from ahead


def _stamped(source: ViewSource, number: int, views: range, size: tuple[int, int], first: bool) -> tuple[SceneViews, bytes]:
    """Views of a scene; with the ``first`` of them the stamp that its picture had before it was read: a change meanwhile makes it a wrong one."""
    stamp = source.picture_stamp(number) if first else b""
    return source.load(number, views, size), stamp


def _accept(
    reader: CacheReader,
    work: Work,
    draft: ShardDraft,
    waiting: WaitingViews,
    load: _Load,
    loaded: SceneViews,
    source: ViewSource,
) -> None:
    """Check a loaded scene and queue its views."""
    span, key = draft.span, source.keys[load.number]
    if load.first:
        others = _other_pictures(reader, work, span, span.scene_start + load.scene)
        stale = {shard: digest for shard, digest in others if digest != loaded.picture_digest}
        if stale:
            # All of them, this one too if it is there: each alone would be refused because of the others.
            again = rebuild_remedy(reader.path, reader.manifest, [*stale, *({span.shard} & work.replaced)])
            raise CacheError(
                f"the picture of scene {key!r} has changed: other views in cache {reader.path} were built from {min(stale.items())[1].hex()}, it is now "
                f"{loaded.picture_digest.hex()}; put the old picture back, or {again}"
            )
    elif draft.digests[load.scene, 0].tobytes() != loaded.picture_digest:
        raise CacheError(f"the picture of scene {key!r} changed while it was read; run the same command again when it rests")
    three = np.frombuffer(loaded.picture_digest + loaded.boxes_digest + loaded.points_digest, np.uint8)
    draft.digests[load.scene] = three.reshape(3, 16)
    for offset, view in enumerate(load.views):
        column = view - span.view_start
        draft.geometry[load.scene, column] = loaded.geometry[offset]
        boxes = loaded.boxes[offset]
        draft.counts[load.scene * span.views + column] = len(boxes)
        # A scene without heads has nothing to ask the teacher.
        if len(boxes):
            waiting.add(loaded.images[offset], boxes, f"scene {key!r}, view {view}")


def _other_pictures(reader: CacheReader, work: Work, span: Span, position: int) -> Iterator[tuple[int, bytes]]:
    """(shard, picture's digest) of the shards on disk that hold other views of a scene; not of those that are replaced later."""
    for shard in reader.manifest.shards_of(position):
        later = shard in work.replaced and shard > span.shard
        if shard != span.shard and not later and shard_path(reader.path, shard).exists():
            digest = reader.picture_in(shard, position)
            if any(digest):
                yield shard, digest


def _skipped_there(reader: CacheReader, span: Span) -> np.ndarray | None:
    """Which scenes ``[S]`` a shard on disk skipped; None if it is too damaged to say."""
    try:
        return reader.skipped_in(span.shard)
    except CacheError:
        return None
