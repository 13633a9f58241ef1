"""What is in a cache, for ``distill cache info``."""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from teachers.cache.codecs import codec_named
from teachers.cache.format import Manifest
from teachers.cache.reader import CacheReader
from teachers.cache.remedies import retry_remedy


def print_facts(path: Path, as_json: bool) -> None:
    """Print the facts of the cache at ``path`` as a table or as JSON."""
    from distill.console import print_json, print_result, table

    facts = cache_facts(path)
    if as_json:
        print_json(facts)
        return

    def flat(value: dict[str, Any]) -> str:
        """One line; what is nested (a model's architecture) is for --json."""
        leaves = {name: item for name, item in value.items() if not isinstance(item, dict)}
        return ", ".join(
            f"{name} {'x'.join(map(str, item)) if isinstance(item, list) else item}" for name, item in leaves.items()
        )

    height, width = facts["heatmap_size"]
    rows = [
        ["teacher", flat(facts["teacher"])],
        ["data", f"reader {facts['source'].get('reader')}, split {facts['source'].get('split')}"],
        ["views", f"{facts['views']} a scene: {flat(facts['source'].get('views', {}))}"],
        ["scenes", f"{facts['scenes']}, {len(facts['skipped'])} skipped"],
        ["rows", f"{facts['rows']} maps of {height}x{width}, {'with' if facts['has_inout'] else 'without'} in/out"],
        ["codec", f"{facts['codec']}: {facts['promise']}"],
        ["size", f"{facts['bytes'] / 1e6:.1f} MB, {facts['bytes_per_row']:.0f} bytes a row"],
        [
            "reading",
            "n/a"
            if facts["row_microseconds"] is None
            else f"{facts['row_microseconds']:.0f} microseconds a row, decoded",
        ],
        ["shards", f"{facts['shards']}, {facts['shards_missing']} missing"],
        ["identity", facts["identity"]],
        ["built by", facts["command"]],
    ]
    rows += [["skipped", f"{row['key']} (shard {row['shard']}): {row['reason']}"] for row in facts["skipped"][:20]]
    rows += (
        [["skipped", f"and {len(facts['skipped']) - 20} more (--json lists them)"]]
        if len(facts["skipped"]) > 20
        else []
    )
    print_result(table(str(path), ["what", "value"], rows, left=2))
    if facts["skipped"]:
        # Outside of the table, which would fold what is there to be pasted.
        print_result(f"to mend the skipped scenes: {retry_remedy(path, Manifest.load(path))}")


def cache_facts(path: Path) -> dict[str, Any]:
    """What ``distill cache info --json`` prints: identity, sizes, counts, cost of a row, skipped scenes."""
    reader = CacheReader(path)
    manifest, rows, size = reader.manifest, reader.rows(), reader.size()
    segments = [
        {key: value for key, value in asdict(segment).items() if key != "keys"} for segment in manifest.segments
    ]
    return {
        "path": str(path),
        "identity": manifest.identity_digest(),
        "teacher": dict(manifest.teacher),
        "source": dict(manifest.source),
        "codec": manifest.codec,
        "promise": codec_named(manifest.codec).promise,
        "heatmap_size": list(manifest.heatmap_size),
        "has_inout": manifest.has_inout,
        "scenes": reader.scenes,
        "views": reader.views,
        "rows": rows,
        "bytes": size,
        "bytes_per_row": size / rows if rows else 0.0,
        "row_microseconds": row_microseconds(reader),
        "shards": manifest.shards,
        "shards_missing": len(reader.missing_shards()),
        "segments": segments,
        "command": manifest.command,
        "skipped": [row._asdict() for row in reader.skipped()],
    }


def row_microseconds(reader: CacheReader, reads: int = 200) -> float | None:
    """Microseconds that reading a row takes, decoded, from a warm shard; None if the first shards on disk have no rows."""
    missing = set(reader.missing_shards())
    spans = (span for span in reader.manifest.spans() if span.shard not in missing)
    for span in islice(spans, 4):
        tensors = reader.shard_tensors(span.shard)
        count = len(tensors["boxes"])
        if count:
            decode = codec_named(reader.manifest.codec).decode
            started = time.perf_counter()
            for number in range(reads):
                decode(tensors, number % count, number % count + 1)
            return (time.perf_counter() - started) / reads * 1e6
    return None
