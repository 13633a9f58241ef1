"""A tiny data set and a tiny teacher for the cache's tests; run as a script, builds in processes of their own that can be killed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distill.scenes import IN, OUT, Head, Scene, SceneSet
from distill.source import SceneSource
from distill.views import ViewPolicy
from teachers.contract import GazeOutput
from teachers.runner import BuildRecord, BuildSummary, build_cache


class TinyTeacher(nn.Module):
    """Two random convolutions over picture and box mask: 32×32 pixels to 16×16 logits. Not the same on a mirror image."""

    input_size, heatmap_size = (32, 32), (16, 16)

    def __init__(self, seed: int = 0, has_inout: bool = True, gain: float = 5.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 2, 3, 1, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.fingerprint = {"name": "tiny", "weights": f"seed {seed}", "precision": "fp32", "size": (32, 32)}
        self.has_inout, self.gain = has_inout, gain
        self.images = 0
        self.batches: list[int] = []

    def forward(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0
        self.images += len(images)
        self.batches.append(len(images))
        grid = (torch.arange(32) + 0.5) / 32
        x0, y0, x1, y1 = (boxes[:, side, None] for side in range(4))
        inside = ((grid >= y0) & (grid <= y1))[:, :, None] & ((grid >= x0) & (grid <= x1))[:, None, :]
        stacked = torch.cat((images[image_index], inside.float()[:, None]), dim=1)
        maps = self.second(torch.relu(self.first(stacked))) * self.gain
        return GazeOutput(maps[:, 0], maps[:, 1].mean(dim=(1, 2)) if self.has_inout else None)


def make_scenes(folder: Path, count: int, seed: int = 0) -> list[Scene]:
    """Scenes of 0 to 2 heads (scene 0 has none) with random PNG pictures; the first ``n`` are the same for every ``count`` >= n."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = []
    for number in range(count):
        dice = np.random.default_rng([seed, number])
        path = folder / f"{number:03d}.png"
        pixels = dice.integers(0, 256, (40 + number % 3, 56, 3), dtype=np.uint8)
        if not path.exists():
            Image.fromarray(pixels).save(path)
        heads = []
        for person in range(number % 3):
            x, y = 0.3 + 0.2 * person, 0.25 + 0.3 * float(dice.random())
            label = IN if (number + person) % 4 else OUT
            heads.append(
                Head(
                    (x, y, x + 0.15, y + 0.2), ((float(dice.random()), 0.5),) if label == IN else (), label, str(person)
                )
            )
        scenes.append(Scene(path.name, str(path), tuple(heads)))
    return scenes


def make_source(scenes: Sequence[Scene], *, split: str = "trainval", **policy: float) -> SceneSource:
    return SceneSource(SceneSet("world", Path("world"), split, tuple(scenes)), replace(ViewPolicy(), **policy))  # type: ignore[arg-type]


def build(path: Path, source: SceneSource, teacher: TinyTeacher | None = None, **options: object) -> BuildSummary:
    """A build with small shards and batches unless ``options`` say else."""
    settings = {"views": 3, "scenes_per_shard": 4, "batch_images": 5, **options}
    return build_cache(path, teacher or TinyTeacher(), source, **settings)  # type: ignore[arg-type]


def shard_files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((cache / "shards").glob("[0-9]*"))}


def tell(line: str) -> None:
    """One line to standard output in one write: processes that share it do not tear each other's lines."""
    os.write(1, f"{line}\n".encode())


def watched_build(cache: Path, pictures: Path) -> None:
    """Build, note every shard that is computed in the file that LOG names, and be killed as HOLD says.

    ``flush:3`` or ``pass:2`` say so at that moment and wait for the kill; ``after:0.02`` says so at once and goes on.
    """
    moment, _, count = os.environ.get("HOLD", "").partition(":")
    seen = {"pass": 0, "flush": 0}

    def announce(what: str) -> None:
        seen[what] += 1
        if what == moment and seen[what] == int(count):
            tell(f"holding {os.getpid()}")
            time.sleep(3600)

    class Watched(TinyTeacher):
        def forward(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
            announce("pass")
            return super().forward(images, boxes, image_index)

    flush = os.fsync

    def announced_flush(handle: int) -> None:
        announce("flush")
        flush(handle)

    def note(record: BuildRecord) -> None:
        with open(os.environ["LOG"], "a") as file:
            file.write(f"{os.getpid()} {record.shard}\n")

    os.fsync = announced_flush
    source = make_source(make_scenes(pictures, 22))
    if moment == "after":
        tell(f"holding {os.getpid()}")
    summary = build(cache, source, Watched(), report=note if "LOG" in os.environ else None)
    tell(f"done {summary.shards_written} {summary.shards_present}")


def serve() -> None:
    """For each line of standard input, a JSON list of ``[cache, pictures, environment]``: a process for each, then their statuses.

    The processes are forked, so that torch is imported once.
    """
    torch.set_num_threads(1)
    for line in sys.stdin:
        children = []
        for cache, pictures, environment in json.loads(line):
            child = os.fork()
            if child == 0:
                os.environ.update(environment)
                watched_build(Path(cache), Path(pictures))
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        tell(" ".join(map(str, ["status", *codes])))


if __name__ == "__main__":
    serve()
