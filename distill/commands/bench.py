"""``distill bench``: what the performance bars are measured with; each prints median and spread, never a verdict alone."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
examples:
  distill bench synth                    scenes a second on one core, JPEG encoding included (bar: 20)
  distill bench synth --scenes 200 --json
"""


def register(subparsers: Any) -> None:
    """Add the ``bench`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure speed against the project's bars",
        description="Measure what the project promises about speed, on this machine, in one run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="bench", metavar="synth", required=True)
    synth = actions.add_parser(
        "synth",
        help="scenes a second of the generator",
        description="Draw scenes in this one process and encode them as the data set's JPEGs.",
        epilog="examples:\n  distill bench synth --scenes 200",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    synth.add_argument("--scenes", type=int, default=100, metavar="N", help="scenes to draw (default: 100)")
    synth.add_argument("--seed", type=int, default=0, metavar="N", help="their seed (default: 0)")
    synth.add_argument("--json", action="store_true", help="the same facts as JSON")
    synth.set_defaults(run=run_synth)


def run_synth(options: argparse.Namespace) -> int:
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
