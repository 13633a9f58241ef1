"""Stored predictions: scored as the model was, matched by box, and refused when they are of something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_world import store_teacher

from distill.cli import main
from distill.errors import DataError, MetricError
from distill.evaluation import answers, evaluate
from distill.predicting import load_gaze
from distill.predictions import RecordedModel, StoredPredictions, save_predictions
from distill.readers import open_data
from distill.scenes import Scene
from teachers.contract import GazeOutput
from tests.fixtures import SIZE, write_gazefollow, write_vat


class Boxes:
    """A model whose heatmap and in/out follow from the head box alone, with digits that float16 has not."""

    input_size = (16, 16)

    def __init__(self, inout: bool = True) -> None:
        self.inout = inout

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        cells = torch.arange(80.0).reshape(1, 8, 10)
        maps = torch.sin(cells * (1.3 + boxes.sum(dim=1)[:, None, None])) * 3.0001
        return GazeOutput(maps, boxes[:, 0] * 4 - 1.0001 if self.inout else None)


@pytest.fixture
def scenes(tmp_path: Path) -> tuple[Scene, ...]:
    return open_data(write_gazefollow(tmp_path / "data", 12), "trainval").scenes


def _arrays(scenes: tuple[Scene, ...]) -> dict[str, np.ndarray]:
    """What somebody else's script would write: whole pixels over the picture's size, rows in no order."""
    rows = [(scene.key, head.box) for scene in scenes for head in scene.heads][::-1]
    box = np.array([(x0 / SIZE[0], y0 / SIZE[1], x1 / SIZE[0], y1 / SIZE[1]) for _, (x0, y0, x1, y1) in rows])
    heatmap = Boxes()(torch.zeros(0), torch.from_numpy(box.astype(np.float32)), torch.zeros(0)).heatmap.numpy()
    return {"scene": np.array([key for key, _ in rows]), "box": box, "heatmap": heatmap}


@pytest.mark.parametrize("inout", [True, False])
def test_a_recorded_model_scores_as_it_did(tmp_path: Path, scenes: tuple[Scene, ...], inout: bool) -> None:
    live = evaluate(Boxes(inout), scenes)
    file = tmp_path / "new/predictions.npz"
    recorded = evaluate(RecordedModel(Boxes(inout), file, "boxes"), scenes)
    stored = StoredPredictions(file)
    assert recorded.metrics == live.metrics == evaluate(stored, scenes).metrics
    assert (live.metrics.ap is not None) is inout and live.metrics.auc is not None
    assert stored.name == "boxes" and stored.input_size == (8, 10) and isinstance(stored.heatmap, np.memmap)
    for mine, theirs in zip(answers(Boxes(inout), scenes), answers(stored, scenes), strict=True):
        assert mine.scene == theirs.scene and np.array_equal(mine.heatmap, theirs.heatmap)
        assert (mine.inout is None and theirs.inout is None) or np.array_equal(mine.inout, theirs.inout)  # type: ignore[arg-type]
    assert [path.name for path in file.parent.iterdir()] == ["predictions.npz"]


def test_half_precision_and_compression(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    save_predictions(tmp_path / "half.npz", Boxes(), scenes, "boxes", half=True)
    half = StoredPredictions(tmp_path / "half.npz")
    assert half.heatmap.dtype == np.float16
    first, plain = next(iter(answers(half, scenes))), next(iter(answers(Boxes(), scenes)))
    assert first.heatmap.dtype == np.float32 and 0 < np.abs(first.heatmap - plain.heatmap).max() < 2e-3
    with np.load(tmp_path / "half.npz") as arrays:
        np.savez_compressed(tmp_path / "small.npz", **arrays)
    assert evaluate(StoredPredictions(tmp_path / "small.npz"), scenes).metrics == evaluate(half, scenes).metrics


def test_somebody_elses_arrays_in_any_order(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    arrays = _arrays(scenes)
    np.savez(tmp_path / "theirs.npz", **arrays)
    stored, name = load_gaze(str(tmp_path / "theirs.npz"), "cpu")
    assert name == "theirs.npz"
    live, theirs = evaluate(Boxes(False), scenes), evaluate(stored, scenes)
    assert theirs.metrics == live.metrics
    # A part of the scenes is scored by the same rows.
    assert evaluate(stored, scenes[:3]).metrics == evaluate(Boxes(False), scenes[:3]).metrics
    with pytest.raises(MetricError, match="cannot look at other pictures"):
        stored(torch.zeros(1, 3, 16, 16), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))


def test_two_heads_of_one_box_take_a_row_each_or_share_one(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    from dataclasses import replace

    scene = replace(scenes[2], heads=(scenes[2].heads[0], replace(scenes[2].heads[0], person="twin")))
    box = scene.normalised(*SIZE).boxes()
    for rows, expected in ((2, [0.0, 1.0]), (1, [0.0, 0.0])):
        maps = np.stack([np.full((2, 2), float(row), np.float32) for row in range(rows)])
        np.savez(tmp_path / f"{rows}.npz", scene=np.array([scene.key] * rows), box=box[:rows], heatmap=maps)
        (answer,) = answers(StoredPredictions(tmp_path / f"{rows}.npz"), [scene])
        assert answer.heatmap[:, 0, 0].tolist() == expected


def _moved(arrays: dict[str, np.ndarray]) -> None:
    arrays["box"] = np.clip(arrays["box"] + 0.02, 0, 1)


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda a: a.pop("box"), r"has no box; predictions hold scene \[N\]"),
    (lambda a: a.update(box=a["box"] * 64), r"boxes are to be xyxy in \[0,1\] of the picture, these reach from .* to "),
    (lambda a: a.update(box=a["box"][:-1]), r"all of the same N"),
    (lambda a: a.update(heatmap=a["heatmap"].astype(np.int32)), r"holds .*heatmap int32\[\d+, 8, 10\]; predictions are"),
    (lambda a: a.update(inout=np.zeros((3, 1))), r"all of the same N"),
    (lambda a: a.update(scene=np.array([object()] * len(a["box"]))), r"cannot be read as predictions .*without object arrays"),
    (lambda a: a.update(heatmap=np.array([None] * len(a["box"]))), r"cannot be read as predictions"),
    (lambda a: a.update(scene=np.char.add("other/", a["scene"])), r"has no answer for scene train/00000000/00000000.jpg \(of 12 scenes in it\)"),
    (_moved, r"scene train/00000000/00000000.jpg: no answer for head 0 with box .* \(the nearest is 0.0\d+ of the picture away, 0.01 is allowed\)"),
    (lambda a: a["heatmap"].__setitem__((0, 0, 0), np.nan), r"heatmap logits are not finite"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_other_predictions_are_refused(tmp_path: Path, scenes: tuple[Scene, ...], change: Callable[[Any], Any], message: str) -> None:
    arrays = _arrays(scenes)
    change(arrays)
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises((DataError, MetricError), match=message):
        evaluate(StoredPredictions(tmp_path / "p.npz"), scenes)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, scenes: tuple[Scene, ...], save: Callable[..., None]) -> None:
    """The heatmaps are mapped, not read, where the archive is not compressed: their bits are checked all the same."""
    save(tmp_path / "p.npz", **_arrays(scenes))
    whole = (tmp_path / "p.npz").read_bytes()
    expected = evaluate(StoredPredictions(tmp_path / "p.npz"), scenes).metrics
    generator = np.random.default_rng(1)
    refused = 0
    for place in generator.integers(0, len(whole), 50).tolist():
        (tmp_path / "p.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert evaluate(StoredPredictions(tmp_path / "p.npz"), scenes).metrics == expected  # in a field that nobody reads, such as a date
        except DataError as error:
            assert "cannot be read as predictions" in str(error) or "has no " in str(error)  # noqa: PT017
            refused += 1
    assert refused > 35


def test_complex_numbers_are_no_boxes(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    arrays = _arrays(scenes)
    np.savez(tmp_path / "p.npz", **{**arrays, "box": arrays["box"].astype(complex)})
    with pytest.raises(DataError, match="an array of complex128 where real numbers are expected"):
        StoredPredictions(tmp_path / "p.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no archive"])
def test_files_that_are_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as predictions"):
        StoredPredictions(tmp_path / "p.npz")
    with pytest.raises(DataError, match=r"no.npz do not exist; check the path"):
        StoredPredictions(tmp_path / "no.npz")


def test_a_model_that_breaks_off_leaves_what_was_there(tmp_path: Path, scenes: tuple[Scene, ...]) -> None:
    file = tmp_path / "p.npz"
    save_predictions(file, Boxes(), scenes, "boxes")
    before = file.read_bytes()
    scenes[-1].picture.unlink()
    with pytest.raises(DataError, match="does not exist"):
        evaluate(RecordedModel(Boxes(), file, "again"), scenes)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir() if "npz" in path.name] == ["p.npz"]
    with pytest.raises(DataError, match="0 answers were given for 0 heads"):
        save_predictions(file, Boxes(), [], "boxes")
    with pytest.raises(DataError, match=r"are to end in .npz"):
        RecordedModel(Boxes(), tmp_path / "p.npy", "boxes")


def test_eval_keeps_answers_and_scores_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"vat:{write_vat(tmp_path / 'data', frames=3)}"
    file = tmp_path / "tiny.npz"
    rows = []
    for arguments in ([str(store_teacher(tmp_path / "tiny")), "--save-predictions", str(file)], [str(file)]):
        assert main(["eval", *arguments, "--data", data, "--split", "test", "--device", "cpu", "--json"]) == 0
        rows.append({row["role"]: row for row in json.loads(capsys.readouterr().out)["rows"]}["student"])
    live, stored = rows
    assert stored["name"] == "tiny (tiny.npz)" and stored["megabytes"] is None and stored["ms"] is None and live["ms"] > 0
    for name in ("auc", "avg_l2", "min_l2", "ap"):
        assert stored[name] == live[name]
    assert main(["eval", str(file), "--data", data, "--split", "val", "--device", "cpu"]) == 2
    assert "has no answer for scene" in capsys.readouterr().err
