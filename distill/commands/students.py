"""``distill students list``: the students that a run file can name."""

from __future__ import annotations

import argparse
from typing import Any

LIST = """\
List the catalogue of students: backbone, decoder, input size and parameters. A run file names one under [student], or give
--student NAME to `distill train`.
"""
EPILOG = """\
examples:
  distill students list
  distill students list --json
  distill train recipes/demo.toml --student lite0_small
"""


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
    listing.add_argument("--json", action="store_true", help="the same facts as JSON on standard output")
    listing.set_defaults(run=run_list)


def run_list(options: argparse.Namespace) -> int:
    """Print the catalogue."""
    from distill.console import print_json, print_result, table

    facts = student_facts()
    if options.json:
        print_json(facts)
        return 0
    rows = [
        [
            row["name"], row["backbone"], row["decoder"], "x".join(map(str, row["input_size"])), "x".join(map(str, row["heatmap_size"])),
            f"{row['parameters'] / 1e6:.2f} M", f"{row['backbone_parameters'] / 1e6:.2f} M", f"{row['decoder_parameters'] / 1e6:.2f} M",
            f"{row['megabytes']:.1f}",
        ]
        for row in facts
    ]
    columns = ["student", "backbone", "decoder", "input", "heatmap", "parameters", "of backbone", "of decoder", "MB (float32)"]
    print_result(table("Students (input and heatmap: height x width)", columns, rows, left=3))
    return 0


def student_facts() -> list[dict[str, Any]]:
    """One record a student; parameters are counted on the model as it is built, without pretrained weights."""
    from students.catalogue import STUDENTS, build_student
    from teachers.model import parameter_count

    facts = []
    for name, config in STUDENTS.items():
        model = build_student(config)
        parameters = parameter_count(model)
        facts.append(
            {
                "name": name, "backbone": config.backbone, "levels": list(config.levels),
                "decoder": f"{config.decoder}, {config.layers} layers of {config.dim}", "input_size": list(config.input_size),
                "heatmap_size": list(config.heatmap_size), "inout": config.inout, "parameters": parameters,
                "backbone_parameters": parameter_count(model.backbone), "decoder_parameters": parameter_count(model.decoder),
                "megabytes": 4 * parameters / 1e6,
            }
        )
    return facts
