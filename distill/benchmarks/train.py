"""``distill bench train``: what a teacher's voice adds to a step, from the cache and online, and what open stages cost."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
examples:
  distill bench train                                  three students against a ViT-B/14 teacher at 448 pixels; minutes
  distill bench train --quick                          one student, few rounds
  distill bench train --students vit_tiny --batch 16 --rounds 15 --json
"""

DESCRIPTION = """\
Measure milliseconds per step on generated scenes, reading, decoding, views and augmentation included: (a) task losses alone, (b) with
the teacher's cache, (c) with the teacher online; then a table by open stages, with the bytes that autograd saves. The online teacher has
its real architecture and random weights; the cache is a real one filled with synthetic maps of the teacher's shape, as a step costs the
same whatever the maps show. Bars: (b)/(a) at most 1.05; (c)/(b) at least 3 for CNN students of up to 4 M parameters; a step with closed
stages is cheaper than one with all open. Each is judged by wall time and by processor time (all threads), which other work on the machine
disturbs less."""

CACHED_BAR, ONLINE_BAR, SMALL = 1.05, 3.0, 4_000_000


def register(actions: Any) -> None:
    """Add ``train`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "train", help="milliseconds per training step: no teacher, cached, online; and by open stages", description=DESCRIPTION,
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--students", default="lite0_tiny,lite0_small,vit_tiny", metavar="NAMES", help="students of the catalogue (default: %(default)s)")
    parser.add_argument("--teacher-backbone", default="vit_base_patch14_dinov2", metavar="NAME", help="timm's name (default: %(default)s)")
    parser.add_argument("--teacher-size", type=int, default=448, metavar="PX", help="the teacher's picture size (default: 448)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures in a step (default: 8)")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="steps in one measurement (default: 4)")
    parser.add_argument("--rounds", type=int, default=11, metavar="N", help="measurements of (a) and of (b) (default: 11)")
    parser.add_argument("--online-rounds", type=int, default=3, metavar="N", help="measurements of (c), one step each (default: 3)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that decode pictures (default: 2)")
    parser.add_argument("--quick", action="store_true", help="the first student alone, 3 rounds, 1 of them online")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure every student and print what was found."""
    import os
    import tempfile
    from pathlib import Path

    import torch

    from distill.console import print_json, progress
    from distill.errors import ConfigurationError
    from distill.step_cost import StepCost, by_stages, compare, online_teacher
    from students.catalogue import student_config

    for name in ("batch", "steps", "rounds", "online_rounds", "workers"):
        if getattr(options, name) < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    names = [name.strip() for name in options.students.split(",") if name.strip()][: 1 if options.quick else None]
    rounds, online_rounds = (3, 1) if options.quick else (options.rounds, min(options.rounds, options.online_rounds))
    cnn = {name: bool(student_config(name).levels) for name in names}  # an unknown name is refused before anything is drawn
    found = []
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as scratch, progress("Measuring", total=len(names) * 2 * rounds, unit="rounds") as bar:
        cost = StepCost(Path(scratch), batch=options.batch, steps=options.steps, workers=options.workers)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        teacher = online_teacher(options.teacher_backbone, options.teacher_size, device)
        for name in names:
            facts = compare(cost, name, teacher, rounds=rounds, online_rounds=online_rounds, tell=bar.update)
            small = cnn[name] and facts["parameters"] <= SMALL
            facts |= {"bar_cached_over_task": CACHED_BAR, "bar_online_over_cached": ONLINE_BAR if small else None}
            facts["stages"] = by_stages(cost, name, rounds=rounds, tell=bar.update)
            found.append({**facts, "verdicts": verdicts(facts)})
    facts = {
        "teacher": {"backbone": options.teacher_backbone, "pixels": options.teacher_size, "weights": "random"},
        "cache": "synthetic maps, 64×64 fp16", "device": str(device), "batch": options.batch, "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2), "students": found,
    }
    if options.json:
        print_json(facts)
    else:
        _print(facts)
    return 0


