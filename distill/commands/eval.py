"""``distill eval``: score runs, exported files and teachers by the published protocols."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  distill eval runs/demo                                        the run's own validation scenes, beside its teacher
  distill eval runs/a runs/b --data gazefollow:/path --split test
  distill eval runs/a runs/a/exports/student.onnx demo
  distill eval demo --data vat:/path --save-predictions demo.npz
  distill eval demo.npz theirs.npz --data vat:/path             answers from files, see docs/data.md
  distill eval runs/a --paired runs/b --data vat:/path          is the difference real?
  distill eval runs/a --detail --markdown results.md            slices and calibration of in/out as well
  distill eval runs/a --gallery 15                              more cases for `distill report runs/a`
"""
CASES = 9  # a third each of best, median and worst: one screen of the report


class _Gallery(argparse.Action):
    """``--gallery``, ``--gallery N``; a word behind it that is no number is a model, as in ``distill eval --gallery runs/a``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        if values is None:
            namespace.gallery = CASES
        elif re.fullmatch(r"[-+]?\d+", values):
            namespace.gallery = int(values)
        elif re.fullmatch(r"[-+.\d]+", values):
            parser.error(f"argument {option_string}: {values} is no whole number")
        else:
            namespace.gallery = CASES
            namespace.models = [*(namespace.models or []), values]


def register(subparsers: Any) -> None:
    """Add the ``eval`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="score models: AUC, avg L2, min L2, in/out AP",
        description="Score runs, exported files and teachers on one set of scenes, with the centre and the head-position prior "
        "beside them, and intervals by resampling scenes (of video: clips). The first run given gets eval.json and a gallery, which "
        "`distill report` shows. docs/metrics.md says what each number is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", action="extend", metavar="MODEL", help="run directory, exported file, predictions.npz, or teacher")
    parser.add_argument("--data", default="", metavar="DATA", help="data set (default: the first run's own)")
    parser.add_argument("--split", default="", help="split to score on (default: the first run's validation split; with --data: test)")
    parser.add_argument("--teacher", default="", metavar="NAME", help="score this teacher too (default: the run's own, if it is here)")
    parser.add_argument("--scenes", type=int, default=0, metavar="N", help="only the first N scenes (default: all)")
    parser.add_argument(
        "--protocol", choices=("gazefollow", "gazefollow64", "vat"), help="which AUC (default: the one of the data set's own tables)"
    )
    parser.add_argument("--paired", default="", metavar="OTHER", help="score OTHER too, and every model's difference to it on the same heads")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="resamples behind every interval (default: 1000; 0: no intervals)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the resamples (default: 0)")
    parser.add_argument("--detail", action="store_true", help="print slices and the calibration of in/out (JSON and Markdown have them anyway)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write every table to FILE as Markdown")
    parser.add_argument(
        "--gallery", nargs="?", action=_Gallery, metavar="N",
        help="best, median and worst cases, drawn for the first run's report as truth, teacher and student (without N, and by default: 9; 0: none)",
    )
    parser.add_argument("--save-predictions", type=Path, metavar="FILE", help="keep the first model's answers, to be scored again: .npz")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score and show; writes ``eval.json`` and ``gallery/`` into the first run."""
    from dataclasses import asdict, replace

    from distill.comparing import compare, contender, gallery, machine, table_rows
    from distill.console import print_json, print_result, say, table, warn
    from distill.errors import ConfigurationError
    from distill.evaluation import protocol_of
    from distill.predicting import load_gaze
    from distill.predictions import RecordedModel
    from distill.readers import open_data
    from distill.report.facts import save_rows
    from distill.report.gallery import save_gallery
    from distill.score_tables import flag_lines, markdown, rendered, sheets
    from distill.scorecard import Card, Scorecards, pair_up
    from distill.selection import refuse_several_annotators, refuse_unlabelled
    from teachers.model_teacher import resolve_device

    if not options.models:
        raise ConfigurationError("no model is given; name a run directory, an exported file, predictions.npz or a teacher: distill eval MODEL --data DATA")
    cases = CASES if options.gallery is None else options.gallery
    for name in ("scenes", "gallery", "seed"):
        if (getattr(options, name) or 0) < 0:
            raise ConfigurationError(f"--{name} is {getattr(options, name)}; give 0 or more")
    if options.resamples and options.resamples < 100:
        raise ConfigurationError(f"--resamples is {options.resamples}; an interval wants 100 or more, 0 makes none")
    if options.paired and not options.resamples:
        raise ConfigurationError("--paired needs intervals: leave --resamples at 1000, or give it 100 or more")
    home = next((Path(m) for m in options.models if (Path(m) / "config.json").is_file()), None)
    config, facts = saved_configuration(home) if home else (None, {})
    data = options.data or ((config.val_data or config.data) if config else "")
    split = options.split or (config.val_split if config and not options.data else "test" if options.data else "val")
    if not data:
        raise ConfigurationError(f"no data set is given, and {', '.join(options.models)} is no run to take it from: check the path, or add --data DATA")
    if home and not options.data and facts.get("scenes", {}).get("validation") == 0:
        raise ConfigurationError(
            f"{home} was trained without labels to validate on, so it has nothing of its own to be scored on; give labelled --data (its "
            "agreement with the teacher is in its report)"
        )
    device = resolve_device(options.device)
    contenders: list[Any] = []
    specs: list[str] = []
    teacher = None
    names = [options.teacher] if options.teacher else own_teacher(facts)
    for spec in [*names, *options.models, *([options.paired] if options.paired else [])]:
        if spec in specs:
            continue
        model, shown = load_gaze(spec, options.device)
        if spec in names:
            teacher, role, shown = model, "teacher", spec
        else:
            role = "student"
        # Two runs of one name in two places would be one row.
        entry = contender(spec, role, model, _unused(shown, spec, [each.name for each in contenders]))
        if options.save_predictions is not None and spec == options.models[0]:
            entry = replace(entry, model=RecordedModel(model, options.save_predictions, shown))
        contenders.append(entry)
        specs.append(spec)
    if options.paired and len(specs) == 1:
        raise ConfigurationError(f"{options.paired} has nothing to be compared with; give another model: distill eval MODEL --paired {options.paired}")
    scenes = open_data(data, split)
    refuse_unlabelled(scenes, options.scenes)
    training = _prior_scenes(data, split)
    protocol = options.protocol or protocol_of(scenes.reader)
    if protocol == "vat":
        refuse_several_annotators(scenes)
    found = compare(
        contenders, scenes, training=training, device=device, limit=options.scenes, protocol=protocol, resamples=options.resamples,
        seed=options.seed,
    )
    chosen = scenes.scenes[: options.scenes] if options.scenes else scenes.scenes
    named = [(entry.name, result.rows) for entry, result in zip(contenders, found.evaluations, strict=True)]
    cards = [Card(row.name, "baseline", row.metrics, row.intervals) for row in found.baselines if row.metrics is not None]
    cards += [
        Card.of(entry.name, entry.role, result.rows, digest=entry.digest, resamples=options.resamples, seed=options.seed)
        for entry, result in zip(contenders, found.evaluations, strict=True)
    ]
    other = contenders[specs.index(options.paired)].name if options.paired else ""
    pairs = pair_up(named, other, resamples=options.resamples, seed=options.seed) if options.paired else ()
    results = Scorecards(
        tuple(cards), pairs, data, split, len(chosen), scenes.reader, protocol, replace(scenes, scenes=chosen).digest(),
        options.resamples, options.seed, "clips" if any(scene.group for scene in chosen) else "scenes",
    )
    rows = found.rows
    if home is not None:
        try:
            save_rows(home, rows, data=f"{len(chosen)} scenes of {data}, split {split}", machine=machine(), details=results.facts())
            if cases:
                student, _ = load_gaze(str(home), options.device)
                own = next(result.rows for spec, result in zip(specs, found.evaluations, strict=True) if Path(spec) == home)
                save_gallery(home, gallery(chosen, student, teacher, cases, device, rows=own, exif=scenes.reader == "folder"))
        except OSError as error:
            # A run that is somebody else's, or on a disk that is full or read-only, can be scored all the same.
            warn(f"{home} cannot be written to ({error}): the scores stand here alone, its report does not get them")
    elif options.gallery:
        warn("no gallery is drawn: it is part of a run's report, and no run directory is among the models")
    columns, cells = table_rows(rows)
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(markdown(results, (columns, cells), machine()), encoding="utf-8")
    if options.json:
        facts = {"data": data, "split": split, "scenes": len(chosen), "machine": machine(), "rows": [asdict(row) for row in rows]}
        print_json({**results.facts(), **facts})
    else:
        print_result(table(f"{data}, split {split}, {len(chosen)} scenes", columns, cells, left=2))
        for sheet in sheets(results, detail=options.detail):
            print_result(rendered(sheet))
        for line in results.provenance():
            print_result(line)
        for entry in contenders:
            print_result(f"{entry.name}: checkpoint {entry.digest or 'without a digest'}")
    for line in flag_lines(results):
        warn(line)
    if options.markdown is not None:
        say(f"tables: {options.markdown}")
    return 0


def _unused(shown: str, spec: str, taken: Sequence[str]) -> str:
    """What a model is called in tables: as it is ``shown``, or as it was given, or numbered, so that no two rows share a name."""
    numbered = (f"{spec} ({number})" for number in count(2))
    return next(name for name in chain((shown, spec), numbered) if name not in taken)


def _prior_scenes(data: str, split: str) -> Any:
    """Training scenes for the head-position prior; None, and a line that says why, where it would not be honest or possible."""
    from distill.console import warn
    from distill.errors import DataError
    from distill.readers import open_data

    if split in ("train", "trainval"):
        warn(f"the baselines are left out: the head-position prior would be scored on the heads that it is taken from ({split})")
        return None
    try:
        return open_data(data, "train")
    except DataError as error:
        warn(f"the baselines are left out, there are no training scenes to take them from: {error}")
        return None


def saved_configuration(run_dir: Path) -> tuple[Any, dict[str, Any]]:
    """A run's configuration and the facts recorded with it."""
    import json

    from distill.configuration import config_from_sections
    from students.errors import RunError

    path = run_dir / "config.json"
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}); train the run again under another --name") from None
    facts = sections.pop("facts", {})
    return config_from_sections(sections, str(path)), facts


def own_teacher(facts: dict[str, Any]) -> list[str]:
    """The name of the teacher that a run learned from, if exactly that teacher is here; else nothing, and it says so."""
    from distill.console import warn
    from teachers.catalogue import DEMO, store
    from teachers.published import CATALOGUE
    from teachers.weights import read_description

    there = facts.get("lineage", {}).get("teacher")
    if not there:
        return []
    name = str(there.get("name"))
    folder = DEMO if name == "demo" else store() / name if name in CATALOGUE else None
    if folder is None or not (folder / "model.json").is_file():
        warn(f"the run's teacher {name!r} is not here by name and is left out; give it with --teacher PATH")
        return []
    if read_description(folder)["weights_digest"] != there.get("weights"):
        warn(f"teacher {name!r} here is not the one that the run learned from (its weights differ) and is left out")
        return []
    return [name]
