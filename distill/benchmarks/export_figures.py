"""What ``distill bench export`` measures: files in their runtimes on the same noise picture, and memory in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import ConfigurationError

PICTURES_AT_ONCE = 4


@dataclass(frozen=True)
class Contender:
    """One file (or the student in torch: ``path`` is its directory) with what is known of it before it is timed.

    ``kind`` is the format of this project's exports, "student" or "black box"; ``metrics`` are AUC, avg L2 and what the
    gate found; ``withheld`` the reason why there is no file.
    """

    name: str
    kind: str
    precision: str
    pixels: str = "float32"
    path: Path = Path()
    bytes: int = 0
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    withheld: str = ""


def call_of(contender: Contender, pictures: int, people: int) -> Callable[[], Any]:
    """Open ``contender`` and give what runs it once on ``pictures`` noise pictures of its input size with ``people`` heads each."""
    import numpy as np
    import torch

    from distill.throughput import noise

    if contender.kind in ("student", "black box"):
        model: Any
        if contender.kind == "student":
            from teachers.weights import load_model

            model = load_model(contender.path)[0].eval()
        else:
            from teachers.onnx_teacher import OnnxTeacher

            model = OnnxTeacher(contender.path, device="cpu")
        batch = noise(model.input_size, pictures, people)
        given = batch.images, torch.from_numpy(batch.boxes), torch.from_numpy(batch.image_index)

        def whole() -> None:
            with torch.inference_mode():
                model(*given)

        return whole
    from students.export import open_runtime
    from students.onnx_runtime import read_export
    from students.wanted import Wanted

    description = read_export(contender.path)
    runtime = open_runtime(
        contender.path, Wanted(contender.kind, contender.precision, contender.pixels, description.get("people")), threads=torch.get_num_threads()
    )
    height, width = description["input_size"]
    batch = noise((height, width), pictures, people)
    seen = batch.images.numpy()
    raw = np.rint(seen * 255.0).astype(np.uint8).transpose(0, 2, 3, 1)
    picture = np.ascontiguousarray(raw) if contender.pixels == "uint8" else seen
    return lambda: runtime.run(picture, batch.boxes, batch.image_index.astype(np.int64))


def peak_megabytes(contender: Contender, people: int) -> float:
    """Megabytes by which a process of its own grows when it opens ``contender`` and runs it, beyond its imported libraries."""
    given = {"name": contender.name, "kind": contender.kind, "precision": contender.precision, "pixels": contender.pixels, "path": str(contender.path)}
    code = "import sys; from distill.benchmarks.export_figures import report_memory; report_memory(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(given), str(people)], capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConfigurationError(f"{contender.path} could not be run in a process of its own: {last[0][:200]}")
    return float(done.stdout.split()[-1])


def report_memory(text: str, people: str) -> None:
    """In the process of its own: print the megabytes that opening and running the contender took at most."""
    import resource

    given = json.loads(text)
    contender = Contender(**{**given, "path": Path(given["path"])})
    _import_runtimes(contender.kind)

    def most() -> float:
        # Linux hands a parent's ru_maxrss on to what it starts: of the process alone only its status file knows.
        status = Path("/proc/self/status")
        if status.is_file():
            (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
            return int(line.split()[1]) / 1e3
        # Kilobytes on other Unixes, bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

    before = most()
    call = call_of(contender, 1, int(people))
    for _ in range(3):
        call()
    print(most() - before)


def _import_runtimes(kind: str) -> None:
    import torch

    import teachers.onnx_teacher
    import teachers.weights  # noqa: F401  what is imported is not the contender's

    torch.set_num_threads(torch.get_num_threads())
    if kind in ("onnx", "black box"):
        import onnxruntime  # noqa: F401
    if kind == "openvino":
        import openvino  # noqa: F401
    if kind == "litert":
        import ai_edge_litert.interpreter  # noqa: F401


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and least of the times, in milliseconds."""
    ms = [1000.0 * value for value in seconds]
    return {
        "median_ms": round(statistics.median(ms), 3), "p95_ms": round(statistics.quantiles(ms, n=20, method="inclusive")[-1], 3),
        "least_ms": round(min(ms), 3),
    }
