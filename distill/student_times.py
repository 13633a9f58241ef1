"""Milliseconds of students in ONNX Runtime, remembered from one ``distill students list`` to the next.

To measure one, its graph is written first, which takes most of the time: minutes for the whole catalogue. What was measured is kept in
``$GAZE_DISTILL_HOME/student-times.json`` (by default ``~/.cache/gaze-distill``): ``{"version": 1, "times": {key: {"ms", "ms_further", "timing"}}}``. A key
stands for a machine's name and a student's whole description, so that neither another machine nor a student that was changed finds the
figures. The file may be removed at any time. Until a student is measured, the figures of a reference machine stand for it:
``reference_times.json`` beside this file, in the same form, its keys made with that machine's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from teachers.home import home
from teachers.model import ModelConfig

VERSION = 1
KEYS = ("ms", "ms_further", "timing")
REFERENCE_MACHINE = "two threads of one core of a 2 GHz Xeon server"
REFERENCE_FILE = Path(__file__).with_name("reference_times.json")


def memory_file() -> Path:
    """Where the times are kept."""
    return home() / "student-times.json"


def remembered(config: ModelConfig) -> Mapping[str, Any]:
    """``ms`` (one person), ``ms_further`` (each further one) and ``timing`` as last measured on this machine, else on the reference machine.

    ``timing["machine"]`` says which: ``this`` or what the reference machine is. All are None for a student that neither has measured.
    """
    own, reference = _load(memory_file()).get(_key(config)), _load(REFERENCE_FILE).get(_key(config, REFERENCE_MACHINE))
    entry, machine = (own, "this") if own else (reference, REFERENCE_MACHINE)
    return {**{key: entry[key] for key in KEYS}, "timing": {**entry["timing"], "machine": machine}} if entry else dict.fromkeys(KEYS)


def remember(times: Iterable[tuple[ModelConfig, Mapping[str, Any]]]) -> None:
    """Keep what was measured; where that cannot be written it is measured again next time."""
    known = _load(memory_file()) | {_key(config): {key: facts[key] for key in KEYS} for config, facts in times}
    file = memory_file()
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"version": VERSION, "times": known}), encoding="utf-8")
        os.replace(partial, file)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _key(config: ModelConfig, machine: str = "") -> str:
    text = json.dumps([machine or f"{platform.node()} {platform.machine()}", config.to_json()], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _load(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        times = content["times"] if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    numbers = (int, float)
    whole = isinstance(times, dict) and all(
        isinstance(each, dict) and isinstance(each.get("ms"), numbers) and isinstance(each.get("ms_further"), numbers)
        and isinstance(each.get("timing"), dict) for each in times.values()
    )
    return times if whole else {}
