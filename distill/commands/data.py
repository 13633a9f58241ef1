"""``distill data check|synth|stats``: look at a data set before anything is paid for, or make one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from distill.datacheck import DataReport
    from distill.datacheck_baselines import Baselines
    from distill.datastats import DataStats, Spread
    from distill.scenes import SceneSet

DATA = """\
DATA is reader:path, or a path whose layout is recognised:
  gazefollow:/data/gazefollow_extended      the extended release, as published or as preprocessed JSON
  vat:/data/videoattentiontarget            VideoAttentionTarget
  childplay:/data/ChildPlay                 ChildPlay
  goo:/data/gooreal                         GOO-Real, its pickles or the same as JSON
  folder:/pictures?heads=/boxes.csv         pictures and a CSV image,person,xmin,ymin,xmax,ymax (pixels)
  folder:/pictures?heads=/coco.json&category=head     pictures and COCO JSON, the heads' category by its name
docs/data.md says what is expected where, and what is dropped and why.
"""

CHECK_DESCRIPTION = """\
Say what is in a data set, what is wrong with it, and what no model at all scores on it.

Every picture is opened once. Each defect has a name, a count, an example, and what is done about it when the data set is
used. The rows without a model (random, centre, fixed bias, the mean gaze of the 50 training heads nearest in position, saliency, one annotator
judged by the others) are scored, with intervals, on the validation split, or on the test split where there is no other: a model that does not beat them has
learnt nothing. A contact sheet of some pictures with boxes and gaze goes to runs/data-check. The data set is never changed.
"""

CHECK_EPILOG = f"""{DATA}
examples:
  distill data check gazefollow:/data/gazefollow_extended --sheet sheet.png
  distill data check scenes/ --split train --no-baselines
  distill data check scenes/ --strict --json > check.json     exit code 2 if anything was found
"""

SYNTH_DESCRIPTION = """\
Write a data set of generated pictures in GazeFollow's own layout: people in rooms and streets who look at things.

Nobody can tell where they look from head position or from what stands out alone. The same seed gives the same files,
whatever the number of processes. An earlier data set of this command in OUT is replaced, anything else is refused.
"""

SYNTH_EPILOG = """\
examples:
  distill data synth scenes/ --scenes 2000
  distill data synth scenes/ --scenes 200 --seed 7 --width 640 --height 480
then:
  distill data check scenes/ --sheet sheet.png
"""

STATS_DESCRIPTION = """\
Say how a split is distributed: people per picture, in and out of frame, head sizes, gaze distances and directions, how far
annotators are apart. Pictures are opened for their sizes only.
"""

STATS_EPILOG = f"""{DATA}
examples:
  distill data stats gazefollow:/data/gazefollow_extended --split test
  distill data stats scenes/ --limit 500 --json
