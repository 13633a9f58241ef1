"""``distill eval``: score runs, exported files and teachers by the published protocols."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  distill eval runs/demo                                        the run's own validation scenes, beside its teacher
  distill eval runs/a runs/b --data gazefollow:/path --split test
  distill eval runs/a runs/a/exports/student.onnx demo
"""


def register(subparsers: Any) -> None:
    """Add the ``eval`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="score models: AUC, avg L2, min L2, in/out AP",
        description="Score runs, exported files and teachers on one set of scenes, with the centre and the head-position prior "
        "beside them. The first run given gets eval.json and a gallery, which `distill report` shows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run directory, exported .onnx file, or teacher")
    parser.add_argument("--data", default="", metavar="DATA", help="data set (default: the first run's own)")
    parser.add_argument("--split", default="", help="split to score on (default: the first run's validation split; with --data: test)")
    parser.add_argument("--teacher", default="", metavar="NAME", help="score this teacher too (default: the run's own, if it is here)")
    parser.add_argument("--scenes", type=int, default=0, metavar="N", help="only the first N scenes (default: all)")
    parser.add_argument("--gallery", type=int, default=9, metavar="N", help="cases drawn for the report (default: 9; 0: none)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score and show; writes ``eval.json`` and ``gallery/`` into the first run."""
    from dataclasses import asdict

    from distill.comparing import compare, contender, gallery, machine, table_rows
    from distill.console import print_json, print_result, table
    from distill.errors import ConfigurationError
    from distill.predicting import load_gaze, resolve_device
    from distill.readers import open_data
    from distill.report.facts import save_rows
    from distill.report.gallery import save_gallery

    home = next((Path(m) for m in options.models if (Path(m) / "config.json").is_file()), None)
    config, facts = saved_configuration(home) if home else (None, {})
    data = options.data or ((config.val_data or config.data) if config else "")
    split = options.split or (config.val_split if config and not options.data else "test" if options.data else "val")
    if not data:
        raise ConfigurationError("no data set is given and no run to take it from: add --data PATH")
    if home and not options.data and facts.get("scenes", {}).get("validation") == 0:
        raise ConfigurationError(
            f"{home} was trained without labels to validate on, so it has nothing of its own to be scored on; give labelled --data (its "
            "agreement with the teacher is in its report)"
        )
    device = resolve_device(options.device)
    contenders = []
    teacher = None
    names = [options.teacher] if options.teacher else own_teacher(facts)
    for name in names:
        model, shown = load_gaze(name, options.device)
        teacher = model
        contenders.append(contender(name, "teacher", model, shown))
    for spec in options.models:
        if spec not in names:
            model, shown = load_gaze(spec, options.device)
            contenders.append(contender(spec, "student", model, shown))
    scenes = open_data(data, split)
    training = _prior_scenes(data, scenes.reader, split)
    rows, _ = compare(contenders, scenes, training=training, device=device, limit=options.scenes)
    chosen = scenes.scenes[: options.scenes] if options.scenes else scenes.scenes
    if home is not None:
        save_rows(home, rows, data=f"{len(chosen)} scenes of {data}, split {split}", machine=machine())
        if options.gallery:
            student, _ = load_gaze(str(home), options.device)
            save_gallery(home, gallery(chosen, student, teacher, options.gallery, device, exif=scenes.reader == "folder"))
    if options.json:
        print_json({"data": data, "split": split, "scenes": len(chosen), "machine": machine(), "rows": [asdict(row) for row in rows]})
    else:
        columns, cells = table_rows(rows)
        print_result(table(f"{data}, split {split}, {len(chosen)} scenes", columns, cells, left=2))
    return 0


def _prior_scenes(data: str, reader: str, split: str) -> Any:
    """Training scenes for the head-position prior; None, and a line that says why, where it would not be honest or possible."""
    from distill.console import warn
    from distill.errors import DataError
    from distill.readers import open_data

    if reader == "folder":
        warn("the baselines are left out: a folder of pictures has no gaze labels to score")
        return None
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
        sections = json.loads(path.read_text())
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
