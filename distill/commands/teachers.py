"""``distill teachers list|pull|convert|check``: the models to learn from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  distill teachers list
  distill teachers pull gazelle_dinov2_vitb14
  distill teachers convert gazelle_dinov2_vitb14.pt --arch gazelle_dinov2_vitb14 --backbone dinov2_vitb14.safetensors --out teachers/b14
  distill teachers convert runs/demo_teacher --out teachers/mine --half
  distill teachers check teachers/mine
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
        description="Teachers: the published Gaze-LLE models, the demo's own, and any model stored in a directory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    show = actions.add_parser("list", help="names, backbones, parameters, published metrics, whether they are here", **_example("list"))
    show.add_argument("--json", action="store_true", help="the same facts as JSON")
    show.set_defaults(run=run_list)

    pull = actions.add_parser("pull", help="fetch a published teacher and store it (needs a network)", **_example("pull"))
    pull.add_argument("name", help="a name that `distill teachers list` shows")
    pull.set_defaults(run=run_pull)

    convert = actions.add_parser(
        "convert", help="store a run's student or a published decoder file as a teacher", **_example("convert")
    )
    convert.add_argument("source", type=Path, help="a run directory, a stored model, or a published .pt or .safetensors file")
    convert.add_argument("--arch", default="", metavar="NAME", help="what a published file is: a name of the list")
    convert.add_argument("--backbone", type=Path, metavar="FILE", help="backbone weights for a decoder-only file (timm's names)")
    convert.add_argument("--name", default="", help="the teacher's name (default: the name of --out)")
    convert.add_argument("--half", action="store_true", help="store in float16: half the size")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    convert.set_defaults(run=run_convert)

    check = actions.add_parser("check", help="load a teacher strictly, run it, print its digest and speed", **_example("check"))
    check.add_argument("name", help="a name of the list, or a directory")
    check.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    check.add_argument("--json", action="store_true", help="the same facts as JSON")
    check.set_defaults(run=run_check)


def run_list(options: argparse.Namespace) -> int:
    """The catalogue as a table."""
    from distill.console import print_json, print_result, table
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
                "inout": config["inout"] != "none", "metrics": demo["facts"].get("metrics", ""), "licence": "MIT", "here": True,
            }
        )
    for name, entry in CATALOGUE.items():
        facts.append(
            {
                "name": name, "backbone": entry.config.backbone, "input": entry.config.input_size[0], "parameters": entry.parameters,
                "inout": entry.config.inout != "none", "metrics": entry.metrics, "licence": entry.licence,
                "here": (store() / name / "model.json").is_file(),
            }
        )
    if options.json:
        print_json(facts)
        return 0
    rows = [
        [
            f["name"], f["backbone"], f["metrics"], f["licence"], "yes" if f["here"] else "no", "yes" if f["inout"] else "no",
            str(f["input"]), "-" if f["parameters"] is None else f"{f['parameters']:.1f} M",
        ]
        for f in facts
    ]
    columns = ["name", "backbone", "AUC / avg L2 / min L2 or AP", "licence", "here", "in/out", "input", "parameters"]
    print_result(table("Teachers", columns, rows, left=6))
    return 0


def run_pull(options: argparse.Namespace) -> int:
    """Fetch one teacher."""
    from distill.console import print_result
    from teachers.catalogue import pull

    print_result(f"{options.name} is in {pull(options.name)}")
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Store a model as a teacher."""
    from distill.console import print_result
    from distill.errors import ConfigurationError
    from distill.training import stored_model_path
    from teachers.convert import assemble
    from teachers.errors import UnknownModelError
    from teachers.model import parameter_count
    from teachers.published import CATALOGUE
    from teachers.weights import load_model, save_model

    if (options.out / "model.json").exists():
        raise ConfigurationError(f"{options.out} already holds a model; give another --out, or remove it")
    if options.source.is_dir():
        model, description = load_model(stored_model_path(options.source))
        facts = dict(description["facts"])
        if validation := facts.get("validation"):
            scores = " / ".join("n/a" if validation[name] is None else f"{validation[name]:.3f}" for name in ("auc", "avg_l2", "min_l2", "ap"))
            facts["metrics"] = f"own validation scenes {scores}"
    elif options.source.exists():
        if options.arch not in CATALOGUE:
            raise UnknownModelError.of("architecture", options.arch, CATALOGUE, "give the file's own with --arch")
        entry = CATALOGUE[options.arch]
        model = assemble(entry.config, options.source, options.backbone)
        facts = {"source": options.source.name, "licence": entry.licence, "metrics": entry.metrics}
    else:
        raise ConfigurationError(f"{options.source} does not exist; give a run, a stored model or a checkpoint file")
    facts["parameters_m"] = round(parameter_count(model) / 1e6, 2)
    digest = save_model(options.out, model, options.name or options.out.resolve().name, facts, half=options.half)
    size = (options.out / "model.safetensors").stat().st_size / 1e6
    print_result(f"{options.out}: {facts['parameters_m']} M parameters, {size:.1f} MB, digest {digest}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    """Load, run on noise, report."""
    import time

    import torch

    from distill.console import print_json, print_result
    from distill.predicting import resolve_device
    from teachers.catalogue import load_teacher

    teacher = load_teacher(options.name, device=resolve_device(options.device))
    images = torch.rand(4, 3, *teacher.input_size, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.2, 0.1, 0.4, 0.4], [0.5, 0.1, 0.7, 0.5]]).repeat(4, 1)
    index = torch.arange(4).repeat_interleave(2)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        output = teacher(images, boxes, index)
        finite = bool(output.heatmap.isfinite().all()) and (output.inout is None or bool(output.inout.isfinite().all()))
        times.append(time.perf_counter() - began)
    facts = {
        "name": teacher.name, "digest": teacher.fingerprint["weights"], "input_size": list(teacher.input_size),
        "heatmap_size": list(teacher.heatmap_size), "inout": teacher.has_inout, "finite": finite,
        "images_per_s": round(4 / sorted(times)[1], 2), "heads_per_s": round(8 / sorted(times)[1], 2), "device": teacher.device,
    }
    if options.json:
        print_json(facts)
    else:
        for key, value in facts.items():
            print_result(f"{key:>14}  {value}")
    return 0 if finite else 1
