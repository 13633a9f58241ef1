"""``distill students list``: the students that a run file can name."""

from __future__ import annotations

import argparse
from typing import Any

LIST = """\
List the catalogue of students: backbone, decoder, input size, parameters, and GFLOP (two operations a multiply-add) for a picture with one
person and for each further person; milliseconds in ONNX Runtime for one person and for each further one, as last measured on this machine,
or on a reference machine until then. --measure takes these now, on random weights: minutes for the whole list. A run file names a student
under [student], or give --student NAME to `distill train`. timm:BACKBONE makes a student of any network of timm that yields a feature map.
"""
EPILOG = """\
examples:
  distill students list
  distill students list --json
  distill students list hgnet_atto timm:resnet18 --measure
  distill train recipes/demo.toml --student lite0_small
"""
PEOPLE = (1, 9)


def register(subparsers: Any) -> None:
    """Add the ``students`` command and its subcommand to the parser."""
    students: argparse.ArgumentParser = subparsers.add_parser(
        "students", help="list the small models that can be trained", description="The catalogue of students.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = students.add_subparsers(dest="students_command", metavar="list", required=True)
    listing = commands.add_parser(
        "list", help="list the catalogue", description=LIST, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listing.add_argument("names", nargs="*", metavar="STUDENT", help="these alone: of the catalogue, or timm:BACKBONE (default: the catalogue)")
    listing.add_argument("--measure", action="store_true", help="measure the milliseconds now, and keep them for the next list")
    listing.add_argument("--threads", type=int, default=2, metavar="N", help="ONNX Runtime's threads for --measure (default: 2)")
    listing.add_argument("--rounds", type=int, default=11, metavar="N", help="calls of each for --measure (default: 11)")
    listing.add_argument("--json", action="store_true", help="the same facts as JSON on standard output")
    listing.set_defaults(run=run_list)


def run_list(options: argparse.Namespace) -> int:
    """Print the catalogue."""
    from distill.console import print_json, print_result, say, table
    from distill.errors import ConfigurationError
    from distill.student_times import remembered
    from students.catalogue import student_config

    for name, least in (("rounds", 5), ("threads", 1)):
        if getattr(options, name) < least:
            raise ConfigurationError(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    facts = student_facts(options.names)
    if options.measure:
        measure(facts, rounds=options.rounds, threads=options.threads)
    else:
        facts = [{**row, **remembered(student_config(row["name"]))} for row in facts]
    if options.json:
        print_json(facts)
        return 0
    rows = [
        [
            row["name"], row["backbone"], row["decoder"], "x".join(map(str, row["input_size"])), f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gflop']:.2f}", f"{row['gflop_further']:.3f}",
            *("-" if row[key] is None else form.format(row[key]) for key, form in (("ms", "{:.1f}"), ("ms_further", "{:.2f}"))),
        ]
        for row in facts
    ]
    # Narrow enough for a terminal of 100 columns; what is left out here is in --json.
    columns = ["student", "backbone", "decoder", "input", "params", "GFLOP", "+ 1", "ms", "+ 1"]
    title = (
        "Students. Decoder: layers x width. Input: height x width. GFLOP, ms: one picture with one person; + 1: each further person. ms: "
        f"{_taken([row['timing'] for row in facts if row['timing']])}"
    )
    print_result(table(title, columns, rows, left=3, compact=True))
    if any(row["ms"] is None or row["timing"]["machine"] != "this" for row in facts):
        say("ms: `distill students list --measure` measures them on this machine, which takes minutes for the whole list, and keeps them")
    return 0


def _taken(timings: list[dict[str, Any]]) -> str:
    """How and where the milliseconds were measured, in words."""
    told = []
    for machine in sorted({each["machine"] for each in timings}, key=lambda name: name != "this"):
        these = [each for each in timings if each["machine"] == machine]
        versions = ", ".join(sorted({each["onnxruntime"] for each in these}))
        threads = "/".join(map(str, sorted({each["threads"] for each in these})))
        loads = sorted(each["load"] for each in these)
        load = f"{loads[0]}" + (f" to {loads[-1]}" if loads[-1] > loads[0] else "")
        where = "this machine" if machine == "this" else machine
        count = "" if len(these) == len(timings) else f"{len(these)} of them on "
        told.append(f"{count}{where}, ONNX Runtime {versions}, {threads} threads, random weights, load {load}")
    return "; ".join(told) or "not measured yet"


def student_facts(names: list[str] | None = None) -> list[dict[str, Any]]:
    """One record a student, of ``names`` or of the whole catalogue.

    Parameters and operations are counted on the model as it is built, on tensors without memory.
    """
    import torch

    from distill.throughput import work_of
    from students.catalogue import STUDENTS, build_student, student_config
    from teachers.model import parameter_count

    facts = []
    for name in names or STUDENTS:
        config = student_config(name)
        with torch.device("meta"):
            model = build_student(config).eval()
        work = work_of(model)
        parameters = parameter_count(model)
        layers = f"{config.layers}x{config.dim}"
        if config.decoder == "query":  # over the scene, then over the people
            layers = f"{config.scene_layers}+{layers}"
        facts.append(
            {
                "name": name, "backbone": config.backbone, "levels": list(config.levels),
                "decoder": f"{config.decoder} {layers}", "input_size": list(config.input_size),
                "heatmap_size": list(config.heatmap_size), "inout": config.inout, "parameters": parameters,
                "backbone_parameters": parameter_count(model.backbone), "decoder_parameters": parameter_count(model.decoder),
                "megabytes": 4 * parameters / 1e6,
                "gflop": round((work.per_image + work.per_head) / 1e9, 4), "gflop_further": round(work.per_head / 1e9, 5),
            }
        )
    return facts


def measure(facts: list[dict[str, Any]], *, rounds: int, threads: int) -> None:
    """Add milliseconds in ONNX Runtime to the records, ``ms`` for one person, ``ms_further`` for each further one, and remember them."""
    import os
    import tempfile
    from pathlib import Path

    from distill.console import progress
    from distill.decoder_speed import time_students
    from distill.student_times import remember
    from students.catalogue import student_config

    with tempfile.TemporaryDirectory(prefix="distill-students-") as scratch, progress("Measuring", total=len(facts), unit="students") as bar:
        import onnxruntime

        for row in facts:
            config = student_config(row["name"])
            times = time_students({"this": config}, Path(scratch), people=PEOPLE, rounds=rounds, threads=threads)["this"]
            row |= {"ms": round(times.ms(1), 3), "ms_further": round(times.further, 4)}
            row["timing"] = {"onnxruntime": onnxruntime.__version__, "threads": threads, "rounds": rounds, "load": round(os.getloadavg()[0], 2)}
            remember([(config, row)])
            row["timing"]["machine"] = "this"
            bar.update()
