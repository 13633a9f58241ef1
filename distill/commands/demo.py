"""``distill demo``: the whole pipeline on generated scenes, offline, in a few minutes; every step is a command shown as it runs."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

# What the student must reach: a share of the head-position prior's avg L2 on the validation scenes.
LEARNED = 0.75
EPILOG = """\
examples:
  distill demo                       into demo/, about five minutes on two cores
  distill demo --out /tmp/first-look
"""


def register(subparsers: Any) -> None:
    """Add the ``demo`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="the whole pipeline in minutes, offline",
        description="Generate scenes, cache the demo teacher, train a small student from the cache, evaluate, export to ONNX, write "
        "a report. Exits with 1 if the student did not learn.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where everything goes (default: demo)")
    parser.add_argument("--scenes", type=int, default=800, metavar="N", help="scenes to generate (default: 800)")
    parser.add_argument("--views", type=int, default=2, metavar="V", help="views of each scene in the cache (default: 2)")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="epochs to train (default: 6)")
    parser.add_argument("--seed", type=int, default=11, metavar="N", help="seed of scenes and training (default: 11)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run every step, then print the comparison and where everything is."""
    from distill.comparing import table_rows
    from distill.console import duration, print_result, say, table, warn
    from distill.errors import ConfigurationError
    from distill.report.facts import ModelRow

    began = time.monotonic()
    out: Path = options.out
    scenes, cache, name = out / "scenes", out / "cache", _free_name(out / "runs")
    home = out / "runs" / name
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "demo.toml"
    if not recipe.is_file():
        raise ConfigurationError(f"{recipe} is not there: the demo runs from a clone of the repository; clone it and `make demo`")
    seed = str(options.seed)
    steps = (
        ("Scenes in GazeFollow's layout", ["data", "synth", str(scenes), "--scenes", str(options.scenes), "--seed", seed]),
        (
            "The teacher, once",
            ["cache", "build", "--data", str(scenes), "--teacher", "demo", "--views", str(options.views), "--out", str(cache)],
        ),
        (
            "A student from the cache",
            ["train", str(recipe), "--data", str(scenes), "--cache", str(cache), "--runs", str(out / "runs"), "--name", name,
             "--epochs", str(options.epochs), "--seed", seed],
        ),
        ("Scores, beside teacher and baselines", ["eval", str(home), "--teacher", "demo"]),
        ("A file to deploy, checked", ["export", str(home), "--format", "onnx"]),
        ("One page about it", ["report", str(home)]),
    )
    for number, (title, arguments) in enumerate(steps, start=1):
        say(f"\n[{number}/{len(steps)}] {title}\n$ {shlex.join(['distill', *arguments])}")
        if code := _step(arguments):
            return code
    rows = [ModelRow(**row) for row in json.loads((home / "eval.json").read_text())["rows"]]
    columns, cells = table_rows(rows)
    print_result(table("Demo: validation scenes carved from the training file", columns, cells, left=2))
    print_result(f"report  {home / 'report.html'}\nexport  {home / 'exports' / 'student.onnx'}\ntime    {duration(time.monotonic() - began)}")
    prior = next(row.avg_l2 for row in rows if row.name == "head-position prior")
    student = next(row.avg_l2 for row in rows if row.role == "student")
    assert prior is not None
    assert student is not None
    print_result(f"learned student's avg L2 is {student / prior:.2f} of the head-position prior's (at most {LEARNED} wanted)")
    if student > LEARNED * prior:
        warn("the student did not learn enough; give it more --scenes or --epochs")
        return 1
    return 0


def _step(arguments: list[str]) -> int:
    """One command, exactly as the command line runs it; its errors are the demo's."""
    from distill.cli import build_parser

    parsed = build_parser().parse_args(arguments)
    return int(parsed.run(parsed) or 0)


def _free_name(runs: Path) -> str:
    """``demo``, or the first of ``demo-2``, ``demo-3``, ... that is not taken: an earlier run is never touched."""
    name, number = "demo", 1
    while (runs / name).exists():
        number += 1
        name = f"demo-{number}"
    return name
