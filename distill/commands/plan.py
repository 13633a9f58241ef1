"""``distill plan``: compile a schedule and show it as a table and a picture, or as JSON."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schedules.cost import StageSizes
    from schedules.plan import Plan, PlanConfig

STEPS_PER_EPOCH = 100
COST_BASIS = {
    True: "by FLOPs of one picture with one head: forward of all, backward (twice the forward) of what is open",
    False: "every block alike (there is no model to count on): forward of all, backward (twice the forward) of what is open",
}


def register(subparsers: Any) -> None:
    """Add the ``plan`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan",
        help="show what a schedule opens, and when",
        description="Compile the schedule of a run file, or of the options alone, and show for every epoch the "
        "distillation weight, temperature, thaw time, open blocks, parameters that train, learning rates and cost.",
        epilog="examples:\n"
        "  distill plan recipes/gentle_finetune.toml\n"
        "  distill plan recipes/gazefollow_pico.toml --picture plan.svg\n"
        "  distill plan --blocks 12 --epochs 45 --finetune --distill-weight 0.3 --json\n"
        "  distill plan recipes/slow_burn.toml --thaw-by 80%",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE.toml", help="a run file; options override it")
    parser.add_argument("--blocks", type=int, metavar="N", help="blocks of the backbone (default: the run file's)")
    parser.add_argument("--student", metavar="NAME", help="plan for this student's backbone (default: the run file's)")
    parser.add_argument("--epochs", type=int, metavar="N", default=argparse.SUPPRESS, help="length of the run")
    parser.add_argument(
        "--steps-per-epoch",
        type=int,
        metavar="N",
        help=f"matters to durations in steps and to warm-ups (default: {STEPS_PER_EPOCH})",
    )
    add_schedule_flags(parser)
    parser.add_argument(
        "--thaw-by", metavar="TIME", help="solve for the longest interval that opens everything by then: 80%%, 36"
    )
    parser.add_argument("--every-epoch", action="store_true", help="a row for every epoch, however many there are")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the plan as well: FILE.svg or FILE.png")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    parser.set_defaults(run=run)


def add_schedule_flags(parser: argparse.ArgumentParser) -> None:
    """The schedule's options, each stored under the name of its `PlanConfig` field and only if it was given."""
    group = parser.add_argument_group(
        "schedule",
        "Durations: 3, '2.5 epochs', '20%', '500 steps'. Curves: 0.3, 'cosine 1.0 -> 0.1', 'warmup 2 epochs 0.5', ...",
    )

    def add(name: str, text: str, metavar: str = "X", **options: Any) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, metavar=metavar, help=text, **options)

    def switch(name: str, text: str) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, action=argparse.BooleanOptionalAction, help=text)

    switch("--finetune", "open backbone stages; without it the backbone stays frozen")
    add(
        "--finetune-layers", "blocks open from the start, from the last; 0 opens everything (default: 2)", "N", type=int
    )
    add("--initial-freeze-epochs", "thaw time before a further block opens (default: 10)", "DURATION")
    add("--unfreeze-interval", "thaw time between further blocks (default: 3)", "DURATION")
    switch("--disable-progressive-unfreeze", "keep --finetune-layers blocks open for the whole run")
    add("--thaw-coupling", "how much the distillation weight slows the thaw clock (default: 1)", type=float)
    add("--distill-weight", "weight of the distillation loss (default: 0)", "CURVE")
    add("--distill-temp-start", "temperature at the start (default: 1)", type=float)
    add("--distill-temp-end", "temperature at the end (default: 1)", type=float)
    add(
        "--distill-temp-shape", "how it goes from start to end (default: linear)", "SHAPE", choices=("linear", "cosine")
    )
    add("--distill-temperature", "the temperature as a curve, in place of the three above", "CURVE")
    add("--lr", "peak learning rate of the head (default: 1e-3)", type=float)
    add("--backbone-lr", "peak learning rate of the backbone (default: a tenth of --lr)", type=float)
    add("--warmup", "warm-up at the start of the run (default: 2%%)", "DURATION")
    add("--thaw-warmup", "warm-up of a stage that opens (default: 0.5 epochs)", "DURATION")
    add("--layer-decay", "rate of each stage relative to the one that opens before it (default: 1)", type=float)
    add("--final-lr-ratio", "rate at the end relative to the peak (default: 0.01)", type=float)
    add("--lr-schedule", "how rates fall (default: cosine)", "SHAPE", choices=("cosine", "constant"))


def schedule_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_schedule_flags`, and `--epochs`, that were given, by `PlanConfig` field."""
    from dataclasses import fields

    from schedules.plan import PlanConfig

    names = {field.name for field in fields(PlanConfig)} - {"steps_per_epoch", "planned_epochs"}
    return {name: value for name, value in vars(args).items() if name in names}


def run(args: argparse.Namespace) -> int:
    """Compile and show. Raises PlanError or ConfigurationError for what cannot be compiled."""
    from distill.console import print_json
    from distill.plan_picture import check_format, write_picture
    from schedules.plan import compile_plan, solve_thaw_by

    if args.picture is not None:
        check_format(args.picture)
    config, sizes, measured = _configured(args)
    blocks = len(sizes.work) - 1
    if args.thaw_by is not None:
        config = solve_thaw_by(config, blocks, args.thaw_by)
    plan = compile_plan(config, blocks)
    facts = plan.to_json()
    for line in facts["epochs"]:
        opened = line["open_blocks"], line["stem_open"]
        line["trainable_parameters"] = sizes.trainable(*opened) if measured else None
        line["relative_cost"] = sizes.cost(*opened)
    facts["cost_basis"] = COST_BASIS[measured]
    if args.picture is not None:
        write_picture(facts, args.picture)
    if args.json:
        print_json(facts)
    else:
        _show(plan, sizes, measured, args)
    return 0


def _configured(args: argparse.Namespace) -> tuple[PlanConfig, StageSizes, bool]:
    """The schedule, what its stages weigh, and whether that was counted on a model."""
    from distill.configuration import load_run_config
    from distill.console import warn
    from distill.errors import ConfigurationError
    from schedules.errors import PlanError

    overrides = schedule_overrides(args) | ({} if args.student is None else {"student": args.student})
    run_config = load_run_config(args.recipe, overrides)
    config = run_config.plan_config(STEPS_PER_EPOCH if args.steps_per_epoch is None else args.steps_per_epoch)
    if args.steps_per_epoch is None and any(re.search(r"\d steps\b", str(value)) for value in config.to_dict().values()):
        warn(f"times are given in steps, and an epoch is taken to have {STEPS_PER_EPOCH} of them; say how many it has with --steps-per-epoch N")
    if args.blocks is not None:
        from schedules.cost import equal_blocks

        if args.blocks < 1:
            raise PlanError(f"--blocks is {args.blocks}, and a backbone that yields no stages has no plan; give at least 1 (12 for a ViT-S or ViT-B)")
        return config, equal_blocks(args.blocks), False
    if args.recipe is None and args.student is None:
        raise ConfigurationError(
            "a plan needs the number of the backbone's blocks: give --blocks N (12 for a ViT-S or ViT-B), --student NAME, or a run file"
        )
    return config, student_sizes(run_config.student), True


def student_sizes(student: str) -> StageSizes:
    """Parameters and work of a student's stages, for one picture with one head; counted without weights or memory."""
    import torch

    from schedules.cost import measure_stages
    from schedules.stages import discover_stages
    from students.catalogue import build_student, student_config

    config = student_config(student)
    with torch.device("meta"):
        model = build_student(config).eval()
        images, boxes = torch.empty(1, 3, *config.input_size), torch.empty(1, 4)
        heads = torch.zeros(1, dtype=torch.int64)
    stages = discover_stages(model, "backbone")
    return measure_stages(model, stages, lambda: model(images, boxes, heads))


def _show(plan: Plan, sizes: StageSizes, measured: bool, args: argparse.Namespace) -> None:
    from distill.console import print_result, result_width, table, warn
    from distill.plan_table import COLUMNS, table_rows, text_picture
    from schedules.durations import Duration

    rows = table_rows(plan, sizes, parameters=measured, every=args.every_epoch)
    drawn = len(rows) < plan.config.epochs
    title = "Plan: what is in force at the first step of each epoch" + (" (first → last of those in one row)" if drawn else "")
    print_result(table(title, COLUMNS, rows, left=0))
    print_result(f"cost: a step's work relative to everything open, {COST_BASIS[measured]}")
    print_result("\n".join(text_picture(plan, result_width())))
    if args.picture is not None:
        print_result(f"picture in {args.picture}")
    if args.thaw_by is not None:
        interval = Duration.parse(plan.config.unfreeze_interval).describe()
        print_result(f"To open everything by {args.thaw_by}: --unfreeze-interval '{interval}'")
    for message in plan.messages:
        print_result(message)
    for warning in plan.warnings:
        warn(warning)
