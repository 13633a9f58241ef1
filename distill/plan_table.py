"""A compiled plan for people: the table of its epochs, equal ones drawn together, and the thaw as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schedules.cost import StageSizes
from schedules.plan import EpochPlan, Plan

MOST_ROWS = 24  # epochs of a table that fits a screen; a longer one is drawn together
PICTURE_COLUMNS = 100
LABELS, HIGHEST = 10, 20  # columns before the picture's rows, and behind a curve's
PICTURE_ROWS = 24
SPARKS = " ▁▂▃▄▅▆▇█"
COLUMNS = [
    "epoch", "w", "T", "thaw time", "open", "opens", "trainable", "lr head", "lr last block", "lr deepest open", "cost",
]


def table_rows(plan: Plan, sizes: StageSizes, *, parameters: bool, every: bool = False) -> list[list[str]]:
    """Cells of `COLUMNS`, values at each epoch's first step; ``parameters`` False where no model was there to count them.

    A plan of more than `MOST_ROWS` epochs has one row for consecutive epochs with the same stages open (unless ``every``):
    then a value that moves is given at the first and the last of them.
    """
    lines = plan.epochs_table
    runs = [[line] for line in lines] if every or len(lines) <= MOST_ROWS else list(_equal(lines))
    rows, before = [], 0
    for run in runs:
        first = run[0]
        rows.append(
            [
                str(first.epoch) if len(run) == 1 else f"{first.epoch} – {run[-1].epoch}",
                _moving([f"{line.distill_weight:.4g}" for line in run]),
                _moving([f"{line.temperature:.4g}" for line in run]),
                _moving([f"{line.thaw_time:.4g}" for line in run]),
                f"{first.open_blocks}/{plan.blocks}" + (" + stem" if first.stem_open else ""),
                f"+{first.open_blocks - before}" if first.open_blocks > before else "",
                f"{sizes.trainable(first.open_blocks, first.stem_open):,}" if parameters else "-",
                _moving([f"{line.lr_head:.2e}" for line in run]),
                _moving([_rate(line, -1) for line in run]),
                _moving([_rate(line, 0) for line in run]),
                f"{100 * sizes.cost(first.open_blocks, first.stem_open):.0f}%",
            ]
        )
        before = first.open_blocks
    return rows


def _equal(lines: Sequence[EpochPlan]) -> Iterator[list[EpochPlan]]:
    run: list[EpochPlan] = []
    for line in lines:
        if run and (line.open_blocks, line.stem_open) != (run[0].open_blocks, run[0].stem_open):
            yield run
            run = []
        run.append(line)
    yield run


def _rate(line: EpochPlan, which: int) -> str:
    """Rate of the deepest open stage (0), the stem if it is open, or of the last block (-1)."""
    rates = [line.lr_stem, *reversed(line.lr_blocks)]
    opened = [rate for rate in rates if rate > 0]
    return f"{opened[which]:.2e}" if opened else "-"


def _moving(shown: list[str]) -> str:
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} → {shown[-1]}"


def text_picture(plan: Plan, width: int = LABELS + PICTURE_COLUMNS + HIGHEST) -> list[str]:
    """The thaw as lines of text: a row a block (the last on top, the stem below), a column an epoch; w and T as sparks.

    A run of more epochs than lines of ``width`` characters have room for shows some of them, evenly chosen.
    """
    table = plan.epochs_table
    columns = max(1, min(len(table), PICTURE_COLUMNS, width - LABELS - HIGHEST))
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
    cells = "".join(SPARKS[round(top * (value / highest))] if highest > 0 else SPARKS[0] for value in values)
    return f"{cells} (highest {highest:.4g})"
