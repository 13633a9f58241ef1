"""A model of this project as a teacher: devices, precisions, compilation, one backbone pass an image, ``timm:`` decoders, arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill import throughput
from distill.cli import build_parser, main
from distill.console import Bar
from distill.fetching import download_progress
from distill.teacher_options import fill_in_teacher, teacher_words
from distill.throughput import Peak, Work, head_boxes, noise, peak_of, ratios, time_each, use_of_device, work_of
from teachers.catalogue import load_model_teacher, load_teacher
from teachers.download import DownloadRecord
from teachers.errors import DeviceError, UnknownModelError, WeightsError
from teachers.model import GazeModel, ModelConfig
from teachers.model_teacher import ModelTeacher, check_device, has_units
from teachers.published import CATALOGUE, TeacherEntry
from teachers.shard_draft import answer
from tests.fixtures import write_folder
from tests.test_catalogue import published_decoder, run

VIT = ModelConfig(backbone="test_vit", input_size=(32, 48), dim=16, layers=1, attention_heads=2, heatmap_size=(8, 8))


def teacher(**options: object) -> ModelTeacher:
    torch.manual_seed(0)
    return ModelTeacher(GazeModel(VIT), "tiny", "0", **options)  # type: ignore[arg-type]


# --- devices, precisions, compilation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cuda", "fp32", "torch sees no GPU here; use --device cpu"),
        ("cuda:1", "bf16", "torch sees no GPU here"),
        ("gpu", "fp32", "device 'gpu' is unknown; give auto, cpu"),
        ("meta", "fp32", "device 'meta' is not supported"),
    ],
)
def test_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str, precision: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=message):
        check_device(device, precision)
    folder = write_folder(tmp_path / "pictures")
    words = ["cache", "build", "--images", str(folder), "--teacher", "demo", "--device", device, "--out", str(tmp_path / "cache")]
    status, _, err = run(capsys, *words)
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "cache").exists()


def test_a_gpu_without_bf16_units_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(DeviceError, match="cuda has no bf16 units; use --precision fp16 or fp32"):
        check_device("cuda", "bf16")
    assert check_device("cuda", "fp16") == torch.device("cuda") and not has_units(torch.device("cuda"), "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert check_device("cuda:0", "bf16") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match=r"torch sees 1 GPU\(s\) here, from cuda:0 on"):
        check_device("cuda:1")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cpu_gives_the_precision_with_or_without_units(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported", "_is_avx512_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not has_units(torch.device("cpu"), precision) and has_units(torch.device("cpu"), "fp32")
    batch = noise((32, 48), 2, 3)
    exact, rough = batch.run(teacher())[0], batch.run(teacher(precision=precision))[0]
    assert 0 < np.abs(exact - rough).max() < 0.03 * np.abs(exact).max()
    assert teacher(precision=precision).fingerprint["precision"] == precision


def test_a_compiled_teacher_is_the_same_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, object]] = []

    def compile_eagerly(model: GazeModel, **options: object) -> GazeModel:
        compiled.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain, fast = teacher(), teacher(compiled=True)
    assert compiled == [{}] and fast.fingerprint == plain.fingerprint
    batch = noise((32, 48), 1, 2)
    assert np.array_equal(batch.run(fast)[0], batch.run(plain)[0])


def test_a_compilation_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(model: GazeModel, **_: object) -> object:
        def first(*_: object) -> None:
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

        return first

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(DeviceError, match=r"--compile failed here \(.*no C\+\+ compiler.*\); leave it out"):
        noise((32, 48), 1, 1).run(teacher(compiled=True))


@pytest.mark.soak
def test_a_compiled_teacher_gives_the_same_maps() -> None:
    plain, fast = teacher(), teacher(compiled=True)
    for images, heads in ((1, 1), (2, 3), (3, 2)):
        batch = noise((32, 48), images, heads)
        assert np.abs(batch.run(fast)[0] - batch.run(plain)[0]).max() < 1e-4


# --- fast ---------------------------------------------------------------------------------------------------------------


def test_the_backbone_sees_each_picture_once_and_the_decoder_all_heads_at_once() -> None:
    subject, seen = teacher(), list[tuple[str, int]]()
    subject.model.backbone.register_forward_pre_hook(lambda _, given: seen.append(("backbone", len(given[0]))))
    subject.model.decoder.transformer.register_forward_pre_hook(lambda _, given: seen.append(("decoder", len(given[0]))))
    batch = noise((32, 48), 3, 5)
    together = batch.run(subject)[0]
    assert seen == [("backbone", 3), ("decoder", 15)] and together.shape == (15, 8, 8)
    apart = np.concatenate([answer(subject, batch.images[i : i + 1], batch.boxes[:1] * 0 + box, np.zeros(1, int))[0]
                            for i in range(3) for box in batch.boxes[5 * i : 5 * i + 5]])
    assert np.abs(apart - together).max() < 1e-5


def test_attention_is_fused() -> None:
    model = GazeModel(VIT)
    layers = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert len(layers) == len(model.backbone.trunk.blocks) + VIT.layers  # type: ignore[union-attr,arg-type]
    assert all(layer.fused_attn for layer in layers)
    operations: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            operations.append(str(function))
            return function(*args, **(kwargs or {}))

    batch = noise((32, 48), 1, 1)
    with torch.no_grad(), Watch():
        model.eval()(batch.images, torch.from_numpy(batch.boxes), torch.from_numpy(batch.image_index))
    assert sum("scaled_dot_product" in name for name in operations) == len(layers)


def test_pictures_are_stacked_by_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, pictures = teacher(), [torch.rand(3, 4, 4) for _ in range(2)]
    assert torch.equal(subject.stack(pictures), torch.stack(pictures))
    # On a GPU they go to page-locked memory, which only a machine with one can give.
    asked: list[bool] = []
    empty = torch.empty

    def watched(*size: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*size, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "empty", watched)
    subject._device = torch.device("cuda")
    assert torch.equal(subject.stack(pictures), torch.stack(pictures)) and asked == [True]


# --- timm: teachers -----------------------------------------------------------------------------------------------------


def write_decoder(path: Path, *, grid: tuple[int, int] = (2, 3), channels: int = 64, encoded: bool = True, layers: int = 2) -> Path:
    config = ModelConfig(backbone="test_vit", input_size=(32, 48), dim=32, layers=layers, inout="linear")
    tensors = published_decoder(config, channels, grid, seed=3)
    if not encoded:
        del tensors["pos_embed"]
    torch.save(tensors, path)
    return path


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    square = GazeModel(replace(VIT, input_size=(32, 32)))
    torch.save(square.backbone.trunk.state_dict(), tmp_path / "backbone.pt")
    return tmp_path / "backbone.pt"


@pytest.mark.parametrize(
    ("encoded", "input_size", "expected"), [(True, None, (32, 48)), (True, (32, 48), (32, 48)), (False, (48, 64), (48, 64)), (False, None, (448, 448))]
)
def test_the_decoder_file_says_what_it_is(
    tmp_path: Path, backbone: Path, encoded: bool, input_size: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    file = write_decoder(tmp_path / "decoder.pt", encoded=encoded)
    made = load_model_teacher("timm:test_vit", weights=file, backbone_weights=backbone, input_size=input_size)
    config = made.model.config
    assert (config.input_size, config.dim, config.layers, config.inout) == (expected, 32, 2, "linear")
    assert config.mean == (0.5, 0.5, 0.5)  # test_vit's own in timm
    assert made.fingerprint["input_size"] == list(expected)


@pytest.mark.parametrize(
    ("name", "options", "words", "message"),
    [
        ("timm:test_vit", {}, ["--input-size", "64"], "grid of 2 x 3 cells; test_vit at 64 x 64 pixels has 4 x 4 (patches of 16); use --input-size 32x48"),
        ("timm:test_vit", {}, ["--input-size", "40x48"], "input size 40×48 is no multiple of the 16-pixel patches"),
        ("timm:vit_base_patch14_dinov2", {}, [], "backbone of 64 channels, vit_base_patch14_dinov2 has 768; give the one"),
        ("timm:resnet18", {}, [], "resnet18 is no plain ViT"),
        ("timm:vit_bse_patch16_dinov3", {}, [], "unknown backbone 'vit_bse_patch16_dinov3'; nearest: vit_base_patch16_dinov3"),
        ("demo", {}, [], "--weights cannot be used with teacher demo"),
        ("demo", {}, ["--input-size", "0"], "'0' is no size"),
    ],
)
def test_a_decoder_that_does_not_fit_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: dict[str, object], words: list[str], message: str
) -> None:
    file = write_decoder(tmp_path / "decoder.pt", **options)  # type: ignore[arg-type]
    command = ["teachers", "check", name, "--weights", str(file), *words]
    if "no size" in message:
        with pytest.raises(SystemExit):
            main(command)
        err = capsys.readouterr().err
    else:
        status, _, err = run(capsys, *command)
        assert status == 2
    assert message in err and err.count("\n") == 1


def test_what_is_no_decoder_is_refused(tmp_path: Path, backbone: Path) -> None:
    with pytest.raises(WeightsError, match=r"backbone\.pt is no Gaze-LLE decoder \(it lacks linear\.weight"):
        load_teacher("timm:test_vit", weights=backbone)


def test_a_backbone_is_not_taken_from_a_black_box(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a black box"):
        load_model_teacher("onnx:model.onnx")


def test_the_command_of_a_cache_makes_the_same_teacher() -> None:
    given = ["--weights", "d.pt", "--backbone-weights", "b.pt", "--input-size", "512x640", "--precision", "bf16", "--adapter", "a.toml"]
    parse = build_parser().parse_args
    built = parse(["cache", "build", "--data", "x", "--out", "c", "--teacher", "t", *given, "--compile"])
    words = teacher_words(built)
    assert words == given[:6] + ["--adapter", "a.toml", "--precision", "bf16"]
    verify = parse(["cache", "verify", "c"])
    fill_in_teacher(verify, ["distill", "cache", "build", "--data", "x", "--teacher", "t", "--views", "2", *words])
    assert (verify.teacher, verify.input_size, verify.precision, verify.adapter) == ("t", (512, 640), "bf16", "a.toml")
    assert (verify.weights, verify.backbone_weights) == (Path("d.pt"), Path("b.pt"))
    mine = parse(["cache", "verify", "c", "--teacher", "other", "--precision", "fp32"])
    fill_in_teacher(mine, ["--teacher", "t", *words])
    assert (mine.teacher, mine.weights, mine.precision) == ("other", None, "fp32")


# --- arithmetic ---------------------------------------------------------------------------------------------------------


def test_operations_are_counted_by_image_and_by_head() -> None:
    model = GazeModel(VIT)
    work = work_of(model)
    for images, heads in ((1, 1), (2, 3)):
        batch = noise((32, 48), images, heads)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(batch.images, torch.from_numpy(batch.boxes), torch.from_numpy(batch.image_index))
        assert work.of(images, images * heads) == counter.get_total_flops()
    # A head by hand: 7 tokens (2 x 3 cells and the in/out token) of 16 channels, in one block.
    tokens, dim = 7, 16
    block = 2 * tokens * dim * (3 * dim + dim + 8 * dim) + 2 * 2 * tokens * tokens * dim
    ends = 2 * 6 * dim * 4 * dim + 2 * 24 * dim + 2 * dim * 128 + 2 * 128
    assert work.per_head == block + ends


def test_the_peak_is_the_data_sheets_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, precision, rate in (
        ("NVIDIA H200", "bf16", 989.4e12), ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12), ("NVIDIA L4", "fp16", 121e12), ("NVIDIA L40S", "fp16", 362e12),
        ("NVIDIA H100 PCIe", "bf16", 756.4e12),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_of(torch.device("cuda"), precision).per_second == rate
    measured = peak_of(torch.device("cpu"), "fp32")
    assert 1e8 < measured.per_second < 1e15 and measured.source == "measured: 1024 x 1024 matrix product in fp32"


def test_mfu_is_achieved_over_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "work_of", lambda _: Work(2e9, 1e9))
    monkeypatch.setattr(throughput, "peak_of", lambda *_: Peak(2e12, "data sheet of X"))
    facts = use_of_device(teacher(), images=4, heads=8, seconds=0.016)
    assert facts == {"gflop_image": 2.0, "gflop_head": 1.0, "tflop_s": 1.0, "peak_tflop_s": 2.0, "peak_source": "data sheet of X", "mfu": 0.5}
    black_box = SimpleNamespace()
    assert set(use_of_device(black_box, 1, 1, 1.0).values()) == {None}  # type: ignore[arg-type]


def test_sides_are_run_in_turn() -> None:
    order: list[str] = []
    times = time_each({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3 and [(len(each.wall), len(each.cpu)) for each in times.values()] == [(2, 2), (2, 2)]
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (2.0, 1.0, 3.0)
    assert ratios([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0)  # a clock that counts in ticks
    assert head_boxes(2).tolist() == [[0.125, pytest.approx(0.1), 0.375, pytest.approx(0.4)], [0.625, pytest.approx(0.1), 0.875, pytest.approx(0.4)]]


def test_the_benchmark_measures_both_sides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "gazelle_tiny", TeacherEntry(VIT, "", "MIT", "", 0.1))
    words = ["bench", "teacher", "--random", "gazelle_tiny", "--images", "2", "--heads", "3", "--rounds", "3", "--batch", "2"]
    status, out, _ = run(capsys, *words, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["teacher"] == "random gazelle_tiny" and facts["precision"] == "fp32"
    build, forward = facts["build_s"]["median"], facts["forward_s"]["median"]
    assert build > 0 and forward > 0 and facts["images_per_s"] == pytest.approx(2 / forward, rel=0.01)
    assert facts["heads_per_s"] == pytest.approx(3 * facts["images_per_s"], rel=0.01)
    for name in ("pipeline_over_forward", "pipeline_over_forward_cpu", "samples_over_one_image_cpu"):
        middle, low, high = facts[name]
        assert low <= middle <= high
    assert facts["share_not_forward"] == pytest.approx(1 - 1 / (1 + facts["pipeline_over_forward"][0]), abs=1e-3)
    assert facts["gflop_image"] > 0 and facts["bar_pipeline_over_forward"] == 0.1
    assert run(capsys, *words)[0] == 0
    status, _, err = run(capsys, "bench", "teacher", "--random", "gazelle_tyni")
    assert status == 2 and "nearest: gazelle_tiny" in err
    assert run(capsys, "bench", "teacher", "--rounds", "2")[0] == 2


def test_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match="unknown precision 'fp8'"):
        check_device("cpu", "fp8")


def test_a_download_is_shown_in_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int, int, int]] = []
    update = Bar.update

    def watched(self: Bar, count: int = 1, **facts: object) -> None:
        update(self, count, **facts)
        shown.append((self.title, self.done, self.total, self._before))

    monkeypatch.setattr(Bar, "update", watched)
    with download_progress() as report:
        for done in (1_500_000, 1_600_000, 2_100_000, 3_200_000):
            report(DownloadRecord("a.pt", done, 3_200_000, 1_500_000))
        report(DownloadRecord("b.pt", 5_000_000, None, 0))
    assert shown == [("Fetching a.pt", 2, 4, 1), ("Fetching a.pt", 4, 4, 1)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_crowd_goes_through_the_decoder_some_heads_at_a_time(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    batch = noise(VIT.input_size, 2, 4)
    whole, inout = batch.run(teacher(precision=precision))
    assert inout is not None
    monkeypatch.setattr("teachers.model_teacher.HEADS_AT_ONCE", 3)
    crowded = teacher(precision=precision)
    sizes: list[int] = []
    crowded.model.decoder.register_forward_hook(lambda module, given, output: sizes.append(len(given[1])))
    some, voices = batch.run(crowded)
    assert sizes == [3, 3, 2] and voices is not None
    tolerance = 1e-5 if precision == "fp32" else 0.1
    np.testing.assert_allclose(some, whole, atol=tolerance)
    np.testing.assert_allclose(voices, inout, atol=tolerance)
