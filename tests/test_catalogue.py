"""How a name becomes a teacher: the catalogue, published files, downloads that break off, and `distill teachers`."""

from __future__ import annotations

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.cli import main
from teachers.catalogue import load_teacher, pull, store
from teachers.convert import assemble, decoder_tensors
from teachers.decoder import GazelleDecoder, position_encoding
from teachers.download import sha256_of
from teachers.errors import UnknownModelError, WeightsError
from teachers.model import GazeModel, ModelConfig
from teachers.pretrained import packaged_weights
from teachers.published import CATALOGUE, TeacherEntry
from teachers.weights import read_description, save_model, tensors_digest

TINY = ModelConfig(
    backbone="tf_efficientnet_lite0", input_size=(32, 32), levels=(2, 3), dim=16, layers=2, attention_heads=2, heatmap_size=(8, 8)
)


def published_decoder(config: ModelConfig, channels: int, grid: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """A decoder file as Gaze-LLE publishes it: random weights, the position encoding beside them."""
    torch.manual_seed(seed)
    decoder = GazelleDecoder(
        channels, grid, config.heatmap_size, dim=config.dim, layers=config.layers, attention_heads=config.attention_heads, inout=config.inout
    )
    return {"pos_embed": position_encoding(config.dim, *grid), **decoder.state_dict()}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue with one further entry, ``gazelle_tiny``, whose published file lies on this disk; an empty store."""
    path = tmp_path / "release" / "tiny.pt"
    path.parent.mkdir()
    channels = GazeModel(TINY).backbone.channels
    torch.save(published_decoder(TINY, channels, (2, 2)), path)
    monkeypatch.setenv("GAZE_DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(CATALOGUE, "gazelle_tiny", TeacherEntry(TINY, path.as_uri(), "MIT", "GazeFollow .5 / .4 / .3", 0.4))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_an_unknown_teacher_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UnknownModelError, match="unknown teacher 'gazelle_dinov2_vitb15'; nearest: gazelle_dinov2_vitb14"):
        load_teacher("gazelle_dinov2_vitb15")
    with pytest.raises(UnknownModelError, match="nearest: demo"):
        load_teacher("dem")
    with pytest.raises(UnknownModelError, match="`distill teachers list` lists them all"):
        pull("nothing_like_it")


def test_a_bare_backbone_needs_a_decoder() -> None:
    with pytest.raises(WeightsError, match="timm:vit_base_patch14_dinov2 needs --weights FILE"):
        load_teacher("timm:vit_base_patch14_dinov2")


@pytest.mark.parametrize("inout", ["mlp", "linear", "none"])
def test_a_bare_backbone_takes_its_decoder_from_the_file(tmp_path: Path, inout: str) -> None:
    pixels = ModelConfig(backbone="test_vit", input_size=(448, 448), dim=32, layers=3, inout=inout)
    decoder = published_decoder(pixels, 64, (28, 28), seed=3)
    torch.save(decoder, tmp_path / "decoder.pt")
    torch.manual_seed(4)
    backbone = GazeModel(pixels).backbone.trunk.state_dict()
    torch.save(backbone, tmp_path / "backbone.pt")
    teacher = load_teacher("timm:test_vit", weights=tmp_path / "decoder.pt", backbone_weights=tmp_path / "backbone.pt")
    assert teacher.has_inout == (inout != "none") and teacher.model.config.inout == inout
    found = teacher.model.state_dict()
    assert torch.equal(found["decoder.linear.weight"], decoder["linear.weight"])
    assert torch.equal(found["backbone.net.pos_embed"], backbone["pos_embed"])
    assert teacher.fingerprint["weights"] == tensors_digest(found)


def test_an_unknown_precision_is_refused(tiny: Path) -> None:
    with pytest.raises(UnknownModelError, match="unknown precision 'fp8'"):
        load_teacher("gazelle_tiny", precision="fp8")


def test_a_published_file_becomes_a_teacher(tiny: Path) -> None:
    tensors = torch.load(tiny, weights_only=True)
    model = assemble(TINY, tiny, None)
    assert not model.training
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.decoder.state_dict().items())
    packaged = packaged_weights("tf_efficientnet_lite0")
    assert packaged is not None
    assert all(torch.equal(tensor, packaged[name]) for name, tensor in model.backbone.trunk.state_dict().items())


def test_a_file_of_another_architecture_is_refused(tiny: Path) -> None:
    tensors = torch.load(tiny, weights_only=True)
    assert "pos_embed" not in decoder_tensors(tensors, TINY, (2, 2), "file")
    for wrong in (position_encoding(16, 4, 4), tensors["pos_embed"] + 0.01):
        with pytest.raises(WeightsError, match="has a position encoding"):
            decoder_tensors({**tensors, "pos_embed": wrong}, TINY, (2, 2), "file")
    del tensors["head_token.weight"]
    torch.save(tensors, tiny)
    with pytest.raises(WeightsError, match=r"1 missing: head_token\.weight"):
        assemble(TINY, tiny, None)


def test_a_teacher_is_pulled_once_and_loads_from_the_store(tiny: Path) -> None:
    teacher = load_teacher("gazelle_tiny")
    directory = store() / "gazelle_tiny"
    description = read_description(directory)
    assert description["facts"] == {"source": tiny.as_uri(), "licence": "MIT", "sha256": sha256_of(tiny)}
    assert teacher.fingerprint == {
        "name": "gazelle_tiny", "weights": description["weights_digest"], "architecture": description["config"], "input_size": [32, 32],
        "preprocessing": "squash, antialiased bilinear, float", "precision": "fp32",
    }
    json.dumps(teacher.fingerprint)
    tiny.unlink()  # neither the file
    (store() / "downloads" / "tiny.pt").unlink()  # nor the download is looked at again
    again = load_teacher("gazelle_tiny")
    assert again.fingerprint == teacher.fingerprint
    images, boxes, index = torch.rand(2, 3, 32, 32), torch.tensor([[0.1, 0.1, 0.6, 0.6]]), torch.tensor([1])
    output = teacher(images, boxes, index)
    assert output.heatmap.shape == (1, 8, 8) and output.heatmap.dtype == torch.float32 and not output.heatmap.requires_grad
    assert torch.equal(again(images, boxes, index).heatmap, output.heatmap)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters()) and not teacher.model.training


def test_bf16_is_another_teacher_with_nearly_the_same_answers(tiny: Path) -> None:
    exact, rough = load_teacher("gazelle_tiny"), load_teacher("gazelle_tiny", precision="bf16")
    assert exact.fingerprint != rough.fingerprint
    torch.manual_seed(0)
    images, boxes, index = torch.rand(2, 3, 32, 32), torch.tensor([[0.1, 0.1, 0.6, 0.6], [0.3, 0.0, 0.9, 0.5]]), torch.tensor([1, 0])
    one, other = exact(images, boxes, index), rough(images, boxes, index)
    assert other.heatmap.dtype == torch.float32 and other.inout is not None and other.inout.dtype == torch.float32
    difference = float((one.heatmap - other.heatmap).abs().max())
    assert 0 < difference < 0.05 * float(one.heatmap.abs().max()) + 0.05


def test_convert_check_and_list_from_the_command_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "teachers" / "mine"
    status, text, _ = run(capsys, "teachers", "convert", str(tiny), "--arch", "gazelle_tiny", "--out", str(out))
    assert status == 0 and read_description(out)["weights_digest"] in text
    assert read_description(out)["name"] == "mine"
    assert read_description(out)["facts"] | {"parameters_m": 0} == {
        "source": "tiny.pt", "sha256": sha256_of(tiny), "licence": "MIT", "metrics": "GazeFollow .5 / .4 / .3", "parameters_m": 0,
    }

    status, text, _ = run(capsys, "teachers", "check", str(out), "--json")
    facts = json.loads(text)
    assert status == 0 and facts["finite"] is True and facts["name"] == "mine"
    assert facts["digest"] == read_description(out)["weights_digest"]
    assert (facts["input_size"], facts["heatmap_size"], facts["inout"], facts["device"]) == ([32, 32], [8, 8], True, "cpu")

    half = tmp_path / "teachers" / "half"
    assert run(capsys, "teachers", "convert", str(out), "--out", str(half), "--half", "--name", "small")[0] == 0
    assert read_description(half)["name"] == "small"
    sizes = [(directory / "model.safetensors").stat().st_size for directory in (half, out)]
    assert 0.5 < sizes[0] / sizes[1] < 0.6

    status, text, _ = run(capsys, "teachers", "list", "--json")
    entries = {entry["name"]: entry for entry in json.loads(text)}
    assert status == 0 and set(CATALOGUE) <= set(entries)
    assert entries["gazelle_tiny"]["here"] is False and entries["gazelle_tiny"]["parameters"] == 0.4
    assert entries["gazelle_tiny"]["source"] == tiny.as_uri()
    assert run(capsys, "teachers", "pull", "gazelle_tiny")[0] == 0
    entries = {entry["name"]: entry for entry in json.loads(run(capsys, "teachers", "list", "--json")[1])}
    assert entries["gazelle_tiny"]["here"] is True and entries["gazelle_dinov2_vitl14"]["here"] is False


def test_a_teacher_that_answers_nonsense_fails_its_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("heatmap_head", "inout_head"):
        model = GazeModel(TINY)
        with torch.no_grad():
            next(getattr(model.decoder, part).parameters()).fill_(float("nan"))
        save_model(tmp_path / part, model, part, {})
        status, text, _ = run(capsys, "teachers", "check", str(tmp_path / part), "--json")
        assert status == 1 and json.loads(text)["finite"] is False


def test_a_file_of_another_entry_is_refused_and_nothing_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"gazelle_wide": {"dim": 32}, "gazelle_short": {"layers": 1}, "gazelle_still": {"inout": "none"}, "gazelle_linear": {"inout": "linear"}}
    for name, change in others.items():
        entry = TeacherEntry(replace(TINY, **change), "file:///gone.pt", "MIT", "", 0.4)  # type: ignore[arg-type]
        monkeypatch.setitem(CATALOGUE, name, entry)
        status, out, err = run(capsys, "teachers", "convert", str(tiny), "--arch", name, "--out", str(tmp_path / "new"))
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert re.search("does not fit this architecture|position encoding", err), err
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "gone.pt", "--out", "new"), "gone.pt does not exist"),
        (("convert", "FILE", "--out", "new"), r"--arch is missing, which says what \S+tiny\.pt is; its tensors are those of gazelle_tiny: give it with --arch"),
        (("convert", "page.pt", "--out", "new"), r"page\.pt is no plain checkpoint of tensors"),
        (("convert", "other.pt", "--out", "new"), r"--arch is missing, which says what other\.pt is; `distill teachers list` has the names"),
        (("convert", "held", "--arch", "gazelle_tiny", "--out", "new"), "--arch is for a published file, and held is a directory"),
        (("convert", "held", "--backbone", "b.pt", "--out", "new"), "--backbone is for a published file, and held is a directory"),
        (("convert", "FILE", "--arch", "gazelle_tyni", "--out", "new"), "nearest: gazelle_tiny"),
        (("convert", "FILE", "--arch", "gazelle_tiny", "--backbone", "gone.pt", "--out", "new"), "gone.pt does not exist"),
        (("convert", "FILE", "--arch", "gazelle_tiny", "--out", "held"), "held already holds a model"),
        (("check", "nowhere"), "unknown teacher 'nowhere'"),
        (("check", "page.pt"), r"page\.pt is a file, and a teacher is a directory that holds model\.json; make one with `distill teachers convert page\.pt"),
        (("check", "held/model.json"), r"held/model\.json is a file, and a teacher is a directory that holds model\.json; give held"),
        (("pull", "demo"), "teacher 'demo' comes with this package: there is nothing to fetch"),
        (("check", "held", "--device", "cuda"), "torch sees no GPU"),
        (("pull", "gazelle_dinov2_vitb"), "nearest: gazelle_dinov2_vitb14"),
        (("pull", "gazelle_dinov2_vitb14"), "could not be fetched .* put it at .*downloads/gazelle_dinov2_vitb14.pt"),
    ],
)
def test_what_can_be_mended_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # no test waits for a name server
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "model.json").write_text("{}")
    (tmp_path / "page.pt").write_text("<html>404: Not Found</html>")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    status, out, err = run(capsys, "teachers", *(str(tiny) if word == "FILE" else word for word in arguments))
    assert status == 2 and out == "" and err.count("\n") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "new").exists()


def test_a_backbone_that_cannot_be_had_is_no_fault_of_the_file(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("test_vit", (32, 32), dim=16, layers=1, attention_heads=2, heatmap_size=(8, 8))
    torch.save(published_decoder(config, 64, (2, 2)), tiny)
    monkeypatch.setitem(CATALOGUE, "gazelle_tiny", TeacherEntry(config, tiny.as_uri(), "MIT", "", 0.4))
    with pytest.raises(WeightsError, match=r"weights of test_vit could not be fetched from https://huggingface\.co/timm/test_vit\S+ \(.*--backbone FILE") as caught:
        pull("gazelle_tiny")
    assert "delete it" not in str(caught.value) and not (store() / "gazelle_tiny").exists()


def test_a_backbone_given_too_late_is_told_of(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "teachers", "pull", "gazelle_tiny")
    assert status == 0 and "warning" not in err
    status, _, err = run(capsys, "teachers", "pull", "gazelle_tiny", "--backbone", "b.pt")
    assert status == 0 and f"only verified: b.pt is not used; delete {store() / 'gazelle_tiny'} to make it anew" in err


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_list_can_be_read_in_any_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> None:
    monkeypatch.setattr("distill.console.result_width", lambda: columns)
    status, out, _ = run(capsys, "teachers", "list")
    lines = [line for line in out.splitlines() if "gazelle_dinov3_vits16plus_inout" in line]
    assert status == 0 and len(lines) == 1 and max(map(len, out.splitlines())) <= columns
    assert len(out.splitlines()) < 6 * (len(CATALOGUE) + 2)
    words = " ".join(out.replace("│", " ").replace("┃", " ").split())
    for word in ("VideoAttentionTarget", "vit_base_patch14_dinov2", "31.4 M", "640", "MIT", "Apache-2.0"):
        assert word in words, word


def test_a_conversion_told_as_json(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    status, text, _ = run(capsys, "teachers", "convert", str(tiny), "--arch", "gazelle_tiny", "--out", str(out), "--json")
    facts = json.loads(text)
    assert status == 0 and facts["directory"] == str(out) and facts["weights_digest"] == read_description(out)["weights_digest"]
    assert facts["facts"] == read_description(out)["facts"] and facts["megabytes"] > 0


def test_processes_that_pull_one_teacher_at_once_make_it_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of one launch do; each would write the same files, and take the other's away."""
    made: list[str] = []
    both = threading.Barrier(2)

    def watched(*given: object) -> GazeModel:
        made.append("")
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # for another one that gets as far
        return assemble(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("teachers.catalogue.assemble", watched)
    with ThreadPoolExecutor(2) as pool:
        pulled = list(pool.map(pull, ["gazelle_tiny"] * 2))
    assert len(made) == 1 and pulled[0].weights_digest == pulled[1].weights_digest
    assert sorted(path.name for path in store().iterdir()) == ["downloads", "gazelle_tiny"]


def test_a_damaged_download_is_not_stored_as_a_teacher(tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"is (damaged or cut short|no plain checkpoint)"):
        pull("gazelle_tiny")
    assert not (store() / "gazelle_tiny").exists()
