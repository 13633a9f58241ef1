"""GazeFollow's preprocessed form: ``{train,test}_preprocessed.json`` as Gaze-LLE writes them.

A list of ``{path, heads: [{bbox, bbox_norm, inout, gazex[], gazey[], gazex_norm[], gazey_norm[], head_id}], num_heads,
width, height}``. The normalised fields are read; the picture's size comes with them.
Source: https://github.com/fkryan/gazelle, ``data_prep/preprocess_gazefollow.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.readers.findings import Findings
from distill.scenes import IN, OUT, Box, Head, Point, Scene

_REMEDY = "write the file again with the script that made it"


def is_preprocessed(file: Path) -> bool:
    """Whether ``file`` begins like this form (a list of pictures, not VideoAttentionTarget's list of clips)."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(4096)
    return start.lstrip()[:1] == b"[" and b'"heads"' in start and b'"frames"' not in start


def read_preprocessed(file: Path, root: Path, findings: Findings) -> list[Scene]:
    """All scenes of the file; boxes and points in [0,1]. Raises :class:`DataError` that names the entry."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); {_REMEDY}") from None
    if not isinstance(entries, list):
        raise DataError(f"{file}: holds a {type(entries).__name__} where a list of pictures is expected; {_REMEDY}")
    scenes: dict[str, Scene] = {}
    for number, entry in enumerate(entries):
        where = f"entry {number}"
        try:
            scene = _scene(entry, root, f"{file.name}: {where}", findings)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{file}: {where}: {cause}; {_REMEDY}") from None
        if scene.key in scenes:
            findings.add("picture listed twice", f"{file.name}: {where}: {scene.key}", "heads joined")
            earlier = scenes[scene.key].heads
            heads = [Head(h.box, h.points, h.inout, str(len(earlier) + n)) for n, h in enumerate(scene.heads)]
            scene = Scene(scene.key, scene.picture, (*earlier, *heads), scene.size)
        if scene.heads:
            scenes[scene.key] = scene
    return list(scenes.values())


def _scene(entry: dict[str, Any], root: Path, where: str, findings: Findings) -> Scene:
    key = str(entry["path"]).replace("\\", "/")
    width, height = int(entry["width"]), int(entry["height"])
    if width <= 0 or height <= 0:
        raise ValueError(f"picture size {width} x {height} is not positive")
    heads: list[Head] = []
    if not entry["heads"]:
        findings.add("picture without heads", f"{where}: {key}", "left out")
    for number, annotated in enumerate(entry["heads"]):
        head = _head(annotated, str(len(heads)), f"{where}, head {number}", findings)
        if head is not None:
            heads.append(head)
    return Scene(key, root / key, tuple(heads), (width, height))


def _head(annotated: dict[str, Any], person: str, where: str, findings: Findings) -> Head | None:
    inout = annotated["inout"]
    if inout not in (1, 0, -1):
        raise ValueError(f"inout is {inout!r}, not 1 (in), 0 (out) or -1 (invalid)")
    if inout == -1:
        findings.add("marked invalid (inout -1)", where, "head dropped")
        return None
    x0, y0, x1, y1 = _finite(annotated["bbox_norm"])
    if x0 > x1 or y0 > y1:
        findings.add("reversed box", where, "corners put right")
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    box: Box = (x0, y0, x1, y1)
    if x0 == x1 or y0 == y1:
        findings.add("head box without area", where, "head dropped")
        return None
    if inout == OUT:
        return Head(box, (), OUT, person)
    xs, ys = _finite(annotated["gazex_norm"]), _finite(annotated["gazey_norm"])
    if len(xs) != len(ys):
        raise ValueError(f"{len(xs)} gazex_norm and {len(ys)} gazey_norm do not pair up")
    points: list[Point] = []
    for x, y in zip(xs, ys, strict=True):
        if x <= -1 or y <= -1 or (x < 0 and y < 0):
            continue
        if not (0 <= x <= 1 and 0 <= y <= 1):
            findings.add("gaze point outside the picture", f"{where}: {x:g}, {y:g}", "moved to the border")
        points.append((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)))
    if len(points) < max(len(xs), 1):
        findings.add("in frame without a gaze point", where, "point dropped" if points else "head dropped")
    return Head(box, tuple(points), IN, person) if points else None


def _finite(values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"{number} is not a finite number")
    return numbers
