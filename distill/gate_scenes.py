"""The scenes that an exported file is compared on, as raw pictures, and the views that int8 is calibrated on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill.errors import ConfigurationError, DataError
from distill.evaluation import protocol_of, truths
from distill.metrics import MetricAccumulator, Protocol
from distill.scenes import Scene, SceneSet
from distill.source import opened
from distill.views import IDENTITY, View, ViewPolicy
from students.parity import SceneBatch

if TYPE_CHECKING:
    from distill.configuration import RunConfig

BATCHES = (1, 3, 8)  # pictures in a batch, in turn: the file promises any number
CALIBRATION_VIEWS = 64


@dataclass(frozen=True)
class Shown:
    """One picture of the gate: a view (0: the whole picture) of a scene of a split."""

    scene: Scene
    split: str
    view: int = 0


class GateScenes:
    """Pictures as the gate wants them, in batches; they can be gone through any number of times.

    Only one batch is held in memory. ``advance(n)`` is called when a batch of n was used.
    """

    def __init__(
        self, shown: Sequence[Shown], size: tuple[int, int], *, policy: ViewPolicy | None = None, exif: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.shown, self.size, self.exif, self.advance = shown, size, exif, advance
        self.policy = policy or ViewPolicy()

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[SceneBatch]:
        first, turn = 0, 0
        while first < len(self.shown):
            chosen = self.shown[first : first + BATCHES[turn % len(BATCHES)]]
            first, turn = first + len(chosen), turn + 1
            pictures, boxes, names, labels = [], [], [], []
            for each in chosen:
                picture, scene = self._seen(each)
                pictures.append(picture)
                boxes.append(scene.boxes().astype(np.float32))
                names.append(each.scene.key + (f" (view {each.view})" if each.view else ""))
                labels.append(truths(scene))
            counts = torch.tensor([len(each) for each in boxes])
            yield SceneBatch(
                torch.stack([IDENTITY.picture(picture, self.size) for picture in pictures]), torch.from_numpy(np.concatenate(boxes)),
                torch.repeat_interleave(torch.arange(len(chosen)), counts), names, pictures, labels,
            )
            if self.advance is not None:
                self.advance(len(chosen))

    def _seen(self, shown: Shown) -> tuple[np.ndarray, Scene]:
        picture, flat = opened(shown.scene, exif=self.exif)
        return (picture, flat) if shown.view == 0 else viewed(picture, flat, self.policy.view(flat, shown.view))


def viewed(picture: np.ndarray, scene: Scene, view: View) -> tuple[np.ndarray, Scene]:
    """A view as a picture and a scene of its own: the crop's pixels, not resized, and the heads as they lie in it."""
    height, width = picture.shape[:2]
    crop = picture[round(view.top * height) : round(view.bottom * height), round(view.left * width) : round(view.right * width)]
    crop = np.ascontiguousarray(crop[:, ::-1] if view.flip else crop)
    boxes = view.boxes(scene.boxes())
    heads = []
    for head, box in zip(scene.heads, boxes.tolist(), strict=True):
        points = view.points(np.array(head.points, np.float64).reshape(-1, 2))
        x0, y0, x1, y1 = box
        heads.append(replace(head, box=(x0, y0, x1, y1), points=tuple((float(x), float(y)) for x, y in points)))
    return crop, replace(scene, heads=tuple(heads), size=(crop.shape[1], crop.shape[0]))


class GateScorer:
    """AUC and avg L2 by the code of ``distill eval``, for :func:`students.parity.compare`."""

    def __init__(self, protocol: str) -> None:
        self._accumulator = MetricAccumulator(_protocol(protocol))

    def add(self, batch: SceneBatch, heatmap: np.ndarray, inout: np.ndarray | None) -> None:
        self._accumulator.add(heatmap, inout, [truth for label in batch.labels for truth in label])

    def result(self) -> Mapping[str, float | None]:
        metrics = self._accumulator.result()
        return {"auc": metrics.auc, "avg_l2": metrics.avg_l2}


def _protocol(name: str) -> Protocol:
    return "vat" if name == "vat" else "gazefollow"


