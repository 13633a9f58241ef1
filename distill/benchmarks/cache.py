"""``distill bench cache``: what a cache costs in bytes, in time to build and in time to read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.benchmarks.cache_figures import Figure

PARTS = ("read", "open", "memory", "codec", "build")
DESCRIPTION = """\
Measure the cache on this machine. Reading: rows of 64 x 64 maps in batches of 64, at random and in order, cold (the system's page
cache dropped, every shard's digest checked) and warm, beside a plain copy of float32 rows out of a buffer that the processor's caches do not
hold; each batch takes its turn, so that both sides see the same machine. Building: beside the teacher's bare forward passes on pictures
that are ready.
"""
EPILOG = """\
examples:
  distill bench cache                          every figure, a few minutes; needs about a gigabyte in --dir
  distill bench cache --only read open         reading and opening alone
  distill bench cache --quick --json           a smoke run: small caches, no ViT
bars: q8 read warm at random >= 1/6 of the copy; 1,000 shards open in <= 1 s; building <= 10 % beyond a ViT-B/14 at 448 pixels;
q8 <= 4.3 KB a row at 64 x 64 and KL against fp16 <= 1e-3 nats; memory <= 64 bytes a scene
"""


def register(actions: Any) -> None:
    """Add ``cache`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "cache",
        help="the teacher cache: bytes, reading, opening, building",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rows", type=int, metavar="N", help="rows to read among (default: a q8 cache larger than the last-level cache)")
    parser.add_argument("--rounds", type=int, default=300, metavar="N", help="batches of each kind, warm (default: 300)")
    parser.add_argument("--vit-scenes", type=int, default=8, metavar="N", help="scenes for the ViT-B/14's build (default: 8)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the caches are made, on a disk (default: the temporary directory)")
    parser.add_argument("--quick", action="store_true", help="a smoke run in seconds; its figures mean little")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure the parts that were asked for and print them."""
    import os
    import tempfile

    import torch

    from distill.benchmarks.cache_figures import COLUMNS
    from distill.benchmarks.cache_reading import BATCH, SIDE, last_level_cache
    from distill.console import print_json, print_result, table
    from distill.errors import ConfigurationError

    if options.rounds < 5 or options.vit_scenes < 1 or (options.rows is not None and options.rows < BATCH):
        raise ConfigurationError(f"give --rounds of at least 5, --rows of at least {BATCH} and --vit-scenes of at least 1")
    rows = options.rows or (16 * BATCH if options.quick else -(-5 * last_level_cache() // (4 * SIDE * SIDE)))
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="distill-bench-", dir=options.dir) as folder:
        figures = _figures(options, Path(folder), rows)
    facts: dict[str, Any] = {
        "figures": [one.facts() for one in figures], "rows": rows, "quick": options.quick, "last_level_cache": last_level_cache(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2),
    }
    if options.json:
        print_json(facts)
        return 0
    title = f"{rows} rows, last-level cache {facts['last_level_cache'] / 1e6:.0f} MB, {facts['cores']} cores, load {facts['load']}"
    print_result(table(title, COLUMNS, [one.row() for one in figures]))
    return 0


def _figures(options: argparse.Namespace, folder: Path, rows: int) -> list[Figure]:
    from contextlib import ExitStack

    from distill.benchmarks import cache_building as building
    from distill.benchmarks import cache_reading as reading
    from distill.console import Bar, progress

    quick, figures = options.quick, []
    bars: dict[str, Bar] = {}
    with ExitStack() as stack:

        def tell(title: str, done: int, total: int) -> None:
            if title not in bars:
                stack.close()
                bars[title] = stack.enter_context(progress(title, total=total, unit="steps"))
            bars[title].update(done - bars[title].done)

        if "read" in options.only:
            figures += reading.measure_reading(folder / "read", rows, 5 if quick else options.rounds, tell)
        if "open" in options.only:
            figures += reading.measure_opening(folder / "open", 30 if quick else 1000, 3 if quick else 9, tell)
        if "memory" in options.only:
            figures += reading.measure_memory(folder / "memory", 2_000 if quick else 50_000)
        if "codec" in options.only or "build" in options.only:
            source = building.make_scenes(folder / "scenes", 4 if quick else 48)
            demo = building.demo_teacher()
            if "codec" in options.only:
                figures += building.measure_codecs(demo, source, folder / "codecs")
            if "build" in options.only:
                figures += building.measure_overhead("demo teacher", demo, source, folder / "demo", 2 if quick else 7, tell, batch_images=16)
                if not quick:
                    few = building.first_scenes(source, options.vit_scenes)
                    vit = building.vit_teacher()
                    figures += building.measure_overhead("ViT-B/14 at 448", vit, few, folder / "vit", 5, tell, batch_images=8, bar=10.0)
    return figures