"""


def register(subparsers: Any) -> None:
    """Add the ``data`` command and its three subcommands to the parser."""
    data: argparse.ArgumentParser = subparsers.add_parser(
        "data",
        help="check, describe or generate a data set",
        description="Check a data set, describe it, or generate one in GazeFollow's layout.",
    )
    commands = data.add_subparsers(dest="data_command", metavar="check|synth|stats", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    check = commands.add_parser(
        "check", help="what is there, what is wrong, what no model scores", description=CHECK_DESCRIPTION, epilog=CHECK_EPILOG, formatter_class=raw
    )
    check.add_argument("data", metavar="DATA", help="reader:path, or a path (see below)")
    check.add_argument("--split", metavar="NAME", help="train, val, trainval or test (default: every split that is there)")
    check.add_argument(
        "--sheet", type=Path, metavar="FILE", help="where the contact sheet of boxes and gaze goes, .png or .jpg (default: runs/data-check/NAME.jpg)"
    )
    check.add_argument("--no-sheet", action="store_true", help="no contact sheet")
    check.add_argument("--sheet-scenes", type=_positive, default=24, metavar="N", help="pictures on the sheet (default: 24)")
    check.add_argument("--seed", type=int, default=0, metavar="N", help="which pictures are on the sheet (default: 0)")
    check.add_argument("--strict", action="store_true", help="exit code 2 if anything is wrong")
    check.add_argument("--no-pictures", action="store_true", help="annotations only: do not open every picture, and no sheet unless --sheet is given")
    check.add_argument("--no-baselines", action="store_true", help="leave out the rows without a model")
    check.add_argument("--baseline-heads", type=_positive, default=2000, metavar="N", help="heads to score them on (default: 2000)")
    check.add_argument("--out", type=Path, metavar="FILE", help="keep the report, with digests of the annotations, as JSON")
    check.add_argument("--json", action="store_true", help="the report as JSON on standard output")
    check.set_defaults(run=run_check)

    synth = commands.add_parser(
        "synth", help="generate pictures of people who look at things", description=SYNTH_DESCRIPTION, epilog=SYNTH_EPILOG, formatter_class=raw
    )
    synth.add_argument("out", type=Path, metavar="OUT", help="the directory to write")
    synth.add_argument("--scenes", type=_positive, default=2000, metavar="N", help="pictures, test split included (default: 2000)")
    synth.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives other scenes (default: 0)")
    synth.add_argument("--test-fraction", type=float, default=0.1, metavar="X", help="share offered to the test split (default: 0.1)")
    synth.add_argument("--width", type=_positive, default=480, metavar="PX", help="picture width (default: 480)")
    synth.add_argument("--height", type=_positive, default=360, metavar="PX", help="picture height (default: 360)")
    synth.add_argument("--processes", type=_positive, metavar="N", help="processes that draw (default: one a core)")
    synth.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    synth.set_defaults(run=run_synth)

    stats = commands.add_parser(
        "stats", help="how a split is distributed", description=STATS_DESCRIPTION, epilog=STATS_EPILOG, formatter_class=raw
    )
    stats.add_argument("data", metavar="DATA", help="reader:path, or a path (see below)")
    stats.add_argument("--split", default="train", metavar="NAME", help="train, val, trainval or test (default: train)")
    stats.add_argument("--limit", type=_positive, default=2000, metavar="N", help="scenes to look at (default: 2000)")
    stats.add_argument("--json", action="store_true", help="the same facts as JSON on standard output")
    stats.set_defaults(run=run_stats)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive; give 1 or more")
    return value


def run_check(args: argparse.Namespace) -> int:
    """Check, print, write what was asked for; findings are an error with ``--strict``."""
    from distill.console import print_json, print_result, say, warn
    from distill.datacheck import check_data
    from distill.errors import ConfigurationError, DataError
    from distill.readers import open_data, open_splits

    if args.sheet is not None and args.no_sheet:
        raise ConfigurationError("--sheet and --no-sheet contradict each other; give one of them")
    if args.sheet is not None and args.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DataError(f"contact sheet {args.sheet} is to end in .png or .jpg; choose one of them")
    sets = open_splits(args.data) if args.split is None else [open_data(args.data, args.split)]
    training = None
    if not args.no_baselines and args.split in ("val", "test"):
        every = open_splits(args.data)
        training = next((data for data in every if data.split == "train"), None)
    report = check_data(
        sets,
        training=training,
        pictures=not args.no_pictures,
        baselines=not args.no_baselines,
        baseline_heads=args.baseline_heads,
    )
    facts = {"data": str(args.data), **report.facts()}
    sheet, failed = _write_sheet(args, next(filter(None, sets)))
    if sheet is not None:
        facts["sheet"] = str(sheet)
    if args.out is not None:
        from distill.datacheck import write_record

        write_record(report, str(args.data), args.out)
    if args.json:
        print_json(facts)
    else:
        for renderable in _check_tables(report):
            print_result(renderable)
        if report.baselines is None and not args.no_baselines:
            print_result("No rows without a model: they need heads in the frame with gaze points, and pictures that open where these are in pixels.")
        if sheet is not None:
            say(f"contact sheet: {sheet}")
        if args.out is not None:
            say(f"record: {args.out}")
    if args.strict and report.findings:
        names = ", ".join(f"{finding.count} × {finding.name}" for finding in report.findings)
        raise DataError(f"{args.data} is not clean: {names}; mend the annotations, or check without --strict")
    if failed is not None and args.sheet is not None:
        raise failed
    if failed is not None:
        warn(f"no contact sheet: {failed}")
    return 0


def _write_sheet(args: argparse.Namespace, scenes: SceneSet) -> tuple[Path | None, Exception | None]:
    """The file written, if any, and what stood in the way; the report does not wait for either."""
    from distill.contact_sheet import contact_sheet
    from distill.errors import DataError

    file = args.sheet
    if file is None:
        if args.no_sheet or args.no_pictures:
            return None, None
        file = Path("runs", "data-check", f"{scenes.root.resolve().name or scenes.reader}.jpg")
    try:
        sheet = contact_sheet(scenes, args.sheet_scenes, args.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except (DataError, OSError) as error:
        return None, error
    return file, None


def _check_tables(report: DataReport) -> list[Table | str]:
    from distill.console import table

    columns = ["split", "scenes", "heads", "in", "out", "unlabelled", "gaze points", "most annotators", "pictures opened"]
    grouped = any(split.groups for split in report.splits)
    rows = []
    for split in report.splits:
        opened = "not opened" if split.pictures is None else f"{split.pictures:,}"
        numbers = (split.scenes, split.heads, split.inside, split.outside, split.unknown, split.annotations)
        row = [split.split, *(f"{number:,}" for number in numbers), str(split.annotators), opened]
        rows.append([*row, f"{split.groups:,}"] if grouped else row)
    if grouped:
        columns.append("shows" if report.reader == "vat" else "videos")
    tables: list[Table | str] = [table(f"{report.root} ({report.reader})", columns, rows)]
    if report.findings:
        found = [[f.name, f"{f.count:,}", f.example, f.action] for f in report.findings]
        findings = table("What is wrong", ["defect", "count", "first example", "what is done"], found)
        for column in findings.columns[2:]:
            column.justify = "left"
        tables.append(findings)
    else:
        tables.append("Nothing is wrong.")
    if report.baselines is not None:
        tables.append(_baselines_table(report.baselines))
    return tables


AUCS = {
    "vat": "VideoAttentionTarget's AUC", "gazefollow": "GazeFollow's AUC", "gazefollow64": "AUC on 64×64 cells, as no picture opens and its size is not known",
}


def _baselines_table(baselines: Baselines) -> Table:
    from distill.console import table
    from distill.score_tables import NAMES, with_interval

    names = ("auc", "avg_l2", "avg_l2_mean_of", "min_l2", "angle")
    rows, shown = [], False
    for row in baselines.rows:
        found = row.metrics
        shown |= any(row.intervals.values())
        if found is None:
            rows.append([row.name, *["n/a"] * len(names), row.reason])
        else:
            rows.append([row.name, *(with_interval(name, found, row.intervals) for name in names), row.reason])
    of = f"all {baselines.of:,}" if baselines.heads == baselines.of else f"{baselines.heads:,} of {baselines.of:,}"
    auc = AUCS[baselines.protocol]
    columns = ["row", *(NAMES[name] for name in names), ""]
    if not any(row.reason for row in baselines.rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    result = table(f"Without a model, on {baselines.split}", columns, rows)
    unit = "clip" if baselines.protocol == "vat" else "scene"
    result.caption = (
        f"{of} in-frame heads; {auc}; fixed bias and prior from {baselines.prior_heads:,} training heads; mean-of: the mean of the distances to "
        f"the annotators; {f'below, 95 % intervals by {unit}' if shown else f'no intervals, which need two {unit}s or more'}"
    )
    result.caption_justify = "left"
    return result


def run_synth(args: argparse.Namespace) -> int:
    """Draw the scenes and say what was written."""
    from dataclasses import asdict

    from distill.console import print_json, print_result, progress, table
    from distill.synth import SynthConfig, write_dataset

    config = SynthConfig(scenes=args.scenes, seed=args.seed, test_fraction=args.test_fraction, width=args.width, height=args.height)
    with progress("Drawing scenes", total=config.scenes, unit="scenes") as bar:
        summary = write_dataset(
            args.out, config, processes=args.processes, progress=lambda done, total: bar.update(done - bar.done)
        )
    facts = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(summary).items()}
    if args.json:
        print_json({**facts, "config": asdict(config)})
        return 0
    facts["picture size"] = f"{config.width} x {config.height}"
    rows = [[name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)] for name, value in facts.items()]
    print_result(table("Generated scenes", ["what", "value"], rows))
    return 0


def run_stats(args: argparse.Namespace) -> int:
    """Gather and print."""
    from distill.console import print_json, print_result
    from distill.datastats import data_stats
    from distill.readers import open_data

    stats = data_stats(open_data(args.data, args.split), args.limit)
    if args.json:
        print_json({"data": str(args.data), **stats.facts()})
        return 0
    for renderable in _stats_tables(stats):
        print_result(renderable)
    return 0


def _stats_tables(stats: DataStats) -> list[Table]:
    from distill.console import table

    def spread(name: str, unit: str, values: Spread | None) -> list[str]:
        if values is None:
            return [name, unit, "0", *["n/a"] * 6]
        return [name, unit, f"{values.count:,}", f"{values.mean:.3f}", *(f"{value:.3f}" for value in values.quantiles)]

    measures = [
        spread("head height", "of the picture's height", stats.head_height),
        spread("gaze distance", "of the picture's sides", stats.gaze_distance),
        spread("gaze x", "0 left, 1 right", stats.gaze_x),
        spread("gaze y", "0 top, 1 bottom", stats.gaze_y),
        spread("annotators apart", "mean distance to their mean", stats.annotator_spread),
    ]
    left_out = f", {stats.unreadable:,} more could not be opened" if stats.unreadable else ""
    title = f"Split {stats.split}: {stats.scenes:,} of {stats.of:,} scenes{left_out}"
    columns = ["measure", "unit", "heads", "mean", "5 %", "25 %", "50 %", "75 %", "95 %"]
    counts = (
        ("heads in a scene", {str(heads): scenes for heads, scenes in stats.heads_per_scene.items()}),
        ("in or out of frame", stats.inout),
        ("looks to the", stats.directions),
        ("picture size", stats.sizes),
    )
    return [
        table(title, columns, measures, left=2),
        *(_bars(name, values) for name, values in counts if sum(values.values())),
    ]


def _bars(name: str, values: dict[str, int]) -> Table:
    from distill.console import table

    total = sum(values.values())
    rows = [[value, f"{count:,}", f"{count / total:.1%}", "█" * round(24 * count / total)] for value, count in values.items()]
    result = table("", [name, "count", "share", ""], rows)
    result.columns[-1].justify = "left"
    return result
