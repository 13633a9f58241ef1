"""``distill doctor``: is everything here that the other commands need?"""

from __future__ import annotations

import argparse
from typing import Any

DESCRIPTION = """\
Look at versions (and whether torch and torchvision fit each other), extras, cores, memory, GPUs, the directories that will be
written to, and try the machinery for two seconds. Every line that is not ok says what to do. Exit code 1 if a line fails.
"""
EPILOG = """\
examples:
  distill doctor
  distill doctor --json > machine.json       for a bug report
"""
MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}


def register(subparsers: Any) -> None:
    """Add the ``doctor`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor", help="check this machine and installation", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="the same facts as JSON on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check and print; 1 if something fails."""
    from dataclasses import asdict

    from distill.console import print_json, print_result
    from distill.doctor import FAIL, WARN, Check, examine

    checks: list[Check] = list(examine())
    failed, warned = ([check for check in checks if check.state == state] for state in (FAIL, WARN))
    if options.json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
        return 1 if failed else 0
    from rich.markup import escape
    from rich.table import Table

    shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for check in checks:
        remedy = f"\n→ {escape(check.remedy)}" if check.remedy and check.state != "ok" else ""
        shown.add_row(MARKS[check.state], check.name, escape(check.found) + remedy)
    print_result(shown)
    if failed:
        print_result(f"{len(failed)} of {len(checks)} checks failed: {', '.join(check.name for check in failed)}")
        return 1
    print_result(f"all {len(checks)} checks passed" + (f", {len(warned)} with a warning" if warned else ""))
    return 0
