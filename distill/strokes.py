"""Strokes: segments, rings, rounded rectangles and dashes, blended into a picture with exact antialiasing.

A shape is a signed distance in pixels, sampled at pixel centres: no enlarged copy of the picture is needed, and an edge
is as smooth at 320 pixels as at 4000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]
Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """A signed distance in pixels (negative inside) and the region outside of which it is of no interest."""

    region: Region
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]


def paint(canvas: np.ndarray, shapes: Sequence[Shape], *layers: tuple[Colour, float, float]) -> None:
    """Fill the union of ``shapes``, so that crossing strokes do not darken each other.

    Each layer is (colour, opacity, pixels by which the shapes are widened), drawn in the order given.
    """
    if not shapes:
        return
    height, width = canvas.shape[:2]
    grow = max(layer[2] for layer in layers)
    regions = [_clip(shape.region, grow + 1.5, width, height) for shape in shapes]
    left, top = min(r[0] for r in regions), min(r[1] for r in regions)
    right, bottom = max(r[2] for r in regions), max(r[3] for r in regions)
    if right <= left or bottom <= top:
        return
    distance = np.full((bottom - top, right - left), 1e6, dtype=np.float32)
    for shape, (x0, y0, x1, y1) in zip(shapes, regions, strict=True):
        if x1 <= x0 or y1 <= y0:
            continue
        y, x = np.ogrid[y0:y1, x0:x1]
        part = distance[y0 - top : y1 - top, x0 - left : x1 - left]
        np.minimum(part, shape.distance(x.astype(np.float32) + 0.5, y.astype(np.float32) + 0.5), out=part)
    y, x = np.nonzero(distance < 0.5 + grow)  # strokes are thin: blending only where they are is what saves time
    distance = distance[y, x]
    area = canvas[top:bottom, left:right]
    for colour, alpha, wider in layers:
        cover = (np.clip(0.5 + wider - distance, 0.0, 1.0) * alpha)[:, None]
        area[y, x] = area[y, x] * (1 - cover) + np.array(colour, np.float32) * cover


def _clip(region: Region, margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = region
    return (
        min(width, max(0, math.floor(x0 - margin))),
        min(height, max(0, math.floor(y0 - margin))),
        max(0, min(width, math.ceil(x1 + margin))),
        max(0, min(height, math.ceil(y1 + margin))),
    )


def segment(x0: float, y0: float, x1: float, y1: float, radius: float) -> Shape:
    """A stroke with round ends; a disc where both ends are one point."""
    dx, dy = x1 - x0, y1 - y0
    length = dx * dx + dy * dy or 1.0

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / length, 0.0, 1.0)
        return np.sqrt((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2) - radius

    region = (min(x0, x1) - radius, min(y0, y1) - radius, max(x0, x1) + radius, max(y0, y1) + radius)
    return Shape(region, distance)


def ring(cx: float, cy: float, radius: float, half: float) -> Shape:
    """A circle's line of half-width ``half``."""
    reach = radius + half
    region = (cx - reach, cy - reach, cx + reach, cy + reach)
    return Shape(region, lambda x, y: np.abs(np.hypot(x - cx, y - cy) - radius) - half)


def rounded(region: Region, corner: float, half: float | None) -> Shape:
    """A rounded rectangle: filled when ``half`` is None, else its outline of half-width ``half``."""
    x0, y0, x1, y1 = region
    cx, cy, hw, hh = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    corner = min(corner, hw, hh)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        qx, qy = np.abs(x - cx) - hw + corner, np.abs(y - cy) - hh + corner
        inside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - corner
        return inside if half is None else np.abs(inside) - half

    reach = half or 0.0
    return Shape((x0 - reach, y0 - reach, x1 + reach, y1 + reach), distance)


def dashes(outline: list[tuple[float, float]], unit: float) -> list[Shape]:
    """Cut a closed outline into a whole number of dashes with gaps of the same length (round ends shorten the gaps)."""
    points = np.array(outline)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    number = max(6, round(along[-1] / (6.4 * unit)))
    shapes = []
    for start in np.arange(number) * along[-1] / number:
        end = start + 0.5 * along[-1] / number
        stops = np.array([start, *along[(along > start) & (along < end)], end])
        xs, ys = np.interp(stops, along, points[:, 0]), np.interp(stops, along, points[:, 1])
        shapes += [segment(*ends, unit / 2) for ends in zip(xs[:-1], ys[:-1], xs[1:], ys[1:], strict=True)]
    return shapes


def cross(x: float, y: float, arm: float, half: float) -> list[Shape]:
    """Two diagonal strokes of half-width ``half`` that reach ``arm`` pixels from ``(x, y)`` along each axis."""
    return [segment(x - arm, y - arm, x + arm, y + arm, half), segment(x - arm, y + arm, x + arm, y - arm, half)]
