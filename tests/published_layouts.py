"""Names and shapes of the published checkpoints' tensors, written down apart from the converter, and random weights for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Layout = dict[str, tuple[int, ...]]

# Entry: family, width of the features, pixels.
ENTRIES = {
    "gazelle_dinov2_vitb14": ("dinov2", 768, 448),
    "gazelle_dinov2_vitl14": ("dinov2", 1024, 448),
    "gazelle_dinov3_vit_tiny": ("tiny", 192, 640),
    "gazelle_dinov3_vit_tinyplus": ("tiny", 256, 640),
    "gazelle_dinov3_vits16": ("dinov3", 384, 640),
    "gazelle_dinov3_vits16plus": ("dinov3plus", 384, 640),
    "gazelle_dinov3_vitb16": ("dinov3", 768, 640),
    "gazelle_hgnetv2_atto": ("hgnetv2", 256, 320),
    "gazelle_hgnetv2_femto": ("hgnetv2", 512, 416),
    "gazelle_hgnetv2_pico": ("hgnetv2", 512, 640),
    "gazelle_hgnetv2_n": ("hgnetv2", 512, 640),
}
# Per stage: channels in, in the middle, out; kernel size; blocks; whether its layers are pairs of a 1×1 and a depthwise convolution.
STAGES = {
    "gazelle_hgnetv2_atto": ((16, 16, 64, 3, 1, False), (64, 32, 256, 3, 1, False), (256, 64, 256, 3, 1, True)),
    "gazelle_hgnetv2_femto": ((16, 16, 64, 3, 1, False), (64, 32, 256, 3, 1, False), (256, 64, 512, 5, 1, True)),
    "gazelle_hgnetv2_pico": ((16, 16, 64, 3, 1, False), (64, 32, 256, 3, 1, False), (256, 64, 512, 5, 2, True)),
    "gazelle_hgnetv2_n": (
        (16, 16, 64, 3, 1, False), (64, 32, 256, 3, 1, False), (256, 64, 512, 5, 2, True), (512, 128, 1024, 5, 1, True)
    ),
}
FILES = [name + suffix for name in ENTRIES for suffix in ("", "_inout")]


def dense(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Layout:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def decoder(channels: int, cells: int, inout: str) -> Layout:
    layout: Layout = {"pos_embed": (256, cells, cells), "linear.weight": (256, channels, 1, 1), "linear.bias": (256,), "head_token.weight": (1, 256)}
    for number in range(3):
        block = f"transformer.{number}"
        layout |= norm(f"{block}.norm1", 256) | dense(f"{block}.attn.qkv", 256, 768, bias=False) | dense(f"{block}.attn.proj", 256, 256)
        layout |= norm(f"{block}.norm2", 256) | dense(f"{block}.mlp.fc1", 256, 1024) | dense(f"{block}.mlp.fc2", 1024, 256)
    layout |= {"heatmap_head.0.weight": (256, 256, 2, 2), "heatmap_head.0.bias": (256,), "heatmap_head.1.weight": (1, 256, 1, 1)}
    if inout == "mlp":
        layout |= {"inout_token.weight": (1, 256)} | dense("inout_head.0", 256, 128) | dense("inout_head.3", 128, 1)
    elif inout == "linear":
        layout |= {"inout_token.weight": (1, 256)} | dense("inout_head.0", 256, 1)
    return layout


def transformer(family: str, width: int, depth: int) -> Layout:
    patch = 14 if family == "dinov2" else 16
    layout: Layout = {"cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    if family == "dinov2":
        layout["pos_embed"] = (1, 1 + 37 * 37, width)
    else:
        layout["rope_embed.periods"] = (16,)
    if family.startswith("dinov3"):
        layout["storage_tokens"] = (1, 4, width)
    if family != "tiny":
        layout |= {"mask_token": (1, width)} | norm("norm", width)
    for number in range(depth):
        block = f"blocks.{number}"
        layout |= norm(f"{block}.norm1", width) | dense(f"{block}.attn.qkv", width, 3 * width) | dense(f"{block}.attn.proj", width, width)
        layout |= norm(f"{block}.norm2", width)
        if family == "dinov3plus":
            layout |= dense(f"{block}.mlp.w1", width, 4 * width) | dense(f"{block}.mlp.w2", width, 4 * width) | dense(f"{block}.mlp.w3", 4 * width, width)
        else:
            layout |= dense(f"{block}.mlp.fc1", width, 4 * width) | dense(f"{block}.mlp.fc2", 4 * width, width)
        if family != "tiny":
            layout |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
        if family.startswith("dinov3"):
            layout[f"{block}.attn.qkv.bias_mask"] = (3 * width,)
    return layout


def convolution(name: str, inputs: int, outputs: int, kernel: int, *, groups: int = 1, act: bool = True) -> Layout:
    layout: Layout = {f"{name}.conv.weight": (outputs, inputs // groups, kernel, kernel), f"{name}.bn.num_batches_tracked": ()}
    layout |= {f"{name}.bn.{leaf}": (outputs,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return layout | ({f"{name}.lab.scale": (1,), f"{name}.lab.bias": (1,)} if act else {})


def hgnetv2(stages: tuple[tuple[int, int, int, int, int, bool], ...]) -> Layout:
    layout = convolution("stem.stem1", 3, 16, 3) | convolution("stem.stem2a", 16, 8, 2) | convolution("stem.stem2b", 8, 16, 2)
    layout |= convolution("stem.stem3", 32, 16, 3) | convolution("stem.stem4", 16, 16, 1)
    for stage, (inputs, middle, outputs, kernel, blocks, light) in enumerate(stages):
        if stage:
            layout |= convolution(f"stages.{stage}.downsample", inputs, inputs, 3, groups=inputs, act=False)
        for number in range(blocks):
            block, entering = f"stages.{stage}.blocks.{number}", outputs if number else inputs
            for layer in range(3):
                name, first = f"{block}.layers.{layer}", middle if layer else entering
                if light:
                    layout |= convolution(f"{name}.conv1", first, middle, 1, act=False)
                    layout |= convolution(f"{name}.conv2", middle, middle, kernel, groups=middle)
                else:
                    layout |= convolution(name, first, middle, kernel)
            layout |= convolution(f"{block}.aggregation.0", entering + 3 * middle, outputs // 2, 1)
            layout |= convolution(f"{block}.aggregation.1", outputs // 2, outputs, 1)
    return layout


def published(file: str, depth: int | None = None) -> Layout:
    """The whole model's layout, the backbone included, of ``file``: an entry's name; ``depth`` blocks of a transformer if given."""
    name = file.removesuffix("_inout")
    family, width, pixels = ENTRIES[name]
    inout = "none" if file == name else "mlp" if family == "dinov2" else "linear"
    if family == "hgnetv2":
        prefix, backbone = "backbone.", hgnetv2(STAGES[name])
    else:
        prefix = {"dinov2": "backbone.model.", "tiny": "backbone.dinov3._model."}.get(family, "backbone.dinov3.")
        backbone = transformer(family, width, depth or (24 if width == 1024 else 12))
    cells = pixels // (14 if family == "dinov2" else 16)
    return decoder(width, cells, inout) | {prefix + key: shape for key, shape in backbone.items()}


def random_weights(layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """Values under which nothing is neutral: no zero bias, no unit scale, no mean of nought; constants are what they are."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layout.items():
        leaf, noise = name.rpartition(".")[2], torch.randn(shape, generator=generator)
        if leaf == "num_batches_tracked":
            tensors[name] = torch.tensor(7)
        elif name == "pos_embed" and shape[0] > 1:  # the decoder's; a ViT's own is [1,tokens,width] and learned
            tensors[name] = sine_encoding(*shape)
        elif leaf == "periods":
            tensors[name] = torch.tensor([100.0 ** (k / shape[0]) for k in range(shape[0])]).bfloat16().float()
        elif leaf == "bias_mask":
            third = shape[0] // 3
            tensors[name] = torch.cat((torch.ones(third), torch.zeros(third), torch.ones(third)))
        elif leaf == "running_var":
            tensors[name] = 0.5 + noise.abs()
        elif leaf == "gamma":
            tensors[name] = 0.3 + 0.1 * noise
        elif leaf in ("bias", "running_mean"):
            tensors[name] = 0.2 * noise
        elif leaf == "scale" or len(shape) == 1:
            tensors[name] = 1.0 + 0.2 * noise
        elif "token" in name or leaf == "pos_embed":
            tensors[name] = 0.5 * noise
        else:
            tensors[name] = noise / math.sqrt(math.prod(shape[1:]))
    return tensors


def sine_encoding(dim: int, height: int, width: int) -> Tensor:
    """The decoder's position encoding, channel by channel: pairs of sine and cosine, x in the first half and y in the second."""
    half = dim // 2
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000.0 ** (2 * torch.div(channel % half, 2, rounding_mode="floor") / half)
    x, y = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)
    place = torch.where((channel < half)[:, None, None], x[None, None, :].expand(1, height, width), y[None, :, None].expand(1, height, width))
    angle = place / rate[:, None, None]
    return torch.where((channel % 2 == 0)[:, None, None], angle.sin(), angle.cos()).float()
