"""Evaluation: run any gaze model over scenes and score what it answers, by the same code for the trainer's validation,
`distill eval` and the report.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from distill.metrics import GazeMetrics, HeadRows, HeadTruth, MetricAccumulator
from distill.scenes import OUT, Scene
from distill.source import opened
from distill.views import IDENTITY
from teachers.contract import GazeOutput

_SCORED_AT_ONCE = 32  # heads: one by one, calling the metrics takes as long as what they compute


class GazeFunction(Protocol):
    """A model as evaluation sees it: the teacher contract's call, and the size of its pictures (height, width)."""

    @property
    def input_size(self) -> tuple[int, int]: ...

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput: ...


@runtime_checkable
class AnswerSource(Protocol):
    """What answers for scenes by itself instead of looking at their pictures: stored predictions, a model that is recorded."""

    def scene_answers(
        self, scenes: Sequence[Scene], *, batch_size: int, workers: int, device: str, exif: bool
    ) -> Iterator[SceneAnswer]: ...


@dataclass(frozen=True)
class SceneAnswer:
    """What a model answers for one scene: ``heatmap [N,h,w]`` and ``inout [N]`` logits (or None), the scene normalised."""

    scene: Scene
    heatmap: np.ndarray
    inout: np.ndarray | None


def _opened(scene: Scene, size: tuple[int, int], exif: bool) -> tuple[Scene, Tensor]:
    picture, flat = opened(scene, exif=exif)
    return flat, IDENTITY.picture(picture, size)


def answers(
    model: GazeFunction, scenes: Sequence[Scene], *, batch_size: int = 16, workers: int = 2, device: str = "cpu", exif: bool = False
) -> Iterator[SceneAnswer]:
    """The model's answer for every scene, in order; pictures are decoded ahead by ``workers`` threads.

    ``exif`` turns pictures upright (see :func:`distill.pictures.decode`), as is right for those of the reader ``folder``. Raises
    :class:`PictureError` for a picture that cannot be read, :class:`DataError` for a head box outside its picture.
    """
    if isinstance(model, AnswerSource):
        yield from model.scene_answers(scenes, batch_size=batch_size, workers=workers, device=device, exif=exif)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="evaluation") as pool:
        waiting: deque = deque()
        upcoming = iter(scenes)
        try:
            while True:
                while len(waiting) < 3 * batch_size and (scene := next(upcoming, None)) is not None:
                    waiting.append(pool.submit(_opened, scene, model.input_size, exif))
                if not waiting:
                    return
                batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
                yield from _answer_batch(model, batch, device)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _answer_batch(model: GazeFunction, batch: list[tuple[Scene, Tensor]], device: str) -> Iterator[SceneAnswer]:
    counts = [len(scene.heads) for scene, _ in batch]
    images = torch.stack([image for _, image in batch])
    boxes = torch.from_numpy(np.concatenate([scene.boxes() for scene, _ in batch]).astype(np.float32))
    index = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts))
    if len(boxes):
        with torch.inference_mode():
            output = model(images.to(device), boxes.to(device), index.to(device))
        heatmaps = output.heatmap.float().cpu().numpy()
        inout = None if output.inout is None else output.inout.float().cpu().numpy()
    else:
        heatmaps, inout = np.zeros((0, 1, 1), dtype=np.float32), None
    first = 0
    for (scene, _), count in zip(batch, counts, strict=True):
        rows = slice(first, first + count)
        yield SceneAnswer(scene, heatmaps[rows], None if inout is None else inout[rows])
        first += count


def truths(scene: Scene) -> list[HeadTruth]:
    """The heads of a normalised scene as the metrics want them."""
    assert scene.size is not None
    width, height = scene.size
    return [
        HeadTruth(
            points=np.array(() if head.inout == OUT else head.points, dtype=np.float64).reshape(-1, 2),
            inout=head.inout, width=width, height=height, box=head.box, people=len(scene.heads),
            # Frames of one clip resemble each other: they are drawn together when intervals are taken.
            scene=scene.key.rpartition("/")[0] if scene.group else scene.key,
        )
        for head in scene.heads
    ]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one set of scenes, the rows behind them, and milliseconds a picture (all included)."""

    metrics: GazeMetrics
    rows: HeadRows
    ms_per_image: float


def protocol_of(reader: str) -> str:
    """Which AUC a data set's own tables use: video, with one annotator a head, that of VideoAttentionTarget."""
    return "vat" if reader in ("vat", "childplay") else "gazefollow"


def _score(accumulator: MetricAccumulator, given: Sequence[SceneAnswer]) -> None:
    """Add the heads of several scenes in one call."""
    with_heads = [answer for answer in given if answer.scene.heads]
    inout = [answer.inout for answer in with_heads if answer.inout is not None]
    if 0 < len(inout) < len(with_heads):  # the accumulator says what is wrong with that
        for answer in with_heads:
            accumulator.add(answer.heatmap, answer.inout, truths(answer.scene))
    elif with_heads:
        heatmaps = np.concatenate([answer.heatmap for answer in with_heads])
        accumulator.add(heatmaps, np.concatenate(inout) if inout else None, [truth for answer in with_heads for truth in truths(answer.scene)])


def evaluate(
    model: GazeFunction,
    scenes: Sequence[Scene],
    *,
    protocol: str = "gazefollow",
    batch_size: int = 16,
    workers: int = 2,
    device: str = "cpu",
    exif: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score ``model`` on ``scenes``; ``advance(1)`` is called for each picture done. ``exif`` and what is raised: :func:`answers`."""
    accumulator = MetricAccumulator(protocol)  # type: ignore[arg-type]
    began = time.perf_counter()
    count = 0
    waiting: list[SceneAnswer] = []
    for answer in answers(model, scenes, batch_size=batch_size, workers=workers, device=device, exif=exif):
        waiting.append(answer)
        if sum(len(each.scene.heads) for each in waiting) >= _SCORED_AT_ONCE:
            _score(accumulator, waiting)
            waiting = []
        count += 1
        if advance is not None:
            advance(1)
    _score(accumulator, waiting)
    seconds = time.perf_counter() - began
    return Evaluation(accumulator.result(), accumulator.rows(), 1000.0 * seconds / max(count, 1))
