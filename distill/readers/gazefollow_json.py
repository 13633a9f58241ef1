"""GazeFollow's preprocessed form: ``{train,test}_preprocessed.json`` as Gaze-LLE writes them.

A list of ``{path, heads: [{bbox, bbox_norm, inout, gazex[], gazey[], gazex_norm[], gazey_norm[], head_id}], num_heads,
width, height}``. The normalised fields are read; the picture's size comes with them. The fields in pixels and ``num_heads``, where they are
there, say the same again: whether they do is looked at.
Source: https://github.com/fkryan/gazelle, ``data_prep/preprocess_gazefollow.py``.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import DataError
from distill.readers.findings import Findings
from distill.readers.json_file import read_json
from distill.scenes import IN, OUT, Box, Head, Point, Scene

_Plain = tuple[Box, tuple[Point, ...], int]  # a head's box, gaze points and in/out label
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
    # Some million small objects that stay: to look for garbage among them takes half of the time, and there is none.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _read(file, root, findings)
    finally:
        if collecting:
            gc.enable()


def _read(file: Path, root: Path, findings: Findings) -> list[Scene]:
    entries = read_json(file, _REMEDY)
    if not isinstance(entries, list):
        raise DataError(f"{file}: holds a {type(entries).__name__} where a list of pictures is expected; {_REMEDY}")
    scenes: dict[str, Scene] = {}
    above = f"{root}/"
    plain = iter(_plain(entries))
    for number, entry in enumerate(entries):
        where = f"{file.name}: entry {number}"
        try:
            scene = _scene(entry, plain, above, where, findings)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{file}: entry {number}: {cause}; {_REMEDY}") from None
        if scene.key in scenes:
            findings.add("picture listed twice", f"{where}: {scene.key}", "heads joined")
            earlier = scenes[scene.key].heads
            heads = [Head(h.box, h.points, h.inout, str(len(earlier) + n)) for n, h in enumerate(scene.heads)]
            scene = Scene(scene.key, scene.file, (*earlier, *heads), scene.size)
        if scene.heads:
            scenes[scene.key] = scene
    return list(scenes.values())


def _plain(entries: list[Any]) -> list[_Plain | None]:
    """What each head of the file says, in order; None for one that must be looked at by itself, since something is or may be wrong with it.

    All heads at once: a hundred thousand of them, one by one, would take longer than reading the file.
    """
    numbers: dict[str, list[Any]] = {name: [] for name in ("bbox_norm", "bbox", "gazex_norm", "gazex", "gazey_norm", "gazey")}
    columns = list(numbers.items())
    inout: list[Any] = []
    sizes: list[tuple[Any, Any]] = []
    ends: list[tuple[int, ...]] = []
    try:
        for entry in entries:
            size = entry["width"], entry["height"]
            for head in entry["heads"]:
                inout.append(head["inout"])
                sizes.append(size)
                for name, values in columns:
                    values += head[name]
                ends.append(tuple([len(values) for _, values in columns]))
        side = np.array(sizes, dtype=np.float64).reshape(-1, 2)
        label = np.array(inout)
        counts = np.diff(np.array(ends, dtype=np.int64).reshape(-1, 6), axis=0, prepend=0)
        boxes, pixels, x, gaze_x, y, gaze_y = (np.array(values, dtype=np.float64) for _, values in columns)
    except (KeyError, TypeError, ValueError, OverflowError):
        return [None] * len(inout)
    if label.ndim != 1 or label.dtype.kind not in "if" or (counts[:, :2] != 4).any() or (counts[:, 2:] != counts[:, 2:3]).any():
        return [None] * len(inout)
    boxes, count, owner = boxes.reshape(-1, 4), counts[:, 2], np.repeat(np.arange(len(counts)), counts[:, 2])
    # Comparisons with what is not a number are false.
    fine = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    fine &= (np.abs(gaze_x - x * side[owner, 0]) <= 1) & (np.abs(gaze_y - y * side[owner, 1]) <= 1)
    good = (label == OUT) | ((label == IN) & (count > 0) & (np.bincount(owner, fine, len(counts)) == count))
    good &= (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3]) & np.isfinite(boxes).all(axis=1)
    good &= (np.abs(pixels.reshape(-1, 4) - boxes * np.tile(side, 2)) <= 1).all(axis=1)
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    stops = np.cumsum(count).tolist()
    by_head = (*boxes.T.tolist(), label.tolist(), good.tolist(), count.tolist(), stops)
    return [
        ((x0, y0, x1, y1), tuple(points[stop - number : stop]) if kind == IN else (), int(kind)) if whole else None
        for x0, y0, x1, y1, kind, whole, number, stop in zip(*by_head, strict=True)
    ]


def _scene(entry: dict[str, Any], plain: Iterator[_Plain | None], above: str, where: str, findings: Findings) -> Scene:
    key = str(entry["path"]).replace("\\", "/")
    width, height = int(entry["width"]), int(entry["height"])
    if width <= 0 or height <= 0:
        raise ValueError(f"picture size {width} x {height} is not positive")
    heads: list[Head] = []
    annotated_heads = entry["heads"]
    if entry.get("num_heads", len(annotated_heads)) != len(annotated_heads):
        told = f"{where}: {entry['num_heads']}, and {len(annotated_heads)} are listed"
        findings.add("num_heads is not the number of heads", told, "those listed are read")
    if not annotated_heads:
        findings.add("picture without heads", f"{where}: {key}", "left out")
    for number, annotated in enumerate(annotated_heads):
        known = next(plain, None)
        if known is not None:
            heads.append(Head(*known, str(len(heads))))
            continue
        head = _head(annotated, (width, height), str(len(heads)), f"{where}, head {number}", findings)
        if head is not None:
            heads.append(head)
    return Scene(key, above + key, tuple(heads), (width, height))


def _head(annotated: dict[str, Any], size: tuple[int, int], person: str, where: str, findings: Findings) -> Head | None:
    inout = annotated["inout"]
    if inout not in (1, 0, -1):
        raise ValueError(f"inout is {inout!r}, not 1 (in), 0 (out) or -1 (invalid)")
    if inout == -1:
        findings.add("marked invalid (inout -1)", where, "head dropped")
        return None
    x0, y0, x1, y1 = _finite(annotated["bbox_norm"])
    _compare("bbox", "bbox_norm", annotated.get("bbox"), (x0, y0, x1, y1), (*size, *size), where, findings)
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
    _compare("gazex", "gazex_norm", annotated.get("gazex"), xs, size[:1] * len(xs), where, findings)
    _compare("gazey", "gazey_norm", annotated.get("gazey"), ys, size[1:] * len(ys), where, findings)
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


def _compare(
    name: str, normalised: str, pixels: Sequence[Any] | None, values: Sequence[float], sides: Sequence[int], where: str, findings: Findings
) -> None:
    """Note where ``pixels``, if they are there, are more than a pixel from ``values`` times the ``sides``, both clamped to the picture."""
    if pixels is None:
        return

    def clamped(value: float, side: int) -> float:
        return min(max(value, 0.0), float(side))

    given = [float(pixel) for pixel in pixels]  # what is no finite number differs: it is said, not refused, as it is not read
    pairs = zip(given, values, sides, strict=False)
    if len(given) != len(values) or not all(abs(clamped(pixel, side) - clamped(value * side, side)) <= 1.0 for pixel, value, side in pairs):
        told = ", ".join(f"{value * side:.1f}" for value, side in zip(values, sides, strict=True))
        findings.add(f"{name} and {normalised} differ", f"{where}: {', '.join(f'{pixel:g}' for pixel in given)} and {told} pixels", f"{normalised} is read")


def _finite(values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"{number} is not a finite number")
    return numbers
