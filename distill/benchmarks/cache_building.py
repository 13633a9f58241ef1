"""What building a cache costs beside the teacher's bare forward pass, and what the codecs do to the demo teacher's maps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distill.benchmarks.cache_figures import Figure, figure
from distill.readers import open_data
from distill.source import SceneSource
from distill.synth import SynthConfig, write_dataset
from distill.views import ViewPolicy
from teachers.cache.reader import CacheReader
from teachers.cache.verify import kl_divergence
from teachers.catalogue import load_model_teacher
from teachers.contract import Teacher
from teachers.model import GazeModel, ModelConfig
from teachers.model_teacher import ModelTeacher
from teachers.runner import build_cache
from teachers.shard_draft import answer

VIEWS = 2
VIT = ModelConfig(backbone="vit_base_patch14_dinov2", input_size=(448, 448), inout="mlp")


def make_scenes(folder: Path, scenes: int) -> SceneSource:
    """Generated scenes, as `distill data synth` writes them, at ``folder``."""
    write_dataset(folder, SynthConfig(scenes=scenes, seed=5, test_fraction=0.0), processes=1)
    return SceneSource(open_data(f"gazefollow:{folder}", "trainval"), ViewPolicy())


def vit_teacher() -> ModelTeacher:
    """Gaze-LLE's ViT-B/14 at 448 pixels with random weights: its speed does not depend on them."""
    torch.manual_seed(0)
    return ModelTeacher(GazeModel(VIT), "random ViT-B/14", "random")


def first_scenes(source: SceneSource, count: int) -> SceneSource:
    return SceneSource(source.scenes.subset(source.scenes.scenes[:count]), source.policy)


def bare_forward(teacher: Teacher, source: SceneSource, batch_images: int) -> Callable[[], float]:
    """A measurement of the seconds that the forward passes of a build take, on batches that are ready."""
    images: list[torch.Tensor] = []
    boxes: list[np.ndarray] = []
    for scene in range(len(source.keys)):
        loaded = source.load(scene, range(VIEWS), teacher.input_size)
        for view in range(VIEWS if loaded.boxes.shape[1] else 0):
            images.append(loaded.images[view])
            boxes.append(loaded.boxes[view].astype(np.float32))

    def measure() -> float:
        started = time.perf_counter()
        for start in range(0, len(images), batch_images):
            heads = boxes[start : start + batch_images]
            index = np.repeat(np.arange(len(heads)), [len(one) for one in heads])
            answer(teacher, torch.stack(images[start : start + batch_images]), np.concatenate(heads), index)
        return time.perf_counter() - started

    return measure


def measure_overhead(
    name: str, teacher: Teacher, source: SceneSource, folder: Path, rounds: int, tell: Callable[[str, int, int], None],
    *, batch_images: int, bar: float | None = None,
) -> list[Figure]:
    """How much longer a build takes than the bare forward passes of the same views; both sides take turns."""
    bare = bare_forward(teacher, source, batch_images)
    bare()
    alone, whole = [], []
    for turn in range(rounds):
        path = folder / f"build-{turn}"
        alone.append(bare())
        started = time.perf_counter()
        build_cache(path, teacher, source, views=VIEWS, codec="q8", batch_images=batch_images, workers=2)
        whole.append(time.perf_counter() - started)
        shutil.rmtree(path)
        tell(f"Building, {name}", turn + 1, rounds)
    views = VIEWS * len(source.keys)
    over = [100 * (b / a - 1) for a, b in zip(alone, whole, strict=True)]
    return [
        figure(f"{name}: bare forward", "views/s", [views / one for one in alone]),
        figure(f"{name}: build", "views/s", [views / one for one in whole]),
        figure(f"{name}: build beyond the forward", "%", over, bar=bar, note=f"{views} views in batches of {batch_images}, {torch.get_num_threads()} threads"),
    ]


def measure_codecs(teacher: Teacher, source: SceneSource, folder: Path) -> list[Figure]:
    """KL(fp16 ‖ q8) at T=1 of a teacher's maps, each as one distribution over its cells."""
    for codec in ("fp16", "q8"):
        build_cache(folder / codec, teacher, source, views=VIEWS, codec=codec, workers=2)
    half, byte = (CacheReader(folder / codec) for codec in ("fp16", "q8"))
    items = [(key, view) for key in source.keys for view in range(VIEWS)]
    divergences = kl_divergence(half.read_many(items).heatmap, byte.read_many(items).heatmap)
    return [
        figure("q8 against fp16: KL at T=1, largest", "nats", [float(divergences.max())], bar=1e-3, note=f"{len(divergences)} maps of the demo teacher"),
        figure("q8 against fp16: KL at T=1", "nats", divergences.tolist()),
    ]


def demo_teacher() -> ModelTeacher:
    """The teacher that comes with the package."""
    return load_model_teacher("demo")
