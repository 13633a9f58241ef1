"""``distill cache build``: compute what a cache lacks."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.commands.cache_sources import add_data_options, data_spec, open_source, positive, seed
from distill.teacher_options import teacher_from, teacher_words

if TYPE_CHECKING:
    from distill.console import Bar
    from teachers.cache.format import Manifest
    from teachers.picture_check import CheckRecord
    from teachers.runner import BuildRecord, BuildSummary

BATCH = 16
LISTED = 20  # skipped scenes that are named one by one; `distill cache info` lists them all
BUILD = """\
Run a teacher over exactly the views that a student will see, and keep its heatmaps and in/out logits.

The cache is a directory of immutable shards. Stop the command whenever you like, kill it even: run the same line again and
it goes on, and only what is missing is computed. More scenes or more --views later: the same holds. A cache of another
teacher, data set or view policy is refused, never mixed. So are annotations or pictures that have changed since (pictures that were touched are read
again), with the command that computes just their shards anew.
"""
BUILD_EXAMPLES = """\
examples:
  distill cache build --data gazefollow:/path --teacher gazelle_dinov2_vitb14 --views 4 --out caches/gf
  distill cache build --images photos/ --heads heads.csv --teacher demo --out caches/photos     (no gaze labels needed)
  distill cache build --data gazefollow:/path --teacher onnx:model.onnx --out caches/gf         (a black box as a teacher)
  distill cache build --data gazefollow:/path --teacher timm:vit_large_patch16_dinov3 --weights my_decoder.safetensors --out caches/gf
  distill cache build ... --dry-run                                  rows, bytes and time before anything is written
  distill cache build ... --part 0/8                                 one of eight independent jobs, on any machines
  accelerate launch -m distill cache build ...                       one process per GPU
  ACCELERATE_USE_CPU=1 torchrun --nproc-per-node 2 -m distill cache build ...     several processes on a CPU
  distill cache build ... --retry-skipped                            after a picture that was skipped is mended
"""


def register(commands: Any) -> None:
    """Add ``build`` to the cache's commands."""
    raw = argparse.RawDescriptionHelpFormatter
    build = commands.add_parser(
        "build", help="compute what a cache lacks", description=BUILD, epilog=BUILD_EXAMPLES, formatter_class=raw
    )
    add_data_options(build, required=True)
    build.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the cache's directory: new, or one to go on with"
    )
    build.add_argument(
        "--views",
        type=positive,
        default=4,
        metavar="V",
        help="views of each scene; view 0 is the whole picture (default: 4)",
    )
    build.add_argument(
        "--codec", choices=("fp16", "q8"), help="fp16, or q8 at half of its size (default: fp16, or the cache's)"
    )
    build.add_argument("--seed", type=seed, metavar="N", help="seed of the view policy (default: 0, or the cache's)")
    build.add_argument(
        "--scenes-per-shard",
        type=positive,
        default=64,
        metavar="N",
        help="scenes in one file; what a kill can lose (default: 64)",
    )
    build.add_argument(
        "--batch", type=positive, default=BATCH, metavar="N", help=f"views in one forward pass (default: {BATCH})"
    )
    build.add_argument(
        "--workers", type=positive, default=2, metavar="N", help="threads that decode and resize pictures (default: 2)"
    )
    build.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at a picture that cannot be read (default: stop)"
    )
    build.add_argument(
        "--part",
        type=_part,
        default=(0, 1),
        metavar="I/N",
        help="compute only every N-th shard, beginning with the I-th (from 0)",
    )
    build.add_argument(
        "--retry-skipped",
        action="store_true",
        help="also compute the shards again that skipped a scene whose picture can be read now",
    )
    build.add_argument(
        "--rebuild",
        type=_shards,
        default=(),
        metavar="N[,N]",
        help="compute just these shards, though they are there (damaged ones, or of data that has changed), and put each in its place when it is whole",
    )
    build.add_argument(
        "--dry-run", action="store_true", help="print what would be computed, its size and time, and stop"
    )
    build.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    build.set_defaults(run=run_build)


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write I/N with 0 <= I < N, such as 0/8")
    return int(index), int(count)


