"""Overlays and panels: where the colour goes, that edges are antialiased exactly, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from distill import overlay as module
from distill.errors import MetricError
from distill.overlay import COLOUR_MAP, PALETTE, Person, Style, colour_map, overlay, panel
from distill.strokes import cross, dashes, paint, ring, rounded, segment

PLAIN = Style(labels=False)


def grey(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def drawn(*people: Person, picture: np.ndarray | None = None, style: Style = PLAIN) -> np.ndarray:
    return np.asarray(overlay(grey() if picture is None else picture, people, style=style))


def peak(row: int, column: int, value: float = 0.5) -> np.ndarray:
    y, x = np.mgrid[:16, :16]
    return value * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 2.0)


def oklab(colours: np.ndarray) -> np.ndarray:
    """Ottosson's OKLab of sRGB colours ``[...,3]`` in 0..255."""
    c = colours / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_cone = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    cone = np.cbrt(linear @ np.array([*to_cone, [0.0883024619, 0.2817188376, 0.6299787005]]).T)
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    return cone @ np.array([*to_lab, [0.0259040371, 0.7827717662, -0.8086757660]]).T


def test_colour_map_is_perceptually_uniform_and_ordered() -> None:
    lab = oklab(COLOUR_MAP.astype(float))
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() / steps.min() < 1.1
    assert (np.diff(lab[:, 0]) > 0.005).all()


def test_colour_map_interpolates_its_table() -> None:
    assert np.array_equal(colour_map(np.array([0.0, 1.0, 2.0])), COLOUR_MAP[[0, -1, -1]])
    assert np.allclose(colour_map(np.array(1.5 / 16)), (COLOUR_MAP[1] + COLOUR_MAP[2]) / 2)


def test_nobody_leaves_the_picture_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert np.array_equal(drawn(picture=picture), picture)


def test_the_picture_itself_is_not_changed() -> None:
    picture = grey()
    drawn(Person((0.1, 0.1, 0.3, 0.3), peak(8, 8), (0.5, 0.5), 0.9, "a", [(0.6, 0.6)]), picture=picture)
    assert (picture == 100).all()


def test_wash_has_its_full_opacity_at_the_maximum_and_none_far_away() -> None:
    result = drawn(Person((0.02, 0.02, 0.1, 0.1), peak(12, 12)), picture=grey(176, 176))
    cell = result[137, 137].astype(float)  # the centre of heatmap cell (12, 12), which is 11 pixels wide
    assert np.allclose(cell, 0.28 * 88 + 0.72 * COLOUR_MAP[-1], atol=1.0)
    assert result[80, 30].tolist() == [88, 88, 88]  # the dimmed ground


def test_wash_is_relative_to_the_maps_own_maximum() -> None:
    box = (0.02, 0.02, 0.1, 0.1)
    assert np.array_equal(drawn(Person(box, peak(9, 4, 0.9))), drawn(Person(box, peak(9, 4, 1e-3))))


def test_several_washes_take_their_persons_colours() -> None:
    people = [Person((0, 0, 0.1, 0.1), peak(12, 3)), Person((0.8, 0, 0.9, 0.1), peak(12, 12))]
    result = drawn(*people, picture=grey(176, 176))
    for colour, column in zip(PALETTE, (38, 137), strict=False):
        wash = 0.65 * np.array(colour) + 0.35 * 255
        assert np.allclose(result[137, column], 0.28 * 88 + 0.72 * wash, atol=1.5)


def test_gaze_line_runs_from_the_heads_centre_to_the_point() -> None:
    result = drawn(Person((0.1, 0.4, 0.2, 0.6), point=(0.8, 0.5)), picture=grey(101, 200))
    for column in (30, 80, 130, 160):  # centre, along the line, the point
        assert tuple(result[50, column]) == PALETTE[0]
    assert tuple(result[50, 180]) == (100, 100, 100)
    assert tuple(result[30, 80]) == (100, 100, 100)


