"""What autograd keeps for the backward pass: nothing of the closed prefix, and block inputs alone with recomputation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_world import CNN, VIT, make_batch, make_model, make_trainer

from schedules.stages import Stages, discover_stages
from students.compiling import compile_backbone
from students.errors import TrainingError
from students.recomputing import recompute_blocks
from students.saved import saved_bytes
from teachers.model import GazeModel, ModelConfig

SCHEDULE = {"epochs": 2, "finetune": True, "finetune_layers": 1, "initial_freeze_epochs": 1, "unfreeze_interval": 1, "thaw_coupling": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def opened(config: ModelConfig, blocks: int, stem: bool = False) -> tuple[GazeModel, Stages]:
    model = make_model(config)
    stages = discover_stages(model.backbone)
    model.train()
    stages.apply(model.backbone, blocks, stem)
    return model, stages


def features(model: GazeModel) -> Tensor:
    return model.backbone((make_batch(0).images - model.mean) / model.std)


def grads(model: GazeModel, stages: Stages) -> dict[str, bool]:
    """Whether the output of each block, by its stage's name, needs a gradient."""
    outputs: dict[str, bool] = {}

    def look(name: str) -> Any:
        return lambda module, inputs, output: outputs.__setitem__(name, output.requires_grad)

    handles = [model.backbone.get_submodule(stage.name).register_forward_hook(look(stage.name)) for stage in stages if stage.counted]
    features(model)
    for handle in handles:
        handle.remove()
    return outputs


def test_bytes_are_counted_once_for_each_storage() -> None:
    x = torch.ones(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 400, "both factors are one storage"
    assert saved_bytes(lambda: x.t().exp() + x) == 400
    weight = nn.Parameter(torch.ones(10, 10))
    assert saved_bytes(lambda: (torch.ones(5, 10) @ weight), besides=[weight]) == 200, "a parameter is there anyhow"
    with torch.no_grad():
        assert saved_bytes(lambda: x * x) == 0


@pytest.mark.parametrize("config", [CNN, VIT], ids=["cnn", "vit"])
def test_nothing_is_saved_for_the_closed_prefix(config: ModelConfig) -> None:
    model, stages = opened(config, 0)
    assert saved_bytes(lambda: features(model), besides=model.parameters()) == 0
    kept = []
    for blocks in range(1, stages.blocks + 1):
        stages.apply(model.backbone, blocks, blocks == stages.blocks)
        kept.append(saved_bytes(lambda: features(model), besides=model.parameters()))
        # None of the modules whose stage is closed holds a tensor of the graph: their outputs need no gradient.
        assert grads(model, stages) == {stage.name: index < blocks for index, stage in enumerate(stages) if stage.counted}
    assert kept == sorted(kept) and len(set(kept)) == len(kept) and kept[0] > 0
    if config is VIT:
        # Blocks of a ViT are alike: each adds the same, so a schedule that opens k of n pays k shares.
        assert len({later - earlier for earlier, later in itertools.pairwise(kept[:-1])}) == 1


def test_tokens_that_train_keep_the_whole_backbone_in_the_graph() -> None:
    # The reference left the class token open from epoch 0 and paid for twelve blocks while two were open. Here it is the stem's.
    model, stages = opened(VIT, 1)
    closed = saved_bytes(lambda: features(model), besides=model.parameters())
    model.backbone.net.cls_token.requires_grad_(True)  # type: ignore[union-attr]
    assert saved_bytes(lambda: features(model), besides=model.parameters()) > 3 * closed
    assert stages.of("net.cls_token") == len(stages) - 1


# -- recomputation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [replace(CNN, drop_path=0.5), VIT], ids=["cnn", "vit"])
@pytest.mark.parametrize("share", [0.5, 1.0], ids=["half", "all"])
def test_recomputed_blocks_give_the_same_step_to_the_bit(config: ModelConfig, share: float) -> None:
    found: list[tuple[dict[str, Tensor], dict[str, Tensor], int]] = []
    for recompute in (False, True):
        model, stages = opened(config, 0)
        if recompute:
            recompute_blocks(model.backbone, stages)
        stages.apply(model.backbone, max(1, int(share * stages.blocks)), share == 1.0)
        torch.manual_seed(0)
        features(model).square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        kept = saved_bytes(lambda model=model: features(model), besides=model.parameters())
        found.append((gradients, model.state_dict(), kept))
    (gradients, after, kept), (again, after_again, fewer) = found
    assert gradients.keys() == again.keys() and len(gradients) > 3
    assert all(torch.equal(value, again[name]) for name, value in gradients.items())
    # BatchNorm's statistics moved once, though every block ran twice.
    assert all(torch.equal(value, after_again[name]) for name, value in after.items())
    assert fewer < 0.7 * kept


def test_a_run_with_recomputation_is_the_same_run(tmp_path: Path) -> None:
    runs = [make_trainer(tmp_path / str(flag), CNN, 2, schedule={**SCHEDULE, "epochs": 3}, grad_checkpointing=flag) for flag in (False, True)]
    for trainer, _ in runs:
        trainer.fit()
    states = [trainer.model.state_dict() for trainer, _ in runs]
    assert states[0].keys() == states[1].keys() and all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# -- compilation --------------------------------------------------------------------------------------------------------


def test_what_was_compiled_is_dropped_at_each_thaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr("students.trainer.compile_backbone", lambda backbone, device: called.append((type(backbone).__name__, device.type)))
    trainer, records = make_trainer(tmp_path, VIT, 2, schedule=SCHEDULE, compile=True)
    monkeypatch.setattr("students.trainer.forget_compiled", lambda: called.append(trainer.step))
    trainer.fit()
    assert called == [("TokenBackbone", "cpu"), *(record["step"] for record in records if record["kind"] == "thaw")]
    assert len(called) == 3


def test_a_backend_that_cannot_compile_is_refused_in_one_line() -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler was found\nand a long trace")

    with pytest.raises(TrainingError, match=r"torch.compile does not work on cpu here \(.*\); install a C\+\+ compiler") as caught:
        compile_backbone(make_model(VIT).backbone, torch.device("cpu"), broken)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    torch._dynamo.reset()


@pytest.mark.soak
def test_a_compiled_backbone_trains_alike_over_a_thaw(tmp_path: Path) -> None:
    runs = [make_trainer(tmp_path / str(flag), VIT, 2, schedule=SCHEDULE, compile=flag) for flag in (False, True)]
    for trainer, _ in runs:
        trainer.fit()
    losses = [[record["loss"] for record in records if record["kind"] == "step"] for _, records in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    started = dict(make_model(VIT).named_parameters())
    moved = [{name for name, p in trainer.model.named_parameters() if not torch.equal(p, started[name])} for trainer, _ in runs]
    assert moved[0] == moved[1] and any(name.startswith("backbone.") for name in moved[0])
    torch._dynamo.reset()
