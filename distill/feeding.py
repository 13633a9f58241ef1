"""Feeding the trainer: scenes, replayed views and the teacher's cached answers, as batches.

The order of an epoch, the view of each scene in it and every augmentation are pure functions of (seed, epoch, scene key): a run
that is killed and resumed sees what an undisturbed one sees. For unlabelled scenes that are shown beside labelled ones the epoch's place is
taken by the number of their own pass (:mod:`distill.mixing`), itself a function of the step. Pictures are decoded by a few threads, some
batches ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distill.augment import Augment
from distill.cached_teacher import resampled
from distill.errors import DataError
from distill.mixing import Draw, Mixture, Walk, spread
from distill.pictures import decode, digest_bytes, read_bytes
from distill.scenes import IN, OUT, Scene
from distill.source import refuse_outside
from distill.targets import SIGMA, gaussian_target
from distill.views import View, ViewPolicy, choose_view
from students.batch import Batch
from teachers.errors import CacheError

AHEAD = 3  # batches prepared while one trains; more would only hold memory


class CachedAnswers(Protocol):
    """What feeding needs of a cache (one reader, or an ensemble of them)."""

    @property
    def views(self) -> int: ...

    def read(self, key: str, view: int) -> Any: ...

    def picture_digest(self, key: str, view: int) -> bytes:
        """The digest of the picture's file that this view was answered from (see :func:`distill.pictures.digest_bytes`)."""
        ...


def refuse_changed(cache: CachedAnswers, scene: Scene, view: int, data: bytes) -> None:
    """Raise :class:`CacheError` where ``data``, a picture's file as it is now, is not what the cache's view was built from."""
    built, now = cache.picture_digest(scene.key, view), digest_bytes(data)
    if built != now:
        raise CacheError(
            f"the picture of scene {scene.key!r} has changed: the cache was built from {built.hex()}, {scene.picture} is now "
            f"{now.hex()}; put the old picture back, or build another cache with `distill cache build --out OTHER_PATH`"
        )


@dataclass(frozen=True)
class _Sample:
    image: Tensor
    boxes: Tensor
    target: np.ndarray
    has_target: np.ndarray
    inout: np.ndarray
    teacher_heatmap: Tensor | None
    teacher_inout: np.ndarray | None


@dataclass(frozen=True)
class Pool:
    """Scenes of one origin, with what they are fed with.

    Without a ``cache``, view number ``epoch`` of the ``policy`` is shown at each epoch, so views never repeat; with one, exactly its
    views are replayed. ``exif`` turns pictures upright (see :func:`distill.pictures.decode`), as the cache's source does for
    the reader ``folder``. ``name`` stands before the keys of its scenes in a batch, where there are several origins.
    """

    scenes: Sequence[Scene]
    policy: ViewPolicy
    cache: CachedAnswers | None = None
    exif: bool = False
    name: str = ""

    def key(self, scene: Scene) -> str:
        """What a batch calls a scene of this pool."""
        return f"{self.name}: {scene.key}" if self.name else scene.key


