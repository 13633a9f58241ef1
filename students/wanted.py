"""What kind of file an export is to be: format, precision, pictures that go in, number of people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from students.errors import ExportError
from students.onnx_precision import PRECISIONS
from students.onnx_runtime import SUFFIXES

# What may go in, the usual first: "uint8" are raw pictures, "float32" those that the caller has resized.
PIXELS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("uint8", "float32"), "openvino": ("uint8", "float32"), "torch": ("uint8",), "litert": ("float32",), "coreml": ("float32",),
}
OF_FORMAT: Mapping[str, tuple[str, ...]] = {
    "onnx": PRECISIONS, "openvino": PRECISIONS, "torch": ("float32",), "litert": ("float32", "float16"), "coreml": ("float32", "float16"),
}
# Runtimes that want every size known: a call is one picture with this many people, and more people are more calls.
COUNTED = ("litert", "coreml")
PEOPLE = 5
# Why a format lacks a precision, and what to write instead.
LACKS: Mapping[tuple[str, str], str] = {
    ("litert", "int8"): "the quantiser's calibrated recipe makes inputs and outputs int8 as well, boxes included; use --precision float16, or "
    "--format onnx or openvino for int8",
    ("coreml", "int8"): "a Core ML file runs on macOS alone, where its ranges would have to be judged; use --precision float16",
    ("torch", "float16"): "a program keeps the student's own numbers; use --format onnx or openvino",
    ("torch", "int8"): "a program keeps the student's own numbers; use --format onnx or openvino",
}


@dataclass(frozen=True)
class Wanted:
    """``format`` one of onnx, torch, openvino, litert, coreml; ``precision`` one of float32, float16, int8; ``pixels`` "uint8" for raw
    pictures with the resizing inside, "float32" for pictures that the caller resizes, "" for the format's usual; ``people`` in a call, for
    LiteRT and Core ML alone (None: :data:`PEOPLE`). Raises :class:`ExportError` for what does not exist."""

    format: str = "onnx"
    precision: str = "float32"
    pixels: str = ""
    people: int | None = None

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise ExportError(f"format {self.format!r} is not known; there are {', '.join(SUFFIXES)}")
        if self.precision not in PRECISIONS:
            raise ExportError(f"precision {self.precision!r} is not known; there are {', '.join(PRECISIONS)}")
        if self.precision not in OF_FORMAT[self.format]:
            raise ExportError(
                f"format {self.format} is written as {' or '.join(OF_FORMAT[self.format])}, not as {self.precision}: {LACKS[self.format, self.precision]}"
            )
        known = PIXELS[self.format]
        if self.pixels not in ("", *known):
            raise ExportError(f"format {self.format} takes pixels {' or '.join(known)}, not {self.pixels!r} (uint8: raw pictures; float32: resized ones)")
        if self.people is not None and (self.format not in COUNTED or self.people < 1):
            raise ExportError(f"people is {self.people}; only {' and '.join(COUNTED)} have a fixed number, from 1 on; the others take any number")
        object.__setattr__(self, "pixels", self.pixels or known[0])
        if self.format in COUNTED:
            object.__setattr__(self, "people", self.people or PEOPLE)
