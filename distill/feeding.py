"""Feeding the trainer: scenes, replayed views and the teacher's cached answers, as batches.

The order of an epoch, the view of each scene in it and every augmentation are pure functions of (seed, epoch, scene key): a run
that is killed and resumed sees what an undisturbed one sees. Pictures are decoded by a few threads, some batches ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.augment import Augment
from distill.errors import DataError
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


@dataclass(frozen=True)
class _Sample:
    image: Tensor
    boxes: Tensor
    target: np.ndarray
    has_target: np.ndarray
    inout: np.ndarray
    teacher_heatmap: np.ndarray | None
    teacher_inout: np.ndarray | None


class SceneBatches:
    """Batches of scenes for the trainer (its ``BatchSource``).

    ``batch_size`` counts pictures over all processes; each process gets its share of every batch. Without a cache, view number
    ``epoch`` of the policy is shown at each epoch, so views never repeat; with one, exactly its views are replayed. ``exif`` turns
    pictures upright (see :func:`distill.pictures.decode`), as the cache's source does for the reader ``folder``.
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
    ) -> None:
        if len(scenes) == 0:
            raise DataError("there is no scene to train on; look at the data set with `distill data check`")
        if min(batch_size, len(scenes)) < world:
            raise DataError(
                f"a batch of {min(batch_size, len(scenes))} pictures cannot be shared by {world} processes; raise --batch-size (there "
                f"are {len(scenes)} scenes) or start fewer processes"
            )
        self.scenes, self.policy, self.cache, self.augment = scenes, policy, cache, augment
        self.input_size, self.heatmap_size, self.target_sigma = input_size, heatmap_size, target_sigma
        self.batch_size, self.seed = min(batch_size, len(scenes)), seed
        self.rank, self.world, self.workers, self.exif = rank, world, workers, exif
        self._lineage = dict(lineage)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: a last, smaller one would weigh its heads more than the others."""
        return len(self.scenes) // self.batch_size

    @property
    def lineage(self) -> Mapping[str, Any]:
        return self._lineage

    def order(self, epoch: int) -> list[int]:
        """The scenes of an epoch, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.scenes), generator=generator).tolist()

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order(epoch)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="feeding") as pool:
            waiting: deque[tuple[list[int], list[Future[_Sample]]]] = deque()
            upcoming = iter(range(start, self.steps_per_epoch))
            try:
                while True:
                    while len(waiting) < AHEAD and (number := next(upcoming, None)) is not None:
                        chosen = order[number * self.batch_size : (number + 1) * self.batch_size][self.rank :: self.world]
                        waiting.append((chosen, [pool.submit(self._sample, self.scenes[i], epoch) for i in chosen]))
                    if not waiting:
                        return
                    chosen, futures = waiting.popleft()
                    yield self._collate([self.scenes[i].key for i in chosen], [future.result() for future in futures])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, scene: Scene, epoch: int) -> _Sample:
        data = read_bytes(scene.picture)
        picture = decode(data, scene.picture, exif=self.exif)
        height, width = picture.shape[:2]
        flat = scene.normalised(width, height)
        refuse_outside(scene, flat)
        scene = flat
        teacher_heatmap = teacher_inout = None
        if self.cache is None:
            view = self.policy.view(scene, epoch)
        else:
            number = choose_view(self.seed, epoch, scene.key, self.cache.views)
            built, now = self.cache.picture_digest(scene.key, number), digest_bytes(data)
            if built != now:
                raise CacheError(
                    f"the picture of scene {scene.key!r} has changed: the cache was built from {built.hex()}, {scene.picture} is now "
                    f"{now.hex()}; put the old picture back, or build another cache with `distill cache build --out OTHER_PATH`"
                )
            cached = self.cache.read(scene.key, number)
            left, top, right, bottom, flip = (float(number) for number in cached.geometry)
            view = View(left, top, right, bottom, bool(flip))
            teacher_heatmap, teacher_inout = cached.heatmap, cached.inout
            if len(teacher_heatmap) != len(scene.heads):
                raise CacheError(
                    f"scene {scene.key} has {len(scene.heads)} heads, the cache {len(teacher_heatmap)}: its annotation was changed; "
                    "build the cache again with `distill cache build`"
                )
        image = view.picture(picture, self.input_size)
        boxes = torch.from_numpy(view.boxes(scene.boxes()).astype(np.float32))
        if self.augment is not None:
            generator = self.augment.generator(self.seed, epoch, scene.key)
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

        teacher_heatmap = teacher_inout = None
        maps = [sample.teacher_heatmap for sample in samples]
        if all(heatmap is not None for heatmap in maps):
            teacher_heatmap = joined([np.asarray(heatmap, dtype=np.float32) for heatmap in maps])
            if tuple(teacher_heatmap.shape[-2:]) != self.heatmap_size:
                teacher_heatmap = F.interpolate(
                    teacher_heatmap[:, None], size=self.heatmap_size, mode="bilinear", align_corners=False
                )[:, 0]
            logits = [sample.teacher_inout for sample in samples]
            if all(value is not None for value in logits):
                teacher_inout = joined([np.asarray(value, dtype=np.float32) for value in logits])
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
