"""The options that say which teacher and how it runs, alike for every command that runs one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teachers.model_teacher import ModelTeacher
    from teachers.onnx_teacher import OnnxTeacher

PRECISIONS = ("fp32", "fp16", "bf16")


def add_teacher_options(parser: argparse.ArgumentParser, *, precision: str | None = "fp32", compiled: bool = True) -> None:
    """How the teacher is made and runs. A ``precision`` of None means: not given, unless the user says so."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a timm: teacher's decoder weights")
    parser.add_argument(
        "--backbone-weights", type=Path, metavar="FILE", help="backbone weights for a teacher whose file is a decoder alone, if not timm's own"
    )
    parser.add_argument(
        "--input-size", type=_size, metavar="PIXELS", help="a timm: teacher's input, N or HEIGHTxWIDTH (default: what its decoder was trained on)"
    )
    parser.add_argument(
        "--adapter", default="", metavar="FILE|NAME", help="how to use an onnx: teacher (default: the file beside it, or the built-in that fits)"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default: auto, the fastest there is)")
    parser.add_argument("--precision", choices=PRECISIONS, default=precision, help="of the forward pass (default: fp32); slow on a CPU without units for it")
    if compiled:
        parser.add_argument("--compile", dest="compiled", action="store_true", help="run the teacher through torch.compile (needs a C++ compiler on a CPU)")


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not height.isdigit() or (cross and not width.isdigit()) or int(height) < 1 or (cross and int(width) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write pixels as 448, or as HEIGHTxWIDTH")
    return int(height), int(width if cross else height)


def teacher_from(args: argparse.Namespace, name: str) -> ModelTeacher | OnnxTeacher:
    """The teacher ``name`` as the options say; a published one is fetched, with progress, if it is not here."""
    from distill.fetching import download_progress
    from teachers.catalogue import load_teacher

    with download_progress() as report:
        return load_teacher(
            name,
            device=args.device,
            precision=args.precision or "fp32",
            compiled=getattr(args, "compiled", False),
            weights=args.weights,
            backbone_weights=args.backbone_weights,
            input_size=args.input_size,
            adapter=args.adapter,
            report=report,
        )


def teacher_words(args: argparse.Namespace) -> list[str]:
    """The options as words of a command line that makes the same teacher; the device is left to whoever runs it."""
    size = args.input_size and f"{args.input_size[0]}x{args.input_size[1]}"
    given = {
        "--weights": args.weights, "--backbone-weights": args.backbone_weights, "--input-size": size, "--adapter": args.adapter,
        "--precision": args.precision if args.precision != "fp32" else None,
    }
    return [word for option, value in given.items() if value for word in (option, str(value))]


def fill_in_teacher(args: argparse.Namespace, words: list[str]) -> None:
    """What ``args`` leaves open, from the command line ``words`` that :func:`teacher_words` is part of."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--teacher")
    add_teacher_options(parser, precision="fp32")
    built, _ = parser.parse_known_args(words)
    args.precision = args.precision or built.precision
    if args.teacher is None:
        args.teacher = built.teacher
        for option in ("weights", "backbone_weights", "input_size", "adapter"):
            setattr(args, option, getattr(args, option) or getattr(built, option))
