"""``distill info PATH``: what an artefact was made from, and whether that still holds."""

from __future__ import annotations

import argparse
from typing import Any

DESCRIPTION = """\
Print the lineage of an artefact: from pictures and annotations over teacher, cache and run to the exported file, with the digest that each
link records of the one before, and where what is on disk no longer matches. PATH is a run, a cache, a stored model, an exported .onnx file, the
folder of an exported web page, or a data set. Exit code 1 if a link has changed.
"""
EPILOG = """\
examples:
  distill info runs/demo
  distill info runs/demo/exports/student.onnx
  distill info runs/demo/exports/web
  distill info caches/scenes --json
  distill info gazefollow:/path
"""


def register(subparsers: Any) -> None:
    """Add the ``info`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "info", help="print what something was made from", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="a run, cache, stored model, exported file, web page or data set")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the chain; 1 if a link has changed."""
    from dataclasses import asdict

    from distill.console import print_json, print_result
    from distill.lineage import lineage
    from distill.links import CHANGED

    chain = lineage(options.path)
    if options.json:
        print_json({**asdict(chain), "whole": chain.whole})
        return 0 if chain.whole else 1
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=f"{escape(chain.path)}: {chain.kind}", title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in ("link", "name", "digest"):
        shown.add_column(column, overflow="fold")
    shown.add_column("on disk", overflow="fold")
    for link in chain.links:
        style = "bold red" if link.status == CHANGED else None
        shown.add_row(link.what, escape(link.name), link.digest or "-", escape(link.state), style=style)
    print_result(shown)
    changed = [link.what for link in chain.links if link.status == CHANGED]
    if changed:
        print_result(f"{', '.join(changed)}: what is on disk is no longer what the links after it were made from")
    return 1 if changed else 0
