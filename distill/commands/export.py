"""``distill export``: the student as a deployable file, kept only if it answers as the student does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.commands.export_web import register_web

if TYPE_CHECKING:
    from students.export import Exported

DESCRIPTION = """\
Write a run's student as one ONNX file: any number of pictures and of heads, normalisation inside. Beside it a JSON says what goes
in, what comes out, how a picture is resized, and where the file comes from.

Before the file is kept it is run in ONNX Runtime on scenes of the run's validation split and compared with the student:
|difference of probability| <= 0.001, the same highest cell on >= 99 % of heads, the same in/out answer on all. Beyond that the file
is withheld, and the scenes that differ most are named.
"""
EPILOG = """\
examples:
  distill export runs/demo --format onnx
  distill export runs/demo --format onnx --out gaze.onnx --scenes 500
  distill export runs/demo --format onnx --data gazefollow:/moved/here
  distill export runs/demo --format web              (a page that works offline: runs/demo/exports/web/index.html)
  distill predict runs/demo/exports/student.onnx photo.jpg --heads heads.csv --out answers
"""


def register(subparsers: Any) -> None:
    """Add the ``export`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "export",
        help="write the student as a deployable file, compared with it first",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run's directory, or a stored model's (then with --data)")
    parser.add_argument("--format", choices=("onnx", "web"), default="onnx", help="kind of file, or a web page around it (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file, ending in .onnx (default: RUN/exports/student.onnx)")
    parser.add_argument("--scenes", type=_positive, default=64, metavar="N", help="scenes to compare on, at most (default: 64)")
    parser.add_argument("--data", metavar="SPEC", help="scenes of this data set instead of the run's own")
    parser.add_argument("--split", metavar="NAME", help="split of the data set (default: the run's validation split)")
    register_web(parser)
    parser.add_argument("--json", action="store_true", help="the file's description as JSON on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export and show; raises mendable errors for what cannot be exported, and for a file that is withheld."""
    from distill.console import print_json

    if options.format == "web":
        from distill.commands.export_web import export_web

        return export_web(options)
    exported = checked_file(options, options.out)
    if options.json:
        print_json({"path": str(exported.path), **exported.description})
    else:
        show(exported)
    return 0


def checked_file(options: argparse.Namespace, out: Path | None) -> Exported:
    """The run's ONNX file at ``out``, compared with the student, with progress on the console."""
    from contextlib import ExitStack

    from distill.console import Bar, progress, say
    from distill.exporting import export_run

    with ExitStack() as stack:
        total = 0
        bar: Bar | None = None

        def begin(count: int) -> None:
            nonlocal total
            total = count
            say(f"tracing the student, then comparing the file with it on {count} scenes")

        def advance(count: int) -> None:
            # Made when the first scenes are done: the tracing before them says nothing of the time that is left.
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress("Comparing", total=total, unit="scenes"))
            bar.update(count)

        return export_run(
            options.run_dir, out, scenes=options.scenes, data=options.data, split=options.split, begin=begin, advance=advance
        )


def show(exported: Exported) -> None:
    """What was compared, and where the file is."""
    from distill.console import print_result, table
    from students.onnx_runtime import description_path

    parity, description = exported.parity, exported.description
    allowed, timing = description["tolerance"], description["timing"]
    probability = f"<= {allowed['probability']:g}"
    rows = [["heatmap, largest |Δp|", f"{parity.heatmap_probability:.2e}", probability]]
    if parity.inout_probability is not None and parity.inout_flips is not None:
        rows += [
            ["in/out, largest |Δp|", f"{parity.inout_probability:.2e}", probability],
            ["in/out flips", f"{parity.inout_flips:.1%}", f"<= {allowed['inout_flips']:.0%}"],
        ]
    rows += [
        ["argmax equal", f"{parity.argmax_equal:.2%}", f">= {allowed['argmax_equal']:.0%}"],
        ["argmax shift, mean / largest", f"{parity.mean_argmax_shift:.3f} / {parity.max_argmax_shift:.1f} cells", ""],
    ]
    title = f"ONNX Runtime against the student: {parity.scenes} scenes, {parity.heads} heads"
    print_result(table(title, ["difference", "found", "allowed"], rows))
    ratio = timing["torch_ms"] / timing["onnxruntime_ms"]
    print_result(
        f"one picture, one head, {timing['threads']} thread{'s' if timing['threads'] > 1 else ''}: "
        f"{timing['onnxruntime_ms']:.1f} ms in ONNX Runtime, {timing['torch_ms']:.1f} ms in torch ({ratio:.2f}x)"
    )
    print_result(f"{exported.path}  {description['bytes'] / 1e6:.2f} MB, described in {description_path(exported.path)}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
