"""``distill bench export``: every format and precision of a run's student, and other ONNX models, in one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.benchmarks.export_figures import Contender
    from distill.gate_scenes import Gate

DESCRIPTION = """\
Export a run's student in every format and precision that is installed here, each through its gate, and time the files side by side: a call
of each in turn in every round. The picture has the input size, so decoding and resizing cost nothing. Further ONNX gaze models given by
path are timed and scored on the same scenes (docs/black-box-teachers.md: how they are understood). LiteRT and Core ML files have places
for five people in a call, so one person costs what five do; Core ML runs on macOS alone, LiteRT's converter has its own environment.
The lines below the table say what its columns are. A file that its gate withholds, or that cannot be made or run here, is named there with
the reason.
"""
EPILOG = """\
examples:
  distill bench export runs/demo
  distill bench export runs/demo other_model.onnx --people 1,5,20
  distill bench export runs/demo --converter-python litert/bin/python        LiteRT too
  distill bench export runs/demo --data gazefollow:/moved/here --split val
  distill bench export runs/demo --quick --json
"""
KINDS = (
    ("onnx", "float32"), ("onnx", "float16"), ("onnx", "int8"), ("torch", "float32"),
    ("openvino", "float32"), ("openvino", "float16"), ("openvino", "int8"), ("litert", "float32"), ("litert", "float16"),
    ("coreml", "float32"), ("coreml", "float16"),
)


def register(actions: Any) -> None:
    """Add ``export`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "export",
        help="latency, memory, size and accuracy of every exported format",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run's directory, or a stored model's (then with --data)")
    parser.add_argument("others", nargs="*", type=Path, metavar="FILE.onnx", help="other gaze models to compare with")
    parser.add_argument("--people", type=_counts, default=(1, 5), metavar="N,N", help="heads in the picture (default: 1,5)")
    parser.add_argument("--rounds", type=int, default=40, metavar="R", help="timed rounds (default: 40)")
    parser.add_argument("--scenes", type=int, default=128, metavar="N", help="pictures of the gate (default: 128)")
    parser.add_argument("--data", metavar="SPEC", help="scenes of this data set instead of the run's own")
    parser.add_argument("--split", metavar="NAME", help="split of the data set (default: the run's validation split)")
    parser.add_argument(
        "--converter-python", metavar="PATH", help="the Python of an environment that has litert-torch (default: $DISTILL_LITERT_PYTHON)"
    )
    parser.add_argument("--quick", action="store_true", help="ONNX alone, 8 rounds, 16 pictures in the gate")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, measure and print."""
    import os
    import statistics
    import tempfile

    import torch

    from distill.benchmarks.export_figures import PICTURES_AT_ONCE, call_of, peak_megabytes, spread
    from distill.benchmarks.export_table import show
    from distill.console import print_json, say
    from distill.errors import ConfigurationError
    from distill.exporting import require_extra
    from distill.throughput import time_each

    rounds, scenes = (8, 16) if options.quick else (options.rounds, options.scenes)
    if rounds < 5 or scenes < 1:
        raise ConfigurationError(f"--rounds is {rounds} and --scenes {scenes}; give at least 5 and 1")
    require_extra("export", "onnx", "onnxscript", "onnxruntime")
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
        contenders = entrants(options, Path(folder), scenes, say)
        running = [each for each in contenders if not each.withheld]
        calls: dict[str, Callable[[], Any]] = {}
        for place, each in enumerate(running):
            for people in options.people:
                calls[f"{place} {people}"] = call_of(each, 1, people)
                calls[f"{place} {people} batch"] = call_of(each, PICTURES_AT_ONCE, people)
        say(f"timing {len(running)} models with {' and '.join(map(str, options.people))} heads, {rounds} rounds in turn")
        times = time_each(calls, rounds=rounds, settle=1)
        files = [place for place, each in enumerate(running) if (each.kind, each.precision) == ("onnx", "float32")]
        base = files[0] if files else 0  # the student in torch comes first
        facts = []
        for place, each in enumerate(running):
            for people in options.people:
                one, batch = times[f"{place} {people}"], times[f"{place} {people} batch"]
                ratio = statistics.median(times[f"{base} {people}"].wall) / statistics.median(one.wall)
                facts.append({
                    "model": each.name, "format": each.kind, "precision": each.precision, "mb": round(each.bytes / 1e6, 3), "people": people,
                    **spread(one.wall), "cpu_ms": round(1000 * statistics.median(one.cpu), 3), "speed_over_base": round(ratio, 3),
                    "pictures_per_s": round(PICTURES_AT_ONCE / statistics.median(batch.wall), 2),
                    "peak_mb": round(peak_megabytes(each, people), 1), **each.metrics,
                })
    about: dict[str, Any] = {
        "run": str(options.run_dir), "pictures": scenes, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2), "rounds": rounds,
        "base": f"{running[base].kind} {running[base].precision}",
    }
    withheld = [{"format": each.kind, "precision": each.precision, "reason": each.withheld} for each in contenders if each.withheld]
    if options.json:
        print_json({**about, "rows": facts, "withheld": withheld})
        return 0
    show(about, facts, withheld)
    return 0


def entrants(options: argparse.Namespace, folder: Path, scenes: int, say: Callable[[str], None]) -> list[Contender]:
    """The student in torch, every export of it, and the other models, with what the gate's scenes say of each."""
    from distill.benchmarks.export_figures import Contender
    from distill.errors import MissingExtraError
    from distill.exporting import default_name, export_run, student_directory
    from distill.gate_scenes import gate_of
    from students.coreml_runtime import NOT_RUN
    from students.errors import ExportError
    from students.export import can_run
    from students.wanted import Wanted
    from teachers.onnx_teacher import OnnxTeacher

    stored = student_directory(options.run_dir)
    for path in options.others:
        OnnxTeacher(path, device="cpu")  # what cannot be opened is refused before the minutes of the exports
    gate = gate_of(options.run_dir, scenes, data=options.data, split=options.split)
    found: list[Contender] = []
    for kind, precision in KINDS:
        wanted = Wanted(kind, precision)
        if options.quick and kind != "onnx":
            continue
        if not can_run(wanted):
            why = f"{NOT_RUN}; `distill export --format {kind}` converts it all the same"
            found.append(Contender("student", kind, precision, withheld=why))
            continue
        say(f"exporting {kind} {precision}")
        try:
            exported = export_run(
                options.run_dir, folder / default_name(wanted), wanted=wanted, scenes=scenes, data=options.data, split=options.split,
                converter=options.converter_python,
            )
        except (ExportError, MissingExtraError) as error:
            found.append(Contender("student", kind, precision, withheld=str(error)))
            continue
        parity, description = exported.parity, exported.description
        assert parity is not None, "what can run here went through its gate"
        if not any(each.kind == "student" for each in found):
            size = sum(file.stat().st_size for file in stored.glob("*.safetensors"))
            found.append(Contender("student", "student", "float32", path=stored, bytes=size, metrics=parity.reference_metrics or {}))
        metrics = {**(parity.metrics or {}), "mean_shift": parity.mean_argmax_shift, "flips": parity.inout_flips}
        found.append(Contender("student", kind, precision, wanted.pixels, exported.path, description["bytes"], metrics))
    for path in options.others:
        say(f"scoring {path} on the same pictures")
        found.append(Contender(path.name, "black box", "as exported", path=path, bytes=path.stat().st_size, metrics=score(path, gate)))
    return found


def score(path: Path, gate: Gate) -> dict[str, float | None]:
    """AUC and avg L2 of another ONNX gaze model on the gate's pictures; every file gives its own error when it does not fit."""
    import torch

    from distill.gate_scenes import GateScenes, GateScorer
    from teachers.onnx_teacher import OnnxTeacher

    model, scorer = OnnxTeacher(path, device="cpu"), GateScorer(gate.protocol)
    with torch.inference_mode():
        for batch in GateScenes(gate.shown, model.input_size, policy=gate.policy, exif=gate.exif):
            answer = model(batch.images, batch.boxes, batch.image_index)
            scorer.add(batch, answer.heatmap.numpy(), None if answer.inout is None else answer.inout.numpy())
    return dict(scorer.result())


def _counts(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1 on, such as 1,5")
    return values
