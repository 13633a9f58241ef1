"""``distill predict``: where people look, in a user's own pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.predicting import Prediction
    from distill.subjects import Subjects

DESCRIPTION = """\
Run a model on pictures or videos, and write for every person where they look. Head boxes come from a heads file; where there is none, and in
videos always, heads are found by a detector: OpenCV's bundled face cascades, or an ONNX detector of your own (docs/web.md describes its adapter).

The heads file is a CSV whose first line is image,person,xmin,ymin,xmax,ymax, boxes in pixels of the upright picture, or
image,person,xmin_norm,ymin_norm,xmax_norm,ymax_norm, boxes in [0,1] of it; more columns are allowed. COCO JSON is read as well. Rows of
pictures that were not given are ignored, with a count; a row whose picture is not on the disk is an error.
A picture without a row is left out, with a count.

Written to --out: answers.jsonl (a line a person, in the heads file's order: box, point, in/out probability), an overlay
NAME_gaze.png of each picture, and with --heatmaps heatmaps.npz: heatmap [N,h,w] and inout [N] logits (no inout where the model
has none), image and person [N]. For a video: NAME_gaze.jsonl, a line a person and frame, and NAME_gaze.mp4; people are followed and their
boxes and answers smoothed over time (--smoothing).
"""
EPILOG = """\
examples:
  distill predict runs/demo photo.jpg --heads heads.csv --out answers
  distill predict runs/demo/exports/student.onnx photos/ --heads heads.csv --out answers --heatmaps --no-overlays
  distill predict demo photos/ --out answers              (the demo teacher; photos/heads.csv is found by itself)
  distill predict runs/demo photo.jpg                     (no heads.csv beside it: heads are found by OpenCV's cascades)
  distill predict runs/demo talk.mp4 --detector faces.onnx?adapter=yolo --smoothing 0.4
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
    parser.add_argument("model", metavar="MODEL", help="a run's directory, an exported file, a stored model or a teacher's name")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="pictures, folders of pictures, or videos")
    parser.add_argument("--heads", type=Path, metavar="FILE", help="the heads file, CSV or COCO JSON (default: heads.csv beside the pictures)")
    parser.add_argument("--detector", metavar="NAME", help="find heads by `opencv` or FILE.onnx[?adapter=NAME], even where a heads file is")
    parser.add_argument("--smoothing", type=_seconds, default=0.25, metavar="SECONDS", help="videos: time constant of smoothing, 0 for none (default: 0.25)")
    parser.add_argument("--detect-every", type=_count, default=1, metavar="N", help="videos: look for heads in each N-th frame (default: 1)")
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
    """Predict, write, and show; raises mendable errors for pictures, videos, heads files, detectors and models that do not fit."""
    import time

    from distill.commands.predict_video import run_videos, show_videos
    from distill.console import print_json, progress, warn
    from distill.errors import ConfigurationError
    from distill.predicting import load_gaze, predict
    from distill.video import is_video, videos_below
    from distill.workshop import refuse_unwritable

    if options.heads and options.detector:
        raise ConfigurationError("--heads gives the boxes and --detector looks for them; leave one of the two out")
    videos = [path for path in options.pictures if is_video(path)]
    stills = [path for path in options.pictures if not is_video(path)]
    if videos and options.heads and not stills:
        raise ConfigurationError(f"--heads gives boxes for pictures, and {videos[0]} is a video, in which heads are looked for; leave --heads out")
    if passed_by := [video for path in stills for video in videos_below(path, options.out)]:
        warn(f"videos in the folders given are not looked at: {len(passed_by)} (first: {passed_by[0]}); name those that are meant")
    refuse_unwritable(options.out)
    began = time.perf_counter()
    subjects, heads, found = _subjects(options, stills) if stills else (None, "", False)
    if subjects is not None:
        _warn(subjects, f"in which {heads} found no head" if found else "without a row in the heads file")
    model, name = load_gaze(options.model, options.device)
    facts: dict[str, Any] = {}
    prediction = None
    if subjects is not None:
        with progress("Predicting", total=len(subjects.scenes), unit="pictures") as bar:
            prediction = predict(
                model, name, subjects, options.out, heatmaps=options.heatmaps, overlays=options.overlays, advance=bar.update
            )
        facts = _summary(prediction, subjects, name, heads, time.perf_counter() - began)
    watched = run_videos(options, videos, model, name)
    if options.json:
        shown = [{key: str(value) if isinstance(value, Path) else value for key, value in vars(video).items()} for video in watched]
        print_json({"model": name, **facts, **({"videos": shown} if videos else {})})
        return 0
    if prediction is not None and subjects is not None:
        _show(prediction, subjects)
    show_videos(watched)
    return 0


def _subjects(options: argparse.Namespace, stills: list[Path]) -> tuple[Subjects, str, bool]:
    """Whom to predict in the pictures, where their boxes are from (the heads file's path or the detector's name), and whether they were found."""
    from distill.console import progress, say
    from distill.detecting import CASCADES, find_heads, open_detector
    from distill.subjects import find_heads_file, gather, given_pictures, heads_file_beside

    pictures, root = given_pictures(stills, options.out)
    skip = options.on_error == "skip"
    if options.detector or (not options.heads and not heads_file_beside(stills)):
        detector = open_detector(options.detector or CASCADES)
        if not options.detector:
            say("no heads file is given or lies beside the pictures: heads are looked for by OpenCV's face cascades")
        with progress("Finding heads", total=len(pictures), unit="pictures") as bar:
            return find_heads(pictures, detector, skip_unreadable=skip, advance=bar.update), detector.name, True
    heads = find_heads_file(options.heads, stills)
    return gather(pictures, heads, root=root, skip_unreadable=skip), str(heads), False


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 60 seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _warn(subjects: Subjects, without: str) -> None:
    from distill.console import warn

    for finding in subjects.findings:
        warn(f"{finding.count} x {finding.name}, {finding.action} (first: {finding.example})")
    for reason in subjects.unreadable:
        warn(f"left out: {reason}")
    if subjects.ignored:
        warn(f"rows of the heads file for pictures that were not given are ignored: {subjects.ignored}")
    if subjects.without:
        warn(f"pictures {without} have no answer: {len(subjects.without)} (first: {subjects.without[0]})")


def _summary(prediction: Prediction, subjects: Subjects, name: str, heads: str, seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": name, "heads": heads, "pictures": len(subjects.scenes), "people": len(prediction.people),
        "ignored_rows": subjects.ignored, "pictures_without_heads": [str(picture) for picture in subjects.without],
        "unreadable": list(subjects.unreadable), "findings": [asdict(finding) for finding in subjects.findings],
        "answers": str(prediction.answers), "heatmaps": None if prediction.heatmaps is None else str(prediction.heatmaps),
        "overlays": [str(path) for path in prediction.overlays], "seconds": seconds,
    }


def _show(prediction: Prediction, subjects: Subjects) -> None:
    from distill.console import counted, print_result, table

    rows = [
        [
            line["image"], line["person"], f"{line['point'][0]:.0f}, {line['point'][1]:.0f}",
            "n/a" if line["inout"] is None else f"{line['inout']:.0%}",
        ]
        for line in prediction.people[:SHOWN]
    ]
    count = len(prediction.people)
    people, pictures = counted(count, "person", "people"), counted(len(subjects.scenes), "picture")
    title = f"Where {people} in {pictures} {'looks' if count == 1 else 'look'}" + (f" (the first {SHOWN})" if count > SHOWN else "")
    print_result(table(title, ["image", "person", "point, pixels", "in the picture"], rows, left=2))
    for path in (prediction.answers, prediction.heatmaps):
        if path is not None:
            print_result(str(path))
    if prediction.overlays:
        example = f", e.g. {prediction.overlays[0]}" if len(prediction.overlays) > 1 else f": {prediction.overlays[0].name}"
        print_result(f"{counted(len(prediction.overlays), 'overlay')} in {prediction.answers.parent}{example}")
