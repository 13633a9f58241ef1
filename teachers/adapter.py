"""What has to be known of an ONNX file to use it as a teacher: a small declaration, its adapter.

Written as TOML or JSON beside the file (``model.adapter.toml``), given by name or path, or one of :data:`BUILT_IN`, chosen when the
graph's inputs are those that it declares. ``docs/black-box-teachers.md`` explains every key with an example.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from teachers.errors import BlackBoxError

CHOICES: Mapping[str, tuple[str, ...]] = {
    "layout": ("NCHW", "NHWC"),
    "colour": ("RGB", "BGR"),
    "unit": ("normalised", "pixels"),
    "nesting": ("image", "flat", "head"),
    "values": ("auto", "logits", "probabilities"),
    "means": ("in", "out"),
}


@dataclass(frozen=True)
class ImageInput:
    """The picture: ``(value in [0,1] · range − mean) / std``, per channel.

    ``mean`` and ``std`` are in red, green, blue order and in units of ``range``, whatever the ``colour`` order fed;
    ``size`` is (height, width) in pixels, None: as the graph says.
    """

    input: str
    layout: str = "NCHW"
    colour: str = "RGB"
    range: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class BoxInput:
    """The head boxes, xmin, ymin, xmax, ymax: in [0,1] of the picture (``unit`` normalised) or in its pixels at the input size.

    ``nesting``: "image" ``[1,N,4]``, the heads of one picture a call; "flat" ``[N,4]``, those of one picture, or of several where
    ``image_index`` names an input ``[N]`` int64 that says which; "head": one head a call.
    """

    input: str
    unit: str = "normalised"
    nesting: str = "image"
    image_index: str = ""


@dataclass(frozen=True)
class MapOutput:
    """The heatmap of each head. ``values`` "auto": probabilities if the graph ends in a sigmoid there, else logits."""

    output: str
    values: str = "auto"


@dataclass(frozen=True)
class InoutOutput:
    """The in/out answer of each head; ``means`` says whether a high value is in the picture or out of it."""

    output: str
    values: str = "auto"
    means: str = "in"


@dataclass(frozen=True)
class Adapter:
    """How to ask an ONNX graph and how to read it.

    Probabilities p become logits as log(p/(1−p)) with p first clamped to [``clamp``, 1 − ``clamp``], so |logit| ≤ 13.8 at 1e-6.
    """

    name: str
    image: ImageInput
    boxes: BoxInput
    heatmap: MapOutput
    inout: InoutOutput | None = None
    clamp: float = 1e-6

    @property
    def inputs(self) -> tuple[str, ...]:
        """The graph inputs that are fed."""
        return tuple(filter(None, (self.image.input, self.boxes.input, self.boxes.image_index)))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph outputs that are read, the heatmap first."""
        return (self.heatmap.output, *((self.inout.output,) if self.inout else ()))

    def to_json(self) -> dict[str, Any]:
        """Everything but the name, as plain JSON: two files that say the same are the same adapter."""
        values = {key: value for key, value in asdict(self).items() if key != "name"}
        return json.loads(json.dumps(values))


BUILT_IN: Mapping[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        # PINTO0309/gazelle-dinov3, export_onnx.py and gazelle/model.py (GazeLLE_ONNX): the scaling to [0,1] and the
        # normalisation are in the graph; `inout` and, by default, `heatmap` end in a sigmoid.
        Adapter(
            "gazelle-dinov3", ImageInput("image_bgr", colour="BGR", range=255.0), BoxInput("bboxes_x1y1x2y2"), MapOutput("heatmap"),
            InoutOutput("inout"),
        ),
        # What `distill export` writes.
        Adapter(
            "gaze-distill-raw", ImageInput("pictures", layout="NHWC", range=255.0), BoxInput("boxes", nesting="flat", image_index="image_index"),
            MapOutput("heatmap", "logits"), InoutOutput("inout", "logits"),
        ),
        # The same with `--pixels float32`, and by versions before raw pictures went in.
        Adapter(
            "gaze-distill", ImageInput("images"), BoxInput("boxes", nesting="flat", image_index="image_index"),
            MapOutput("heatmap", "logits"), InoutOutput("inout", "logits"),
        ),
    )
}
PARTS = {"image": ImageInput, "boxes": BoxInput, "heatmap": MapOutput, "inout": InoutOutput}


def beside(path: Path) -> list[Path]:
    """The adapter files that belong to the ONNX file at ``path``, those that are there."""
    return [file for suffix in ("toml", "json") if (file := path.with_suffix(f".adapter.{suffix}")).is_file()]


