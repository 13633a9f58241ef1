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
  distill bench teacher                  forward passes a second, and what a cache build adds (bar: a tenth)
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
