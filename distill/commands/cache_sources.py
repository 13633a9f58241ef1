"""Where a cache's data and teacher come from, for ``distill cache build`` and ``verify``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from distill.teacher_options import add_teacher_options

if TYPE_CHECKING:
    from distill.source import SceneSource

# More than anything that is counted here: views, scenes of a shard, rows, threads.
MOST = 10**9


def add_data_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """The options that name data and teacher."""
    data = parser.add_mutually_exclusive_group(required=required)
    data.add_argument("--data", metavar="SPEC", help="a data set: READER:PATH, or a path whose layout is recognised")
    data.add_argument("--images", type=Path, metavar="DIR", help="instead: a folder of pictures without gaze labels")
    parser.add_argument(
        "--heads",
        type=Path,
        metavar="CSV",
        help="head boxes of --images: image,person,xmin,ymin,xmax,ymax in pixels (default: DIR/heads.csv)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="split of --data (default: trainval, everything in the training file)"
    )
    parser.add_argument(
        "--teacher", required=required, metavar="NAME|PATH", help="a teacher: see `distill teachers list`; onnx:FILE is a black box"
    )
    # `verify` takes the precision from the cache, and a compiled teacher is the same teacher.
    add_teacher_options(parser, precision="fp32" if required else None, compiled=required)


def positive(text: str) -> int:
    """An option's value that counts something."""
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    if value > MOST:
        raise argparse.ArgumentTypeError(f"{text} is above {MOST:,}")
    return value


def seed(text: str) -> int:
    """An option's value that is a seed, which a view's digest takes as 64 bits."""
    value = _integer(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} has more than 64 bits")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def data_spec(args: argparse.Namespace) -> str:
    """What the options say of the data, as ``--data`` would."""
    from distill.errors import ConfigurationError

    if args.images is None:
        if args.heads is not None:
            raise ConfigurationError("--heads goes with --images DIR; a data set brings its own head boxes")
        return str(args.data)
    return f"folder:{args.images}" + (f"?heads={quote(str(args.heads))}" if args.heads is not None else "")


def open_source(spec: str, split: str | None, views: dict[str, Any]) -> SceneSource:
    """The scenes of a data set, and the view policy with the parameters ``views``."""
    from distill.readers import open_data
    from distill.source import SceneSource
    from distill.views import ViewPolicy

    return SceneSource(open_data(spec, split or "trainval"), ViewPolicy(**views), spec=spec)
