"""The catalogue of teachers, and how a name or a path becomes one.

A teacher is named by a catalogue entry (``demo``, ``gazelle_dinov2_vitb14``, ...), by the directory of a stored model or of a run, or as
``timm:BACKBONE`` with a file of decoder weights: any DINOv2 or DINOv3 backbone of timm.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.contract import GazeOutput
from teachers.decoder import position_encoding
from teachers.errors import UnknownModelError, WeightsError
from teachers.model import GazeModel, ModelConfig
from teachers.pretrained import load_pretrained_backbone
from teachers.weights import load_model, load_strictly, read_checkpoint, save_model, tensors_digest

DEMO = Path(__file__).parent / "demo"
RELEASE = "https://github.com/fkryan/gazelle/releases/download/v1.0.0"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TeacherEntry:
    """One published teacher: what it is built as, where its file is, and what its authors report.

    ``metrics`` are as published in arXiv 2412.09586 (AUC / avg L2 / min L2 on GazeFollow, or AUC / L2 / AP on
    VideoAttentionTarget); ``trained`` counts its own parameters in millions, ``parameters`` all of them.
    """

    config: ModelConfig
    url: str
    licence: str
    metrics: str
    parameters: float


def _gazelle(size: str, parameters: float, metrics: str, inout: bool) -> TeacherEntry:
    suffix = "_inout" if inout else ""
    return TeacherEntry(
        ModelConfig(backbone=f"vit_{size}_patch14_dinov2", input_size=(448, 448), inout="mlp" if inout else "none"),
        f"{RELEASE}/gazelle_dinov2_vit{size[0]}14{suffix}.pt", "MIT (decoder), Apache-2.0 (DINOv2)", metrics, parameters,
    )


CATALOGUE: dict[str, TeacherEntry] = {
    "gazelle_dinov2_vitb14": _gazelle("base", 88.8, "GazeFollow .956 / .104 / .045", False),
    "gazelle_dinov2_vitb14_inout": _gazelle("base", 88.8, "VideoAttentionTarget .933 / .107 / .897", True),
    "gazelle_dinov2_vitl14": _gazelle("large", 302.9, "GazeFollow .958 / .099 / .041", False),
    "gazelle_dinov2_vitl14_inout": _gazelle("large", 302.9, "VideoAttentionTarget .937 / .103 / .903", True),
}


class ModelTeacher:
    """A :class:`~teachers.model.GazeModel` that keeps the teacher contract: frozen, on its device, in its precision."""

    def __init__(self, model: GazeModel, name: str, weights_digest: str, *, device: str = "cpu", precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise UnknownModelError.of("precision", precision, PRECISIONS, "use one of these")
        self.model = model.eval().requires_grad_(False).to(device)
        self.name, self.device, self.precision = name, device, precision
        self._digest = weights_digest

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        config = self.model.config.to_json()
        return {
            "name": self.name, "weights": self._digest, "architecture": {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
            "input_size": list(self.input_size), "preprocessing": "squash, antialiased bilinear, float", "precision": self.precision,
        }

    @property
    def input_size(self) -> tuple[int, int]:
        return self.model.input_size

    @property
    def heatmap_size(self) -> tuple[int, int]:
        return self.model.heatmap_size

    @property
    def has_inout(self) -> bool:
        return self.model.has_inout

    def __call__(self, images: Tensor, boxes: Tensor, image_index: Tensor) -> GazeOutput:
        device = torch.device(self.device)
        # TF32 would make the same weights another function on a GPU; "fp32" means float32 there too.
        tf32 = torch.backends.cudnn.flags(allow_tf32=self.precision != "fp32")
        with tf32, torch.inference_mode(), torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            output = self.model(images.to(device, non_blocking=True), boxes.to(device), image_index.to(device))
        return GazeOutput(output.heatmap.float(), None if output.inout is None else output.inout.float())


def store() -> Path:
    """Where pulled teachers are kept: ``$GAZE_DISTILL_HOME/teachers``, by default below ``~/.cache/gaze-distill``."""
    home = os.environ.get("GAZE_DISTILL_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "gaze-distill") / "teachers"


def decoder_tensors(tensors: Mapping[str, Tensor], config: ModelConfig, grid: tuple[int, int], where: str) -> dict[str, Tensor]:
    """The decoder's tensors of a published Gaze-LLE file, under this project's names.

    The position encoding in the file is a constant; it is compared with ours and left out. Backbone tensors are left out.
    """
    own = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("backbone.")}
    encoding = own.pop("pos_embed", None)
    if encoding is not None:
        expected = position_encoding(config.dim, *grid)
        if encoding.shape != expected.shape or not torch.allclose(encoding, expected, atol=1e-5):
            raise WeightsError(
                f"{where} has a position encoding {tuple(encoding.shape)} that is not this architecture's {tuple(expected.shape)}; "
                "choose the architecture that the file was made for"
            )
    return own


def assemble(config: ModelConfig, decoder_file: Path, backbone_file: Path | None) -> GazeModel:
    """A teacher from a published decoder file and backbone weights (a file, or timm's hub)."""
    model = GazeModel(config)
    tensors = read_checkpoint(decoder_file)
    load_strictly(model.decoder, decoder_tensors(tensors, config, model.backbone.grid, str(decoder_file)), str(decoder_file))
    load_pretrained_backbone(model, backbone_file)
    return model.eval()


def fetch(url: str, path: Path) -> None:
    """Download ``url`` to ``path``, whole or not at all; without a network the error says where to put the file by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, temporary.open("wb") as file:
            expected = int(answer.headers.get("Content-Length", 0))
            while block := answer.read(1 << 20):
                file.write(block)
        if expected and temporary.stat().st_size != expected:
            raise WeightsError(f"{url} ended after {temporary.stat().st_size} of {expected} bytes; run the command again")
        os.replace(temporary, path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:140] or type(error).__name__
        raise WeightsError(f"{url} could not be fetched ({reason}); download it elsewhere and put it at {path}") from None
    finally:
        temporary.unlink(missing_ok=True)


def pull(name: str) -> Path:
    """Fetch and convert the catalogue's teacher ``name`` into the store, unless it is there; returns its directory."""
    if name not in CATALOGUE:
        raise UnknownModelError.of("teacher", name, CATALOGUE, "`distill teachers list` lists them all")
    directory = store() / name
    if not (directory / "model.json").exists():
        entry = CATALOGUE[name]
        file = store() / "downloads" / entry.url.rpartition("/")[2]
        if not file.exists():
            fetch(entry.url, file)
        model = assemble(entry.config, file, None)
        save_model(directory, model, name, {"source": entry.url, "licence": entry.licence})
    return directory


def load_teacher(
    name: str, *, device: str = "cpu", precision: str = "fp32", weights: Path | None = None, backbone_weights: Path | None = None
) -> ModelTeacher:
    """The teacher ``name``: a catalogue entry, a directory, or ``timm:BACKBONE`` with ``weights``, a Gaze-LLE decoder file.

    ``device`` "auto" is a GPU where there is one. Raises :class:`UnknownModelError` (with the nearest names) and
    :class:`WeightsError`.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("timm:"):
        if weights is None:
            raise WeightsError(f"teacher {name} needs --weights FILE, the decoder that was trained on this backbone")
        tensors = read_checkpoint(weights)
        inout = "none" if "inout_token.weight" not in tensors else "mlp" if "inout_head.3.weight" in tensors else "linear"
        pixels = (448, 448)
        dim = tensors["linear.weight"].shape[0] if "linear.weight" in tensors else 256
        model = assemble(
            ModelConfig(backbone=name.removeprefix("timm:"), input_size=pixels, inout=inout, dim=dim), weights, backbone_weights
        )
        return ModelTeacher(model, name, tensors_digest(model.state_dict()), device=device, precision=precision)
    if name == "demo":
        directory = DEMO
    elif name in CATALOGUE:
        directory = pull(name)
    else:
        directory = Path(name) / "student" if (Path(name) / "student" / "model.json").exists() else Path(name)
        if not (directory / "model.json").exists():
            raise UnknownModelError.of(
                "teacher", name, ["demo", *CATALOGUE],
                "or give a directory that holds model.json; `distill teachers list` lists them all",
            )
    model, description = load_model(directory)
    return ModelTeacher(model, description["name"], description["weights_digest"], device=device, precision=precision)
