"""``distill cache verify``: shards against their digests, rows against the live teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.commands.cache_sources import add_data_options, data_spec, open_source, positive, seed
from distill.teacher_options import fill_in_teacher, teacher_from

if TYPE_CHECKING:
    from teachers.cache.format import Manifest

LISTED = 20  # rows that are named one by one

VERIFY = """\
Check every shard's digest, then run the live teacher on random rows of the cache and compare: |difference of logits|, KL
divergence, movement of the argmax, in/out. Exit code 1 if a row differs by more than the codec may cause, or the live answer is not finite.
Data and teacher are those that the cache was built with, unless you say where they are now.
"""


def register(commands: Any) -> None:
    """Add ``verify`` to the cache's commands."""
    raw = argparse.RawDescriptionHelpFormatter
    verify = commands.add_parser(
        "verify", help="compare cached rows with the live teacher", description=VERIFY, formatter_class=raw,
        epilog="examples:\n  distill cache verify caches/gf --rows 256\n  distill cache verify caches/gf --shards-only",
    )
    verify.add_argument("cache", type=Path, metavar="CACHE", help="a directory that `distill cache build` wrote")
    verify.add_argument("--rows", type=positive, default=64, metavar="K", help="rows to run live (default: 64)")
    verify.add_argument("--seed", type=seed, default=0, metavar="N", help="which rows (default: 0)")
    verify.add_argument("--shards-only", action="store_true", help="check the shards' digests and run no teacher")
    add_data_options(verify, required=False)
    verify.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    verify.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    """Check shards, then rows; 1 if a row is beyond its bound."""
    from dataclasses import asdict

    from distill.console import print_json, print_result, progress, table, warn
    from teachers.cache.reader import CacheReader
    from teachers.errors import CacheError

    reader = CacheReader(args.cache)
    wrong: dict[int, CacheError] = {}
    with progress("Checking shards", total=reader.manifest.shards, unit="shards") as bar:
        for shard, error in reader.check_shards():
            if error is not None:
                wrong[shard] = error
            bar.update(1, wrong=len(wrong))
    if len(wrong) == 1:
        raise next(iter(wrong.values()))
    if wrong:
        missing = [shard for shard in reader.missing_shards() if shard in wrong]
        damaged = [shard for shard in wrong if shard not in missing]
        parts = [f"{len(damaged)} damaged shards ({_first(damaged)})"] if damaged else []
        parts += [f"{len(missing)} missing shards ({_first(missing)})"] if missing else []
        remedies = [reader.remedy(damaged)] if damaged else []
        remedies += [reader.remedy(missing)] if missing else []
        raise CacheError(f"cache {args.cache} has {' and '.join(parts)}; {'; then '.join(remedies)}")
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
        open_source(data_spec(args), args.split, dict(reader.manifest.source["views"])),
        args.rows,
        args.seed,
    )
    if args.json:
        print_json({**asdict(report), "shards": reader.manifest.shards, "ok": report.ok})
        return 0 if report.ok else 1
    for name in report.not_finite[:LISTED]:
        warn(f"{name}: the live teacher's answer is not finite")
    if len(report.not_finite) > LISTED:
        warn(f"and {len(report.not_finite) - LISTED} more (--json lists them)")

    def shown(value: float | None, form: str) -> str:
        return "n/a" if value is None else format(value, form)

    fine = report.excess is not None and report.excess <= 1.0
    rows = [
        ["max |logit difference|", f"{shown(report.max_error, '.3e')} (bound {shown(report.bound, '.3e')})"],
        ["mean |logit difference|", shown(report.mean_error, ".3e")],
        ["KL at T=1, max / mean", f"{shown(report.kl_max, '.2e')} / {shown(report.kl_mean, '.2e')} nats"],
        ["argmax shift, max", f"{shown(report.shift_max, '.2f')} cells"],
        ["in/out logit difference, max", shown(report.inout_error, ".2e")],
        ["largest error / bound", shown(report.excess, ".3f") + ("" if fine or not report.worst else f" ({report.worst})")],
        *([["live answers that are not finite", str(len(report.not_finite))]] if report.not_finite else []),
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


def _first(shards: list[int], limit: int = 10) -> str:
    return ", ".join(map(str, shards[:limit])) + (", ..." if len(shards) > limit else "")


def _fill_in(args: argparse.Namespace, manifest: Manifest) -> None:
    """Data and teacher that were not given, from the command that built the cache."""
    from distill.errors import ConfigurationError
    from teachers.cache.command import words_of

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for name in ("--data", "--split"):
        parser.add_argument(name)
    words = words_of(manifest.command)
    built, _ = parser.parse_known_args(words)
    if args.data is None and args.images is None:
        args.data, args.split = built.data, args.split or built.split
    fill_in_teacher(args, words)
    if args.teacher is None or (args.data is None and args.images is None):
        raise ConfigurationError("the cache does not say what it was built from; give --data and --teacher")
