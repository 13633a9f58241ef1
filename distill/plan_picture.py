"""A plan as a picture: stages as rows that open over the epochs, weight and temperature above, thaw time below.

Drawn from the plan's JSON, so that a finished run can be drawn from its ``plan.json``. The same few shapes become SVG (which
follows the reader's dark or light scheme) or PNG; no drawing library is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from distill.errors import ConfigurationError
from schedules.config import PlanConfig

WIDTH, LEFT, RIGHT = 880, 96, 46
CURVE = 46  # height of the strip of one curve
SAMPLES = 240  # of a curve over the run: three pixels each
MOST = 420  # height that the rows of stages share
# Name to colour on light and on dark ground; white numbers stand on what is open.
COLOURS = {
    "ground": ("#ffffff", "#14171b"), "ink": ("#1c2127", "#e7e9ec"), "soft": ("#5b646e", "#9aa4af"), "line": ("#cfcbc2", "#3c444f"),
    "closed": ("#eeece7", "#232931"), "open": ("#3f78ae", "#3f78ae"), "stem": ("#2b7f5c", "#2b7f5c"), "weight": ("#bf5a0e", "#f0a15c"),
    "temperature": ("#7b5cc4", "#b49df0"), "text": ("#ffffff", "#ffffff"),
}  # fmt: skip
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Stroke:
    """A line through points."""

    points: Sequence[Point]
    colour: str
    width: float = 1.0


@dataclass(frozen=True)
class Label:
    """Text on its base line; ``anchor`` is the side that stands at ``x``."""

    x: float
    y: float
    text: str
    colour: str = "soft"
    size: float = 11.0
    anchor: str = "start"


@dataclass(frozen=True)
class Drawing:
    """Shapes in the order in which they are drawn, and what they show in words."""

    width: float
    height: float
    shapes: Sequence[Box | Stroke | Label]
    told: str


def check_format(path: Path) -> None:
    """Refuse a file name that is neither ``.svg`` nor ``.png``."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigurationError(f"--picture {path} is neither .svg nor .png; name the file plan.svg or plan.png")


def write_picture(plan: Mapping[str, Any], path: Path) -> None:
    """Draw a plan's JSON (:meth:`schedules.plan.Plan.to_json`) into ``path``, as its ending says."""
    check_format(path)
    drawing = draw(plan)
    content = svg(drawing).encode() if path.suffix.lower() == ".svg" else png(drawing)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"--picture {path} cannot be written ({error.strerror}); name a file in another place") from None


def draw(plan: Mapping[str, Any]) -> Drawing:
    """The shapes of a plan's picture."""
    lines: list[Mapping[str, Any]] = plan["epochs"]
    epochs, blocks = len(lines), int(plan["blocks"])
    x = _scale(0.0, float(epochs), LEFT, WIDTH - RIGHT)
    messages = [str(text) for text in plan["messages"]]
    shapes: list[Box | Stroke | Label] = [Label(LEFT, 20, messages[0] if messages else "", "ink", 13)]
    top = 40.0
    known = {field.name for field in fields(PlanConfig)}
    config = PlanConfig(**{name: value for name, value in plan["config"].items() if name in known})
    for name, curve, colour in (("weight w", config.weight_curve, "weight"), ("temperature T", config.temperature_curve, "temperature")):
        times = [epochs * number / SAMPLES for number in range(SAMPLES + 1)]
        values = [curve.at(time, config.horizon, config.steps_per_epoch) for time in times]
        shapes += _curve(name, [x(time) for time in times], values, top, colour)
        top += CURVE + 16
    height = max(5.0, min(22.0, MOST / (blocks + 1)))
    opening = {stage: int(event["epoch"]) for event in plan["thaw_events"] for stage in event["stages"]}
    rows = [(f"block {blocks - 1 - stage}", stage, "open") for stage in range(blocks)] + [("stem", blocks, "stem")]
    every = math.ceil(13.0 / height)  # labels that would overlap are left out
    for number, (name, stage, colour) in enumerate(rows):
        y = top + number * height
        shapes += _row(name if number % every == 0 or stage == blocks else "", opening.get(stage), epochs, y, height, x, colour)
    floor = top + len(rows) * height + 4
    shapes += _epoch_axis(epochs, top, floor, x)
    shapes += _thaw_axis([float(line["thaw_time"]) for line in lines], floor + 34, x)
    warned = [str(text).partition(";")[0].rstrip(".") + "." for text in plan["warnings"]]
    shapes += [Label(LEFT, floor + 74 + 17 * number, text, "weight", 11) for number, text in enumerate(warned)]
    told = " ".join([*messages, *(str(text) for text in plan["warnings"])])
    return Drawing(WIDTH, floor + 62 + 17 * len(warned) + 6, shapes, told)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - low) / ((high - low) or 1.0)


def _curve(name: str, places: list[float], values: list[float], top: float, colour: str) -> list[Box | Stroke | Label]:
    """A strip from 0 to the greatest value, which is written beside it."""
    greatest = max(values)
    y = _scale(0.0, greatest or 1.0, top + CURVE, top)
    points = [(place, y(value)) for place, value in zip(places, values, strict=True)]
    points = [p for i, p in enumerate(points) if i in (0, len(points) - 1) or not points[i - 1][1] == p[1] == points[i + 1][1]]
    shapes: list[Box | Stroke | Label] = [
        Stroke([(LEFT, top + CURVE), (WIDTH - RIGHT, top + CURVE)], "line"), Stroke(points, colour, 2.0),
        Label(LEFT - 10, top + CURVE / 2 + 4, name, "ink", 11, "end"), Label(WIDTH - RIGHT + 4, top + CURVE + 3, "0"),
    ]
    return shapes + ([Label(WIDTH - RIGHT + 4, top + 7, f"{greatest:.3g}")] if greatest > 0 else [])


