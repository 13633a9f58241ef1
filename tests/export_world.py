"""A run with an untrained student of two blocks, and what was exported from it: made once for all tests, as tracing takes seconds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from distill.configuration import RunConfig
from distill.exporting import export_run
from students import export
from students.export import Exported, trace
from teachers.model import GazeModel, ModelConfig
from teachers.weights import save_model
from tests.fixtures import write_gazefollow

# Neither picture nor map is square: swapped axes show. A cut EfficientNet has the "same" padding and the getter of the real students.
CONFIG = ModelConfig(
    backbone="tf_efficientnet_lite0", input_size=(32, 48), levels=(1,), stride=4, dim=16, layers=1, attention_heads=2,
    heatmap_size=(16, 20), drop_path=0.1,
)
# Removed when the process ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="gaze-distill-export-")


@cache
def tiny_model() -> GazeModel:
    torch.manual_seed(3)
    return GazeModel(CONFIG)


@cache
def tiny_run() -> Path:
    """A run's directory as training leaves it, on a GazeFollow of 30 training pictures."""
    root = Path(_FOLDER.name)
    data = write_gazefollow(root / "data", 30)
    directory = root / "runs" / "tiny"
    facts = {"run": "tiny", "lineage": {"data": "d" * 32}, "validation": {"auc": 0.75, "ap": None}}
    save_model(directory / "student", tiny_model(), "tiny_student", facts)
    config = RunConfig(name="tiny", data=f"gazefollow:{data}", schedule={"epochs": 1})
    (directory / "config.json").write_text(json.dumps({**config.to_json(), "facts": facts}))
    return directory


@cache
def core_graph() -> Path:
    """The model's ONNX graph before resizing is put in front of it; of several processes that run the tests, the first one traces it."""
    folder = Path(os.environ["GAZE_TESTS_SHARED"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "core.onnx"
    with (folder / "core.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            trace(tiny_model().eval(), folder / "begun.onnx")
            (folder / "begun.onnx").rename(path)
    return path


@contextmanager
def already_traced() -> Iterator[None]:
    """In place of tracing, the graph that was traced from the tiny model before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", lambda student, path: shutil.copyfile(core_graph(), path))
        yield


@cache
def tiny_export() -> Exported:
    """The tiny run exported as it is by default."""
    with already_traced():
        return export_run(tiny_run(), scenes=64)
