"""``distill bench decoders``: the query decoder against Gaze-LLE's, same backbone and input, by number of people."""

from __future__ import annotations

import argparse
from typing import Any

ONE_BAR, FIVE_BAR, FURTHER_BAR = 1.8, 6.0, 0.03
PEOPLE = (1, 5, 9)
SMALLEST = "hgnet_atto,hgnet_femto,lite0_query"  # the three students with a query decoder and the fewest parameters

EPILOG = """\
examples:
  distill bench decoders                                       the smallest three students, two threads
  distill bench decoders --students hgnet_pico,repvit_m0_9 --rounds 15
  distill bench decoders --quick --json
"""

DESCRIPTION = """\
Time students of the catalogue in ONNX Runtime, once with the query decoder and once with Gaze-LLE's as published (256 wide, 3 layers), on the
same backbone and input, with 1, 5 and 9 people in a picture. All are called in turn in one process. Weights are random. Bars: 1 person at
least 1.8 times as fast, 5 people at least 6 times; each further person at most 3 % of the time for one."""


def register(actions: Any) -> None:
    """Add ``decoders`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "decoders", help="the query decoder against Gaze-LLE's in ONNX Runtime, by number of people", description=DESCRIPTION,
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--students", default=SMALLEST, metavar="NAMES", help="students with a query decoder (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="ONNX Runtime's threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=31, metavar="N", help="calls of each (default: 31)")
    parser.add_argument("--quick", action="store_true", help="the first student alone, 7 rounds")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure every student and print what was found."""
    from distill.console import print_json
    from distill.errors import ConfigurationError
    from students.catalogue import student_config

    rounds = 7 if options.quick else options.rounds
    for name, value, least in (("rounds", rounds, 5), ("threads", options.threads, 1)):
        if value < least:
            raise ConfigurationError(f"--{name} is {value}; it must be at least {least}")
    names = [name.strip() for name in options.students.split(",") if name.strip()][: 1 if options.quick else None]
    configs = {name: student_config(name) for name in names}
    if gazelle := [name for name, config in configs.items() if config.decoder != "query"]:
        raise ConfigurationError(f"{gazelle[0]} has no query decoder to compare; choose others with --students, `distill students list` shows them")
    facts = measured(configs, rounds=rounds, threads=options.threads)
    if options.json:
        print_json(facts)
    else:
        _print(facts)
    return 0


def measured(configs: dict[str, Any], *, rounds: int, threads: int) -> dict[str, Any]:
    """Both decoders of each of ``configs``, a student at a time; as plain JSON."""
    import os
    import tempfile
    from pathlib import Path

    import onnxruntime

    from distill.console import progress
    from distill.decoder_speed import ratio, time_students, with_published_decoder

    found = []
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as scratch, progress("Measuring", total=len(configs), unit="students") as bar:
        for name, config in configs.items():
            sides = {"gazelle": with_published_decoder(config), "query": config}
            times = time_students(sides, Path(scratch), people=PEOPLE, rounds=rounds, threads=threads)
            ratios = {str(people): [round(value, 3) for value in ratio(times["gazelle"], times["query"], people)] for people in PEOPLE}
            found.append({
                "student": name, "input_size": list(config.input_size), **{side: each.facts() for side, each in times.items()}, "ratio": ratios,
                "holds": {
                    "one": ratios["1"][0] >= ONE_BAR, "five": ratios["5"][0] >= FIVE_BAR,
                    "further": times["query"].further <= FURTHER_BAR * times["query"].ms(1),
                },
            })
            bar.update()
    return {
        "onnxruntime": onnxruntime.__version__, "threads": threads, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
        "rounds": rounds, "bars": {"one": ONE_BAR, "five": FIVE_BAR, "further": FURTHER_BAR}, "students": found,
    }


def _print(facts: dict[str, Any]) -> None:
    from distill.console import print_result, table

    rows = []
    for student in facts["students"]:
        for people in map(str, PEOPLE):
            sides = [student[side] for side in ("gazelle", "query")]
            shown = [f"{side['ms'][people]:.2f} ({side['quartiles_ms'][people][0]:.2f}–{side['quartiles_ms'][people][1]:.2f})" for side in sides]
            middle, low, high = student["ratio"][people]
            rows.append([student["student"], people, *shown, f"{middle:.2f} ({low:.2f}–{high:.2f})"])
        further = [f"{student[side]['further_ms']:.3f} ({student[side]['further_share']:.1%})" for side in ("gazelle", "query")]
        rows.append([student["student"], "each further", *further, ""])
    title = (
        f"ms in ONNX Runtime {facts['onnxruntime']}, {facts['threads']} threads of {facts['cores']}, load {facts['load']}, {facts['rounds']} rounds: "
        "median (quartiles)"
    )
    print_result(table(title, ["student", "people", "gazelle, 3 × 256", "query", "times as fast"], rows, left=2))
    missed = [f"{student['student']} {bar}" for student in facts["students"] for bar, holds in student["holds"].items() if not holds]
    bars = facts["bars"]
    print_result(
        f"bars: 1 person at least {bars['one']:g} ×, 5 people at least {bars['five']:g} ×, each further person at most {bars['further']:.0%} of the "
        f"first: {'missed by ' + ', '.join(missed) if missed else 'held'}"
    )
