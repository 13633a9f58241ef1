"""``distill teachers list|pull|convert|check``: the models to learn from."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from distill.teacher_options import add_teacher_options, teacher_from

EPILOG = """\
examples:
  distill teachers list
  distill teachers pull gazelle_dinov2_vitb14
  distill teachers convert gazelle_dinov2_vitb14.pt --arch gazelle_dinov2_vitb14 --backbone dinov2_vitb14.safetensors --out teachers/b14
  distill teachers convert runs/demo_teacher --out teachers/mine --half
  distill teachers check teachers/mine
  distill teachers check gazelle_dinov2_vitb14 --precision bf16 --compile
  distill teachers check onnx:gazelle_hgnetv2_n_inout_1x3x640x640_1xNx4.onnx --adapter gazelle-dinov3
  distill teachers check timm:vit_base_patch16_dinov3 --weights my_decoder.safetensors --input-size 512
"""
CHECK = """\
Load a teacher strictly, run it on noise, and print its digest, speed and arithmetic: GFLOP of an image (backbone) and of a head
(decoder), two for a multiply-add; what was achieved; MFU, the share of the device's peak: of its data sheet for a known GPU, else of a
matrix product in the same precision measured in the same run. Exit code 1 if an answer is not finite.
"""


def _example(action: str) -> dict[str, Any]:
    """The lines of the epilog that belong to one action."""
    lines = [line for line in EPILOG.splitlines() if f"teachers {action} " in line + " "]
    return {"epilog": "\n".join(["examples:", *lines]), "formatter_class": argparse.RawDescriptionHelpFormatter}


def register(subparsers: Any) -> None:
    """Add the ``teachers`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "teachers",
        help="list, fetch, convert and check teachers",
        description="Teachers: the published models of Gaze-LLE and gazelle-dinov3, the demo's own, any model stored in a directory, and black boxes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    show = actions.add_parser("list", help="names, backbones, parameters, published metrics, whether they are here", **_example("list"))
    show.add_argument("--json", action="store_true", help="the same facts as JSON")
    show.set_defaults(run=run_list)

    pull = actions.add_parser(
        "pull", help="fetch a published teacher and store it; verify one that is there",
        description="Fetch a published teacher, going on where an earlier download broke off, verify its SHA-256, and store it. Without a "
        "network the error says where to put the file by hand; pull then takes it from there.",
        **_example("pull"),
    )
    pull.add_argument("name", help="a name that `distill teachers list` shows")
    pull.add_argument(
        "--backbone", "--backbone-weights", type=Path, metavar="FILE",
        help="backbone weights for a decoder-only teacher, in timm's names or Meta's own (default: timm's file)",
    )
    pull.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    pull.set_defaults(run=run_pull)

    convert = actions.add_parser(
        "convert", help="store a run's student or a published decoder file as a teacher", **_example("convert")
    )
    convert.add_argument("source", type=Path, help="a run directory, a stored model, or a published .pt or .safetensors file")
    convert.add_argument("--arch", default="", metavar="NAME", help="what a published file is: a name of the list")
    convert.add_argument(
        "--backbone", "--backbone-weights", type=Path, metavar="FILE", help="backbone weights for a decoder-only file, in timm's names or Meta's own"
    )
    convert.add_argument("--name", default="", help="the teacher's name (default: the name of --out)")
    convert.add_argument("--half", action="store_true", help="store in float16: half the size")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    convert.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    convert.set_defaults(run=run_convert)

    check = actions.add_parser("check", help="load a teacher strictly, run it, print its digest and speed", description=CHECK, **_example("check"))
    check.add_argument("name", help="a name of the list, a directory, timm:BACKBONE or onnx:FILE")
    check.add_argument("--images", type=_positive, default=4, metavar="N", help="pictures in a pass (default: 4)")
    check.add_argument("--heads", type=_positive, default=2, metavar="K", help="heads in each picture (default: 2)")
    add_teacher_options(check)
    check.add_argument("--json", action="store_true", help="the same facts as JSON")
    check.set_defaults(run=run_check)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def run_list(options: argparse.Namespace) -> int:
    """The catalogue as a table."""
    from distill.console import print_json, print_result, result_width
    from teachers.catalogue import DEMO, store
    from teachers.published import CATALOGUE
    from teachers.weights import read_description

    facts: list[dict[str, Any]] = []
    if (DEMO / "model.json").is_file():
        demo = read_description(DEMO)
        config = demo["config"]
        facts.append(
            {
                "name": "demo", "backbone": config["backbone"], "input": config["input_size"][0], "parameters": demo["facts"].get("parameters_m"),
                "inout": config["inout"] != "none", "metrics": demo["facts"].get("metrics", ""), "licence": "MIT", "here": True, "source": str(DEMO),
            }
        )
    for name, entry in CATALOGUE.items():
        facts.append(
            {
                "name": name, "backbone": entry.config.backbone, "input": entry.config.input_size[0], "parameters": entry.parameters,
                "inout": entry.config.inout != "none", "metrics": entry.metrics, "licence": entry.licence,
                "here": (store() / name / "model.json").is_file(), "source": entry.url,
            }
        )
    if options.json:
        print_json(facts)
        return 0
    print_result(_list_table(facts) if result_width() >= WIDE else _narrow_list(facts))
    return 0


WIDE = 120  # columns of a terminal below which every fact in a column of its own is a few letters wide


def _parameters(fact: dict[str, Any]) -> str:
    return "-" if fact["parameters"] is None else f"{fact['parameters']:.1f} M"


def _list_table(facts: list[dict[str, Any]]) -> Any:
    from distill.console import table

    rows = [
        [
            f["name"], f["backbone"], f["metrics"], f["licence"], "yes" if f["here"] else "no", "yes" if f["inout"] else "no", str(f["input"]),
            _parameters(f),
        ]
        for f in facts
    ]
    columns = ["name", "backbone", "AUC / avg L2 / min L2 or AP", "licence", "here", "in/out", "input", "parameters"]
    shown = table("Teachers", columns, rows, left=6)
    shown.columns[0].no_wrap = True  # a name is there to be copied
    return shown


def _narrow_list(facts: list[dict[str, Any]]) -> Any:
    """The same facts, some below each other."""
    from distill.console import table

    rows = []
    for f in facts:
        short = ["here" if f["here"] else "not here", f"{f['input']} px", _parameters(f), *(["in/out"] if f["inout"] else [])]
        published = re.sub(r" (?=[.\d])", "\n", f["metrics"], count=1)  # the figures on a line of their own
        rows.append([f"{f['name']}\n{f['backbone']}", "\n".join(short), f"{published}\n{f['licence']}"])
    shown = table("Teachers", ["name, backbone", "input, size", "AUC / avg L2 / min L2 or AP, licence"], rows, left=3)
    shown.columns[0].no_wrap = True
    shown.show_lines = True
    return shown


def run_pull(options: argparse.Namespace) -> int:
    """Fetch one teacher, or verify it."""
    from distill.console import print_json, print_result, warn
    from distill.fetching import download_progress
    from teachers.catalogue import pull, store
    from teachers.download import CATALOGUE, FIRST_USE, digest_file

    if options.backbone is not None and (store() / options.name / "model.json").exists():
        warn(f"{options.name} is here already and is only verified: {options.backbone} is not used; delete {store() / options.name} to make it anew")
    with download_progress() as report:
        pulled = pull(options.name, backbone=options.backbone, report=report)
    file = pulled.file
    if options.json:
        facts = None if file is None else {"path": str(file.path), "sha256": file.sha256, "trust": file.trust, "fetched": file.fetched}
        print_json({"name": options.name, "directory": str(pulled.directory), "weights_digest": pulled.weights_digest, "file": facts})
        return 0
    print_result(f"{options.name} is in {pulled.directory}, digest of its weights {pulled.weights_digest}")
    if file is None:
        print_result("its published file is no longer here and was not compared; the stored weights fit their digest")
        return 0
    vouched = {
        CATALOGUE: "as the catalogue says", FIRST_USE: f"first seen now, trusted because it fits the architecture, recorded in {digest_file(file.path).name}"
    }
    said = vouched.get(file.trust, "as recorded when it was first used")
    print_result(f"{file.path} ({'fetched' if file.fetched else 'was there'}): SHA-256 {file.sha256}, {said}")
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Store a model as a teacher."""
    from distill.console import print_json, print_result
    from distill.errors import ConfigurationError
    from distill.student_start import stored_model_path
    from teachers.convert import assemble, told_by_tensors
    from teachers.download import sha256_of
    from teachers.errors import UnknownModelError
    from teachers.model import parameter_count
    from teachers.published import CATALOGUE
    from teachers.weights import load_model, save_model

    if (options.out / "model.json").exists():
        raise ConfigurationError(f"{options.out} already holds a model; give another --out, or remove it")
    if options.source.is_dir():
        if given := [option for option, value in (("--arch", options.arch), ("--backbone", options.backbone)) if value]:
            raise ConfigurationError(f"{', '.join(given)} is for a published file, and {options.source} is a directory, which says what it is; leave it out")
        model, description = load_model(stored_model_path(options.source))
        facts = dict(description["facts"])
        if validation := facts.get("validation"):
            scores = " / ".join("n/a" if validation[name] is None else f"{validation[name]:.3f}" for name in ("auc", "avg_l2", "min_l2", "ap"))
            facts["metrics"] = f"own validation scenes {scores}"
    elif options.source.exists():
        if not options.arch:
            known = told_by_tensors(options.source) or "; `distill teachers list` has the names"
            raise ConfigurationError(f"--arch is missing, which says what {options.source} is{known}")
        if options.arch not in CATALOGUE:
            raise UnknownModelError.of("architecture", options.arch, CATALOGUE, "give the file's own with --arch")
        entry = CATALOGUE[options.arch]
        model = assemble(entry.config, options.source, options.backbone)
        facts = {"source": options.source.name, "sha256": sha256_of(options.source), "licence": entry.licence, "metrics": entry.metrics}
    else:
        raise ConfigurationError(f"{options.source} does not exist; give a run, a stored model or a checkpoint file")
    facts["parameters_m"] = round(parameter_count(model) / 1e6, 2)
    digest = save_model(options.out, model, options.name or options.out.resolve().name, facts, half=options.half)
    size = (options.out / "model.safetensors").stat().st_size / 1e6
    if options.json:
        print_json({"directory": str(options.out), "weights_digest": digest, "megabytes": round(size, 3), "facts": facts})
        return 0
    print_result(f"{options.out}: {facts['parameters_m']} M parameters, {size:.1f} MB, digest {digest}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    """Load, run on noise, report."""
    import statistics

    import numpy as np
    import torch

    from distill.console import print_json, print_result
    from distill.throughput import noise, time_each, use_of_device
    from teachers.model import parameter_count
    from teachers.model_teacher import ModelTeacher, has_units

    teacher = teacher_from(options, options.name)
    batch = noise(teacher.input_size, options.images, options.heads)
    heatmap, inout = batch.run(teacher)
    finite = bool(np.isfinite(heatmap).all()) and (inout is None or bool(np.isfinite(inout).all()))
    seconds = statistics.median(time_each({"pass": lambda: batch.run(teacher)}, rounds=3)["pass"].wall)
    heads = options.images * options.heads
    facts: dict[str, Any] = {
        "name": teacher.name, "digest": teacher.fingerprint["weights"], "input_size": list(teacher.input_size),
        "heatmap_size": list(teacher.heatmap_size), "inout": teacher.has_inout, "finite": finite, "device": teacher.device,
        "images": options.images, "heads": heads, "images_per_s": round(options.images / seconds, 2), "heads_per_s": round(heads / seconds, 2),
    }
    if isinstance(teacher, ModelTeacher):
        facts |= {
            "parameters_m": round(parameter_count(teacher.model) / 1e6, 2), "precision": teacher.precision, "compiled": options.compiled,
            "precision_units": has_units(torch.device(teacher.device), teacher.precision),
        }
    else:
        adapter = {"name": teacher.adapter.name, **teacher.adapter.to_json()}
        facts |= {"precision": "of the graph", "adapter": adapter, "runtime": teacher.fingerprint["runtime"]}
    facts |= use_of_device(teacher, options.images, heads, seconds)
    if options.json:
        print_json(facts)
        return 0 if finite else 1
    if facts.get("precision_units") is False:
        facts["precision"] = f"{facts['precision']} (this device has no units for it: right answers, and slower than fp32)"
    facts.pop("precision_units", None)
    for key, value in facts.items():
        print_result(f"{key:>14}  {'not to be counted in a black box' if value is None else value}")
    return 0 if finite else 1
