"""``distill report``: one self-contained HTML file from what lies in a run's directory; no model is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the ``report`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "report",
        help="write one HTML file about a run",
        description="Write one self-contained HTML file about a run: curves with thaw events, models compared, "
        "gallery, exported files. It shows what lies in the run's directory; `distill eval` and `distill export` "
        "add to it.",
        epilog="examples:\n  distill report runs/demo\n  distill report runs/demo --out demo.html --gallery 6",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a directory that `distill train` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the HTML file (default: RUN_DIR/report.html)")
    parser.add_argument("--gallery", type=_count, default=12, metavar="N", help="pictures in the gallery (default: 12)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Gather, write, and print the path."""
    from distill.report import gather_facts, write_report

    out = args.out or args.run_dir / "report.html"
    facts = gather_facts(args.run_dir, gallery=args.gallery)
    print(write_report(args.run_dir, out, facts))
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; give 0 or more")
    return value