def _shards(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} names no shards; write their numbers, such as 3 or 3,17")
    return tuple(int(number) for number in numbers)


def _command(args: argparse.Namespace, spec: str, split: str, seed: int, codec: str) -> str:
    """The command line that builds this cache, without --out: the cache names it when something must be mended."""
    from teachers.cache.command import recorded_command

    words = ["distill", "cache", "build", "--data", spec, "--split", split, "--teacher", args.teacher]
    words += ["--views", str(args.views), "--codec", codec, "--seed", str(seed), *teacher_words(args)]
    # A shard that is built again in other batches has the same maps, but not to the last bit.
    words += ["--batch", str(args.batch)] if args.batch != BATCH else []
    return recorded_command(words)


def _existing(path: Path) -> Manifest | None:
    from teachers.cache.format import MANIFEST, Manifest

    return Manifest.load(path) if (path / MANIFEST).is_file() else None


def run_build(args: argparse.Namespace) -> int:
    """Build, continue or grow a cache."""
    from dataclasses import asdict

    from distill.console import print_json, progress, say, warn
    from teachers.build_plan import plan_build
    from teachers.build_work import process_part
    from teachers.cache.reader import CacheReader
    from teachers.cache.remedies import quoted
    from teachers.errors import CacheError
    from teachers.launch import joined
    from teachers.runner import build_cache

    there = _existing(args.out)
    codec = args.codec or (there.codec if there else "fp16")
    views: dict[str, Any] = {} if args.seed is None else {"seed": args.seed}
    if there is not None and args.seed is None:
        views = dict(there.source.get("views", {}))
    spec = data_spec(args)
    source = open_source(spec, args.split, views)
    teacher = teacher_from(args, args.teacher)
    if args.dry_run:
        plan = plan_build(
            args.out,
            teacher,
            source,
            views=args.views,
            heads=source.heads,
            codec=codec,
            scenes_per_shard=args.scenes_per_shard,
            batch_images=args.batch,
            part=process_part(args.part),
            rebuild=args.rebuild,
            retry_skipped=args.retry_skipped,
        )
        if args.json:
            print_json(asdict(plan))
        else:
            _print_plan(plan, args, process_part(args.part))
        return 0
    with joined() as launch, ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def bar_of(title: str, total: int, unit: str) -> Bar:
            if title not in bars:
                stack.close()  # of the work before
                bars[title] = stack.enter_context(progress(title, total=total, unit=unit))
            return bars[title]

        def report_check(record: CheckRecord) -> None:
            bar = bar_of("Comparing pictures", record.pictures_total, "pictures")
            bar.update(record.pictures - bar.done, read=record.read)

        def report(record: BuildRecord) -> None:
            total = record.views_total + record.others_views_total
            if not total:
                return
            bar = bar_of("Building cache", total, "views")
            done = record.views + record.others_views
            if record.shard < 0 and done == bar.done:
                return  # still waiting
            skipped = {"skipped": record.skipped} if record.skipped else {}
            # The rows and megabytes of other processes are counted when they have ended.
            own = {} if record.others_views_total and not record.views_total else {"rows": record.rows, "mb": round(record.bytes / 1e6, 1)}
            bar.update(done - bar.done, **own, **skipped)

        summary = build_cache(
            args.out,
            teacher,
            source,
            views=args.views,
            codec=codec,
            scenes_per_shard=args.scenes_per_shard,
            batch_images=args.batch,
            part=args.part,
            on_error=args.on_error,
            report=report,
            report_check=report_check,
            workers=args.workers,
            command=_command(args, spec, source.split, source.policy.seed, codec),
            rebuild=args.rebuild,
            retry_skipped=args.retry_skipped,
            launch=launch,
        )
    skipped = [*summary.skipped, *(summary.others.skipped if summary.others else ())]
    for key, reason in skipped[:LISTED]:
        warn(f"skipped {key}: {reason}")
    if len(skipped) > LISTED:
        warn(f"and {len(skipped) - LISTED} more; `distill cache info {quoted(args.out)}` lists them")
    for key, reason in summary.pictures.unread[:LISTED]:
        warn(f"{key} is in the cache, but its picture cannot be compared with it: {reason}")
    if len(summary.pictures.unread) > LISTED:
        warn(f"and {len(summary.pictures.unread) - LISTED} more pictures cannot be compared")
    if skipped and not summary.rows and not CacheReader(args.out).rows():
        raise CacheError(f"no scene could be read: all {len(skipped)} were skipped; check --data, and run this again with --retry-skipped")
    if summary.others is not None and summary.others.failed:
        # Each has said why; that nothing is missing would be no comfort, since a changed picture may be the reason.
        raise CacheError(
            f"{summary.others.failed} of {summary.others.processes} processes failed, as they say themselves ({summary.shards_elsewhere} shards are missing); "
            "mend that, and run the same command again"
        )
    if args.json:
        print_json({**asdict(summary), "complete": summary.complete, "path": str(args.out)})
        return 0
    say(f"{args.out}: {_told(summary)}; {summary.scenes} scenes x {summary.views} views{_left(summary, args.part)}")
    return 0