def test_out_of_frame_has_a_dashed_box_and_neither_wash_nor_line() -> None:
    box, wide = (0.2, 0.2, 0.6, 0.6), Style(labels=False, scale=4)
    inside = drawn(Person(box, peak(12, 12), (0.8, 0.8), 0.9), picture=grey(400, 400), style=wide)
    outside = drawn(Person(box, peak(12, 12), (0.8, 0.8), 0.1), picture=grey(400, 400), style=wide)
    assert (outside[300:] == 100).all() and not (inside[300:] == 100).all()
    assert (outside[100:140, 100:140] == 100).all()  # no line from the head's centre
    hit = [(np.abs(r[80, 100:220].astype(int) - PALETTE[0]).sum(-1) < 30).mean() for r in (inside, outside)]
    assert hit[0] == 1.0 and 0.3 < hit[1] < 0.75


def test_in_frame_threshold_and_unknown() -> None:
    person = Person((0.2, 0.2, 0.6, 0.6), None, (0.9, 0.9))
    assert np.array_equal(drawn(person), drawn(Person(person.box, None, person.point, 0.5)))
    assert not np.array_equal(drawn(person), drawn(Person(person.box, None, person.point, 0.499)))


def test_truth_is_marked_by_white_crosses() -> None:
    result = drawn(Person((0.0, 0.0, 0.1, 0.1), truth=[(0.501, 0.501)]), picture=grey(500, 500))
    assert tuple(result[250, 250]) == (255, 255, 255)


