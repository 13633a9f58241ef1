"""``distill cache build|verify|info``: pay for the teacher once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill.commands import cache_build, cache_verify

INFO = (
    "Print what is in a cache: teacher, data, views, rows, size, cost per row, skipped scenes, what is still missing."
)


def register(subparsers: Any) -> None:
    """Add the ``cache`` command and its three subcommands to the parser."""
    cache: argparse.ArgumentParser = subparsers.add_parser(
        "cache",
        help="run the teacher once and keep its answers",
        description="Build, verify and describe teacher caches.",
    )
    commands = cache.add_subparsers(dest="cache_command", metavar="build|verify|info", required=True)
    cache_build.register(commands)
    cache_verify.register(commands)
    info = commands.add_parser(
        "info", help="print what is in a cache", description=INFO, epilog="examples:\n  distill cache info caches/gf --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("cache", type=Path, metavar="CACHE", help="a directory that `distill cache build` wrote")
    info.add_argument("--json", action="store_true", help="the same facts as JSON on standard output")
    info.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> int:
    """Print a cache's facts."""
    from distill.commands.cache_info import print_facts

    print_facts(args.cache, args.json)
    return 0
