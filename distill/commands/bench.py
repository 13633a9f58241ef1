"""``distill bench``: what the performance bars are measured with; each prints median and spread, never a verdict alone."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from distill.benchmarks import BENCHMARKS

EPILOG = """\
examples:
  distill bench synth                    scenes a second on one core, JPEG encoding included (bar: 20)
  distill bench synth --scenes 200 --json
  distill bench readers                  rows of published annotation files (bar: 3 s for GazeFollow's 125,000)
  distill bench teacher                  forward passes a second, and what a cache build adds (bar: a tenth)
  distill bench cache --quick            building, opening and reading caches
  distill bench train --quick            a step from the cache against one with the teacher in it
  distill bench metrics --quick          GazeFollow's AUC against scikit-learn's (bar: 40 times), a whole split (20 s)
  distill bench decoders                 query against gazelle decoder, by number of people (bars: 1.8 and 6 times)
  distill bench export runs/demo         formats x precisions x people: ms, MB, memory, accuracy
"""


def register(subparsers: Any) -> None:
    """Add the ``bench`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure speed against the project's bars",
        description="Measure what the project promises about speed, on this machine: both sides of each comparison in one run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="bench", metavar="BENCHMARK", required=True)
    for name in BENCHMARKS:
        import_module(f"distill.benchmarks.{name}").register(actions)
