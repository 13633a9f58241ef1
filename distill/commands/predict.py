"""``distill predict``: where people look, in a user's own pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.predicting import Prediction, Subjects

DESCRIPTION = """\
Run a model on pictures in which head boxes are known, and write for every person where they look.

The heads file is a CSV whose first line is image,person,xmin,ymin,xmax,ymax, boxes in pixels of the upright picture; more columns
are allowed. Rows of pictures that were not given are ignored, with a count; a row whose picture is not on the disk is an error.
A picture without a row is left out, with a count.

Written to --out: answers.jsonl (a line a person, in the heads file's order: box, point, in/out probability), an overlay
NAME_gaze.png of each picture, and with --heatmaps heatmaps.npz: heatmap [N,h,w] and inout [N] logits (no inout where the model
has none), image and person [N].
"""
EPILOG = """\
examples:
  distill predict runs/demo photo.jpg --heads heads.csv --out answers
  distill predict runs/demo/exports/student.onnx photos/ --heads heads.csv --out answers --heatmaps --no-overlays
  distill predict demo photos/ --out answers              (the demo teacher; photos/heads.csv is found by itself)
"""
SHOWN = 20  # people in the table on the console; all of them are in answers.jsonl


def register(subparsers: Any) -> None:
    """Add the ``predict`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "predict",
        help="where people look, in your own pictures",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a run's directory, an exported .onnx file, a stored model or a teacher's name")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="pictures, or folders of pictures")
    parser.add_argument("--heads", type=Path, metavar="FILE", help="the heads file, CSV or COCO JSON (default: heads.csv beside the pictures)")
    parser.add_argument("--out", type=Path, default=Path("answers"), metavar="DIR", help="folder to write to (default: answers)")
    parser.add_argument("--heatmaps", action="store_true", help="write the heatmaps' logits too, as heatmaps.npz")
    parser.add_argument("--overlays", action=argparse.BooleanOptionalAction, default=True, help="draw the answers on the pictures")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="a picture that cannot be read: stop, or leave it out (default: stop)"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--json", action="store_true", help="a summary as JSON on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Predict, write, and show; raises mendable errors for pictures, heads files and models that do not fit."""
    import time

    from distill.console import print_json, progress
    from distill.predicting import find_heads_file, gather, given_pictures, load_gaze, predict

    pictures, root = given_pictures(options.pictures, options.out)
    heads = find_heads_file(options.heads, options.pictures)
    subjects = gather(pictures, heads, root=root, skip_unreadable=options.on_error == "skip")
    _warn(subjects)
    model, name = load_gaze(options.model, options.device)
    began = time.perf_counter()
    with progress("Predicting", total=len(subjects.scenes), unit="pictures") as bar:
        prediction = predict(
            model, name, subjects, options.out, heatmaps=options.heatmaps, overlays=options.overlays, advance=bar.update
        )
    if options.json:
        print_json(_summary(prediction, subjects, name, heads, time.perf_counter() - began))
    else:
        _show(prediction, subjects)
    return 0


def _warn(subjects: Subjects) -> None:
    from distill.console import warn

    for finding in subjects.findings:
        warn(f"{finding.count} x {finding.name}, {finding.action} (first: {finding.example})")
    for reason in subjects.unreadable:
        warn(f"left out: {reason}")
    if subjects.ignored:
        warn(f"rows of the heads file for pictures that were not given are ignored: {subjects.ignored}")
    if subjects.without:
        warn(f"pictures without a row in the heads file have no answer: {len(subjects.without)} (first: {subjects.without[0]})")


def _summary(prediction: Prediction, subjects: Subjects, name: str, heads: Path, seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": name, "heads": str(heads), "pictures": len(subjects.scenes), "people": len(prediction.people),
        "ignored_rows": subjects.ignored, "pictures_without_heads": [str(picture) for picture in subjects.without],
        "unreadable": list(subjects.unreadable), "findings": [asdict(finding) for finding in subjects.findings],
        "answers": str(prediction.answers), "heatmaps": None if prediction.heatmaps is None else str(prediction.heatmaps),
        "overlays": [str(path) for path in prediction.overlays], "seconds": seconds,
    }


def _show(prediction: Prediction, subjects: Subjects) -> None:
    from distill.console import print_result, table

    rows = [
        [
            line["image"], line["person"], f"{line['point'][0]:.0f}, {line['point'][1]:.0f}",
            "n/a" if line["inout"] is None else f"{line['inout']:.0%}",
        ]
        for line in prediction.people[:SHOWN]
    ]
    count = len(prediction.people)
    title = f"Where {count} people in {len(subjects.scenes)} pictures look" + (f" (the first {SHOWN})" if count > SHOWN else "")
    print_result(table(title, ["image", "person", "point, pixels", "in the picture"], rows, left=2))
    for path in (prediction.answers, prediction.heatmaps):
        if path is not None:
            print_result(str(path))
    if prediction.overlays:
        print_result(f"{len(prediction.overlays)} overlays in {prediction.answers.parent}, e.g. {prediction.overlays[0]}")
