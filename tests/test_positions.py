"""Where a patch is: DINOv2's embedding resampled as DINOv2 does it, DINOv3's rotary embedding patch by patch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import RotaryEmbeddingDinoV3, resample_abs_pos_embed

from teachers.backbones import TokenBackbone
from teachers.errors import WeightsError
from teachers.positions import AxialRope, resample_position_embedding, rope_periods


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, the one that torch and OpenCV call bicubic."""
    distance, a = abs(distance), -0.75
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def dinov2_line(side: int, length: int) -> np.ndarray:
    """How ``length`` new positions are made of ``side`` old ones ``[length,side]``: scale (length + 0.1) / side, borders repeated."""
    matrix = np.zeros((length, side))
    for new in range(length):
        old = (new + 0.5) * side / (length + 0.1) - 0.5
        first = math.floor(old) - 1
        for near in range(first, first + 4):
            matrix[new, min(max(near, 0), side - 1)] += cubic(old - near)
    return matrix


@pytest.mark.parametrize(("side", "grid", "prefix"), [(37, (32, 32), 1), (37, (16, 24), 1), (8, (11, 5), 5), (6, (6, 12), 0)])
def test_position_embeddings_are_resampled_as_dinov2_does(side: int, grid: tuple[int, int], prefix: int) -> None:
    embedding = torch.randn(1, prefix + side * side, 3, generator=torch.Generator().manual_seed(0))
    found = resample_position_embedding(embedding, grid, prefix)
    square = embedding[0, prefix:].reshape(side, side, 3).double().numpy()
    expected = np.einsum("yi,xj,ijc->yxc", dinov2_line(side, grid[0]), dinov2_line(side, grid[1]), square)
    assert found.shape == (1, prefix + grid[0] * grid[1], 3)
    assert torch.equal(found[:, :prefix], embedding[:, :prefix])
    np.testing.assert_allclose(found[0, prefix:].numpy(), expected.reshape(-1, 3), atol=2e-4)


def test_timms_own_resampling_is_another_function() -> None:
    embedding = torch.randn(1, 1 + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = resample_position_embedding(embedding, (32, 32)), resample_abs_pos_embed(embedding, [32, 32])
    likeness = F.cosine_similarity(ours[:, 1:].flatten(), theirs[:, 1:].flatten(), dim=0)
    assert 0.9 < float(likeness) < 0.995


def test_at_its_own_grid_an_embedding_is_left_alone() -> None:
    embedding = torch.randn(1, 1 + 37 * 37, 2)
    assert resample_position_embedding(embedding, (37, 37)) is embedding


@pytest.mark.parametrize("shape", [(1, 12, 4), (1, 0, 4), (9, 4)])
def test_an_embedding_that_is_no_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match="is no square grid of patches"):
        resample_position_embedding(torch.zeros(shape), (4, 4), 1)


def test_rotary_angles_are_those_of_the_patch_centres() -> None:
    rope = AxialRope(16, (3, 5))
    periods = [1.0, 100.0**0.25, 100.0**0.5, 100.0**0.75]
    torch.testing.assert_close(rope.periods, torch.tensor(periods))
    table = rope.get_embed()
    assert table.shape == (15, 32)
    for row in range(3):
        for column in range(5):
            y, x = 2 * (row + 0.5) / 3 - 1, 2 * (column + 0.5) / 5 - 1
            turns = [2 * math.pi * y / period for period in periods] + [2 * math.pi * x / period for period in periods]
            expected = [math.sin(turn) for turn in turns * 2] + [math.cos(turn) for turn in turns * 2]
            np.testing.assert_allclose(table[5 * row + column].numpy(), expected, atol=2e-6)


def test_rotary_angles_are_timms_as_long_as_the_periods_are() -> None:
    # timm's own class, in both ways that its network asks: the shape given, or that of the configuration.
    theirs = RotaryEmbeddingDinoV3(64, temperature=100.0, rotate_half=True)
    ours = AxialRope(64, (4, 4))
    torch.testing.assert_close(ours.get_embed([6, 9]), theirs.get_embed([6, 9]), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.get_embed(), theirs.get_embed([4, 4]), atol=1e-6, rtol=0)
    assert ours.state_dict().keys() == {"periods"} and not theirs.state_dict()


def test_rounded_periods_turn_patches_otherwise() -> None:
    # The published files hold periods in bfloat16's precision, which timm's network would replace.
    rope = AxialRope(64, (40, 40))
    exact = rope.get_embed()
    rope.load_state_dict({"periods": rope_periods(64).bfloat16()})
    difference = float((rope.get_embed() - exact).abs().max())
    assert 0.005 < difference < 0.03


def test_a_plain_vit_keeps_timms_own_positions() -> None:
    assert "rope.periods" not in TokenBackbone("test_vit", (64, 64)).trunk.state_dict()
