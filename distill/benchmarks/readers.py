"""``distill bench readers``: how long annotation files of the published size take to read, and how much memory they hold."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  distill bench readers                  GazeFollow's 125,000 rows in either form, VideoAttentionTarget's 110,000 (bar: 3 s each), and ChildPlay's
  distill bench readers --quick --json   a tenth of the rows, a tenth of the bar
"""

BAR_SECONDS = 3.0
ROWS = {"gazefollow": 125_000, "gazefollow-json": 125_000, "vat": 110_000, "childplay": 258_000}
READERS = {"gazefollow-json": "gazefollow"}  # of another form of a data set: its reader
BARRED = ("gazefollow", "gazefollow-json", "vat")  # the others are printed without a bar


def register(actions: Any) -> None:
    """Add ``readers`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "readers",
        help="seconds and memory for a data set's annotations",
        description="Write annotation files of the published size, without pictures, and read them in turns. Seconds are of one core; memory is "
        "what the scenes hold and the most that reading them takes, from a run of its own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="readings of each file (default: 5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write, read in turns, and print."""
    import os
    import statistics
    import tempfile
    import time

    from distill.console import print_json, print_result, progress, table
    from distill.errors import ConfigurationError
    from distill.readers import open_data

    if options.repeats < 1:
        raise ConfigurationError(f"--repeats is {options.repeats}; give at least 1")
    share = 10 if options.quick else 1
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    facts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="readers.") as folder:
        rows = {}
        for name, count in ROWS.items():
            rows[name] = WRITERS[name](Path(folder, name), count // share)
        with progress("Reading", total=len(ROWS) * (options.repeats + 1), unit="readings") as bar:
            for _ in range(options.repeats):
                for name in ROWS:
                    began = time.process_time()
                    data = open_data(f"{READERS.get(name, name)}:{folder}/{name}", "trainval")
                    seconds[name].append(time.process_time() - began)
                    del data
                    bar.update()
            for name in ROWS:
                held, peak = memory(f"{READERS.get(name, name)}:{folder}/{name}")
                bar.update()
                times = sorted(seconds[name])
                facts[name] = {
                    "rows": rows[name], "median_s": round(statistics.median(times), 3), "fastest_s": round(times[0], 3),
                    "slowest_s": round(times[-1], 3), "bar_s": BAR_SECONDS / share if name in BARRED else None,
                    "held_mb": round(held / 1e6, 1), "peak_mb": round(peak / 1e6, 1), "peak_bytes_per_row": round(peak / rows[name]),
                }
    load = round(os.getloadavg()[0], 2)
    if options.json:
        print_json({"readers": facts, "load": load})
        return 0
    cells = [
        [
            name, f"{f['rows']:,}", f"{f['median_s']:.2f}", f"{f['fastest_s']:.2f} to {f['slowest_s']:.2f}",
            "none" if f["bar_s"] is None else f"{f['bar_s']:g}", f"{f['held_mb']:.0f}", f"{f['peak_mb']:.0f}", str(f["peak_bytes_per_row"]),
        ]
        for name, f in facts.items()
    ]
    columns = ["reader", "rows", "CPU s", "spread", "bar s", "held MB", "peak MB", "peak bytes a row"]
    print_result(table(f"Reading annotations, {options.repeats} times each, load {load}", columns, cells))
    return 0


def memory(spec: str) -> tuple[int, int]:
    """(bytes that the scenes hold, bytes at the worst moment) by Python's own count.

    The lesser of two readings: now and then a table of the interpreter's own, such as that of interned strings, doubles meanwhile, which takes
    megabytes that are not the scenes'; it does not do so twice in a row.
    """
    import tracemalloc

    from distill.readers import open_data

    def once() -> tuple[int, int]:
        tracemalloc.start()
        try:
            data = open_data(spec, "trainval")
            reading = tracemalloc.get_traced_memory()
            assert len(data)  # the scenes are still held when the bytes are read
            return reading
        finally:
            tracemalloc.stop()

    return min(once(), once())


def _write_gazefollow(root: Path, rows: int) -> int:
    """A training file of the release's statistics: 1.1 heads a picture, a tenth of them out of the frame."""
    import random

    dice = random.Random(0)
    root.mkdir(parents=True)
    with (root / "train_annotations_release.txt").open("w") as file:
        for row in range(rows):
            picture, x, y = row * 8 // 9, dice.uniform(0, 500), dice.uniform(0, 300)
            eye, gaze = (dice.random(), dice.random()), (dice.random(), dice.random())
            file.write(
                f"train/{picture // 1000:08d}/{picture:08d}.jpg,{row},0.03,0.06,0.82,0.7,{eye[0]:.5f},{eye[1]:.5f},{gaze[0]:.5f},{gaze[1]:.5f},"
                f"{x:.1f},{y:.1f},{x + 80:.1f},{y + 90:.1f},{int(dice.random() < 0.9)},places_top,False\n"
            )
    return rows


def _write_preprocessed(root: Path, rows: int) -> int:
    """The same in GazeFollow's preprocessed form, every picture of 640 x 480 pixels."""
    import json
    import random

    dice = random.Random(0)
    root.mkdir(parents=True)
    entries: dict[str, list[dict[str, Any]]] = {}
    for row in range(rows):
        picture, left, top, x, y = row * 8 // 9, dice.uniform(0, 500), dice.uniform(0, 300), dice.random(), dice.random()
        box = [left, top, left + 80.0, top + 90.0]
        head = {"bbox": box, "bbox_norm": [box[0] / 640, box[1] / 480, box[2] / 640, box[3] / 480], "inout": int(dice.random() < 0.9)}
        gaze = {"gazex": [640 * x], "gazey": [480 * y], "gazex_norm": [x], "gazey_norm": [y], "head_id": row}
        entries.setdefault(f"train/{picture // 1000:08d}/{picture:08d}.jpg", []).append(head | gaze)
    listed = [{"path": path, "heads": heads, "num_heads": len(heads), "width": 640, "height": 480} for path, heads in entries.items()]
    (root / "train_preprocessed.json").write_text(json.dumps(listed))
    return rows


def _write_vat(root: Path, rows: int) -> int:
    """Clips of 100 frames with two tracks each, in 40 shows."""
    import random

    dice = random.Random(0)
    written = 0
    while written < rows:
        clip = written // 200
        folder = root / "annotations/train" / f"Show {clip % 40}" / f"{100 * clip}_{100 * clip + 99}"
        folder.mkdir(parents=True)
        for track in range(2):
            x, y = dice.randrange(900), dice.randrange(400)
            lines = []
            for frame in range(100):
                gaze = (dice.randrange(1280), dice.randrange(720)) if dice.random() < 0.65 else (-1, -1)
                lines.append(f"{100 * clip + frame:08d}.jpg,{x + frame},{y},{x + frame + 120},{y + 150},{gaze[0]},{gaze[1]}\n")
            (folder / f"s{track:02d}.txt").write_text("".join(lines))
            written += 100
    return written


def _write_childplay(root: Path, rows: int) -> int:
    """Clips of 300 frames with two people each."""
    import random

    dice = random.Random(0)
    folder = root / "annotations/train"
    folder.mkdir(parents=True)
    written = 0
    while written < rows:
        number = written // 600
        clip = f"video{number // 4:06d}_{1 + 300 * number}-{300 + 300 * number}"
        lines = ["clip,frame,person_id,bbox_x,bbox_y,bbox_width,bbox_height,gaze_class,gaze_x,gaze_y,is_child\n"]
        for frame in range(1, 301):
            for person in (1, 2):
                kind = dice.choices(("inside_visible", "outside_frame", "gaze_shift"), (8, 1, 1))[0]
                gaze = f"{dice.uniform(0, 1920):.3f},{dice.uniform(0, 1080):.3f}" if kind == "inside_visible" else "-1.0,-1.0"
                lines.append(f"{clip},{frame},{person},{400 + frame},408,238,264,{kind},{gaze},1\n")
                written += 1
        (folder / f"{clip}.csv").write_text("".join(lines))
    return written


WRITERS = {"gazefollow": _write_gazefollow, "gazefollow-json": _write_preprocessed, "vat": _write_vat, "childplay": _write_childplay}
