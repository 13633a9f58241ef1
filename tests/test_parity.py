"""The figures of the gate by hand: what differs between two models' answers, and what of it is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from students.errors import ExportError
from students.parity import Parity, SceneBatch, SceneDifference, Tolerance, compare
from teachers.contract import GazeOutput


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def batch(*names: str, heads_each: int = 1) -> SceneBatch:
    index = torch.arange(len(names)).repeat_interleave(heads_each)
    return SceneBatch(torch.zeros(len(names), 3, 2, 2), torch.zeros(len(index), 4), index, names)


def answering(heatmap: Tensor, inout: Tensor | None) -> object:
    return lambda batch: GazeOutput(heatmap, inout)


def test_figures_by_hand() -> None:
    wanted = torch.full((4, 8, 8), logit(0.1))
    wanted[:, 1, 1] = logit(0.6)
    got = wanted.clone()
    got[2, 4, 5] = logit(0.7)  # scene b, head 0: 3 rows and 4 columns away; .7 for .1
    got[1, 0, 0] = logit(0.15)  # scene a, head 1: .05 more, and the argmax stays
    inout = torch.tensor([logit(0.9), logit(0.4), logit(0.51), logit(0.2)])
    other = torch.tensor([logit(0.9), logit(0.45), logit(0.49), logit(0.2)])
    parity = compare(answering(wanted, inout), answering(got, other), [batch("a", "b", heads_each=2)])
    assert (parity.scenes, parity.heads, parity.finite) == (2, 4, True)
    assert parity.heatmap_probability == pytest.approx(0.6, abs=1e-6)
    assert parity.inout_probability == pytest.approx(0.05, abs=1e-6)
    assert parity.argmax_equal == 0.75
    assert parity.max_argmax_shift == 5.0
    assert parity.mean_argmax_shift == 1.25
    assert parity.inout_flips == 0.25
    assert [scene.name for scene in parity.worst] == ["b", "a"]
    assert parity.worst[0].describe() == "b (|Δp| 0.6, argmax 5.0 cells, in/out flipped)"
    assert len(parity.failures(Tolerance())) == 4
    assert parity.failures(Tolerance(0.61, 0.75, inout_flips=0.25)) == []


def test_tolerance_is_inclusive_and_no_wider() -> None:
    wanted = torch.full((1, 2, 2), logit(0.5))
    wanted[0, 0, 0] = 1.0
    got = wanted.clone()
    got[0, 1, 1] = logit(0.501)
    parity = compare(answering(wanted, None), answering(got, None), [batch("a")])
    assert parity.inout_flips is None
    assert parity.inout_probability is None
    assert parity.failures(Tolerance(parity.heatmap_probability)) == []
    assert "heatmap" in parity.failures(Tolerance(parity.heatmap_probability * 0.999))[0]


def test_cells_that_are_equal_but_for_rounding_are_one_place() -> None:
    """Bilinear resizing repeats a map's outermost rows, so that a peak at the edge is two cells of one value, which rounding ranks."""
    wanted = torch.full((2, 4, 4), -3.0)
    wanted[0, 3, 1], wanted[0, 2, 1] = -0.76481605, -0.7648161
    wanted[1, 3, 1], wanted[1, 2, 1] = -0.7648, -0.7649
    got = wanted.clone()
    got[:, 2, 1] = torch.tensor([-0.7648118, -0.7648])
    got[:, 3, 1] = torch.tensor([-0.7648119, -0.7649])
    parity = compare(answering(wanted, None), answering(got, None), [batch("edge", "moved")])
    assert (parity.argmax_equal, parity.max_argmax_shift, parity.moved[0].name) == (0.5, 1.0, "moved")


@pytest.mark.parametrize("where", ["heatmap", "inout"])
def test_values_that_are_not_finite_never_pass(where: str) -> None:
    wanted, inout = torch.zeros(2, 2, 2), torch.zeros(2)
    got, other = wanted.clone(), inout.clone()
    (got[1] if where == "heatmap" else other)[1] = torch.nan
    parity = compare(answering(wanted, inout), answering(got, other), [batch("a", "b")])
    assert parity.failures(Tolerance(1.0, 0.0, inout_flips=1.0)) == ["an answer is not finite"]
    assert parity.worst[0].name == "b"
    with pytest.raises(ExportError, match=r"student itself .* scene b"):
        compare(answering(got, other), answering(wanted, inout), [batch("a", "b")])


def test_compare_refuses_nothing_and_answers_of_another_kind() -> None:
    with pytest.raises(ExportError, match="no head"):
        compare(answering(torch.zeros(0, 2, 2), None), answering(torch.zeros(0, 2, 2), None), [])
    with pytest.raises(ExportError, match="in/out absent"):
        compare(answering(torch.zeros(1, 2, 2), torch.zeros(1)), answering(torch.zeros(1, 2, 2), None), [batch("a")])


def test_the_scenes_named_are_those_of_what_was_refused() -> None:
    likely, far = SceneDifference("likely", 0.2, 0.0, False), SceneDifference("far", 0.001, 9.0, False)
    parity = Parity(2, 2, True, 0.2, None, 0.5, 4.5, 9.0, None, (likely, far), (far, likely))
    assert parity.named(Tolerance(probability=1.0, argmax_equal=None, mean_shift=0.25)) == (far, likely)
    assert parity.named(Tolerance(probability=0.1, argmax_equal=None, mean_shift=0.25)) == (likely, far)
