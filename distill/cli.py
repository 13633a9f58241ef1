"""The `distill` command: parse, run, and say in one line what the user can mend."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from distill import __version__
from distill.errors import is_mendable

# In the order of a user's work. Each module in distill/commands is light to import and has `register(subparsers)`.
COMMANDS = (
    "demo", "doctor", "info", "data", "teachers", "cache", "plan", "students", "train", "eval", "predict", "export", "report", "bench",
)

EPILOG = """\
a first look:      distill demo
your own data:     distill data check gazefollow:/path
                   distill cache build --data gazefollow:/path --teacher gazelle_dinov2_vitb14 --views 4 --out caches/gf
                   distill train recipes/gentle_finetune.toml --data gazefollow:/path --cache caches/gf
                   distill eval runs/gentle_finetune
                   distill export runs/gentle_finetune --format onnx
every command explains itself: distill COMMAND --help
"""


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line like all others of this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"distill: error: {message}; `{self.prog} --help` explains the options\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; importing it imports no torch."""
    parser = Parser(
        prog="distill",
        description="Distil a large gaze-target model into a small one: cache the teacher once, train, check, export.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"distill {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error that you could mend, too")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"distill.commands.{name}")
        module.register(subparsers)
    return parser


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Options may be written with underscores, as the reference scripts write them: ``--distill_weight``."""
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        result.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 for success, 2 for what the user can mend, 1 for a defect or a check that failed."""
    options = build_parser().parse_args(with_dashes(sys.argv[1:] if arguments is None else arguments))
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("distill: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`distill ... | head`): nothing to report, and nowhere to report it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_mendable(error) or options.traceback:
            raise
        # One line; spaces stay as they are, for a path or a command in it may hold two in a row.
        message = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        if os.environ.get("RANK", "0") == "0" or not getattr(error, "everywhere", False):
            print(f"distill: error: {message}", file=sys.stderr)
        return 2
