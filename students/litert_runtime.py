"""The student as a LiteRT (TensorFlow Lite) file: converted in an environment of its own, run here by LiteRT's own small runtime.

The converter (PyPI ``litert-torch`` 0.10: torch below 2.15) pins a torch, so it is never an extra of this package. What travels to its
environment is a ``torch.export`` program, which torch opens without this package.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from students.errors import ExportError
from students.fixed_people import fixed_program, in_calls, split_answers
from teachers.model import GazeModel

CONVERTER = "litert_torch"
VARIABLE = "DISTILL_LITERT_PYTHON"
SCRIPT = Path(__file__).with_name("litert_script.py")
PROBE = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({CONVERTER!r}) is None)"
INSTALL = f"`python -m venv litert && litert/bin/pip install litert-torch`, then give --converter-python litert/bin/python or set {VARIABLE}"


def converter_python(given: str | None) -> str:
    """The Python that has LiteRT's converter: ``given``, the one in the environment variable, or this one.

    Raises :class:`ExportError` with the commands that make such an environment where none of them has it.
    """
    named = given or os.environ.get(VARIABLE)
    chosen = named or sys.executable
    try:
        done = subprocess.run([chosen, "-c", PROBE], capture_output=True, text=True, check=False, env=_bare())
    except OSError as error:
        raise ExportError(f"{chosen} is no Python that can be run ({error.strerror}); run {INSTALL}") from None
    if done.returncode:
        why = "it pins a torch of its own, so it is not installed beside this one" if not named else "see the last line of its `pip install`"
        raise ExportError(f"LiteRT's converter {CONVERTER} is not in {chosen} ({why}); run {INSTALL}")
    return chosen


def write_litert(student: GazeModel, path: Path, *, people: int, precision: str, python: str, plain: Path) -> None:
    """Convert ``student`` to ``path``, in the environment of ``python``; ``plain`` is where the float32 file goes that a float16
    one is made from. Raises :class:`ExportError` with the converter's last words."""
    with tempfile.TemporaryDirectory(prefix="distill-litert-") as folder:
        program = Path(folder) / "student.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own making
            torch.export.save(fixed_program(student, people, channels_last=True), str(program))
        command = [python, str(SCRIPT), str(program), str(path if precision == "float32" else plain)]
        if precision != "float32":
            command.append(str(path))
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_bare())
        if done.returncode or not path.is_file():
            last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:] or ["it said nothing"]
            raise ExportError(
                f"LiteRT's converter in {python} gave up: {last[0][:200]}; `{python} -m pip install --upgrade litert-torch`, or export to onnx"
            )


def _bare() -> dict[str, str]:
    """Without this process's search path: the other Python has to find its own torch."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


class LiteRtGaze:
    """A file at ``path`` for ``people`` heads a call, run by LiteRT on the CPU; any number of pictures and heads by as many calls.

    ``threads`` None: as many as LiteRT likes. Raises ``ImportError`` where ``ai-edge-litert`` is not installed.
    """

    pixels = "float32"

    def __init__(self, path: Path, *, people: int, threads: int | None = None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.people = people
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._run: Any = self._interpreter.get_signature_runner()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ExportError(f"LiteRT cannot open {path} ({reason}); `pip install --upgrade ai-edge-litert`, or export again") from None

    def run(self, pictures: np.ndarray, boxes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        rows_first = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))
        return in_calls(
            lambda picture, asked: split_answers(self._run(images=picture, boxes=np.ascontiguousarray(asked))),
            self.people, rows_first, boxes, image_index,
        )
