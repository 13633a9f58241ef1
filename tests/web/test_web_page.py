"""The exported page in headless Chromium: it answers as the Python runtime does, and mouse, finger and keyboard move its boxes.

`make test-web` installs what this needs. Where that is absent these tests are skipped, and the reason names what is missing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.web_world import BOXES, COLUMNS, PACKAGE, ROWS, chromium, data_url, encoded, export_tiny, served


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("exports") / "student.onnx", "float32")


@pytest.fixture(scope="module")
def folder(onnx: Path) -> Path:
    from distill.web_export import write_web_folder
    from distill.web_runtime import open_runtime

    return write_web_folder(onnx, onnx.parent / "web", open_runtime(PACKAGE)).path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def desk(browser: Any, folder: Path) -> Iterator[Any]:
    """The page opened from the disk, with no network at all, and every address it asked for in ``asked``."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, offline=True)
    page = context.new_page()
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(f"file://{folder}/index.html")
    page.evaluate("gaze.ready.then(() => gaze.settled())")
    yield page
    context.close()


def python_answer(onnx: Path, picture: np.ndarray, boxes: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``[N,h,w]`` and in/out ``[N]`` of the Python runtime."""
    from distill.views import IDENTITY
    from students.onnx_runtime import OnnxGaze

    model = OnnxGaze(onnx, threads=1)
    output = model(IDENTITY.picture(picture, model.input_size)[None], torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.int64))
    assert output.inout is not None
    return torch.sigmoid(output.heatmap).numpy(), torch.sigmoid(output.inout).numpy()


def page_answer(page: Any) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    answers = [person["answer"] for person in page.evaluate("gaze.answers()")]
    maps = np.array([answer["map"] for answer in answers], np.float64).reshape(len(answers), ROWS, COLUMNS)
    return 1 / (1 + np.exp(-maps)), np.array([answer["inout"] for answer in answers]), [answer["cell"] for answer in answers]


def agree(onnx: Path, page: Any, picture: np.ndarray, boxes: list[list[float]], probability: float) -> None:
    wanted, inout = python_answer(onnx, picture, boxes)
    maps, chances, cells = page_answer(page)
    best = [np.unravel_index(each.argmax(), each.shape) for each in wanted]
    assert max(np.abs(np.array(cells) - np.array(best)).max(axis=1)) <= 1
    assert np.abs(maps - wanted).max() <= probability
    assert np.abs(chances - inout).max() <= probability
    assert np.abs(wanted[0] - wanted[1]).max() > 5 * probability  # the people differ by far more than what is allowed


def test_the_sample_picture_is_answered_as_in_python_with_no_network(onnx: Path, desk: Any) -> None:
    from distill.web_export import _sample

    sample = _sample()
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sample["picture"]))).convert("RGB"))
    agree(onnx, desk, picture, sample["boxes"], 5e-3)  # two JPEG decoders
    assert {url.split(":")[0] for url in desk.asked} <= {"file", "blob", "data"}
    assert desk.wrong == []
    assert "ms for 3 people" in desk.inner_text("#facts")


@pytest.mark.parametrize("size", [(77, 53), (400, 90), (40, 30)], ids=str)
def test_any_size_is_resampled_as_the_student_was_trained(onnx: Path, desk: Any, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    desk.evaluate("([url, boxes]) => gaze.open(url, boxes)", [data_url(encoded(Image.fromarray(noise), "PNG"), "png"), BOXES])
    agree(onnx, desk, noise, BOXES, 1e-3)


def test_a_photo_lying_on_its_side_and_a_transparent_one(onnx: Path, desk: Any, tmp_path: Path) -> None:
    from distill.pictures import decode

    ramp = np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(ramp), "JPEG", quality=95, exif=exif)
    see_through = encoded(Image.fromarray(np.dstack([ramp, np.where(ramp[..., :1] > 120, 255, 0)]).astype(np.uint8)), "PNG")
    for data, kind in ((turned, "jpeg"), (see_through, "png")):
        desk.evaluate("([url, boxes]) => gaze.open(url, boxes)", [data_url(data, kind), BOXES])
        upright = decode(data, tmp_path, exif=True)
        assert desk.evaluate("[page.picture.width, page.picture.height]") == [upright.shape[1], upright.shape[0]]
        agree(onnx, desk, upright, BOXES, 5e-3)


def boxes_of(page: Any) -> list[list[float]]:
    return [person["box"] for person in page.evaluate("gaze.settled().then(() => gaze.answers())")]


def open_ramp(page: Any) -> None:
    picture = Image.linear_gradient("L").resize((800, 600)).convert("RGB")
    page.evaluate("([url, boxes]) => gaze.open(url, boxes)", [data_url(encoded(picture, "PNG"), "png"), BOXES])


def test_the_keyboard_moves_resizes_and_removes(desk: Any) -> None:
    open_ramp(desk)
    desk.focus(".box >> nth=0")
    before = desk.evaluate("askedNumber")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown", "Shift+ArrowLeft", "Alt+ArrowRight"):
        desk.keyboard.press(key)
    (x0, y0, x1, y1), second = boxes_of(desk)
    step = 4 / 3 * 0.01  # a hundredth of the longer side, over the shorter one
    assert (x0, y0, x1, y1) == pytest.approx((0.122, 0.15 - step, 0.362, 0.5), abs=1e-6)
    assert second == pytest.approx(BOXES[1])
    assert desk.evaluate("askedNumber") > before
    for _ in range(80):
        desk.keyboard.press("ArrowLeft")
    assert boxes_of(desk)[0] == pytest.approx((0, 0.15 - step, 0.24, 0.5), abs=1e-6)  # whole at the border
    desk.keyboard.press("Delete")
    assert boxes_of(desk) == [pytest.approx(BOXES[1])]
    assert desk.evaluate("document.activeElement.className").startswith("box")
    desk.keyboard.press("Delete")
    assert boxes_of(desk) == []
    assert desk.evaluate("document.activeElement.id") == "add"
    assert desk.is_visible("#nobody")
    desk.keyboard.press("Enter")
    assert len(boxes_of(desk)) == 1


def test_the_mouse_moves_resizes_and_draws(desk: Any) -> None:
    open_ramp(desk)
    place = desk.locator("#stage").bounding_box()

    def drag(*points: tuple[float, float]) -> None:
        for number, (x, y) in enumerate(points):
            desk.mouse.move(place["x"] + x * place["width"], place["y"] + y * place["height"], steps=3)
            if number == 0:
                desk.mouse.down()
        desk.mouse.up()

    drag((0.2, 0.3), (0.3, 0.4))
    assert boxes_of(desk)[0] == pytest.approx((0.2, 0.25, 0.45, 0.6), abs=0.004)
    drag((0.45, 0.6), (0.4, 0.5))  # its lower right corner
    assert boxes_of(desk)[0] == pytest.approx((0.2, 0.25, 0.4, 0.5), abs=0.004)
    drag((0.2, 0.7), (0.3, 0.9))  # on the bare picture
    assert boxes_of(desk)[2] == pytest.approx((0.2, 0.7, 0.3, 0.9), abs=0.004)
    drag((0.5, 0.9), (0.4, 0.8))
    assert boxes_of(desk)[3] == pytest.approx((0.4, 0.8, 0.5, 0.9), abs=0.004)
    desk.click('[aria-label="Remove person 3"]')
    assert [person["number"] for person in desk.evaluate("gaze.answers()")] == [1, 2, 4]
    assert desk.evaluate("page.people.children.length") == 3


def test_a_file_is_chosen_and_one_that_is_no_picture_is_refused(desk: Any, tmp_path: Path) -> None:
    (tmp_path / "family.png").write_bytes(encoded(Image.linear_gradient("L"), "PNG"))
    (tmp_path / "letter.png").write_text("no picture")
    desk.set_input_files("#file", tmp_path / "family.png")
    desk.wait_for_function("document.getElementById('picture').dataset.name === 'family.png'")
    assert len(boxes_of(desk)) == 1
    desk.set_input_files("#file", tmp_path / "letter.png")
    desk.wait_for_selector("#status.wrong")
    assert desk.inner_text("#status") == "letter.png cannot be shown as a picture; choose a JPEG, PNG or WebP file."
    assert "family.png" in desk.get_attribute("#picture", "aria-label")


def test_the_answer_is_read_out_when_a_box_that_has_the_focus_comes_to_rest(desk: Any) -> None:
    open_ramp(desk)
    assert desk.get_attribute("#spoken", "aria-live") == "polite"
    desk.focus(".box >> nth=1")
    desk.keyboard.press("ArrowUp")
    desk.wait_for_function("document.getElementById('spoken').textContent.startsWith('Person 2. ')")
    answer = desk.evaluate("gaze.answers()[1].answer")
    where = f"Looks at a point {answer['point'][0] * 100:.0f}\xa0% from the left" if not answer["out"] else "out of the picture"
    assert where in desk.text_content("#spoken")


def test_numbers_are_dark_or_white_as_their_colour_asks(desk: Any) -> None:
    assert desk.evaluate("['#f0e442', '#56b4e9', '#d55e00', '#0072b2'].map(inkOn)") == ["#10141a", "#10141a", "#10141a", "#fff"]


def test_nothing_is_called_wholly_sure(desk: Any) -> None:
    assert desk.evaluate("[0.5, 0.987, 0.99, 0.9951, 1].map(chance)") == ["50\xa0%", "99\xa0%", "99\xa0%", "over 99\xa0%", "over 99\xa0%"]


def test_a_hundred_people(onnx: Path, desk: Any) -> None:
    noise = np.random.default_rng(6).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = [[0.1 * (k % 10), 0.1 * (k // 10), 0.1 * (k % 10) + 0.08, 0.1 * (k // 10) + 0.08] for k in range(100)]
    desk.evaluate("([url, boxes]) => gaze.open(url, boxes)", [data_url(encoded(Image.fromarray(noise), "PNG"), "png"), boxes])
    assert "for 100 people" in desk.inner_text("#facts")
    wanted, _ = python_answer(onnx, noise, boxes)
    maps, _, _ = page_answer(desk)
    assert np.abs(maps - wanted).max() <= 1e-3


@pytest.mark.parametrize("threads", [1, 2])
def test_from_a_web_server(onnx: Path, folder: Path, browser: Any, threads: int) -> None:
    isolated = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(navigator, 'hardwareConcurrency', { get: () => 4 })")
    page = context.new_page()
    with served(folder, isolated if threads > 1 else {}) as address:
        page.goto(f"{address}/index.html")
        page.evaluate("gaze.ready.then(() => gaze.settled())")
        assert f"{threads} thread" in page.inner_text("#facts")
        noise = np.random.default_rng(7).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        page.evaluate("([url, boxes]) => gaze.open(url, boxes)", [data_url(encoded(Image.fromarray(noise), "PNG"), "png"), BOXES])
        agree(onnx, page, noise, BOXES, 1e-3)
    context.close()


def test_every_control_has_a_name(desk: Any) -> None:
    open_ramp(desk)
    unnamed = """[...document.querySelectorAll('button, [tabindex], input, canvas:not([aria-hidden])')].filter((element) =>
        !(element.getAttribute('aria-label') || element.textContent.trim() || (element.id && document.querySelector(`label[for=${element.id}]`)))).map((element) => element.outerHTML)"""
    assert desk.evaluate(unnamed) == []
    assert desk.get_attribute(".box >> nth=1", "aria-label").startswith("Head of person 2, 25 by 42 percent of the picture, at 55 percent from the left")
    assert desk.get_attribute("#status", "role") == "status"
    desk.focus(".box >> nth=0")
    desk.keyboard.press("Tab")
    assert desk.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_phone(browser: Any, folder: Path) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme="dark", offline=True)
    page = context.new_page()
    page.goto(f"file://{folder}/index.html")
    page.evaluate("gaze.ready.then(() => gaze.settled())")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert page.evaluate("Math.min(...[...document.querySelectorAll('button')].map((button) => button.getBoundingClientRect().height))") >= 44
    open_ramp(page)
    place = page.locator("#stage").bounding_box()
    touch = context.new_cdp_session(page)
    for kind, x, y in (("touchStart", 0.2, 0.3), ("touchMove", 0.25, 0.35), ("touchMove", 0.3, 0.4), ("touchEnd", 0, 0)):
        points = [] if kind == "touchEnd" else [{"x": place["x"] + x * place["width"], "y": place["y"] + y * place["height"]}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert boxes_of(page)[0] == pytest.approx((0.2, 0.25, 0.45, 0.6), abs=0.004)
    context.close()
