"""``distill bench teacher``: how fast a teacher runs, and what a cache build costs besides."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.teacher_options import add_teacher_options, teacher_from

if TYPE_CHECKING:
    from teachers.model_teacher import ModelTeacher
    from teachers.onnx_teacher import OnnxTeacher

DESCRIPTION = """\
Two comparisons, both sides in turn in every round. A cache build of N pictures (decoded, resized, run, encoded, written) against the
bare forward passes over the same views: what the pipeline adds is to be at most a tenth. Processor time counts the work alone; on the clock
a short run also pays for its first batch, which nothing can be decoded beside. K heads as one image against the same heads as K samples of
one head, as a loader of (picture, head) pairs would run them. Printed with median and spread.
"""
EPILOG = """\
examples:
  distill bench teacher                                            the demo teacher
  distill bench teacher --random gazelle_hgnetv2_atto              the published one with the least work; random weights, nothing is fetched
  distill bench teacher --random gazelle_dinov2_vitb14 --images 4  ViT-B/14 at 448 pixels
  distill bench teacher --teacher onnx:model.onnx --heads 5 --json
"""
BAR = 0.10


def register(actions: Any) -> None:
    """Add ``teacher`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "teacher",
        help="images and heads a second of a teacher, and what a build adds",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--teacher", default="demo", metavar="NAME|PATH", help="as for `distill cache build` (default: demo)")
    which.add_argument("--random", default="", metavar="NAME", help="a catalogue entry with random weights: as fast as the real one")
    parser.add_argument("--images", type=int, default=64, metavar="N", help="pictures (default: 64, four batches)")
    parser.add_argument("--heads", type=int, default=5, metavar="K", help="heads in each picture (default: 5)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures in one forward pass (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="rounds of each comparison (default: 5)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that decode and resize (default: 2)")
    add_teacher_options(parser)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print; always 0, the bar is printed beside the figure."""
    import os
    import statistics
    import tempfile

    from distill.console import print_json, print_result, say, table
    from distill.errors import ConfigurationError
    from distill.throughput import noise, ratios, time_each, use_of_device

    for name, least in (("images", 1), ("heads", 1), ("batch", 1), ("rounds", 3), ("workers", 1)):
        if getattr(options, name) < least:
            raise ConfigurationError(f"--{name} is {getattr(options, name)}; give at least {least}")
    teacher = random_teacher(options) if options.random else teacher_from(options, options.teacher)
    images, heads = options.images, options.heads
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
        say(f"drawing {images} pictures")
        sides = pipeline_sides(Path(folder), teacher, options)
        say(f"{options.rounds + 1} rounds of {images} pictures, twice each (the first round warms up)")
        times = time_each(sides, rounds=options.rounds)
    one, many = noise(teacher.input_size, 1, heads), noise(teacher.input_size, heads, 1)
    say(f"{options.rounds + 1} rounds of {heads} heads, as one image and as {heads} samples")
    shared = time_each({"one": lambda: one.run(teacher), "many": lambda: many.run(teacher)}, rounds=options.rounds)
    added, added_cpu = ratios(times["build"].wall, times["forward"].wall), ratios(times["build"].cpu, times["forward"].cpu)
    gain, gain_cpu = ratios(shared["many"].wall, shared["one"].wall), ratios(shared["many"].cpu, shared["one"].cpu)
    forward = statistics.median(times["forward"].wall)
    facts: dict[str, Any] = {
        "teacher": teacher.name, "device": teacher.device, "precision": teacher.fingerprint["precision"], "compiled": options.compiled,
        "input_size": list(teacher.input_size), "images": images, "heads_per_image": heads, "batch": options.batch, "rounds": options.rounds,
        "workers": options.workers, "images_per_s": round(images / forward, 3), "heads_per_s": round(images * heads / forward, 3),
        "forward_s": _spread(times["forward"].wall), "build_s": _spread(times["build"].wall), "forward_cpu_s": _spread(times["forward"].cpu),
        "pipeline_over_forward": [round(value - 1.0, 4) for value in added], "pipeline_over_forward_cpu": [round(value - 1.0, 4) for value in added_cpu],
        "share_not_forward": round(1.0 - 1.0 / added[0], 4), "bar_pipeline_over_forward": BAR, "one_image_s": _spread(shared["one"].wall),
        "samples_s": _spread(shared["many"].wall), "samples_over_one_image": [round(value, 3) for value in gain],
        "samples_over_one_image_cpu": [round(value, 3) for value in gain_cpu], "load": round(os.getloadavg()[0], 2),
        **use_of_device(teacher, images, images * heads, forward),
    }
    if options.json:
        print_json(facts)
        return 0
    rate = "a black box: not to be counted"
    if facts["mfu"] is not None:
        rate = f"{facts['tflop_s']} TFLOP/s, MFU {facts['mfu']:.1%} of {facts['peak_tflop_s']} TFLOP/s ({facts['peak_source']})"
        rate += f"; {facts['gflop_image']} GFLOP an image, {facts['gflop_head']} a head"
    rows = [
        ["forward passes", f"{facts['images_per_s']} images/s, {facts['heads_per_s']} heads/s; {_shown(facts['forward_s'])}"],
        ["arithmetic", rate],
        ["cache build of the same", _shown(facts["build_s"])],
        ["the pipeline adds", f"{added[0] - 1:+.1%} (from {added[1] - 1:+.1%} to {added[2] - 1:+.1%}; bar: +{BAR:.0%})"],
        ["in processor time", f"{added_cpu[0] - 1:+.1%} (from {added_cpu[1] - 1:+.1%} to {added_cpu[2] - 1:+.1%}), whatever else runs; load {facts['load']}"],
        ["of the build not forward", f"{facts['share_not_forward']:.1%}"],
        [f"{heads} heads as one image", _shown(facts["one_image_s"])],
        [f"{heads} heads as {heads} samples", _shown(facts["samples_s"])],
        ["", f"{gain[0]:.2f} times as much (from {gain[1]:.2f} to {gain[2]:.2f}; in processor time {gain_cpu[0]:.2f})"],
    ]
    title = f"{teacher.name} on {teacher.device}, {facts['precision']}, {images} images with {heads} heads, median of {options.rounds} rounds (least to most)"
    print_result(table(title, ["what", "value"], rows, left=2))
    return 0


def random_teacher(options: argparse.Namespace) -> ModelTeacher:
    """A catalogue entry's architecture with random weights."""
    import torch

    from teachers.catalogue import LIST
    from teachers.errors import UnknownModelError
    from teachers.model import GazeModel
    from teachers.model_teacher import ModelTeacher, resolve_device
    from teachers.published import CATALOGUE

    if options.random not in CATALOGUE:
        raise UnknownModelError.of("teacher", options.random, CATALOGUE, LIST)
    torch.manual_seed(0)
    model = GazeModel(CATALOGUE[options.random].config)
    device = resolve_device(options.device)
    return ModelTeacher(model, f"random {options.random}", "random", device=device, precision=options.precision, compiled=options.compiled)


def pipeline_sides(folder: Path, teacher: ModelTeacher | OnnxTeacher, options: argparse.Namespace) -> dict[str, Any]:
    """The two sides: ``forward`` over views that lie in memory, and ``build`` of a new cache of them in ``folder``."""
    from itertools import count

    import numpy as np
    import torch

    from distill.readers import open_data
    from distill.source import SceneSource
    from distill.synth import SynthConfig, draw_scene
    from distill.synth.dataset import encode_picture
    from distill.throughput import Batch, head_boxes
    from distill.views import ViewPolicy
    from teachers.runner import build_cache

    config = SynthConfig(scenes=options.images, width=640, height=480)
    pictures = folder / "pictures"
    pictures.mkdir()
    lines = ["image,person,xmin,ymin,xmax,ymax"]
    boxes = head_boxes(options.heads) * np.array([config.width, config.height] * 2)
    for number in range(options.images):
        (pictures / f"{number:04d}.jpg").write_bytes(encode_picture(draw_scene(0, number, config).picture))
        lines += [f"{number:04d}.jpg,{person},{','.join(f'{value:.2f}' for value in box)}" for person, box in enumerate(boxes)]
    (pictures / "heads.csv").write_text("\n".join(lines) + "\n")
    source = SceneSource(open_data(f"folder:{pictures}", "trainval"), ViewPolicy())
    loaded = [source.load(number, [0], teacher.input_size) for number in range(options.images)]
    batches = []
    for start in range(0, options.images, options.batch):
        chunk = loaded[start : start + options.batch]
        flat = np.concatenate([each.boxes[0] for each in chunk]).astype(np.float32)
        batches.append(Batch(torch.cat([each.images for each in chunk]), flat, np.repeat(np.arange(len(chunk)), options.heads)))
    caches = (folder / f"cache{number}" for number in count())

    def forward() -> None:
        for batch in batches:
            batch.run(teacher)

    def build() -> None:
        build_cache(next(caches), teacher, source, views=1, batch_images=options.batch, workers=options.workers)

    return {"forward": forward, "build": build}


def _spread(seconds: list[float]) -> dict[str, float]:
    import statistics

    return {"median": round(statistics.median(seconds), 6), "least": round(min(seconds), 6), "most": round(max(seconds), 6)}


def _shown(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3g} s ({spread['least']:.3g} to {spread['most']:.3g})"
