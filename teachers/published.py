"""The published teachers, as one table of plain data."""

from __future__ import annotations

from dataclasses import dataclass

from teachers.model import IMAGENET_MEAN, IMAGENET_STD, ModelConfig

GAZELLE = "https://github.com/fkryan/gazelle/releases/download/v1.0.0"
GAZELLE_DINOV3 = "https://github.com/PINTO0309/gazelle-dinov3/releases/download/weights"


@dataclass(frozen=True)
class TeacherEntry:
    """One published teacher: what it is built as, where its file is, and what its authors report.

    ``metrics`` are as published (AUC / avg L2 / min L2 on GazeFollow, or AUC / L2 / AP on VideoAttentionTarget), in arXiv 2412.09586
    and in gazelle-dinov3's README; ``parameters`` counts all of the model's own, in millions, as built here; ``sha256`` is the
    file's digest (hex) where somebody has recorded it.
    """

    config: ModelConfig
    url: str
    licence: str
    metrics: str
    parameters: float
    sha256: str | None = None


# Name, what the file's name adds, backbone, levels, pixels, cells of the heatmap, millions of parameters (the in/out head is 0.03 of
# them at most), metrics on GazeFollow and, of the variant with in/out head, on VideoAttentionTarget.
# Gaze-LLE's files hold the decoder alone, beside a frozen DINOv2; those of gazelle-dinov3 hold the backbone too.
_PUBLISHED = (
    ("gazelle_dinov2_vitb14", "", "vit_base_patch14_dinov2", (), 448, 64, 89.15, ".956 / .104 / .045", ".933 / .107 / .897"),
    ("gazelle_dinov2_vitl14", "", "vit_large_patch14_dinov2", (), 448, 64, 306.9, ".958 / .099 / .041", ".937 / .103 / .903"),
    ("gazelle_dinov3_vit_tiny", "", "vit_tiny_patch16_deimv2", (), 640, 64, 8.2, ".9545 / .1118 / .0484", ".9286 / .1155 / .8945"),
    ("gazelle_dinov3_vit_tinyplus", "", "vit_tinyplus_patch16_deimv2", (), 640, 64, 12.4, ".9564 / .1042 / .0462", ".9325 / .1133 / .8953"),
    ("gazelle_dinov3_vits16", "", "vit_small_patch16_dinov3_qkvb", (), 640, 64, 24.3, ".9593 / .0992 / .0418", ".9347 / .1026 / .9011"),
    ("gazelle_dinov3_vits16plus", "", "vit_small_plus_patch16_dinov3_qkvb", (), 640, 64, 31.4, ".9604 / .0966 / .0395", ".9366 / .1050 / .9118"),
    ("gazelle_dinov3_vitb16", "", "vit_base_patch16_dinov3_qkvb", (), 640, 64, 88.5, ".9593 / .0973 / .0405", ".9399 / .0943 / .9051"),
    ("gazelle_hgnetv2_atto", "_distill", "hgnetv2_atto", (2,), 320, 32, 2.9, ".9267 / .1482 / .0826", ".9055 / .1523 / .8749"),
    ("gazelle_hgnetv2_femto", "_distill", "hgnetv2_femto", (2,), 416, 48, 3.2, ".9391 / .1289 / .0656", ".9166 / .1372 / .8779"),
    ("gazelle_hgnetv2_pico", "_distill", "hgnetv2_pico", (2,), 640, 64, 3.5, ".9491 / .1149 / .0544", ".9247 / .1245 / .8861"),
    ("gazelle_hgnetv2_n", "_distill", "hgnetv2_b0", (2,), 640, 64, 3.5, ".9481 / .1158 / .0549", ".9218 / .1258 / .9012"),
)
# By the second word of the name: the in/out head, the licences, where the files are.
_FAMILIES = {
    "dinov2": ("mlp", "MIT (decoder), Apache-2.0 (DINOv2)", GAZELLE),
    "dinov3": ("linear", "MIT (gazelle-dinov3), DINOv3 License (backbone)", GAZELLE_DINOV3),
    "hgnetv2": ("linear", "MIT (gazelle-dinov3), Apache-2.0 (HGNetV2)", GAZELLE_DINOV3),
}


def _table() -> dict[str, TeacherEntry]:
    table = {}
    for name, added, backbone, levels, pixels, cells, parameters, still, video in _PUBLISHED:
        family = name.split("_")[1]
        head, licence, release = _FAMILIES[family]
        # The convolutional networks were trained on pixels in [0,1] as they are.
        mean, std = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) if family == "hgnetv2" else (IMAGENET_MEAN, IMAGENET_STD)
        for suffix, inout, metrics in (("", "none", f"GazeFollow {still}"), ("_inout", head, f"VideoAttentionTarget {video}")):
            config = ModelConfig(backbone, (pixels, pixels), levels, mean=mean, std=std, inout=inout, heatmap_size=(cells, cells))
            table[name + suffix] = TeacherEntry(config, f"{release}/{name}{suffix}{added}.pt", licence, metrics, parameters)
    return table


CATALOGUE: dict[str, TeacherEntry] = _table()
