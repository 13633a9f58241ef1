"""``distill cache build|verify|info``: pay for the teacher once."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from distill.teacher_options import add_teacher_options, fill_in_teacher, teacher_from, teacher_words

if TYPE_CHECKING:
    from distill.console import Bar
    from distill.source import SceneSource
    from teachers.cache.format import Manifest
    from teachers.runner import BuildRecord

BUILD = """\
Run a teacher over exactly the views that a student will see, and keep its heatmaps and in/out logits.

The cache is a directory of immutable shards. Stop the command whenever you like, kill it even: run the same line again and
it goes on, and only what is missing is computed. More scenes or more --views later: the same holds. A cache of another
teacher, data set or view policy is refused, never mixed.
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
"""
VERIFY = """\
Check every shard's digest, then run the live teacher on random rows of the cache and compare: |difference of logits|, KL
divergence, movement of the argmax, in/out. Exit code 1 if a row differs by more than the codec may cause. Data and teacher are
those that the cache was built with, unless you say where they are now.
"""
INFO = (
    "Print what is in a cache: teacher, data, views, rows, size, cost per row, skipped scenes, what is still missing."
)


def register(subparsers: Any) -> None:
    """Add the ``cache`` command and its three subcommands to the parser."""
    cache: argparse.ArgumentParser = subparsers.add_parser(
        "cache",
        help="run the teacher once and keep its answers",
        description="Build, verify and describe teacher caches.",
    )
    commands = cache.add_subparsers(dest="cache_command", metavar="build|verify|info", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    build = commands.add_parser(
        "build", help="compute what a cache lacks", description=BUILD, epilog=BUILD_EXAMPLES, formatter_class=raw
    )
    _data_options(build, required=True)
    build.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the cache's directory: new, or one to go on with"
    )
    build.add_argument(
        "--views",
        type=_positive,
        default=4,
        metavar="V",
        help="views of each scene; view 0 is the whole picture (default: 4)",
    )
    build.add_argument(
        "--codec", choices=("fp16", "q8"), help="fp16, or q8 at half of its size (default: fp16, or the cache's)"
    )
    build.add_argument("--seed", type=int, metavar="N", help="seed of the view policy (default: 0, or the cache's)")
    build.add_argument(
        "--scenes-per-shard",
        type=_positive,
        default=64,
        metavar="N",
        help="scenes in one file; what a kill can lose (default: 64)",
    )
    build.add_argument(
        "--batch", type=_positive, default=16, metavar="N", help="views in one forward pass (default: 16)"
    )
    build.add_argument(
        "--workers", type=_positive, default=2, metavar="N", help="threads that decode and resize pictures (default: 2)"
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
        "--dry-run", action="store_true", help="print what would be computed, its size and time, and stop"
    )
    build.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    build.set_defaults(run=run_build)

    verify = commands.add_parser(
        "verify", help="compare cached rows with the live teacher", description=VERIFY, formatter_class=raw,
        epilog="examples:\n  distill cache verify caches/gf --rows 256\n  distill cache verify caches/gf --shards-only",
    )
    verify.add_argument("cache", type=Path, metavar="CACHE", help="a directory that `distill cache build` wrote")
    verify.add_argument("--rows", type=_positive, default=64, metavar="K", help="rows to run live (default: 64)")
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="which rows (default: 0)")
    verify.add_argument("--shards-only", action="store_true", help="check the shards' digests and run no teacher")
    _data_options(verify, required=False)
    verify.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    verify.set_defaults(run=run_verify)

    info = commands.add_parser(
        "info", help="print what is in a cache", description=INFO, epilog="examples:\n  distill cache info caches/gf --json",
        formatter_class=raw,
    )
    info.add_argument("cache", type=Path, metavar="CACHE", help="a directory that `distill cache build` wrote")
    info.add_argument("--json", action="store_true", help="the same facts as JSON on standard output")
    info.set_defaults(run=run_info)


def _data_options(parser: argparse.ArgumentParser, required: bool) -> None:
    data = parser.add_mutually_exclusive_group(required=required)
    data.add_argument("--data", metavar="SPEC", help="a data set: READER:PATH, or a path whose layout is recognised")
    data.add_argument("--images", type=Path, metavar="DIR", help="instead: a folder of pictures without gaze labels")
    parser.add_argument(
        "--heads",
        type=Path,
        metavar="CSV",
        help="head boxes of --images: image,person,xmin,ymin,xmax,ymax in pixels (default: DIR/heads.csv)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="split of --data (default: trainval, everything in the training file)"
    )
    parser.add_argument(
        "--teacher", required=required, metavar="NAME|PATH", help="a teacher: see `distill teachers list`; onnx:FILE is a black box"
    )
    # `verify` takes the precision from the cache, and a compiled teacher is the same teacher.
    add_teacher_options(parser, precision="fp32" if required else None, compiled=required)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write I/N with 0 <= I < N, such as 0/8")
    return int(index), int(count)


def _spec(args: argparse.Namespace) -> str:
    from distill.errors import ConfigurationError

    if args.images is None:
        if args.heads is not None:
            raise ConfigurationError("--heads goes with --images DIR; a data set brings its own head boxes")
        return str(args.data)
    return f"folder:{args.images}" + (f"?heads={quote(str(args.heads))}" if args.heads is not None else "")


def _source(spec: str, split: str | None, views: dict[str, Any]) -> SceneSource:
    from distill.readers import open_data
    from distill.source import SceneSource
    from distill.views import ViewPolicy

    return SceneSource(open_data(spec, split or "trainval"), ViewPolicy(**views), spec=spec)


def _command(args: argparse.Namespace, spec: str, split: str, seed: int, codec: str) -> str:
    """The command line that builds this cache, without --out: the cache names it when something must be mended."""
    words = ["distill", "cache", "build", "--data", spec, "--split", split, "--teacher", args.teacher]
    words += ["--views", str(args.views), "--codec", codec, "--seed", str(seed), *teacher_words(args)]
    return shlex.join(words)


def _existing(path: Path) -> Manifest | None:
    from teachers.cache.format import MANIFEST, Manifest

    return Manifest.load(path) if (path / MANIFEST).is_file() else None


def run_build(args: argparse.Namespace) -> int:
    """Build, continue or grow a cache."""
    from dataclasses import asdict

    from distill.console import print_json, progress, say, warn
    from teachers.build_plan import plan_build
    from teachers.errors import CacheError
    from teachers.runner import build_cache

    there = _existing(args.out)
    codec = args.codec or (there.codec if there else "fp16")
    views: dict[str, Any] = {} if args.seed is None else {"seed": args.seed}
    if there is not None and args.seed is None:
        views = dict(there.source.get("views", {}))
    spec = _spec(args)
    source = _source(spec, args.split, views)
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
        )
        if args.json:
            print_json(asdict(plan))
        else:
            _print_plan(plan, args)
        return 0
    with ExitStack() as stack:
        bar: Bar | None = None

        def report(record: BuildRecord) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress("Building cache", total=record.views_total, unit="views"))
            skipped = {"skipped": record.skipped} if record.skipped else {}
            bar.update(record.views - bar.done, rows=record.rows, mb=round(record.bytes / 1e6, 1), **skipped)

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
            workers=args.workers,
            command=_command(args, spec, source.split, source.policy.seed, codec),
        )
    for key, reason in summary.skipped:
        warn(f"skipped {key}: {reason}")
    if summary.shards_written and not summary.rows and summary.skipped:
        raise CacheError(
            f"no scene could be read: all {len(summary.skipped)} were skipped; check --data, then delete {args.out}"
        )
    if args.json:
        print_json({**asdict(summary), "complete": summary.complete, "path": str(args.out)})
        return 0
    rate = summary.rows / summary.seconds if summary.seconds else 0.0
    done = "nothing was missing"
    if summary.shards_written:
        done = f"{summary.rows} rows, {summary.bytes / 1e6:.1f} MB in {summary.seconds:.1f} s, {rate:.0f} rows/s"
    left = "" if summary.complete else f"; {summary.shards_elsewhere} shards are still missing"
    say(f"{args.out}: {done}; {summary.scenes} scenes x {summary.views} views{left}")
    return 0


def _print_plan(plan: Any, args: argparse.Namespace) -> None:
    from distill.console import duration, print_result, table

    rows = [
        ["scenes in the cache", f"{plan.scenes} ({plan.new_scenes} new)"],
        ["heads in the data", str(plan.heads)],
        ["views of each scene", str(plan.views)],
        ["rows to compute", str(plan.rows)],
        ["shards to compute", f"{plan.shards_missing} of {plan.shards}"],
        ["size to write", f"{plan.bytes / 1e6:.1f} MB"],
        ["time in one process", duration(plan.seconds)],
    ]
    print_result(table(f"{args.out}: nothing is written by --dry-run", ["what", "value"], rows))


def run_info(args: argparse.Namespace) -> int:
    """Print a cache's facts."""
    from distill.commands.cache_info import print_facts

    print_facts(args.cache, args.json)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check shards, then rows; 1 if a row is beyond its bound."""
    from dataclasses import asdict

    from distill.console import print_json, print_result, progress, table
    from teachers.cache.reader import CacheReader
    from teachers.errors import CacheError

    reader = CacheReader(args.cache)
    wrong = []
    with progress("Checking shards", total=reader.manifest.shards, unit="shards") as bar:
        for _, error in reader.check_shards():
            wrong += [error] if error is not None else []
            bar.update(1, wrong=len(wrong))
    if wrong:
        more = f"; {len(wrong) - 1} more shards are wrong" if len(wrong) > 1 else ""
        raise CacheError(f"{wrong[0]}{more}")
    if args.shards_only:
        facts: dict[str, Any] = {"shards": reader.manifest.shards, "ok": True}
        if args.json:
            print_json(facts)
        else:
            print_result(f"{args.cache}: {reader.manifest.shards} shards, every digest fits")
        return 0
    _fill_in(args, reader.manifest)
    from teachers.cache.verify import verify_rows

    report = verify_rows(
        reader,
        teacher_from(args, args.teacher),
        _source(_spec(args), args.split, dict(reader.manifest.source["views"])),
        args.rows,
        args.seed,
    )
    if args.json:
        print_json({**asdict(report), "shards": reader.manifest.shards, "ok": report.ok})
        return 0 if report.ok else 1
    inout = "n/a" if report.inout_error is None else f"{report.inout_error:.2e}"
    rows = [
        ["max |logit difference|", f"{report.max_error:.3e} (bound {report.bound:.3e})"],
        ["mean |logit difference|", f"{report.mean_error:.3e}"],
        ["KL at T=1, max / mean", f"{report.kl_max:.2e} / {report.kl_mean:.2e} nats"],
        ["argmax shift, max", f"{report.shift_max:.2f} cells"],
        ["in/out logit difference, max", inout],
        ["largest error / bound", f"{report.excess:.3f}"],
        ["verdict", "as the live teacher" if report.ok else "NOT as the live teacher"],
    ]
    print_result(
        table(
            f"{args.cache}: {report.rows} rows of {report.views} views, {reader.manifest.shards} shards",
            ["what", "value"],
            rows,
        )
    )
    return 0 if report.ok else 1


def _fill_in(args: argparse.Namespace, manifest: Manifest) -> None:
    """Data and teacher that were not given, from the command that built the cache."""
    from distill.errors import ConfigurationError

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for name in ("--data", "--split"):
        parser.add_argument(name)
    words = shlex.split(manifest.command)
    built, _ = parser.parse_known_args(words)
    if args.data is None and args.images is None:
        args.data, args.split = built.data, args.split or built.split
    fill_in_teacher(args, words)
    if args.teacher is None or (args.data is None and args.images is None):
        raise ConfigurationError("the cache does not say what it was built from; give --data and --teacher")