@dataclass(frozen=True)
class Gate:
    """The pictures of a gate, what they are, and what int8 would be calibrated on."""

    shown: tuple[Shown, ...]
    scenes: SceneSet
    spec: str
    calibration: tuple[Shown, ...]
    policy: ViewPolicy

    @property
    def exif(self) -> bool:
        return self.scenes.reader == "folder"

    @property
    def protocol(self) -> str:
        return protocol_of(self.scenes.reader)

    def facts(self) -> dict[str, Any]:
        """What the JSON beside an export says of it."""
        whole = Counter(each.split for each in self.shown if each.view == 0)
        return {
            "data": self.spec, "split": self.scenes.split, "digest": self.scenes.digest(), "scenes": dict(whole),
            "further_views": sum(each.view > 0 for each in self.shown),
        }


def gate_of(run: Path, count: int, *, data: str | None = None, split: str | None = None) -> Gate:
    """``count`` pictures to check an export of ``run`` on.

    From the run's validation split, evenly spread; where that holds fewer, scenes of its training split come on top, and where these
    do not suffice either, crops and mirror images of them, as training draws them. ``data`` and ``split`` take the place of what the run's
    ``config.json`` says; then nothing but that split is shown. int8 is calibrated on scenes that are not shown, wherever there are any: of the
    run's training split, or of the one of ``data``. Raises :class:`ConfigurationError` where nothing says which data,
    :class:`DataError` where they cannot be read.
    """
    config = _config_of(run)
    policy = ViewPolicy(seed=config.seed if config is not None else 0)
    validation = gate_scenes(run, count, data=data, split=split)
    shown = [Shown(scene, validation.split) for scene in validation.scenes]
    spec = data or f"{validation.reader}:{validation.root}"
    training: list[Shown] = []
    if config is not None and data is None:
        training = _training(config.data, config.train_split, validation)
    more = [] if split else training[: count - len(shown)]
    shown += more
    # Views of few scenes are better than few scenes: every one has other pixels and other boxes.
    whole = list(shown)
    for number in range(len(shown), count):
        shown.append(replace(whole[number % len(whole)], view=number // len(whole)))
    rest = training or _elsewhere(config, data, validation) or whole
    calibration = tuple(replace(rest[number % len(rest)], view=1 + number // len(rest)) for number in range(CALIBRATION_VIEWS))
    return Gate(tuple(shown), validation, spec, calibration, policy)


def gate_scenes(run: Path, count: int, *, data: str | None = None, split: str | None = None) -> SceneSet:
    """``count`` scenes, or all, spread evenly over the run's validation split or over what ``data`` and ``split`` name.

    Only scenes with heads count. Raises as :func:`gate_of` does.
    """
    from distill.readers import open_data

    config = _config_of(run)
    if config is not None:
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


def _training(data: str, split: str, without: SceneSet) -> list[Shown]:
    """Scenes of a training split, evenly spread, as many as a gate or a calibration may want."""
    from distill.readers import open_data

    scenes = open_data(data, _split_of(data, split))
    shown = {scene.key for scene in without.scenes}
    headed = [scene for scene in scenes.scenes if scene.heads and scene.key not in shown]
    count = min(len(headed), 1024)
    return [Shown(headed[number * len(headed) // count], scenes.split) for number in range(count)]


def _elsewhere(config: RunConfig | None, data: str | None, validation: SceneSet) -> list[Shown]:
    """Training scenes to calibrate on where the gate looks at ``data``: the run's, as far as they can be read, or those of ``data``."""
    split = config.train_split if config is not None else "train"
    for spec in (config.data if config is not None else None, data):
        try:
            if spec and (found := _training(spec, split, validation)):
                return found
        except DataError:
            continue  # moved away, or a data set without such a split: --data is given for that very reason
    return []


def _config_of(run: Path) -> RunConfig | None:
    from distill.configuration import config_from_sections

    file = run / "config.json"
    if not file.is_file():
        return None
    try:
        sections = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{file} cannot be read ({error}); give --data and a stored model's directory") from None
    sections.pop("facts", None)
    return config_from_sections(sections, str(file))


def _split_of(data: str, split: str) -> str:
    """A picture folder has one split, whatever is asked for."""
    from distill.readers.folder import READER, recognises

    return "all" if data.startswith(f"{READER.name}:") or recognises(Path(data)) else split
