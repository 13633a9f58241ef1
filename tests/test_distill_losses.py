"""The other distillation terms and the teacher's reliability against numbers computed by hand, and what a step logs of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_losses import losses, make_batch, make_output
from torch import Tensor

from students.losses import (
    Losses,
    LossWeights,
    heatmap_correlation,
    heatmap_kl,
    heatmap_mse,
    heatmap_soft_bce,
    loss_record,
    spatial_cross_entropy,
    teacher_reliability,
)

LN3 = math.log(3.0)
NONE = LossWeights(kl=0.0)
TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": lambda s, t: heatmap_kl(s, t, 2.0),
    "bce": lambda s, t: heatmap_soft_bce(s, t, 2.0),
    "mse": heatmap_mse,
    "dist": lambda s, t: heatmap_correlation(s, t, 2.0),
}


def test_soft_bce_in_numbers() -> None:
    # σ(ln 3) = 3/4. Student at 1/2 costs ln 2 whatever the teacher; student at 3/4 against a teacher of 3/4 and of 1/4.
    student, teacher = torch.tensor([[[0.0, LN3], [LN3, 0.0]]]), torch.tensor([[[7.0, LN3], [-LN3, -2.0]]])
    agree = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    against = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    expected = (2 * math.log(2.0) + agree + against) / 4
    torch.testing.assert_close(heatmap_soft_bce(student, teacher, 1.0), torch.tensor([expected]))
    # At T the logits are divided by T, and the mean is multiplied by T².
    torch.testing.assert_close(heatmap_soft_bce(3 * student, 3 * teacher, 3.0), torch.tensor([9 * expected]))


def test_soft_bce_has_its_least_value_where_both_agree() -> None:
    teacher = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    heatmap_soft_bce(student, teacher, 2.0).sum().backward()
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-7


def test_mse_in_numbers() -> None:
    student, teacher = torch.tensor([[[0.0, LN3], [-LN3, 50.0]]]), torch.tensor([[[0.0, -LN3], [0.0, -50.0]]])
    torch.testing.assert_close(heatmap_mse(student, teacher), torch.tensor([(0.0 + 0.25 + 0.0625 + 1.0) / 4]))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_correlation_is_pearsons(temperature: float) -> None:
    dice = torch.Generator().manual_seed(3)
    student, teacher = 3 * torch.randn(4, 5, 6, generator=dice), 3 * torch.randn(4, 5, 6, generator=dice)
    expected = []
    for s, t in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        p, q = np.exp(s.ravel() / temperature), np.exp(t.ravel() / temperature)
        expected.append(temperature**2 * (1 - np.corrcoef(p / p.sum(), q / q.sum())[0, 1]))
    torch.testing.assert_close(heatmap_correlation(student, teacher, temperature), torch.tensor(expected, dtype=torch.float32), atol=2e-5, rtol=1e-4)


def test_correlation_in_numbers() -> None:
    # Softmaxes (1, 2, 3, 4)/10 and (4, 3, 2, 1)/10 are opposite; (1, 1, 1, 4)/7 against the first: covariance 4.5, variances 5 and 6.75.
    rising = torch.tensor([1.0, 2.0, 3.0, 4.0]).log().view(1, 2, 2)
    peaked = torch.tensor([1.0, 1.0, 1.0, 4.0]).log().view(1, 2, 2)
    for other, correlation in ((rising, 1.0), (rising.flip(1, 2), -1.0), (peaked, 4.5 / math.sqrt(5 * 6.75))):
        assert float(heatmap_correlation(other + 5.0, rising, 1.0)) == pytest.approx(1 - correlation, abs=2e-5)


def test_temperature_squared_lets_the_correlations_gradient_grow() -> None:
    # As T grows both softmaxes become linear in the logits, whose correlation has no T in it: the factor is then all there is.
    dice = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(1, 4, 4, generator=dice), torch.randn(1, 4, 4, generator=dice)
    correlation = float(torch.corrcoef(torch.stack((teacher.flatten(), student.flatten())))[0, 1])
    for temperature in (20.0, 40.0):
        assert float(heatmap_correlation(student, teacher, temperature)) / temperature**2 == pytest.approx(1 - correlation, rel=0.03)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("student_kind", ["constant", "one-hot", "random", "huge"])
@pytest.mark.parametrize("teacher_kind", ["constant", "one-hot", "random", "huge"])
def test_degenerate_maps_give_finite_losses_and_gradients(name: str, student_kind: str, teacher_kind: str) -> None:
    def made(kind: str, seed: int) -> Tensor:
        noise = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(seed))
        if kind == "one-hot":
            noise = torch.full((2, 8, 8), -200.0)
            noise[:, seed, 3] = 200.0
        return {"constant": torch.full((2, 8, 8), 3.0), "one-hot": noise, "random": noise, "huge": 1e6 * noise}[kind]

    student, teacher = made(student_kind, 1).requires_grad_(), made(teacher_kind, 2)
    value = TERMS[name](student, teacher)
    value.sum().backward()
    assert bool(value.isfinite().all()) and bool((value >= -1e-4).all())
    assert student.grad is not None and bool(student.grad.isfinite().all())
    if name == "dist" and "constant" in (student_kind, teacher_kind):
        assert value.tolist() == pytest.approx([4.0, 4.0])  # a constant map correlates with nothing: T²
    if name == "dist" and teacher_kind == "constant":
        assert float(student.grad.abs().max()) < 1e-3  # and teaches nothing


@pytest.mark.parametrize("name", TERMS)
def test_every_term_pulls_a_student_towards_its_teacher(name: str) -> None:
    teacher = torch.full((1, 6, 6), -3.0)
    teacher[0, 1, 4] = 3.0
    student = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.2)
    least = float(TERMS[name](teacher, teacher))  # 0 but for cross-entropy
    first = float(TERMS[name](student.detach(), teacher)) - least
    for _ in range(60):
        optimizer.zero_grad()
        TERMS[name](student, teacher).sum().backward()
        optimizer.step()
    assert int(student.detach().flatten().argmax()) == 1 * 6 + 4
    assert float(TERMS[name](student.detach(), teacher)) - least < 0.6 * first


@pytest.mark.parametrize(("field", "name"), [("kl", "kl"), ("soft_bce", "bce"), ("mse", "mse"), ("dist", "dist")])
def test_each_kind_alone_is_the_heatmap_term(field: str, name: str) -> None:
    batch = make_batch([1, 0, -1, 1], size=4)
    output = make_output(batch)
    assert batch.teacher_heatmap is not None
    found = losses(batch, output, replace(NONE, **{field: 2.0}), w=0.3)
    alone = TERMS[name](output.heatmap, batch.teacher_heatmap)[batch.inout != 0].mean()
    torch.testing.assert_close(getattr(found, f"kd_{name}"), alone.detach())
    torch.testing.assert_close(found.kd_heatmap, 2.0 * alone.detach())
    torch.testing.assert_close(found.total, (found.heatmap + found.inout + 0.3 * (found.kd_heatmap + found.kd_inout)).requires_grad_())
    others = [getattr(found, f"kd_{other}") for other in TERMS if other != name]
    assert others == [0.0, 0.0, 0.0]


def test_weights_by_name_share_the_distillation() -> None:
    batch = make_batch([1, 1, -1], size=4)
    output = make_output(batch)
    found = losses(batch, output, LossWeights(kl=0.5, soft_bce=3.0, mse=7.0, dist=0.25))
    torch.testing.assert_close(found.kd_heatmap, 0.5 * found.kd_kl + 3 * found.kd_bce + 7 * found.kd_mse + 0.25 * found.kd_dist)


def test_in_and_out_are_switched_apart() -> None:
    batch = make_batch([1, 0, -1])
    output = make_output(batch)
    task = losses(batch, output, LossWeights(kd_inout=0.0))
    assert task.inout > 0 and task.kd_inout == 0
    taught = losses(batch, output, LossWeights(inout=0.0, kd_inout=0.4), w=0.5)
    assert taught.inout == 0 and taught.kd_inout > 0
    torch.testing.assert_close(taught.total.detach(), taught.heatmap + 0.5 * (taught.kd_heatmap + 0.4 * taught.kd_inout))


@pytest.mark.parametrize(
    "weights", [LossWeights(bce=0.0), LossWeights(inout=0.0), NONE, LossWeights(0.0, 0.0, 0.0, 0.0), LossWeights(0.0, 0.0, 1.0, 0.0)], ids=str
)
def test_what_weighs_nothing_is_nothing(weights: LossWeights) -> None:
    batch = make_batch([1, 0, -1])
    found = losses(batch, make_output(batch), weights)
    off = {
        "heatmap": not weights.bce, "spatial": not weights.softmax, "inout": not weights.inout, "kd_heatmap": not weights.kl,
        "kd_inout": not weights.inout, "kd_bce": True, "kd_mse": True, "kd_dist": True,
    }
    assert {name: bool(getattr(found, name) == 0) for name in off} == off


def bump(row: int, column: int, shape: tuple[int, int] = (8, 16)) -> Tensor:
    heatmap = torch.zeros(shape)
    heatmap[row, column] = 1.0
    return heatmap


def test_reliability_in_numbers() -> None:
    teacher = torch.stack([bump(2, 4), bump(2, 12), bump(6, 4), bump(0, 0), torch.full((8, 16), 0.5)])
    target = torch.stack([bump(2, 4), bump(2, 4), bump(2, 4), torch.zeros(8, 16), bump(0, 0)])
    annotated = torch.tensor([True, True, True, False, True])
    # Half of the map's width away, half of its height away: the same distance.
    half = math.exp(-(0.5**2) / (2 * 0.2**2))
    torch.testing.assert_close(teacher_reliability(teacher, target, annotated, 0.2), torch.tensor([1.0, half, half, 1.0, 1.0]))
    assert float(teacher_reliability(teacher, target, annotated, 1e3)[1]) == pytest.approx(1.0, abs=1e-6)


def test_a_doubtful_teacher_adds_less_and_is_counted_in_full() -> None:
    batch = make_batch([1, 1, -1, 0], size=8)
    output = make_output(batch)
    assert batch.teacher_heatmap is not None
    believed = teacher_reliability(batch.teacher_heatmap, batch.target, batch.has_target, 0.3)
    assert float(believed[:2].min()) < 0.5 and believed[2] == 1.0
    weights = LossWeights(kl=1.0, dist=1.0, reliability=0.3)
    found = losses(batch, output, weights)
    for name in ("kl", "dist"):
        each = TERMS[name](output.heatmap, batch.teacher_heatmap)
        torch.testing.assert_close(getattr(found, f"kd_{name}"), (believed * each)[:3].sum().detach() / 3)
    torch.testing.assert_close(found.reliability, believed[:3].mean())
    # The other terms do not look at it, and without it every teacher is believed.
    plain = losses(batch, output, replace(weights, reliability=0.0))
    assert (found.heatmap, found.inout, found.kd_inout) == (plain.heatmap, plain.inout, plain.kd_inout)
    assert plain.reliability == 0.0 and plain.kd_kl > found.kd_kl


def test_the_record_names_every_term_before_and_after_weighting() -> None:
    batch = make_batch([1, 0, -1, 1], size=4)
    weights = LossWeights(inout=0.7, bce=1.5, softmax=0.2, kl=1.0, dist=2.0, kd_inout=0.4, reliability=0.5)
    found = losses(batch, make_output(batch), weights, w=0.3)
    record = loss_record([float(value.detach()) for value in found], weights, 0.3)
    terms = ["heatmap", "spatial", "inout", "kd_heatmap", "kd_inout", "kd_kl", "kd_dist"]
    assert list(record) == ["loss", *terms, *(f"weighted_{name}" for name in terms), "reliability"]
    factors = {"heatmap": 1.5, "spatial": 0.2, "inout": 0.7, "kd_heatmap": 0.3, "kd_inout": 0.12, "kd_kl": 0.3, "kd_dist": 0.6}
    for name, factor in factors.items():
        assert record[name] == float(getattr(found, name)) > 0
        assert record[f"weighted_{name}"] == pytest.approx(factor * record[name])
    summed = sum(record[f"weighted_{name}"] for name in terms[:5])
    assert record["loss"] == pytest.approx(summed, rel=1e-6)
    plain = loss_record([1.0] * len(Losses._fields), LossWeights(), 0.0)
    assert "reliability" not in plain and "kd_dist" not in plain and plain["weighted_kd_kl"] == 0.0


def test_a_sharper_target_asks_for_a_sharper_map() -> None:
    from distill.targets import gaussian_target

    wide, narrow = (torch.from_numpy(gaussian_target([(0.5, 0.5)], (32, 32), sigma))[None] for sigma in (3 / 64, 1 / 64))
    assert float((wide > 0.5).sum()) > 3 * float((narrow > 0.5).sum())
    # Cross-entropy against a distribution is least at that distribution, whose entropy it then is.
    least = [float(spatial_cross_entropy(torch.log(target + 1e-12), target)) for target in (wide, narrow)]
    assert least[0] > least[1] + 1.0
