"""Agreement with the teacher: two numbers, against what the formulas say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cache_world import TinyTeacher, build, make_scenes, make_source

from distill.agreement import TeacherAgreement
from distill.cached_teacher import CachedTeacher, open_cached_teacher
from distill.feeding import Pool
from teachers.contract import GazeOutput
from teachers.errors import CacheError


@pytest.fixture
def teacher(tmp_path: Path) -> CachedTeacher:
    """A cached teacher of six scenes with 0, 1, 2, 0, 1 and 2 heads."""
    source = make_source(make_scenes(tmp_path / "pictures", 6))
    build(tmp_path / "cache", source)
    return open_cached_teacher(str(tmp_path / "cache"), source.scenes, (16, 16))


class Replay:
    """A student that answers with the teacher's own maps, ``columns`` cells to the right of them."""

    input_size = (32, 32)

    def __init__(self, columns: int) -> None:
        self.columns, self.teacher = columns, TinyTeacher()

    def __call__(self, images: torch.Tensor, boxes: torch.Tensor, image_index: torch.Tensor) -> GazeOutput:
        return GazeOutput(torch.roll(self.teacher(images, boxes, image_index).heatmap, self.columns, dims=2), None)


def test_a_student_that_says_what_the_teacher_says_agrees(teacher: CachedTeacher) -> None:
    found = TeacherAgreement([Pool(teacher.scenes, teacher.policy, teacher)])(Replay(0))
    assert found == {"kl_teacher": pytest.approx(0.0, abs=1e-4), "l2_teacher": 0.0}


def test_disagreement_is_measured_as_it_says(teacher: CachedTeacher) -> None:
    pools = [Pool(teacher.scenes[:3], teacher.policy, teacher), Pool(teacher.scenes[3:], teacher.policy, teacher)]
    found = TeacherAgreement(pools)(Replay(4))
    kl, apart = [], []
    for scene in teacher.scenes:
        for heatmap in teacher.read(scene.key, 0).heatmap.astype(np.float64):
            other = np.roll(heatmap, 4, axis=1)
            p, q = (np.exp(values) / np.exp(values).sum() for values in (heatmap, other))
            kl.append((p * np.log(p / q)).sum())
            (y0, x0), (y1, x1) = (np.unravel_index(values.argmax(), (16, 16)) for values in (heatmap, other))
            apart.append(np.hypot(x1 - x0, y1 - y0) / 16)
    assert len(kl) == 6 and min(apart) > 0.2, "a mean over heads, of all pools"
    assert found == {"kl_teacher": pytest.approx(np.mean(kl), rel=2e-3), "l2_teacher": pytest.approx(np.mean(apart), abs=1e-6)}


def test_a_changed_picture_is_refused(teacher: CachedTeacher) -> None:
    teacher.scenes[2].picture.write_bytes(teacher.scenes[3].picture.read_bytes())
    with pytest.raises(CacheError, match=r"'002\.png' has changed"):
        TeacherAgreement([Pool(teacher.scenes, teacher.policy, teacher)])(Replay(0))