@pytest.mark.parametrize("size", [(240, 320), (1080, 1920)])
def test_strokes_follow_the_size_of_the_picture(size: tuple[int, int]) -> None:
    height, width = size
    result = drawn(Person((0.25, 0.25, 0.75, 0.75)), picture=grey(height, width))
    column = np.abs(result[: height // 2, width // 2].astype(int) - 100).sum(-1) > 0
    share = column.sum() / np.sqrt(width * height)
    assert 0.004 < share < 0.02
    assert column.sum() == column[height // 4 - 10 : height // 4 + 10].sum()


@pytest.mark.parametrize("box", [(0, 0, 0.2, 0.2), (0.8, 0, 1, 0.2), (0, 0.8, 0.2, 1), (0.8, 0.8, 1, 1), (0, 0, 1, 1)])
def test_labels_stay_within_the_picture(box: tuple[float, float, float, float]) -> None:
    person = Person(box, inout=0.07, name="p")
    plain, labelled = drawn(person), drawn(person, style=Style())
    filled = (np.abs(labelled.astype(int) - PALETTE[0]).sum(-1) < 6) & (
        np.abs(plain.astype(int) - PALETTE[0]).sum(-1) >= 6
    )
    rows, columns = np.nonzero(filled)
    # The whole tag is there: as high as its line of text, and its round corners do not touch the picture's edge.
    assert np.ptp(rows) >= 15 and np.ptp(columns) > 60
    assert rows.min() > 0 and columns.min() > 0 and rows.max() < 119 and columns.max() < 159


def test_labels_do_not_cover_one_another() -> None:
    people = [Person((0.3, 0.4, 0.4, 0.6), inout=0.9, name="a"), Person((0.42, 0.4, 0.52, 0.6), inout=0.9, name="b")]
    both = drawn(*people, picture=grey(480, 640), style=Style())
    areas = []
    for colour in PALETTE[:2]:
        areas.append((np.abs(both.astype(int) - colour).sum(-1) < 6).sum())
    alone = drawn(people[0], picture=grey(480, 640), style=Style())
    assert areas[0] == (np.abs(alone.astype(int) - PALETTE[0]).sum(-1) < 6).sum()
    assert areas[1] > 0.9 * areas[0]


def test_names_in_any_script_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(Person((0.3, 0.3, 0.5, 0.5), name="Zoë\n中"), style=Style()).shape == (120, 160, 3)
    monkeypatch.setattr(module, "_system_font", lambda size: None)
    assert module._drawable("Zoë \n 中 1") == "Zoe ? 1"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_map_or_place_that_is_not_finite_is_refused(bad: float) -> None:
    heatmap = peak(8, 8)
    heatmap[3, 3] = bad
    for person in (Person((0, 0, 1, 1), heatmap, name="Ann"), Person((0, 0, 1, bad), name="Ann")):
        with pytest.raises(MetricError, match="'Ann'"):
            drawn(person)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H,W,3\], got float64 \[4, 4, 3\]"):
        overlay(np.zeros((4, 4, 3)), [])
    with pytest.raises(ValueError, match=r"\[h,w\], got \[1, 4, 4\]"):
        drawn(Person((0, 0, 1, 1), np.ones((1, 4, 4))))


@pytest.mark.parametrize("radius", [0.4, 0.75, 1.3, 3.0])
def test_a_stroke_covers_exactly_its_width(radius: float) -> None:
    canvas = np.zeros((21, 21, 3), np.float32)
    paint(canvas, [segment(-50, 10.3, 70, 10.3, radius)], ((255, 255, 255), 1.0, 0.0))
    assert canvas[:, 10, 0].sum() / 255 == pytest.approx(2 * radius, abs=0.101 if radius < 0.5 else 1e-4)


def test_a_union_is_blended_once() -> None:
    canvas = np.zeros((21, 21, 3), np.float32)
    paint(canvas, cross(10.5, 10.5, 6, 2), ((200, 200, 200), 0.5, 0.0))
    assert canvas[10, 10, 0] == pytest.approx(100) and canvas.max() == pytest.approx(100)


def test_filled_and_outlined_areas() -> None:
    def area(shape: object) -> float:
        canvas = np.zeros((60, 60, 3), np.float32)
        paint(canvas, [shape], ((1, 1, 1), 1.0, 0.0))  # type: ignore[list-item]
        return float(canvas[..., 0].sum())

    assert area(rounded((10, 10, 40, 30), 4, None)) == pytest.approx(600 - (4 - np.pi) * 16, rel=2e-3)
    assert area(ring(30, 30, 12, 2)) == pytest.approx(2 * np.pi * 12 * 4, rel=4e-3)


def test_strokes_beyond_the_picture_and_empty_boxes_are_no_error() -> None:
    canvas = np.zeros((8, 8, 3), np.float32)
    paint(canvas, [segment(50, 50, 60, 60, 2), ring(-90, 4, 3, 1)], ((255, 255, 255), 1.0, 1.0))
    assert not canvas.any()
    assert len(dashes([(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0), (0.0, 0.0)], 2.0)) >= 31
    drawn(Person((0.5, 0.5, 0.5, 0.5), inout=0.1, point=(0.5, 0.5)), Person((0.5, 0.5, 0.5, 0.5), point=(0.5, 0.5)))


def test_panel_lays_out_rows_and_wraps_captions() -> None:
    pictures = [("a", Image.new("RGB", (200, 100), "red")), ("b", Image.new("RGB", (100, 100), "blue"))]
    sheet = panel([*pictures, ("", Image.new("RGB", (10, 5), "lime"))], 2, width=100)
    assert sheet.width == 8 + 2 * (100 + 8)
    assert sheet.getpixel((50, 30)) == (255, 0, 0) and sheet.getpixel((150, 90)) == (0, 0, 255)
    assert sheet.getpixel((50, 90)) == (250, 249, 247)  # below the flat picture of the first row
    row = 8 + 100 + 4 + round(12 * 1.4) + 8
    assert sheet.getpixel((50, row + 25)) == (0, 255, 0)
    assert (
        panel([("word " * 30, pictures[0][1])], 1, width=100).height
        > panel([("word", pictures[0][1])], 1, width=100).height
    )
    with pytest.raises(ValueError, match="got 0 and 2"):
        panel([], 2)
