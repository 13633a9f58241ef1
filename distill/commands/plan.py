"""``distill plan``: compile a schedule and show it as a table and a picture, or as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schedules.plan import Plan, PlanConfig

STEPS_PER_EPOCH = 100
PICTURE_COLUMNS = 100
PICTURE_ROWS = 24
SPARKS = " ▁▂▃▄▅▆▇█"


def register(subparsers: Any) -> None:
    """Add the ``plan`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan",
        help="show what a schedule opens, and when",
        description="Compile the schedule of a run file, or of the options alone, and show for every epoch the "
        "distillation weight, temperature, thaw time, open blocks and learning rates.",
        epilog="examples:\n"
        "  distill plan recipes/gentle_finetune.toml\n"
        "  distill plan --blocks 12 --epochs 45 --finetune --distill-weight 0.3 --json\n"
        "  distill plan recipes/slow_burn.toml --thaw-by 80%",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE.toml", help="a run file; options override it")
    parser.add_argument("--blocks", type=int, metavar="N", help="blocks of the backbone (default: the run file's)")
    parser.add_argument("--epochs", type=int, metavar="N", default=argparse.SUPPRESS, help="length of the run")
    parser.add_argument(
        "--steps-per-epoch",
        type=int,
        metavar="N",
        default=STEPS_PER_EPOCH,
        help=f"matters to durations in steps and to warm-ups (default: {STEPS_PER_EPOCH})",
    )
    add_schedule_flags(parser)
    parser.add_argument(
        "--thaw-by", metavar="TIME", help="solve for the longest interval that opens everything by then: 80%%, 36"
    )
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
    from schedules.plan import compile_plan, solve_thaw_by

    config, blocks = _configured(args)
    if args.thaw_by is not None:
        config = solve_thaw_by(config, blocks, args.thaw_by)
    plan = compile_plan(config, blocks)
    if args.json:
        print_json(plan.to_json())
    else:
        _show(plan, solved=args.thaw_by)
    return 0


def _configured(args: argparse.Namespace) -> tuple[PlanConfig, int]:
    from distill.configuration import load_run_config
    from distill.errors import ConfigurationError

    run_config = load_run_config(args.recipe, schedule_overrides(args))
    config = run_config.plan_config(args.steps_per_epoch)
    if args.blocks is not None:
        return config, args.blocks
    if args.recipe is None:
        raise ConfigurationError(
            "a plan needs the number of the backbone's blocks: give --blocks N (12 for a ViT-S or ViT-B), or a run file"
        )
    return config, _count_blocks(run_config.student)


def _count_blocks(student: str) -> int:
    """Blocks of a student's backbone, found by building it, without weights."""
    from schedules.stages import discover_stages
    from students.catalogue import build_student, student_config

    return discover_stages(build_student(student_config(student)).backbone).blocks


def _show(plan: Plan, solved: str | None) -> None:
    from rich.text import Text

    from distill.console import print_result, table, warn
    from schedules.durations import Duration

    rows, opened = [], 0
    for line in plan.epochs_table:
        rates = [rate for rate in (*line.lr_blocks, line.lr_stem) if rate > 0]
        rows.append(
            [
                str(line.epoch),
                f"{line.distill_weight:.4g}",
                f"{line.temperature:.4g}",
                f"{line.thaw_time:.4g}",
                f"{line.open_blocks}/{plan.blocks}" + (" + stem" if line.stem_open else ""),
                f"+{line.open_blocks - opened}" if line.open_blocks > opened else "",
                f"{line.lr_head:.2e}",
                f"{max(rates):.2e}" if rates else "-",
                f"{min(rates):.2e}" if rates else "-",
            ]
        )
        opened = line.open_blocks
    columns = ["epoch", "w", "T", "thaw time", "open", "opens", "lr head", "lr backbone, highest", "lowest"]
    print_result(table("Plan: what is in force at the first step of each epoch", columns, rows, left=0))
    print_result(Text("\n".join(picture(plan))))
    if solved is not None:
        interval = Duration.parse(plan.config.unfreeze_interval).describe()
        print_result(Text(f"To open everything by {solved}: --unfreeze-interval '{interval}'"))
    for message in plan.messages:
        print_result(Text(message))
    for warning in plan.warnings:
        warn(warning)


def picture(plan: Plan) -> list[str]:
    """The thaw as lines of text: a row a block (the last on top, the stem below), a column an epoch; w and T as
    sparks."""
    table = plan.epochs_table
    columns = min(len(table), PICTURE_COLUMNS)
    shown = [table[index * len(table) // columns] for index in range(columns)]
    rows = min(plan.blocks, PICTURE_ROWS)
    lines = []
    for row in range(rows):
        # A row stands for several blocks where there are more than fit; it is filled when all of them are open.
        stage = (row + 1) * plan.blocks // rows - 1
        cells = "".join("█" if line.open_blocks > stage else "░" for line in shown)
        lines.append(f"{'block ' + str(plan.blocks - 1 - stage):>9} {cells}")
    lines.append(f"{'stem':>9} " + "".join("█" if line.stem_open else "░" for line in shown))
    marks = [" "] * columns
    for column in range(0, columns, 10):
        for offset, digit in enumerate(str(shown[column].epoch)[: columns - column]):
            marks[column + offset] = digit
    lines.append(f"{'epoch':>9} {''.join(marks)}")
    lines.append(f"{'w':>9} {_sparks([line.distill_weight for line in shown])}")
    lines.append(f"{'T':>9} {_sparks([line.temperature for line in shown])}")
    return [line.rstrip() for line in lines]


def _sparks(values: list[float]) -> str:
    """Heights relative to the highest value, with that value behind."""
    highest = max(values)
    top = len(SPARKS) - 1
    cells = "".join(SPARKS[round(top * value / highest)] if highest > 0 else SPARKS[0] for value in values)
    return f"{cells} (highest {highest:.4g})"
