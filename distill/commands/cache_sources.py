"""Where a cache's data and teacher come from, for ``distill cache build`` and ``verify``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from distill.source import SceneSource
    from teachers.contract import Teacher


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
        "--teacher", required=required, metavar="NAME|PATH", help="a teacher: see `distill teachers list`"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a timm: teacher's decoder weights")
    parser.add_argument(
        "--backbone-weights", type=Path, metavar="FILE", help="a timm: teacher's backbone weights, if not timm's own"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the fastest there is)"
    )
    # `verify` takes it from the cache.
    precision = "fp32" if required else None
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default=precision, help="of the forward pass (default: fp32)"
    )


def positive(text: str) -> int:
    """An option's value that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


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


def open_teacher(args: argparse.Namespace) -> Teacher:
    """The teacher that the options name."""
    from teachers.catalogue import load_teacher

    return load_teacher(
        args.teacher,
        device=_device(args.device),
        precision=args.precision,
        weights=args.weights,
        backbone_weights=args.backbone_weights,
    )


def _device(name: str) -> str:
    """``auto`` resolved: this process's GPU, else Apple's, else the CPU."""
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
