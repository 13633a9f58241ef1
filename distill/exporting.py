"""From a run to an exported file: which student, which scenes it is checked on, and what is recorded beside the file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import ConfigurationError, DataError, MissingExtraError

if TYPE_CHECKING:
    from distill.scenes import Scene, SceneSet
    from students.export import Exported
    from students.parity import SceneBatch

EXPORT_MODULES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 3, 8)  # pictures in a batch, in turn: the file promises any number


def require_extra(extra: str, *modules: str) -> None:
    """Raise :class:`MissingExtraError` with the command that mends it if one of ``modules`` cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f"{module} is needed and cannot be imported ({error}); run `pip install 'gaze-distill[{extra}]'`"
            ) from None


def student_directory(path: Path) -> Path:
    """The stored student of the run, or of the directory, at ``path``; :class:`ConfigurationError` says what it lacks."""
    for directory in (path / "student", path):
        if (directory / "model.json").is_file():
            return directory
    if (path / "config.json").is_file():
        raise ConfigurationError(
            f"run {path} has no student yet, one is kept at its first validation; go on with `distill train --resume {path}`"
        )
    what = "does not exist" if not path.exists() else "holds neither a run nor a stored model"
    raise ConfigurationError(f"{path} {what}; give the directory of a run, such as runs/demo")


def gate_scenes(run: Path, count: int, *, data: str | None = None, split: str | None = None) -> SceneSet:
    """Scenes to check an export on: ``count`` of them, or all, spread evenly over the run's validation split.

    ``data`` and ``split`` take the place of what the run's ``config.json`` says. Only scenes with heads count. Raises
    :class:`ConfigurationError` where nothing says which data, :class:`DataError` where they cannot be read.
    """
    from distill.configuration import config_from_sections
    from distill.readers import open_data

    file = run / "config.json"
    if file.is_file():
        try:
            sections = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"{file} cannot be read ({error}); give --data and a stored model's directory") from None
        sections.pop("facts", None)
        config = config_from_sections(sections, str(file))
        data, split = data or config.data, split or config.val_split
    if not data:
        raise ConfigurationError(f"{run} does not say which data to check the export on; give --data READER:PATH")
    try:
        scenes = open_data(data, _split_of(data, split or "val"))
    except DataError as error:
        raise DataError(f"scenes to check the export on: {error}; --data SPEC and --split NAME name others") from None
    headed = [scene for scene in scenes.scenes if scene.heads]
    if not headed:
        raise DataError(f"no scene of {data} has a head to check the export on; --data SPEC names others")
    count = min(count, len(headed))
    return scenes.subset([headed[number * len(headed) // count] for number in range(count)])


def _split_of(data: str, split: str) -> str:
    """A picture folder has one split, whatever is asked for."""
    from distill.readers.folder import READER, recognises

    return "all" if data.startswith(f"{READER.name}:") or recognises(Path(data)) else split


def batches(
    scenes: Sequence[Scene], size: tuple[int, int], *, exif: bool = False, advance: Callable[[int], None] | None = None
) -> Iterator[SceneBatch]:
    """The scenes at ``size`` = (height, width), as the gate wants them; ``advance(n)`` is called when a batch is taken."""
    import numpy as np
    import torch

    from distill.pictures import load_picture
    from distill.source import refuse_outside
    from distill.views import IDENTITY
    from students.parity import SceneBatch

    first, turn = 0, 0
    while first < len(scenes):
        chosen = scenes[first : first + BATCHES[turn % len(BATCHES)]]
        first, turn = first + len(chosen), turn + 1
        images, boxes = [], []
        for scene in chosen:
            picture = load_picture(scene.picture, exif=exif)
            flat = scene.normalised(picture.shape[1], picture.shape[0])
            refuse_outside(scene, flat)
            boxes.append(flat.boxes().astype(np.float32))
            images.append(IDENTITY.picture(picture, size))
        counts = torch.tensor([len(each) for each in boxes])
        yield SceneBatch(
            torch.stack(images), torch.from_numpy(np.concatenate(boxes)),
            torch.repeat_interleave(torch.arange(len(chosen)), counts), [scene.key for scene in chosen],
        )
        if advance is not None:
            advance(len(chosen))


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    scenes: int = 64,
    data: str | None = None,
    split: str | None = None,
    advance: Callable[[int], None] | None = None,
    begin: Callable[[int], None] | None = None,
) -> Exported:
    """Export the student of ``run`` to ONNX, by default as ``exports/student.onnx`` in the run's directory.

    ``begin(n)`` is called with the number of scenes before the graph is traced, ``advance(n)`` when n of them were compared.
    Raises :class:`MissingExtraError`, :class:`ConfigurationError`, :class:`DataError` and
    :class:`students.errors.ExportError`; what was exported before then stays as it is.
    """
    require_extra("export", *EXPORT_MODULES)
    from students.export import export_onnx
    from teachers.weights import load_model

    model, description = load_model(student_directory(run))
    chosen = gate_scenes(run, scenes, data=data, split=split)
    if begin is not None:
        begin(len(chosen))
    facts = description.get("facts", {})
    recorded: dict[str, Any] = {
        "run": facts.get("run"),
        "metrics": facts.get("validation"),
        "selection": facts.get("selection"),
        "lineage": {**facts.get("lineage", {}), "weights": description["weights_digest"]},
        "gate": {"data": data or f"{chosen.reader}:{chosen.root}", "split": chosen.split, "digest": chosen.digest()},
    }
    return export_onnx(
        model, out or run / "exports" / "student.onnx",
        batches(chosen.scenes, model.input_size, exif=chosen.reader == "folder", advance=advance),
        name=description["name"], weights_digest=description["weights_digest"], facts=recorded,
    )
