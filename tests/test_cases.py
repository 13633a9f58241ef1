"""The cases that a gallery shows, against a plain count."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.cases import pick_cases
from distill.comparing import gallery
from distill.readers import open_data
from teachers.contract import GazeOutput
from tests.fixtures import write_gazefollow


def test_a_third_each_from_the_extremes_and_the_middle() -> None:
    errors = [float(number) for number in range(100)]
    random.Random(1).shuffle(errors)
    picked = pick_cases(errors, 9)
    assert [kind for kind, _ in picked] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    assert [errors[number] for _, number in picked] == [0, 1, 2, 49, 50, 51, 99, 98, 97]
    assert [errors[number] for kind, number in pick_cases(errors, 11) if kind == "worst"] == [99, 98, 97, 96, 95]


@pytest.mark.parametrize("scenes", range(13))
@pytest.mark.parametrize("count", range(11))
def test_no_case_twice_however_few_there_are(scenes: int, count: int) -> None:
    picked = pick_cases([0.5] * scenes, count)
    assert len(picked) == len({number for _, number in picked}) == min(scenes, count)
    kinds = [kind for kind, _ in picked]
    assert kinds == sorted(kinds) and (len(picked) < 3 or set(kinds) == {"best", "median", "worst"})


def test_the_gallery_of_a_tiny_set_lists_each_scene_once(tmp_path: Path) -> None:
    class Corner:
        input_size = (16, 16)

        def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
            return GazeOutput(torch.linspace(0, 1, 64).reshape(1, 8, 8).expand(len(boxes), 8, 8), None)

    scenes = open_data(write_gazefollow(tmp_path, 4), "trainval").scenes
    items = gallery(scenes, Corner(), Corner(), 9)
    captions = [item.caption for item in items]
    assert len(captions) == 4 and len({caption.partition(": ")[2] for caption in captions}) == 4
    errors = [item.student_error for item in items]
    assert errors[0] == min(errors) and errors[2] == max(errors)  # type: ignore[type-var]
    assert all(item.truth and item.teacher and item.student and item.teacher_error == item.student_error for item in items)
