"""A student that starts from its teacher's backbone, cut where the student is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distill.errors import ConfigurationError
from distill.student_start import take_backbone
from teachers.model import GazeModel, ModelConfig
from teachers.model_teacher import ModelTeacher

LARGE = ModelConfig(
    backbone="test_efficientnet", input_size=(64, 64), levels=(2, 3, 4), dim=16, layers=1, attention_heads=2
)


def teacher_of(config: ModelConfig) -> ModelTeacher:
    torch.manual_seed(1)
    return ModelTeacher(GazeModel(config), "large", "digest-of-large")


def test_the_shorter_backbone_takes_the_first_blocks() -> None:
    teacher = teacher_of(LARGE)
    torch.manual_seed(2)
    student = GazeModel(replace(LARGE, levels=(2, 3), dim=8))
    theirs = teacher.model.backbone.trunk.state_dict()
    mine = student.backbone.trunk.state_dict()
    assert 0 < len(mine) < len(theirs)
    before = {name: tensor.clone() for name, tensor in student.decoder.state_dict().items()}
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)
    assert take_backbone(student, teacher) == {"source": "teacher large", "digest": "digest-of-large"}
    after = student.backbone.trunk.state_dict()
    assert all(torch.equal(after[name], theirs[name]) for name in after)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.decoder.state_dict().items())


def test_another_network_is_refused_by_name() -> None:
    student = GazeModel(replace(LARGE, backbone="test_resnet", levels=(2, 3)))
    with pytest.raises(ConfigurationError, match=r"test_resnet.*test_efficientnet.*--backbone-from"):
        take_backbone(student, teacher_of(LARGE))
