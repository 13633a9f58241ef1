"""``distill bench synth``: how fast scenes are drawn."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
examples:
  distill bench synth                    scenes a second on one core, JPEG encoding included (bar: 20)
  distill bench synth --scenes 200 --json
"""


def register(actions: Any) -> None:
    """Add ``synth`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "synth",
        help="scenes a second of the generator",
        description="Draw scenes in this one process and encode them as the data set's JPEGs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="scenes to draw (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="their seed (default: 0)")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Time the generator scene by scene."""
    import os
    import statistics
    import time

    from distill.console import print_json, print_result, progress
    from distill.errors import ConfigurationError
    from distill.synth import SynthConfig, draw_scene
    from distill.synth.dataset import encode_picture

    if options.scenes < 5:
        raise ConfigurationError(f"--scenes is {options.scenes}; a median and its spread want at least 5")
    config = SynthConfig(scenes=options.scenes, seed=options.seed)
    draw_scene(options.seed, 0, config)  # tables that are made once are not a scene's cost
    wall, cpu = [], []
    with progress("Drawing", total=options.scenes, unit="scenes") as bar:
        for index in range(options.scenes):
            began, busy = time.perf_counter(), time.process_time()
            encode_picture(draw_scene(options.seed, index, config).picture)
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - busy)
            bar.update()
    low, _, high = statistics.quantiles(cpu, n=4)
    facts = {
        "scenes": options.scenes, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
        "scenes_per_s": round(len(wall) / sum(wall), 2), "scenes_per_cpu_s": round(len(cpu) / sum(cpu), 2),
        "median_ms": round(1000 * statistics.median(cpu), 2), "quartiles_ms": [round(1000 * low, 2), round(1000 * high, 2)],
        "bar_scenes_per_s": 20,
    }
    if options.json:
        print_json(facts)
    else:
        print_result(
            f"{facts['scenes_per_s']} scenes/s ({facts['scenes_per_cpu_s']} a CPU second; bar: 20), median {facts['median_ms']} ms, quartiles "
            f"{facts['quartiles_ms'][0]} to {facts['quartiles_ms'][1]} ms, {options.scenes} scenes, load {facts['load']}"
        )
    return 0