class SceneBatches:
    """Batches of scenes for the trainer (its ``BatchSource``).

    ``batch_size`` counts pictures over all processes; each process gets its share of every batch. ``scenes`` are one :class:`Pool`,
    with ``policy``, ``cache`` and ``exif``; ``unlabelled`` are further ones, whose scenes make up ``unlabelled_share`` of every batch as
    :mod:`distill.mixing` says. Where ``scenes`` is empty, they alone are trained on, and an epoch is a pass over them.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        *,
        policy: ViewPolicy,
        input_size: tuple[int, int],
        heatmap_size: tuple[int, int],
        batch_size: int,
        seed: int,
        lineage: Mapping[str, Any],
        cache: CachedAnswers | None = None,
        augment: Augment | None = None,
        target_sigma: float = SIGMA,
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        exif: bool = False,
        unlabelled: Sequence[Pool] = (),
        unlabelled_share: float = 0.5,
    ) -> None:
        self.scenes = scenes
        self._labelled = [(Pool(scenes, policy, cache, exif), scene) for scene in scenes]
        self._unlabelled = [(pool, scene) for pool in unlabelled for scene in pool.scenes]
        if not self._labelled and not self._unlabelled:
            raise DataError("there is no scene to train on; look at the data set with `distill data check`")
        if self._labelled and self._unlabelled and (cache is None or any(pool.cache is None for pool in unlabelled)):
            raise DataError("labelled and unlabelled scenes share batches only if a teacher's cache answers for both; give --cache too")
        self.mixture = Mixture(len(self._labelled), len(self._unlabelled), batch_size, unlabelled_share, seed)
        self.batch_size, self.seed = sum(self.mixture.parts), seed
        if self.batch_size < world:
            raise DataError(
                f"a batch of {self.batch_size} pictures cannot be shared by {world} processes; raise --batch-size (there "
                f"are {len(self._labelled) + len(self._unlabelled)} scenes) or start fewer processes"
            )
        self.augment, self.input_size, self.heatmap_size = augment, input_size, heatmap_size
        self.target_sigma = target_sigma
        self.rank, self.world, self.workers = rank, world, workers
        self._lineage = dict(lineage)

    @property
    def steps_per_epoch(self) -> int:
        return self.mixture.steps_per_epoch

    @property
    def lineage(self) -> Mapping[str, Any]:
        return self._lineage

    def order(self, epoch: int) -> list[int]:
        """The scenes that an epoch is a pass over, in order."""
        return self.mixture.order(epoch)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        walk = Walk(self.mixture, epoch)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="feeding") as pool:
            waiting: deque[tuple[list[str], list[Future[_Sample]]]] = deque()
            upcoming = iter(range(start, self.steps_per_epoch))
            try:
                while True:
                    while len(waiting) < AHEAD and (number := next(upcoming, None)) is not None:
                        # Divided first and spread then: every process has its part of both kinds.
                        shown = [(*self._drawn(draw), draw.turn) for draw in spread(walk.batch(number)[self.rank :: self.world])]
                        keys = [origin.key(scene) for origin, scene, _ in shown]
                        waiting.append((keys, [pool.submit(self._sample, *each) for each in shown]))
                    if not waiting:
                        return
                    keys, futures = waiting.popleft()
                    yield self._collate(keys, [future.result() for future in futures])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _drawn(self, draw: Draw) -> tuple[Pool, Scene]:
        return (self._unlabelled if draw.unlabelled else self._labelled)[draw.scene]

    def _sample(self, pool: Pool, scene: Scene, turn: int) -> _Sample:
        data = read_bytes(scene.picture)
        picture = decode(data, scene.picture, exif=pool.exif)
        height, width = picture.shape[:2]
        flat = scene.normalised(width, height)
        refuse_outside(scene, flat)
        scene = flat
        teacher_heatmap: Tensor | None = None
        teacher_inout: np.ndarray | None = None
        if pool.cache is None:
            view = pool.policy.view(scene, turn)
        else:
            number = choose_view(self.seed, turn, scene.key, pool.cache.views)
            refuse_changed(pool.cache, scene, number, data)
            cached = pool.cache.read(scene.key, number)
            left, top, right, bottom, flip = (float(number) for number in cached.geometry)
            view = View(left, top, right, bottom, bool(flip))
            if len(cached.heatmap) != len(scene.heads):
                raise CacheError(
                    f"scene {scene.key} has {len(scene.heads)} heads, the cache {len(cached.heatmap)}: its annotation was changed; "
                    "build the cache again with `distill cache build`"
                )
            teacher_heatmap, teacher_inout = resampled(cached.heatmap, self.heatmap_size), cached.inout
        image = view.picture(picture, self.input_size)
        boxes = torch.from_numpy(view.boxes(scene.boxes()).astype(np.float32))
        if self.augment is not None:
            generator = self.augment.generator(self.seed, turn, scene.key)
            image = self.augment.picture(image, generator)
            boxes = self.augment.boxes(boxes, generator)
        target = np.zeros((len(scene.heads), *self.heatmap_size), dtype=np.float32)
        has_target = np.zeros(len(scene.heads), dtype=bool)
        for row, head in enumerate(scene.heads):
            if head.points and head.inout != OUT:
                points = view.points(np.array(head.points))
                target[row] = gaussian_target([(float(x), float(y)) for x, y in points], self.heatmap_size, self.target_sigma)
                has_target[row] = head.inout == IN
        inout = np.array([head.inout for head in scene.heads], dtype=np.float32)
        return _Sample(image, boxes, target, has_target, inout, teacher_heatmap, teacher_inout)

    def _collate(self, keys: list[str], samples: list[_Sample]) -> Batch:
        counts = torch.tensor([len(sample.boxes) for sample in samples])

        def joined(arrays: Sequence[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays))

        # All or none: what is mixed is checked to have the same answers (:mod:`distill.unlabelled`).
        maps = [sample.teacher_heatmap for sample in samples if sample.teacher_heatmap is not None]
        logits = [np.asarray(sample.teacher_inout, dtype=np.float32) for sample in samples if sample.teacher_inout is not None]
        teacher_heatmap = torch.cat(maps) if len(maps) == len(samples) else None
        teacher_inout = joined(logits) if len(logits) == len(samples) else None
        return Batch(
            images=torch.stack([sample.image for sample in samples]),
            boxes=torch.cat([sample.boxes for sample in samples]),
            image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
            target=joined([sample.target for sample in samples]),
            has_target=joined([sample.has_target for sample in samples]),
            inout=joined([sample.inout for sample in samples]),
            scenes=tuple(keys),
            teacher_heatmap=teacher_heatmap,
            teacher_inout=teacher_inout,
        )
