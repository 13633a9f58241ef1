"""Overlays: what a model says about people's gaze, drawn on the picture; and panels of several such pictures.

Sizes follow the picture: strokes and type are chosen from its side lengths, so that 320x240 and 1920x1080 look alike.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distill.errors import MetricError
from distill.strokes import Colour, Region, Shape, cross, dashes, paint, ring, rounded, segment

# Okabe and Ito's colour-blind-safe set ("Color Universal Design", 2008), first what stands out most on photographs.
PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 180, 130),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)

# Violet to yellow in equal steps of OKLab distance (Ottosson, 2020), lightness rising all the way: equal differences
# look equally large, and the order survives a grey print.
COLOUR_MAP = np.array(
    [
        *[(45, 11, 121), (70, 15, 130), (94, 17, 134), (119, 20, 134), (143, 23, 130), (167, 26, 122)],
        *[(190, 30, 111), (212, 35, 96), (230, 48, 76), (243, 70, 55), (248, 99, 51), (249, 127, 61)],
        *[(250, 152, 77), (251, 176, 93), (252, 200, 108), (253, 222, 121), (253, 244, 123)],
    ],
    dtype=np.float32,
)

_DARK: Colour = (16, 20, 26)
_WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Person:
    """What is drawn for one head.

    ``box`` is xyxy in [0,1] of the picture; ``heatmap`` ``[h,w]`` holds probabilities (any scale: the wash is relative
    to the map's own maximum); ``point`` is xy in [0,1]; ``inout`` is the probability in [0,1] that the target is in the
    frame; ``truth`` are the annotators' points in [0,1].
    """

    box: tuple[float, float, float, float]
    heatmap: np.ndarray | None = None
    point: tuple[float, float] | None = None
    inout: float | None = None
    name: str = ""
    truth: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Style:
    """How an overlay looks. ``scale`` multiplies strokes and type; ``wash`` is the heatmap's greatest opacity in [0,1].

    ``tint`` colours each wash in its person's colour instead of the colour map: None does so when several people have
    one. Below ``in_frame`` (probability) the target counts as out of frame: a dashed box, and neither wash nor line.
    """

    wash: float = 0.72
    tint: bool | None = None
    dim: float = 0.12
    in_frame: float = 0.5
    scale: float = 1.0
    labels: bool = True
    palette: tuple[Colour, ...] = PALETTE


def colour_map(values: np.ndarray) -> np.ndarray:
    """Colours ``[...,3]`` (float, 0..255) for values ``[...]`` in [0,1], interpolated in :data:`COLOUR_MAP`."""
    place = np.clip(values, 0.0, 1.0) * (len(COLOUR_MAP) - 1)
    low = np.minimum(place.astype(np.intp), len(COLOUR_MAP) - 2)
    share = (place - low)[..., None].astype(np.float32)
    colours: np.ndarray = COLOUR_MAP[low] * (1 - share) + COLOUR_MAP[low + 1] * share
    return colours


def overlay(picture: np.ndarray, people: Sequence[Person], *, style: Style | None = None) -> Image.Image:
    """Draw ``people`` on ``picture`` (uint8 RGB ``[H,W,3]``), which is left as it is.

    Raises ``ValueError`` for a picture or heatmap of another shape and :class:`MetricError` for a heatmap or place that
    is not finite.
    """
    style = style or Style()
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 [H,W,3], got {picture.dtype} {list(picture.shape)}")
    for person in people:
        _check(person)
    height, width = picture.shape[:2]
    canvas = picture.astype(np.float32)
    washes = [_is_in(person, style) and person.heatmap is not None for person in people]
    tint = sum(washes) > 1 if style.tint is None else style.tint
    if any(washes):
        canvas *= 1.0 - style.dim
    colours = [style.palette[i % len(style.palette)] for i in range(len(people))]
    for person, colour, washed in zip(people, colours, washes, strict=True):
        if washed and person.heatmap is not None:
            _wash(canvas, person.heatmap, colour if tint else None, style.wash)

    unit = max(1.4, 0.0026 * math.sqrt(width * height)) * style.scale  # the stroke's width in pixels
    casing = max(1.0, 0.45 * unit)
    for person, colour in zip(people, colours, strict=True):
        shapes = _head_shapes(person, width, height, unit, dashed=not _is_in(person, style))
        if person.point is not None and _is_in(person, style):
            shapes += _gaze_shapes(person, width, height, unit)
        paint(canvas, shapes, (_DARK, 0.6, casing), (colour, 1.0, 0.0))
    for person in people:
        marks = [
            shape
            for point in person.truth or ()
            for shape in cross(point[0] * width, point[1] * height, 2.1 * unit, 0.4 * unit)
        ]
        paint(canvas, marks, (_DARK, 0.75, casing), (_WHITE, 1.0, 0.0))
    if not style.labels:
        return _to_image(canvas)
    return _label(canvas, people, colours, style, unit)


def panel(
    pictures: Sequence[tuple[str, Image.Image]],
    columns: int,
    *,
    width: int = 480,
    ground: Colour = (250, 249, 247),
    ink: Colour = (29, 34, 40),
) -> Image.Image:
    """Lay captioned pictures out in ``columns`` columns, each ``width`` pixels wide, under one another in rows.

    Strokes shrink with their picture: draw an overlay on the picture at the size at which it will be shown.
    Raises ``ValueError`` when there is no picture or no column.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a panel needs pictures and at least one column, got {len(pictures)} and {columns}")
    columns = min(columns, len(pictures))
    gap, size = max(8, width // 32), max(12, round(width / 28))
    cells = [
        (
            caption,
            image.convert("RGB").resize(
                (width, max(1, round(width * image.height / image.width))), Image.Resampling.LANCZOS
            ),
        )
        for caption, image in pictures
    ]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    line = round(size * 1.4)
    texts = [[_wrap(caption, size, width) for caption, _ in row] for row in rows]
    pictures_high = [max(image.height for _, image in row) for row in rows]
    texts_high = [max(len(lines) for lines in row) * line for row in texts]
    total = gap + sum(h + t + gap + (gap // 2 if t else 0) for h, t in zip(pictures_high, texts_high, strict=True))
    sheet = Image.new("RGB", (gap + columns * (width + gap), total), ground)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, row_texts, high, text_high in zip(rows, texts, pictures_high, texts_high, strict=True):
        for column, ((_, image), lines) in enumerate(zip(row, row_texts, strict=True)):
            left = gap + column * (width + gap)
            sheet.paste(image, (left, top))
            for number, text in enumerate(lines):
                draw.text((left, top + high + gap // 2 + number * line), text, font=_font(text, size), fill=ink)
        top += high + text_high + gap + (gap // 2 if text_high else 0)
    return sheet


def _check(person: Person) -> None:
    who = f"person {person.name!r}"
    if person.heatmap is not None:
        if person.heatmap.ndim != 2:
            raise ValueError(f"heatmap of {who} is [h,w], got {list(person.heatmap.shape)}")
        if not np.isfinite(person.heatmap).all():
            raise MetricError(
                f"heatmap of {who} has values that are not finite; the model diverged: use an earlier checkpoint"
            )
    numbers = [*person.box, *(person.point or ()), *(v for point in person.truth or () for v in point)]
    numbers += [] if person.inout is None else [person.inout]
    if not np.isfinite(numbers).all():
        raise MetricError(
            f"box, point, in/out or truth of {who} is not finite: {numbers}; check the heads file and the model"
        )


def _is_in(person: Person, style: Style) -> bool:
    return person.inout is None or person.inout >= style.in_frame


def _wash(canvas: np.ndarray, heatmap: np.ndarray, tint: Colour | None, opacity: float) -> None:
    """Blend a heatmap ``[h,w]`` over the canvas: nothing at the map's floor, ``opacity`` at its maximum."""
    peak = float(heatmap.max())
    if peak <= 0:
        return
    height, width = canvas.shape[:2]
    small = Image.fromarray(np.ascontiguousarray(heatmap / peak, dtype=np.float32))
    values = np.clip(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), 0.0, 1.0)
    y, x = np.nonzero(values > 0.04)
    values = values[y, x]
    ramp = np.clip((values - 0.04) / 0.66, 0.0, 1.0)
    alpha = (opacity * ramp * ramp * (3 - 2 * ramp))[:, None]
    if tint is None:
        colours = colour_map(values)
    else:
        lighter = 0.35 * (values**2)[:, None]
        colours = np.array(tint, np.float32) * (1 - lighter) + 255.0 * lighter
    canvas[y, x] = canvas[y, x] * (1 - alpha) + colours * alpha


def _head_shapes(person: Person, width: int, height: int, unit: float, *, dashed: bool) -> list[Shape]:
    region = _box_pixels(person, width, height)
    x0, y0, x1, y1 = region
    corner = min(0.16 * min(x1 - x0, y1 - y0), 5 * unit)
    if not dashed:
        return [rounded(region, corner, unit / 2)]
    outline = [
        (cx + corner * math.cos(angle), cy + corner * math.sin(angle))
        for cx, cy, start in (
            (x1 - corner, y0 + corner, -0.5),
            (x1 - corner, y1 - corner, 0.0),
            (x0 + corner, y1 - corner, 0.5),
            (x0 + corner, y0 + corner, 1.0),
        )
        for angle in (math.pi * (start + step / 12) for step in range(7))
    ]
    return dashes([*outline, outline[0]], unit)


def _gaze_shapes(person: Person, width: int, height: int, unit: float) -> list[Shape]:
    assert person.point is not None
    x0, y0, x1, y1 = _box_pixels(person, width, height)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    px, py = person.point[0] * width, person.point[1] * height
    radius = 3.4 * unit
    shapes = [ring(px, py, radius, 0.6 * unit), segment(px, py, px, py, unit), segment(cx, cy, cx, cy, 1.3 * unit)]
    far = math.hypot(px - cx, py - cy)
    if far > radius:
        share = 1 - radius / far
        shapes.append(segment(cx, cy, cx + (px - cx) * share, cy + (py - cy) * share, unit / 2))
    return shapes


def _box_pixels(person: Person, width: int, height: int) -> Region:
    x0, y0, x1, y1 = person.box
    return (x0 * width, y0 * height, x1 * width, y1 * height)


def _label(
    canvas: np.ndarray, people: Sequence[Person], colours: Sequence[Colour], style: Style, unit: float
) -> Image.Image:
    """Write each person's tag beside the box, where it covers the least of other tags, heads and gaze points."""
    height, width = canvas.shape[:2]
    size = max(11, round(0.0185 * math.sqrt(width * height) * style.scale))
    pad, gap = 0.45 * size, 0.35 * size
    heads = [_box_pixels(person, width, height) for person in people]
    points = [(p.point[0] * width, p.point[1] * height) for p in people if p.point is not None and _is_in(p, style)]
    placed: list[tuple[Region, str, ImageFont.ImageFont | ImageFont.FreeTypeFont, Colour]] = []
    for person, colour, (x0, y0, x1, y1) in zip(people, colours, heads, strict=True):
        text = _drawable(_tag(person, style))
        if not text:
            continue
        font = _font(text, size)
        wide, high = font.getlength(text) + 2 * pad, 1.55 * size
        spots = [
            (left, top) for left in (x0 - unit / 2, x1 + unit / 2 - wide) for top in (y0 - gap - high, y1 + gap)
        ] + [(x1 + gap, y0), (x0 - gap - wide, y0), (x0, y0 + gap)]
        regions = [_keep_inside((left, top, left + wide, top + high), width, height) for left, top in spots]
        taken = [region for region, *_ in placed]
        costs = [
            5 * sum(_overlap(region, other) for other in taken)
            + sum(_overlap(region, head) for head in heads)
            + sum(
                wide * high
                for x, y in points
                if region[0] - gap < x < region[2] + gap and region[1] - gap < y < region[3] + gap
            )
            for region in regions
        ]
        placed.append((regions[int(np.argmin(costs))], text, font, colour))
    for region, _, _, colour in placed:
        shape = [rounded(region, 0.35 * size, None)]
        paint(canvas, shape, (_DARK, 0.35, 1.0), (colour, 1.0, 0.0))
    image = _to_image(canvas)
    draw = ImageDraw.Draw(image)
    for region, text, font, colour in placed:
        ink = _DARK if float(np.dot(colour, (0.299, 0.587, 0.114))) > 105 else _WHITE
        draw.text((region[0] + pad, (region[1] + region[3]) / 2), text, font=font, fill=ink, anchor="lm")
    return image


def _tag(person: Person, style: Style) -> str:
    if person.inout is None:
        return person.name
    if _is_in(person, style):
        said = f"{person.inout:.0%} in"
    else:
        said = f"out of frame {1 - person.inout:.0%}"
    return f"{person.name} · {said}" if person.name else said


def _keep_inside(region: Region, width: int, height: int) -> Region:
    x0, y0, x1, y1 = region
    dx = max(2 - x0, 0) or min(width - 2 - x1, 0)
    dy = max(2 - y0, 0) or min(height - 2 - y1, 0)
    return (x0 + dx, y0 + dy, x1 + dx, y1 + dy)


def _overlap(a: Region, b: Region) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


# Pillow's own font covers ASCII and a few signs; names in other scripts need one of the system's.
_OWN = frozenset(chr(code) for code in range(32, 127)) | {"·"}
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")


@lru_cache(maxsize=16)
def _system_font(size: int) -> ImageFont.FreeTypeFont | None:
    for name in _SYSTEM_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


@lru_cache(maxsize=16)
def _own_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _font(text: str, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return _own_font(size) if set(text) <= _OWN else _system_font(size) or _own_font(size)


def _drawable(text: str) -> str:
    """The text as it can be drawn: on one line; without a system font, letters lose their accents or become "?"."""
    text = " ".join(text.split())
    if set(text) <= _OWN or _system_font(12) is not None:
        return text
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c in _OWN else "?" for c in plain)


def _wrap(text: str, size: int, width: int) -> list[str]:
    lines: list[str] = []
    for word in _drawable(text).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _font(joined, size).getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _to_image(canvas: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))
