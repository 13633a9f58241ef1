"""Weights on disk: whole or not there, strictly loaded, never unpickled."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import teachers.weights as weights_module
from teachers.errors import WeightsError
from teachers.model import GazeModel, ModelConfig
from teachers.weights import (
    load_model,
    load_strictly,
    read_checkpoint,
    read_description,
    read_tensors,
    save_model,
    tensors_digest,
    write_atomically,
)

CONFIG = ModelConfig(backbone="test_efficientnet", input_size=(32, 32), levels=(2, 3), dim=16, layers=1, attention_heads=2, heatmap_size=(4, 4))


def tiny_model(seed: int) -> GazeModel:
    torch.manual_seed(seed)
    return GazeModel(CONFIG).eval()


def answer(model: GazeModel) -> torch.Tensor:
    torch.manual_seed(9)
    with torch.no_grad():
        return model(torch.rand(1, 3, 32, 32), torch.tensor([[0.1, 0.1, 0.6, 0.6]]), torch.tensor([0])).heatmap


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_stored_model_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = tiny_model(1)
    digest = save_model(tmp_path / "a", model, "tiny", {"licence": "MIT"})
    loaded, description = load_model(tmp_path / "a")
    assert sorted(files(tmp_path / "a")) == ["model.json", "model.safetensors"]
    assert description == {
        "format": 1, "name": "tiny", "config": json.loads(json.dumps(CONFIG.to_json())), "weights_digest": digest, "facts": {"licence": "MIT"}
    }
    assert loaded.config == CONFIG and not loaded.training
    assert torch.equal(answer(loaded), answer(model))
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_half_precision_stores_rounded_values_and_loads_float32(tmp_path: Path) -> None:
    model = tiny_model(1)
    whole = save_model(tmp_path / "whole", model, "tiny", {})
    half = save_model(tmp_path / "half", model, "tiny", {}, half=True)
    assert whole != half
    stored, loaded = load_file(tmp_path / "half/model.safetensors"), load_model(tmp_path / "half")[0].state_dict()
    assert half == tensors_digest(stored)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert stored[name].dtype == torch.float16 and loaded[name].dtype == torch.float32
            assert torch.equal(loaded[name], tensor.half().float())
        else:  # BatchNorm counts its batches in integers
            assert torch.equal(stored[name], tensor) and stored[name].dtype == tensor.dtype


def test_what_float16_cannot_hold_is_refused_and_named(tmp_path: Path) -> None:
    model = tiny_model(1)
    with torch.no_grad():
        model.decoder.linear.bias[3] = 70000.0
    with pytest.raises(WeightsError, match=r"decoder\.linear\.bias cannot be stored in float16"):
        save_model(tmp_path, model, "tiny", {}, half=True)
    assert files(tmp_path) == {}


def test_the_digest_sees_names_types_shapes_and_values_but_no_order() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.tensor([[1.0, 9.0], [2.0, 9.0]])[:, 0]}  # other order, other strides
    assert tensors_digest(base) == tensors_digest(same) and len(tensors_digest(base)) == 32
    others = [
        {**base, "a": torch.tensor([1.0, 2.5])},
        {**base, "a": torch.tensor([[1.0, 2.0]])},
        {**base, "a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {**base, "b": torch.tensor(3, dtype=torch.int32)},
        {"a": base["a"]},
        {"c": base["a"], "b": base["b"]},
    ]
    assert len({tensors_digest(other) for other in [base, *others]}) == 7


def test_weights_that_do_not_match_their_digest_are_refused(tmp_path: Path) -> None:
    digest = save_model(tmp_path, tiny_model(1), "tiny", {})
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["decoder.linear.bias"] = tensors["decoder.linear.bias"] + 1e-6
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=f"has digest {tensors_digest(tensors)}, model.json says {digest}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0.bias"), "1 missing: 0.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (lambda t: t.update({"1.weight": torch.zeros(3, 2)}), r"1 misshapen: 1\.weight \(3, 2\) for \(2, 3\)"),
        (lambda t: (t.pop("0.bias"), t.pop("0.weight"), t.update(x=torch.zeros(1))), "2 missing: 0.bias, 0.weight; 1 unexpected: x"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Callable[[dict[str, torch.Tensor]], object], message: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {name: torch.full_like(tensor, 7.0) for name, tensor in before.items()}
    change(tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        load_strictly(module, tensors, "here.pt")
    assert str(caught.value).startswith("here.pt does not fit") and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items()), "loaded in part"


def test_a_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, tiny_model(1), "tiny", {})
    description = json.loads((tmp_path / "model.json").read_text())
    description["config"]["inout"] = "none"
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match=r"5 unexpected: decoder\.inout_head\.0\.bias"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    save_model(tmp_path, tiny_model(1), "tiny", {})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or cut short"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no stored model"),
        ("{", r"model\.json cannot be read"),
        ("[]", "not of format 1"),
        ('{"format": 2}', "not of format 1"),
        ('{"format": 1, "name": "x", "weights_digest": "0", "facts": {}}', "lacks config"),
        ('{"format": 1, "name": 3, "config": {}, "facts": {}}', "lacks name, weights_digest"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    save_model(tmp_path, tiny_model(1), "tiny", {})
    if text is None:
        (tmp_path / "model.json").unlink()
    else:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, tiny_model(1), "tiny", {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors does not exist"):
        load_model(tmp_path)


class Payload:
    """A pickle that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"weight": torch.zeros(2), "hook": Payload(witness)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(witness), protocol=2))
    (tmp_path / "newer.pt").write_bytes(pickle.dumps({"model": Payload(witness)}, protocol=4))
    torch.save({"hook": Payload(witness)}, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    for name in ("evil.pt", "plain.pt", "newer.pt", "older.pt"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # which a user would see as further lines
            with pytest.raises(WeightsError, match=rf"{name} is no plain checkpoint of tensors \(it would run [\w.]+\); only") as caught:
                read_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not witness.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert witness.exists(), "the payload does nothing: the test could not fail"


def test_checkpoints_of_tensors_are_read_in_every_form(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save(tensors, tmp_path / "plain.pt")
    torch.save({"model": tensors, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pt")
    torch.save(tensors, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "safe.safetensors")
    for name in ("plain.pt", "wrapped.pt", "older.pt", "safe.safetensors"):
        found = read_checkpoint(tmp_path / name)
        assert sorted(found) == ["a", "b"] and all(torch.equal(found[key], tensors[key]) for key in found)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1.0}, {0: torch.zeros(1)}, {"state_dict": {"a": torch.zeros(1)}}])
def test_checkpoints_of_anything_else_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="holds something else than named tensors"):
        read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("keep", [0, 10, 300, -8])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"cut\.pt is (damaged or cut short|no plain checkpoint)"):
        read_checkpoint(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"), (b"<html>404: Not Found</html>", "torch.save did not write it"), (pickle.dumps({"a": 1}), "torch.save did not write it"),
        (b"\x80\x04\x95", "torch.save did not write it"),
    ],
)
def test_what_torch_did_not_write_is_said_to_be_none(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "page.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"page\.pt is no plain checkpoint of tensors \({reason}\); only tensors are ever loaded$"):
        read_checkpoint(tmp_path / "page.pt")


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    """torch itself compares no checksums: it would load another number."""
    path = tmp_path / "flipped.pt"
    torch.save({"a": torch.full((1000,), 3.0)}, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((8,), 3.0).numpy().tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["a"][0] != 3.0
    with pytest.raises(WeightsError, match=r"flipped\.pt is damaged or cut short \(Bad CRC-32 for file .*\); fetch or make it again"):
        read_checkpoint(path)


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    reckoned = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.arange(3.0)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(reckoned)
    assert read_checkpoint(tmp_path / "plain.pt")["a"].tolist() == [0.0, 1.0, 2.0]


def test_stored_weights_are_as_open_as_other_new_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_model(tmp_path / "a", tiny_model(1), "tiny", {})
    wanted = (tmp_path / "other").stat().st_mode
    assert {path.name: path.stat().st_mode for path in (tmp_path / "a").iterdir()} == {"model.json": wanted, "model.safetensors": wanted}


def test_missing_checkpoints_are_named(tmp_path: Path) -> None:
    for name in ("gone.pt", "gone.safetensors"):
        with pytest.raises(WeightsError, match=f"{name} does not exist"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(WeightsError, match=r"gone\.safetensors does not exist"):
        read_tensors(tmp_path / "gone.safetensors")


class Stopped(BaseException):
    """Stands for a kill: nothing catches it on purpose."""


def test_a_save_that_is_stopped_anywhere_leaves_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename and flush in turn is the last thing that happens, with and without the cleaning up that a kill leaves out."""
    old, new = tiny_model(1), tiny_model(2)
    outcomes = []
    for cleaning in (True, False):
        for moment in range(12):
            directory = tmp_path / f"{cleaning}{moment}"
            first = save_model(directory, old, "old", {})
            count = 0

            def stopping(real: Callable[..., object], moment: int = moment) -> Callable[..., object]:
                def call(*arguments: object) -> object:
                    nonlocal count
                    count += 1
                    if count > moment:
                        raise Stopped
                    return real(*arguments)

                return call

            with monkeypatch.context() as patch:
                patch.setattr(weights_module.os, "replace", stopping(os.replace))
                patch.setattr(weights_module.os, "fsync", stopping(os.fsync))
                if not cleaning:
                    patch.setattr(Path, "unlink", lambda *_, **__: None)
                try:
                    save_model(directory, new, "new", {})
                    ended = True
                except Stopped:
                    ended = False
            model, description = load_model(directory)
            expected = new if description["name"] == "new" else old
            assert torch.equal(answer(model), answer(expected))
            assert read_description(directory)["weights_digest"] == tensors_digest(expected.state_dict())
            outcomes.append((ended, description["name"]))
            if not ended and description["name"] == "old" and cleaning:
                assert description["weights_digest"] == first
                assert not [path for path in directory.iterdir() if path.suffix == ".tmp"]
            # What was left lying about hinders no later save.
            save_model(directory, old, "third", {})
            assert read_description(directory)["name"] == "third"
            if ended:
                break
    assert {(False, "old"), (False, "new"), (True, "new")} == set(outcomes)


def test_a_full_disk_names_the_file_and_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, tiny_model(1), "old", {})
    before = files(tmp_path)

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(weights_module, "save_file", full)
        with pytest.raises(WeightsError, match=r"model\.safetensors.* could not be written .*No space left"):
            save_model(tmp_path, tiny_model(2), "new", {})
    assert files(tmp_path) == before

    def refused(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module.os, "fsync", refused)
    with pytest.raises(OSError, match=r"No space left on device: '.*notes\.json'"):
        write_atomically(tmp_path / "notes.json", b"{}")
    assert files(tmp_path) == before


def test_write_atomically_replaces_whole_files(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new/folder/a.json", b"one")
    write_atomically(tmp_path / "new/folder/a.json", b"two")
    assert files(tmp_path / "new/folder") == {"a.json": b"two"}


def test_another_drop_path_or_heatmap_size_loads_the_same_tensors(tmp_path: Path) -> None:
    # Neither has tensors of its own: a student may be fine-tuned with another rate.
    model = tiny_model(1)
    other = GazeModel(replace(CONFIG, drop_path=0.3, heatmap_size=(8, 8)))
    load_strictly(other, model.state_dict(), "the same")
    assert answer(other.eval()).shape == (1, 8, 8)
