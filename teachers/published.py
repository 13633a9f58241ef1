"""The published teachers, as one table of plain data."""

from __future__ import annotations

from dataclasses import dataclass

from teachers.model import ModelConfig

RELEASE = "https://github.com/fkryan/gazelle/releases/download/v1.0.0"


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
