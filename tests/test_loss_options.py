"""The losses that a run asks for: how they are written, what is refused, and that a run trains and logs by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import write_gazefollow
from training_world import TINY, World, make_world

from distill.cli import main
from distill.configuration import RunConfig, config_from_sections
from distill.errors import ConfigurationError
from distill.feeding import SceneBatches
from distill.loss_options import loss_weights
from distill.readers import open_data
from distill.targets import gaussian_target
from distill.views import ViewPolicy
from students.catalogue import STUDENTS
from students.loss_weights import LossWeights


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl", LossWeights()),
        ("bce", LossWeights(kl=0.0, soft_bce=1.0)),
        ("mse", LossWeights(kl=0.0, mse=1.0)),
        ("dist", LossWeights(kl=0.0, dist=1.0)),
        ("dist:0.5, kl", LossWeights(dist=0.5)),
        (" kl : 2 ,mse:1e3", LossWeights(kl=2.0, mse=1000.0)),
        ("inout:0.2", LossWeights(kd_inout=0.2)),
        ("kl:0,inout:1", LossWeights(kl=0.0, kd_inout=1.0)),
    ],
)
def test_losses_are_named(text: str, expected: LossWeights) -> None:
    assert loss_weights(RunConfig(distill_loss=text)) == expected


def test_the_other_weights_come_from_their_own_options() -> None:
    config = config_from_sections({"loss": {"inout_weight": 0.2, "bce_weight": 0, "softmax_weight": 0.3, "reliability": 0.15}}, "here")
    assert loss_weights(config) == LossWeights(inout=0.2, bce=0.0, softmax=0.3, reliability=0.15)
    assert loss_weights(config).inout_distillation == 0.2


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"distill_loss": "kll"}, "distill_loss 'kll' names 'kll'; did you mean kl\\? give kl, bce, mse or dist"),
        ({"distill_loss": ""}, "distill_loss '' names ''; give kl, bce"),
        ({"distill_loss": "kl, kl:2"}, "names kl twice"),
        ({"distill_loss": "kl:-1"}, "has the weight '-1'; a weight is a number of at least 0"),
        ({"distill_loss": "kl:nan"}, "has the weight 'nan'"),
        ({"distill_loss": "kl:"}, "has the weight ''"),
        ({"distill_loss": "kl:one"}, "has the weight 'one'"),
        ({"target_sigma": 0.0}, "target_sigma is 0; it is a share of the map, above 0 and at most 0.5"),
        ({"target_sigma": 3.0}, "target_sigma is 3; it is a share of the map"),
        ({"reliability": -0.1}, "reliability is -0.1; it must be at least 0"),
        ({"bce_weight": 0, "inout_weight": 0}, "every loss weighs 0, so there is nothing to learn from"),
    ],
)
def test_what_cannot_be_trained_by_is_refused(loss: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        config_from_sections({"loss": loss}, "here")
    assert "\n" not in str(caught.value)


def test_distillation_alone_will_do_unless_it_weighs_nothing() -> None:
    sections = {"loss": {"bce_weight": 0, "inout_weight": 0, "distill_loss": "dist"}, "schedule": {"epochs": 1, "distill_weight": 0.5}}
    assert loss_weights(config_from_sections(sections, "here")) == LossWeights(inout=0.0, bce=0.0, kl=0.0, dist=1.0)
    with pytest.raises(ConfigurationError, match=r"distill_weight is 0\.5, but distill_loss 'kl:0, inout:0' gives every term the weight 0"):
        config_from_sections({"loss": {"distill_loss": "kl:0, inout:0"}, "schedule": {"distill_weight": 0.5}}, "here")


def test_sigma_reaches_the_targets(tmp_path: Path) -> None:
    scenes = open_data(str(write_gazefollow(tmp_path / "data", 4)), "train").scenes
    batches = SceneBatches(
        scenes, policy=ViewPolicy(seed=0), input_size=(32, 32), heatmap_size=(32, 32), batch_size=len(scenes), seed=0, lineage={}, target_sigma=0.1,
    )
    (batch,) = batches.batches(0, 0)
    for target in batch.target[batch.has_target]:
        row, column = divmod(int(target.argmax()), 32)
        expected = gaussian_target([((column + 0.5) / 32, (row + 0.5) / 32)], (32, 32), 0.1)
        np.testing.assert_allclose(target.numpy(), expected, atol=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), scenes=16)


def test_a_run_trains_and_logs_by_them(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "tiny_cnn", TINY["tiny_cnn"])
    threads = torch.get_num_threads()
    arguments = world.arguments(
        tmp_path / "run", epochs=1, distill_loss="kl:0.5,dist:2,inout:0.1", reliability=0.2, softmax_weight=0.3, target_sigma=0.06
    )
    try:
        assert main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["loss"]
    assert config == {
        "inout_weight": 1.0, "bce_weight": 1.0, "softmax_weight": 0.3, "target_sigma": 0.06, "distill_loss": "kl:0.5,dist:2,inout:0.1", "reliability": 0.2,
    }
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for record in (record for record in records if record["kind"] in ("step", "epoch")):
        assert record["kd_heatmap"] == pytest.approx(0.5 * record["kd_kl"] + 2 * record["kd_dist"], rel=1e-5)
        assert record["weighted_kd_inout"] == pytest.approx(0.5 * 0.1 * record["kd_inout"], rel=1e-5)
        parts = ("heatmap", "spatial", "inout", "kd_heatmap", "kd_inout")
        assert record["loss"] == pytest.approx(sum(record[f"weighted_{part}"] for part in parts), rel=1e-5)
        assert 0 < record["reliability"] < 1 and "kd_mse" not in record