def verdicts(student: dict[str, Any]) -> list[dict[str, Any]]:
    """Every ratio of a student beside its bar: ``met`` is None where there is none."""
    found: list[dict[str, Any]] = []
    for state in ("frozen", "open"):
        for ratio, bar, least in (
            ("cached_over_task", student["bar_cached_over_task"], False), ("online_over_cached", student["bar_online_over_cached"], True),
        ):
            for clock, value in student[state].get(ratio, {}).items():
                met = None if bar is None else value >= bar if least else value <= bar
                found.append({
                    "state": state, "ratio": ratio, "clock": clock, "value": value, "bar": bar, "bar_is": "least" if least else "most", "met": met,
                })
    for row in student["stages"][:-1]:
        share = row["cpu_share_of_all_open"]
        found.append({
            "state": f"{row['open_blocks']} blocks open", "ratio": "over_all_open", "clock": "cpu", "value": share, "bar": 1.0, "bar_is": "most",
            "met": share < 1.0,
        })
    return found


def _word(verdict: dict[str, Any] | None) -> list[str]:
    """A verdict's ratio, bar and outcome, as cells of a table."""
    if verdict is None:
        return ["", "", ""]
    if verdict["met"] is None:
        return [f"{verdict['value']:.3f}", "none", ""]
    return [f"{verdict['value']:.3f}", f"{'≥' if verdict['bar_is'] == 'least' else '≤'} {verdict['bar']:g}", "met" if verdict["met"] else "MISSED"]


def _ms(times: dict[str, Any], clock: str) -> str:
    spread = times[f"{clock}_ms"]
    return f"{spread['median']:.1f} ({spread['low']:.1f}–{spread['high']:.1f})"


def _print(facts: dict[str, Any]) -> None:
    from distill.console import print_result, table

    teacher = facts["teacher"]
    rows, judged = [], []
    for student in facts["students"]:
        known = {(v["state"], v["ratio"], v["clock"]): v for v in student["verdicts"]}
        for state in ("frozen", "open"):
            entry, name = student[state], f"{student['student']} ({student['parameters'] / 1e6:.2f} M), {'all open' if state == 'open' else 'backbone frozen'}"
            for clock in ("wall", "cpu"):
                online = entry.get("online")
                cached, live = (known.get((state, ratio, clock)) for ratio in ("cached_over_task", "online_over_cached"))
                rows.append([
                    name, clock, _ms(entry["task"], clock), _ms(entry["cached"], clock), *_word(cached), _ms(online, clock) if online else "", *_word(live),
                ])
        judged += [(student["student"], verdict) for verdict in student["verdicts"] if verdict["met"] is not None]
    title = (
        f"ms per step of {facts['batch']} pictures: median (quartiles); teacher {teacher['backbone']} at {teacher['pixels']} px, random weights; "
        f"cache: {facts['cache']}; {facts['device']}, {facts['threads']} threads, load {facts['load']}"
    )
    columns = ["student", "clock", "(a) task", "(b) cached", "(b)/(a)", "bar", "", "(c) online", "(c)/(b)", "bar", ""]
    print_result(table(title, columns, rows, left=2))
    for student in facts["students"]:
        closed = {v["state"]: v for v in student["verdicts"] if v["ratio"] == "over_all_open"}
        lines = [
            [
                f"{row['open_blocks']}{' and the stem' if row['stem_open'] else ''}", f"{row['trainable']:,}", _ms(row, "wall"), _ms(row, "cpu"),
                f"{100 * row['cpu_share_of_all_open']:.0f}%", *_word(closed.get(f"{row['open_blocks']} blocks open"))[2:], f"{row['saved_bytes'] / 2**20:.1f}",
            ]
            for row in student["stages"]
        ]
        columns = ["open blocks", "trainable", "wall ms", "cpu ms", "of all open", "cheaper", "saved MiB"]
        print_result(table(f"{student['student']}: a step by open blocks (one batch held in memory)", columns, lines))
    missed = [f"{name}, {v['state']}, {v['clock']}: {v['ratio'].replace('_', ' ')} {v['value']:.3f}, bar {v['bar']:g}" for name, v in judged if not v["met"]]
    print_result(f"bars met: {len(judged) - len(missed)} of {len(judged)}" + ("; MISSED: " + "; ".join(missed) if missed else ""))