def choose_adapter(path: Path, wanted: str, inputs: Sequence[str], outputs: Sequence[str]) -> Adapter:
    """The adapter for the ONNX file at ``path`` whose graph has these inputs and outputs.

    ``wanted`` (a built-in's name or a file) comes first, then the file beside it, then the built-in that declares exactly the graph's
    inputs. Raises :class:`BlackBoxError` where none fits, with what the graph has.
    """
    has = f"it has inputs {', '.join(inputs) or 'none'} and outputs {', '.join(outputs) or 'none'}"
    files = beside(path)
    if wanted in BUILT_IN:
        adapter = BUILT_IN[wanted]
    elif wanted:
        if not Path(wanted).is_file():
            raise BlackBoxError(f"adapter {wanted!r} is neither a file nor one of {', '.join(BUILT_IN)}; give one of these")
        adapter = read_adapter(Path(wanted))
    elif len(files) > 1:
        raise BlackBoxError(f"{path} has two adapters beside it, {files[0].name} and {files[1].name}; delete one, or name one with --adapter")
    elif files:
        adapter = read_adapter(files[0])
    else:
        fitting = [each for each in BUILT_IN.values() if set(each.inputs) == set(inputs)]
        if not fitting:
            raise BlackBoxError(
                f"{path} is of no kind that is known by itself ({has}); describe it in {path.with_suffix('.adapter.toml').name} beside it, "
                f"or name one (--adapter FILE|NAME, or onnx:{path}?adapter=FILE|NAME): docs/black-box-teachers.md shows the format"
            )
        adapter = fitting[0]
    return _fitted(adapter, path, wanted in BUILT_IN or not (wanted or files), inputs, outputs, has)


def _fitted(adapter: Adapter, path: Path, built_in: bool, inputs: Sequence[str], outputs: Sequence[str], has: str) -> Adapter:
    if built_in and adapter.inout is not None and adapter.inout.output not in outputs:
        # Built-ins stand for a family, of which some models have no in/out head.
        adapter = Adapter(adapter.name, adapter.image, adapter.boxes, adapter.heatmap, None, adapter.clamp)
    problems = [f"input {name!r}, which adapter {adapter.name} declares, is not in the graph" for name in adapter.inputs if name not in inputs]
    problems += [f"output {name!r}, which adapter {adapter.name} declares, is not in the graph" for name in adapter.outputs if name not in outputs]
    problems += [f"input {name!r} of the graph is not declared by adapter {adapter.name}" for name in inputs if name not in adapter.inputs]
    if problems:
        raise BlackBoxError(f"{path}: {'; '.join(problems)} ({has}); correct the adapter, or give another with --adapter")
    return adapter


def read_adapter(path: Path) -> Adapter:
    """The adapter in a TOML or JSON file; :class:`BlackBoxError` names the key that is missing, unknown or of another kind."""
    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise BlackBoxError(f"adapter {path} cannot be read ({error}); it is TOML, or JSON where its name ends in .json") from None
    if not isinstance(values, dict):
        raise BlackBoxError(f"adapter {path} holds no table; docs/black-box-teachers.md shows the format")
    parts: dict[str, Any] = {}
    for key, value in values.items():
        if key == "clamp":
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < 0.5:
                raise BlackBoxError(f"adapter {path}: clamp is {value!r}; give a number above 0 and below 0.5, such as 1e-6")
            parts[key] = float(value)
        elif key in PARTS:
            parts[key] = _part(PARTS[key], key, value, path)
        else:
            raise BlackBoxError(f"adapter {path}: [{key}] is unknown; there are {', '.join(f'[{name}]' for name in PARTS)} and clamp")
    if missing := [f"[{name}]" for name in ("image", "boxes", "heatmap") if name not in parts]:
        raise BlackBoxError(f"adapter {path} lacks {', '.join(missing)}; docs/black-box-teachers.md shows the format")
    adapter = Adapter(name=path.name, **parts)
    if adapter.boxes.image_index and adapter.boxes.nesting != "flat":
        raise BlackBoxError(f"adapter {path}: image_index goes with nesting 'flat', not {adapter.boxes.nesting!r}")
    return adapter


def _part(kind: type, section: str, given: Any, path: Path) -> Any:
    if not isinstance(given, dict):
        raise BlackBoxError(f"adapter {path}: {section} is {given!r}, and is to be a table")
    known = {field.name: field for field in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        where = f"adapter {path}: {section}.{key}"
        if key not in known:
            raise BlackBoxError(f"{where} is unknown; [{section}] has {', '.join(known)}")
        if key in CHOICES:
            if value not in CHOICES[key]:
                raise BlackBoxError(f"{where} is {value!r}; give one of {', '.join(CHOICES[key])}")
            values[key] = value
        elif key == "size":
            values[key] = _numbers(value, 2, where, int)
        elif key in ("mean", "std"):
            values[key] = _numbers(value, 3, where, float)
        elif key == "range":
            values[key] = _numbers([value], 1, where, float)[0]
        elif not isinstance(value, str) or not value:
            raise BlackBoxError(f"{where} is {value!r}; give the name that the graph has for it")
        else:
            values[key] = value
    first = next(iter(known))
    if first not in values:
        raise BlackBoxError(f"adapter {path}: {section}.{first} is missing; give the name that the graph has for it")
    return kind(**values)


def _numbers(value: Any, count: int, where: str, kind: type) -> tuple[Any, ...]:
    fits = isinstance(value, list) and len(value) == count
    fits = fits and all(isinstance(each, int if kind is int else (int, float)) and not isinstance(each, bool) for each in value)
    # A mean may be 0 or below; nothing divides or multiplies by one.
    if not fits or (not where.endswith("mean") and min(value) <= 0):
        raise BlackBoxError(f"{where} is {value!r}; give {count} number{'s' if count > 1 else ''}{'' if where.endswith('mean') else ' above 0'}")
    return tuple(kind(each) for each in value)