def _told(summary: BuildSummary) -> str:
    """What this process did, or the launch whose others it waited for."""
    others = summary.others
    shards, rows, size = summary.shards_written, summary.rows, summary.bytes
    if others is not None:
        shards, rows, size = shards + others.shards_written, rows + others.rows, size + others.bytes
    if not shards:
        pictures = summary.pictures.pictures
        # Each process has compared those of its own shards, and told of none that has changed.
        same = f", {pictures} pictures are as they were" if pictures and others is None else ""
        return f"nothing was missing{same}"
    rate = rows / summary.seconds if summary.seconds else 0.0
    again = f" ({summary.shards_replaced} shards again)" if summary.shards_replaced else ""
    whose = f" by {others.processes} processes" if others is not None else ""
    return f"{rows} rows{again}{whose}, {size / 1e6:.1f} MB in {summary.seconds:.1f} s, {rate:.0f} rows/s"


def _left(summary: BuildSummary, part: tuple[int, int]) -> str:
    """What there still is to do, and whose it is."""
    left = ""
    if summary.shards_elsewhere:
        left = f"; {summary.shards_elsewhere} shards are still missing{_whose(summary, part)}"
    there = summary.skipped_before
    if there and not summary.shards_replaced:
        left += f"; {there} scenes were skipped earlier: mend their pictures and add --retry-skipped"
    return left


def _whose(summary: BuildSummary, part: tuple[int, int]) -> str:
    """Who is to compute what is missing; ``part`` is what the user asked for."""
    index, count = summary.part
    if summary.others is not None and summary.others.silent:
        return f": {summary.others.silent} other processes were not heard of for long; run the same command again"
    if part[1] > 1:
        return ": this was part {} of {}".format(*part)
    if count > 1 and summary.others is None:
        return f": this was process {index} of {count}, which do not wait for each other without a launcher"
    return ", of scenes or views that were not asked for"


def _print_plan(plan: Any, args: argparse.Namespace, part: tuple[int, int]) -> None:
    from distill.console import duration, print_result, table

    rows = [
        ["scenes in the cache", f"{plan.scenes} ({plan.new_scenes} new)"],
        ["heads in the data", str(plan.heads)],
        ["views of each scene", str(plan.views)],
        *([["part", "{} of {}".format(*part)]] if part[1] > 1 else []),
        ["rows to compute", str(plan.rows)],
        ["shards to compute", f"{plan.shards_missing} of {plan.shards}"],
        ["size to write", f"{plan.bytes / 1e6:.1f} MB"],
        ["time in one process", duration(plan.seconds)],
    ]
    print_result(table(f"{args.out}: nothing is written by --dry-run", ["what", "value"], rows))
