"""The plan's picture, counted shape by shape; and what is counted on a student's stages."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import nn

from distill.commands import plan as plan_command
from distill.errors import ConfigurationError
from distill.plan_picture import COLOURS, CURVE, LEFT, RIGHT, WIDTH, Box, Label, Stroke, draw, drawable, png, svg
from schedules.cost import measure_stages
from schedules.plan import PlanConfig, compile_plan
from schedules.stages import discover_stages
from students.catalogue import STUDENTS, build_student
from teachers.model import parameter_count

RECIPES = Path(__file__).parents[1] / "recipes"


def facts(blocks: int = 3, **values: Any) -> dict[str, Any]:
    settings = {"epochs": 12, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 2, "unfreeze_interval": 4, **values}
    return json.loads(json.dumps(compile_plan(PlanConfig(steps_per_epoch=10, **settings), blocks).to_json()))


def test_every_stage_is_a_row_that_opens_at_its_epoch() -> None:
    drawing = draw(facts())
    wide = (WIDTH - LEFT - RIGHT) / 12
    boxes = [shape for shape in drawing.shapes if isinstance(shape, Box)]
    closed, opened = ([box for box in boxes if (box.colour == "closed") is want] for want in (True, False))
    assert [(box.x, box.width) for box in closed] == [(LEFT, pytest.approx(12 * wide))] * 4
    assert [round((box.x - LEFT) / wide, 6) for box in opened] == [0, 2, 6, 6]
    assert all(box.x + box.width == pytest.approx(WIDTH - RIGHT) for box in opened)
    assert [box.colour for box in opened] == ["open", "open", "open", "stem"]
    assert [a.y for a in closed] == [b.y for b in opened] == sorted(box.y for box in opened)
    texts = [shape.text for shape in drawing.shapes if isinstance(shape, Label)]
    assert [text for text in texts if text.startswith(("block", "stem"))] == ["block 2", "block 1", "block 0", "stem"]
    assert "Progressive unfreeze scheduled after 2 epochs, adding one block every 4 epochs." in drawing.told


def test_a_stage_that_stays_closed_has_no_bar_and_the_warning_is_written() -> None:
    drawing = draw(facts(unfreeze_interval=20))
    assert [shape.colour for shape in drawing.shapes if isinstance(shape, Box)].count("open") == 2
    assert any(isinstance(shape, Label) and shape.text.startswith("The last stage opens at epoch 22 only") for shape in drawing.shapes)


def test_the_curves_are_the_schedules_own_between_epochs_too() -> None:
    drawing = draw(facts(epochs=3, distill_weight="linear 2 -> 0", distill_temperature="stairs 0: 1, 50%: 4"))
    curves = {shape.colour: shape.points for shape in drawing.shapes if isinstance(shape, Stroke) and shape.width == 2.0}
    (left, high), (right, low) = curves["weight"][0], curves["weight"][-1]
    assert (left, right, low - high) == (LEFT, WIDTH - RIGHT, CURVE)
    for x, y in curves["weight"]:
        assert (y - high) / CURVE == pytest.approx((x - left) / (right - left))
    steps = [x for (x, y), (_, before) in zip(curves["temperature"][1:], curves["temperature"], strict=False) if y != before]
    assert steps == [pytest.approx((LEFT + WIDTH - RIGHT) / 2)] and curves["temperature"][0][1] > curves["temperature"][-1][1]
    labels = [shape.text for shape in drawing.shapes if isinstance(shape, Label) and shape.x > WIDTH - RIGHT]
    assert labels == ["0", "2", "0", "4"]


def test_thaw_time_stands_where_it_passes() -> None:
    # At w = 1 an epoch is half an epoch of thaw time: 0, 1, 2, ... stand two epochs apart.
    drawing = draw(facts(distill_weight=1.0, epochs=8))
    labels = [shape for shape in drawing.shapes if isinstance(shape, Label)]
    axis = next(label.y for label in labels if label.text == "thaw time")
    ticks = {label.text: (label.x - LEFT) / ((WIDTH - LEFT - RIGHT) / 8) for label in labels if label.y == axis and label.anchor == "middle"}
    assert ticks == {"0": pytest.approx(0), "1": pytest.approx(2), "2": pytest.approx(4), "3": pytest.approx(6)}


@pytest.mark.parametrize(("blocks", "epochs"), [(0, 1), (1, 1), (40, 300), (12, 45)])
def test_any_plan_is_drawn_within_its_frame(blocks: int, epochs: int) -> None:
    drawing = draw(facts(blocks, epochs=epochs, finetune=blocks > 0, distill_weight="cosine 1 -> 0"))
    for shape in drawing.shapes:
        points = [(shape.x, shape.y)] if isinstance(shape, Box | Label) else shape.points
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in points)
        assert shape.colour in COLOURS
    root = ElementTree.fromstring(svg(drawing))
    assert root.attrib["viewBox"] == f"0 0 {drawing.width:g} {drawing.height:g}"
    image = Image.open(io.BytesIO(png(drawing)))
    assert image.size == (round(2 * drawing.width), round(2 * drawing.height))


def test_the_png_shows_open_and_closed() -> None:
    drawing = draw(facts())
    image = Image.open(io.BytesIO(png(drawing))).convert("RGB")
    first, last = (next(s for s in seen if isinstance(s, Box)) for seen in (drawing.shapes, drawing.shapes[::-1]))
    middle = round(2 * first.y + first.height)

    def at(x: float, y: float) -> str:
        return "#{:02x}{:02x}{:02x}".format(*image.getpixel((round(x), round(y))))  # type: ignore[misc]

    assert at(2 * (WIDTH - RIGHT) - 20, middle) == COLOURS["open"][0]
    assert at(2 * LEFT + 40, 2 * last.y + last.height) == COLOURS["closed"][0]
    assert at(2 * (WIDTH - RIGHT) - 20, 2 * last.y + last.height) == COLOURS["stem"][0]


def test_only_a_whole_plan_is_drawn() -> None:
    whole = facts()
    assert drawable(whole)
    assert not any(drawable({key: value for key, value in whole.items() if key != missing}) for missing in ("epochs", "blocks", "config", "warnings"))
    assert not drawable({})


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plan_command.register(parser.add_subparsers())
    args = parser.parse_args(["plan", *arguments])
    return int(args.run(args))


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--blocks", "4", "--epochs", "9", "--finetune", "--initial-freeze-epochs", "1", "--unfreeze-interval", "1"]
    for name, start in (("plan.svg", b"<svg "), ("new/plan.PNG", b"\x89PNG")):
        assert command(*words, "--picture", str(tmp_path / name)) == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    assert f"picture in {tmp_path / 'plan.svg'}" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match=r"plan\.pdf is neither \.svg nor \.png"):
        command(*words, "--picture", str(tmp_path / "plan.pdf"))
    with pytest.raises(ConfigurationError, match=r"--picture .*plan\.svg/p\.svg cannot be written \(.*\); name a file in another place"):
        command(*words, "--picture", str(tmp_path / "plan.svg/p.svg"))


def test_the_command_counts_on_the_student_of_a_run_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(RECIPES / "gazefollow_pico.toml"), "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    model = build_student(STUDENTS["hgnet_pico"])
    stages = discover_stages(model.backbone)
    assert plan["blocks"] == stages.blocks == 4
    for line in plan["epochs"]:
        stages.apply(model.backbone, line["open_blocks"], line["stem_open"])
        assert line["trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    costs = [line["relative_cost"] for line in plan["epochs"]]
    assert costs == sorted(costs) and 0.3 < costs[0] < 0.7 and costs[-1] == 1.0
    assert plan["cost_basis"].startswith("by FLOPs of one picture")


class Net(nn.Module):
    """Two convolutions as blocks behind a stem, and a head: FLOPs by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.stem = nn.Conv2d(3, 4, 1)
        self.body.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), nn.Sequential(nn.Conv2d(4, 8, 1))])
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body.stem(x)
        for block in self.body.blocks:  # type: ignore[union-attr]
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


def test_work_is_counted_stage_by_stage() -> None:
    with torch.device("meta"):
        net, pictures = Net(), torch.empty(1, 3, 5, 5)
    sizes = measure_stages(net, discover_stages(net, "body"), lambda: net(pictures))
    # A product and a sum each: 2 · 25 places · inputs · outputs · window.
    assert sizes.work == (2 * 25 * 4 * 8, 2 * 25 * 4 * 4 * 9, 2 * 25 * 3 * 4)
    assert sizes.head_work == 2 * 8 * 2
    assert (sizes.parameters, sizes.head_parameters) == ((4 * 8 + 8, 4 * 4 * 9 + 4, 3 * 4 + 4), 8 * 2 + 2)


@pytest.mark.parametrize("student", ["lite0_large", "vit_tiny"])
def test_a_student_is_measured_whole(student: str) -> None:
    sizes = plan_command.student_sizes(student)
    with torch.device("meta"):
        model = build_student(STUDENTS[student])
    assert sizes.trainable(len(sizes.work) - 1, True) == parameter_count(model)
    assert all(work > 0 for work in sizes.work) and sizes.head_work > 0