def _row(
    name: str, opened: int | None, epochs: int, y: float, height: float, x: Callable[[float], float], colour: str
) -> list[Box | Stroke | Label]:
    gap = 1.5 if height > 8 else 0.5
    bar = height - gap
    shapes: list[Box | Stroke | Label] = [Box(LEFT, y, x(epochs) - LEFT, bar, "closed")]
    if name:
        shapes.append(Label(LEFT - 10, y + bar / 2 + 4, name, "ink", 11, "end"))
    if opened is not None:
        shapes.append(Box(x(opened), y, x(epochs) - x(opened), bar, colour))
        if bar >= 11 and x(epochs) - x(opened) > 26:
            shapes.append(Label(x(opened) + 5, y + bar / 2 + 4, str(opened), "text", 11))
    return shapes


def _epoch_axis(epochs: int, top: float, floor: float, x: Callable[[float], float]) -> list[Box | Stroke | Label]:
    shapes: list[Box | Stroke | Label] = [Label(LEFT - 10, floor + 16, "epoch", "ink", 11, "end")]
    step = _tick(epochs)
    for epoch in range(0, epochs + 1, step):
        shapes.append(Stroke([(x(epoch), floor), (x(epoch), floor + 4)], "line"))
        shapes.append(Label(x(epoch), floor + 16, str(epoch), anchor="middle"))
    return shapes


def _thaw_axis(times: list[float], y: float, x: Callable[[float], float]) -> list[Box | Stroke | Label]:
    """Thaw time on the same scale as the epochs' axis: ticks wide apart are a clock that is slowed down."""
    shapes: list[Box | Stroke | Label] = [
        Label(LEFT - 10, y + 16, "thaw time", "ink", 11, "end"), Stroke([(LEFT, y), (x(len(times)), y)], "line"),
    ]
    step, tick = _tick(len(times)), 0
    known = list(enumerate(times))
    for (epoch, before), (_, after) in pairwise(known):
        while before <= tick + 1e-9 and tick < after - 1e-9:
            place = x(epoch + (tick - before) / (after - before))
            shapes.append(Stroke([(place, y), (place, y + 4)], "line"))
            shapes.append(Label(place, y + 16, str(tick), anchor="middle"))
            tick += step
    return shapes


def _tick(epochs: int) -> int:
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, epochs) if epochs / step <= 18)


def drawable(plan: Mapping[str, Any]) -> bool:
    """Whether a ``plan.json`` holds what :func:`draw` needs; one cut short or of another version may not."""
    config = plan.get("config")
    said = {"blocks", "thaw_events", "messages", "warnings"} <= set(plan)
    return bool(plan.get("epochs")) and said and isinstance(config, dict) and {"epochs", "steps_per_epoch"} <= set(config)


def svg(drawing: Drawing) -> str:
    """The drawing as a file of its own."""
    light = "".join(f".{name}{{--c:{pair[0]}}}" for name, pair in COLOURS.items())
    dark = "".join(f".{name}{{--c:{pair[1]}}}" for name, pair in COLOURS.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:g} {drawing.height:g}" width="{drawing.width:g}" '
        f'height="{drawing.height:g}" role="img"><title>Plan</title><desc>{escape(drawing.told)}</desc>',
        f"<style>{light}rect,text{{fill:var(--c)}}polyline{{stroke:var(--c);fill:none;stroke-linejoin:round}}"
        "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif}"
        f"@media(prefers-color-scheme:dark){{{dark}}}</style>",
        f'<rect class="ground" width="{drawing.width:g}" height="{drawing.height:g}"/>',
    ]
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            parts.append(
                f'<rect class="{shape.colour}" x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"/>'
            )
        elif isinstance(shape, Stroke):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            parts.append(f'<polyline class="{shape.colour}" stroke-width="{shape.width:g}" points="{points}"/>')
        elif shape.text:
            parts.append(
                f'<text class="{shape.colour}" x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" '
                f'text-anchor="{shape.anchor}">{escape(shape.text)}</text>'
            )
    return "".join(parts) + "</svg>\n"


def png(drawing: Drawing, scale: int = 2) -> bytes:
    """The drawing in its light colours, ``scale`` pixels a unit."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (round(drawing.width * scale), round(drawing.height * scale)), COLOURS["ground"][0])
    pen = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        colour = COLOURS[shape.colour][0]
        if isinstance(shape, Box):
            right, bottom = (shape.x + shape.width) * scale - 1, (shape.y + shape.height) * scale - 1
            pen.rectangle((shape.x * scale, shape.y * scale, max(right, shape.x * scale), max(bottom, shape.y * scale)), fill=colour)
        elif isinstance(shape, Stroke):
            points = [(x * scale, y * scale) for x, y in shape.points]
            pen.line(points, fill=colour, width=max(1, round(shape.width * scale)), joint="curve")
        else:
            font = ImageFont.load_default(size=shape.size * scale)
            side = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            pen.text((shape.x * scale, shape.y * scale), shape.text, fill=colour, font=font, anchor=side)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
