"""``distill export``: the student as a deployable file, kept only if it answers as the student does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.commands.export_web import register_web

if TYPE_CHECKING:
    from students.export import Exported

DESCRIPTION = """\
Write a run's student as one file: raw pictures of any size and any number of heads go in, resizing and normalisation are inside. Beside it
a JSON says what goes in, what comes out and where the file comes from; beside an ONNX file lies gaze_predictor.py as well, which runs
it with NumPy, Pillow and ONNX Runtime alone.

Before the file is kept it is run in its own runtime on raw pictures of the run's validation split and compared with the student. Allowed:
float32 |difference of probability| <= 0.001, the same highest cell on >= 99 % of heads, no in/out flip; float16 <= 0.01, a mean shift of
that cell <= 0.25 cells, <= 1 % flips; int8 a loss of AUC and a gain of avg L2 <= 0.005, <= 2 % flips. Beyond that the file is withheld,
and the scenes that differ most are named.
"""
EPILOG = """\
examples:
  distill export runs/demo --format onnx
  distill export runs/demo --precision int8                   calibrated on training views
  distill export runs/demo --format torch                     a torch.export program
  distill export runs/demo --format openvino --precision float16
  distill export runs/demo --format litert --converter-python litert/bin/python --people 3
  distill export runs/demo --format coreml --precision float16
  distill export runs/demo --format tensorrt                  an ONNX file, and the command that builds its engine
  distill export runs/demo --format web                       a page that works offline: runs/demo/exports/web/index.html
  distill export runs/demo --out gaze.onnx --scenes 500
  distill export runs/demo --data gazefollow:/moved/here
  distill export runs/demo --precision int8 --tolerance inout_flips=0.05     looser, and recorded as such
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
    parser.add_argument(
        "--format", choices=("onnx", "torch", "openvino", "litert", "coreml", "tensorrt", "web"), default="onnx",
        help="kind of file; tensorrt: an ONNX file and the command that builds an engine of it; web: a page around an ONNX file (default: onnx)",
    )
    parser.add_argument(
        "--precision", type=_precision, choices=("float32", "float16", "int8"), default="float32",
        help="numbers inside; fp32 and fp16 are understood too (default: float32)",
    )
    parser.add_argument(
        "--pixels", choices=("uint8", "float32"), default="",
        help="what goes in: uint8, raw pictures; float32, pictures that the caller resizes as the JSON says (default: uint8 for onnx, torch and "
        "openvino; float32 for the others)",
    )
    parser.add_argument("--people", type=_positive, metavar="N", help="heads in a call, for litert and coreml, which want it fixed (default: 5)")
    parser.add_argument(
        "--converter-python", metavar="PATH", help="for litert: the Python of an environment that has litert-torch (default: $DISTILL_LITERT_PYTHON)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="the file, .onnx, .pt2, .xml, .tflite or .mlpackage (default: RUN/exports/student.onnx), or the page's folder",
    )
    parser.add_argument("--scenes", type=_positive, default=64, metavar="N", help="pictures to compare on (default: 64)")
    parser.add_argument(
        "--tolerance", action="append", type=_change, default=[], metavar="NAME=VALUE",
        help="allow another difference: probability, argmax_equal, mean_shift, auc_loss, avg_l2_gain, inout_flips; the JSON records it",
    )
    parser.add_argument("--data", metavar="SPEC", help="scenes of this data set instead of the run's own")
    parser.add_argument("--split", metavar="NAME", help="split of the data set (default: the run's validation split)")
    register_web(parser)
    parser.add_argument("--json", action="store_true", help="the file's description as JSON on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export and show; raises mendable errors for what cannot be exported, and for a file that is withheld."""
    from distill.console import print_json, print_result

    if options.format == "web":
        from distill.commands.export_web import export_web

        return export_web(options)
    exported = checked_file(options, options.out)
    steps: dict[str, Any] = {}
    if options.format == "tensorrt":
        from distill.tensorrt_recipe import recipe

        steps = {"tensorrt": recipe(exported.path, exported.description)}
    if options.json:
        print_json({"path": str(exported.path), **exported.description, **steps})
        return 0
    show(exported)
    for command in steps.get("tensorrt", ()):
        print_result(command)
    if steps:
        print_result("no gate has seen such an engine: compare its answers with the ONNX file's before it is used")
    return 0


def checked_file(options: argparse.Namespace, out: Path | None) -> Exported:
    """The file that the options ask for at ``out``, compared with the student, with progress on the console."""
    from contextlib import ExitStack

    from distill.console import Bar, progress, say
    from distill.errors import ConfigurationError
    from distill.exporting import export_run
    from students.export import can_run
    from students.wanted import Wanted

    # The page resizes by itself, as the browser has decoded the picture anyway; an engine has the fewest operators so.
    if options.format == "tensorrt" and options.precision == "int8":
        raise ConfigurationError(
            "TensorRT takes int8 only with ranges symmetric about 0, and ONNX Runtime's are not; use --precision float16 with --format tensorrt"
        )
    inside = "onnx" if options.format in ("web", "tensorrt") else options.format
    wanted = Wanted(inside, options.precision, options.pixels if inside == options.format else "float32", options.people)
    with ExitStack() as stack:
        total = done = 0
        bar: Bar | None = None

        def begin(count: int) -> None:
            nonlocal total
            total = count
            say(
                f"converting the student, then comparing the file with it on {count} pictures" if can_run(wanted)
                else "converting the student; no machine but one with macOS can compare the file with it"
            )

        def advance(count: int) -> None:
            # Made when the first scenes are done: what comes before says nothing of the time that is left.
            nonlocal bar, done
            done += count
            if done > total:
                stack.close()
                say(f"refused; once more with less of it in {options.precision}")
                bar, done = None, count
            if bar is None:
                bar = stack.enter_context(progress("Comparing", total=total, unit="pictures"))
            bar.update(count)

        return export_run(
            options.run_dir, out, wanted=wanted, scenes=options.scenes, data=options.data, split=options.split,
            tolerance=dict(options.tolerance), begin=begin, advance=advance, converter=options.converter_python,
        )


def show(exported: Exported) -> None:
    """What was compared, and where the file is."""
    from distill.console import print_result, table
    from students.export import RUNTIMES
    from students.onnx_runtime import description_path

    parity, description = exported.parity, exported.description
    where = f"{exported.path}  {description['bytes'] / 1e6:.2f} MB, described in {description_path(exported.path)}"
    if parity is None:
        print_result(f"the gate was {description['gate']}; inputs and outputs are as described, what it answers nobody has seen")
        print_result(where)
        return
    allowed, timing = description["tolerance"], description["timing"]

    def row(what: str, found: float | None, form: str, key: str, sign: str = "<=") -> list[str]:
        limit = allowed.get(key)
        return [what, "n/a" if found is None else form.format(found), "" if limit is None else f"{sign} {limit:g}"]

    loss = parity.change("auc")
    rows = [row("heatmap, largest |Δp|", parity.heatmap_probability, "{:.2e}", "probability")]
    if parity.inout_flips is not None:
        rows += [
            row("in/out, largest |Δp|", parity.inout_probability, "{:.2e}", "probability"),
            row("in/out flips, share of heads", parity.inout_flips, "{:.4f}", "inout_flips"),
        ]
    rows += [
        row("argmax equal, share of heads", parity.argmax_equal, "{:.4f}", "argmax_equal", ">="),
        row("argmax shift in cells, mean", parity.mean_argmax_shift, "{:.3f}", "mean_shift"),
        row("argmax shift in cells, largest", parity.max_argmax_shift, "{:.1f}", ""),
        row("loss of AUC", None if loss is None else -loss, "{:+z.5f}", "auc_loss"),
        row("gain of avg L2", parity.change("avg_l2"), "{:+z.5f}", "avg_l2_gain"),
    ]
    title = f"{RUNTIMES[description['format']]} against the student: {parity.scenes} pictures, {parity.heads} heads"
    print_result(table(title, ["difference", "found", "allowed"], rows))
    if description["tolerance_changed"]:
        changed = ", ".join(f"{key} {value:g}" for key, value in description["tolerance_changed"].items())
        print_result(f"tolerance changed by --tolerance and recorded: {changed}")
    threads = f"{timing['threads']} thread{'s' if timing['threads'] > 1 else ''}"
    kind = "LiteRT" if description["format"] == "litert" else "ONNX"
    plain = f", {timing['float32_ms']:.1f} ms as float32 {kind}" if "float32_ms" in timing else ""
    heads = "one head" if timing["heads"] == 1 else f"{timing['heads']} heads"
    print_result(
        f"one picture of the input size, {heads}, {threads}: {timing['file_ms']:.1f} ms as this file{plain}, {timing['torch_ms']:.1f} ms in torch"
    )
    for remark in description["remarks"]:
        print_result(f"note: {description['precision']} is {remark}")
    print_result(where)


def _change(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as inout_flips=0.05") from None


def _precision(text: str) -> str:
    return {"fp32": "float32", "fp16": "float16"}.get(text, text)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
