"""Every loss term against numbers computed by hand, and how terms add up over masks, micro-batches and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from students.batch import Batch
from students.losses import (
    HeadCounts,
    Losses,
    LossWeights,
    gaze_losses,
    heatmap_bce,
    heatmap_kl,
    inout_kl,
    mass_near_peak,
    spatial_cross_entropy,
)
from teachers.contract import GazeOutput

LN2, LN3 = math.log(2.0), math.log(3.0)


def make_batch(labels: Sequence[float], *, size: int = 2, seed: int = 0, teacher: bool = True) -> Batch:
    """Heads labelled 1 (in, with a target), 0 (out) or -1 (unknown), one per image."""
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    inout = torch.tensor(labels, dtype=torch.float32)
    target = torch.rand(count, size, size, generator=generator) * (inout == 1).float()[:, None, None]
    return Batch(
        images=torch.zeros(count, 3, 4, 4), boxes=torch.zeros(count, 4), image_index=torch.arange(count), target=target, has_target=inout == 1,
        inout=inout, scenes=tuple(str(number) for number in range(count)),
        teacher_heatmap=torch.randn(count, size, size, generator=generator) if teacher else None,
        teacher_inout=torch.randn(count, generator=generator) if teacher else None,
    )


def make_output(batch: Batch, *, seed: int = 1, inout: bool = True) -> GazeOutput:
    generator = torch.Generator().manual_seed(seed)
    heatmap = torch.randn(batch.target.shape, generator=generator, requires_grad=True)
    return GazeOutput(heatmap, torch.randn(len(batch.inout), generator=generator, requires_grad=True) if inout else None)


def part(batch: Batch, output: GazeOutput, rows: slice) -> tuple[Batch, GazeOutput]:
    pieces = {item.name: getattr(batch, item.name) for item in fields(batch)}
    pieces = {name: value if value is None else value[rows] for name, value in pieces.items()}
    pieces["image_index"] = torch.arange(len(pieces["inout"]))
    return Batch(**pieces), GazeOutput(output.heatmap[rows], None if output.inout is None else output.inout[rows])


def losses(batch: Batch, output: GazeOutput, weights: LossWeights | None = None, *, w: float = 0.5, temperature: float = 2.0) -> Losses:
    return gaze_losses(output, batch, HeadCounts.of(batch), weights or LossWeights(), distill_weight=w, temperature=temperature)


def test_bce_is_a_mean_over_cells() -> None:
    # σ(0) = 1/2 costs ln 2 whatever the target; σ(ln 3) = 3/4 costs -ln 3/4 at 1, -ln 1/4 at 0 and their mean at 1/2.
    logits = torch.tensor([[[0.0, LN3], [LN3, LN3]], [[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.5]], [[0.3, 0.0], [1.0, 0.9]]])
    half = (math.log(4 / 3) + math.log(4.0)) / 2
    expected = [(LN2 + math.log(4 / 3) + math.log(4.0) + half) / 4, LN2]
    torch.testing.assert_close(heatmap_bce(logits, target), torch.tensor(expected))


def test_spatial_cross_entropy_normalises_the_target_to_mass_one() -> None:
    # The softmax of (ln 1, ln 2, ln 3, ln 4) is (1, 2, 3, 4) / 10; the target's mass is 1/4 on the first, 3/4 on the last.
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0]).log().view(1, 2, 2) + 7.0
    target = torch.tensor([[[0.2, 0.0], [0.0, 0.6]]])
    expected = -(0.25 * math.log(0.1) + 0.75 * math.log(0.4))
    torch.testing.assert_close(spatial_cross_entropy(logits, target), torch.tensor([expected]))
    torch.testing.assert_close(spatial_cross_entropy(logits, target / 3), torch.tensor([expected]))
    assert spatial_cross_entropy(logits, torch.zeros(1, 2, 2)).tolist() == [0.0]


def test_heatmap_kl_is_a_sum_over_cells_times_the_temperature_squared() -> None:
    teacher, student = torch.tensor([1.0, 2.0, 3.0, 4.0]).log().view(1, 2, 2), torch.zeros(1, 2, 2)
    at_one = sum(p / 10 * math.log(p / 10 / 0.25) for p in (1, 2, 3, 4))
    torch.testing.assert_close(heatmap_kl(student, teacher, 1.0), torch.tensor([at_one]))
    # At T = 2 the teacher's masses are the square roots' shares.
    total = sum(math.sqrt(p) for p in (1, 2, 3, 4))
    at_two = sum(math.sqrt(p) / total * math.log(math.sqrt(p) / total / 0.25) for p in (1, 2, 3, 4))
    torch.testing.assert_close(heatmap_kl(student, teacher, 2.0), torch.tensor([4 * at_two]))
    # KL is not symmetric: the other way round is another number.
    assert abs(float(heatmap_kl(teacher, student, 1.0)) - at_one) > 0.01


def test_heatmap_kl_does_not_see_a_constant_added_to_the_logits() -> None:
    teacher, student = torch.randn(2, 3, 3), torch.randn(2, 3, 3)
    torch.testing.assert_close(heatmap_kl(student + 5.0, teacher - 3.0, 3.0), heatmap_kl(student, teacher, 3.0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_inout_kl_is_the_two_way_divergence(temperature: float) -> None:
    student, teacher = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([LN3, -0.5, 3.0])
    expected = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-t / temperature)), 1 / (1 + math.exp(-s / temperature))
        expected.append(temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))))
    torch.testing.assert_close(inout_kl(student, teacher, temperature), torch.tensor(expected), atol=2e-5, rtol=1e-4)
    at_one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(inout_kl(student, teacher, 1.0)[0], torch.tensor(at_one))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(temperature: float) -> None:
    batch = make_batch([1, -1, 1], size=3)
    assert batch.teacher_heatmap is not None and batch.teacher_inout is not None
    output = GazeOutput(batch.teacher_heatmap.clone().requires_grad_(), batch.teacher_inout.clone().requires_grad_())
    found = losses(batch, output, LossWeights(bce=0.0), temperature=temperature)
    assert abs(float(found.kd_heatmap)) < 1e-5 and abs(float(found.kd_inout)) < 1e-5
    only = gaze_losses(
        output, replace(batch, inout=torch.full((3,), -1.0)), HeadCounts.of(batch), LossWeights(bce=0.0), distill_weight=1.0, temperature=temperature
    )
    only.total.backward()
    assert float(output.heatmap.grad.abs().max()) < 1e-5 and float(output.inout.grad.abs().max()) < 1e-5  # type: ignore[union-attr]


def test_temperature_squared_keeps_the_gradients_size() -> None:
    # Hinton et al., section 2.1: at high temperatures the gradient tends to (z - v) / N, whatever T is.
    teacher = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0))
    gradients = []
    for temperature in (50.0, 100.0, 400.0):
        student = torch.zeros(1, 3, 3, requires_grad=True)
        heatmap_kl(student, teacher, temperature).sum().backward()
        gradients.append(student.grad)
    limit = -(teacher - teacher.mean()) / 9
    for gradient in gradients:
        torch.testing.assert_close(gradient, limit, atol=4e-3, rtol=0.05)


def test_the_total_is_the_weighted_sum() -> None:
    batch = make_batch([1, 0, -1, 1, 0])
    output = make_output(batch)
    assert output.inout is not None and batch.teacher_heatmap is not None and batch.teacher_inout is not None
    weights = LossWeights(inout=0.7, bce=1.5, softmax=0.2)
    found = losses(batch, output, weights, w=0.3, temperature=2.5)
    ins, known, kept = batch.inout == 1, batch.inout >= 0, batch.inout != 0
    bce = heatmap_bce(output.heatmap, batch.target)[ins].mean()
    spatial = spatial_cross_entropy(output.heatmap, batch.target)[ins].mean()
    probability = torch.sigmoid(output.inout)[known]
    inout = -torch.where(batch.inout[known] == 1, probability, 1 - probability).log().mean()
    kd = heatmap_kl(output.heatmap, batch.teacher_heatmap, 2.5)[kept].mean()
    kd_inout = inout_kl(output.inout, batch.teacher_inout, 2.5).mean()
    torch.testing.assert_close(
        torch.stack(found[:6]), torch.stack((1.5 * bce + 0.2 * spatial + 0.7 * inout + 0.3 * (kd + 0.7 * kd_inout), bce, spatial, inout, kd, kd_inout))
    )
    assert found.kd_kl == found.kd_heatmap and found[7:] == (0.0, 0.0, 0.0, 0.0)
    assert found.total.requires_grad and not any(term.requires_grad for term in found[1:])


def test_counts_say_which_heads_each_mean_is_over() -> None:
    assert [int(count) for count in HeadCounts.of(make_batch([1, 0, -1, 1, 0, -1, -1]))] == [2, 5, 4, 7]
    # A head in the frame without a gaze point counts for in/out and distillation alone.
    batch = make_batch([1, 1])
    assert [int(count) for count in HeadCounts.of(replace(batch, has_target=torch.tensor([True, False])))] == [1, 2, 2, 2]


def test_heads_that_a_term_leaves_out_get_no_gradient_from_it() -> None:
    batch = make_batch([1, 0, -1])

    def touched(weights: LossWeights, w: float) -> tuple[list[bool], list[bool]]:
        output = make_output(batch)
        losses(batch, output, weights, w=w).total.backward()
        assert output.inout is not None
        none = torch.zeros(3)
        maps = output.heatmap.grad.abs().sum(dim=(1, 2)) if output.heatmap.grad is not None else none
        logits = output.inout.grad.abs() if output.inout.grad is not None else none
        return (maps > 0).tolist(), (logits > 0).tolist()

    assert touched(LossWeights(inout=0.0), 0.0) == ([True, False, False], [False] * 3)
    assert touched(LossWeights(inout=0.0, bce=0.0, softmax=1.0), 0.0) == ([True, False, False], [False] * 3)
    assert touched(LossWeights(bce=0.0), 0.0) == ([False] * 3, [True, True, False])
    assert touched(LossWeights(bce=0.0, inout=0.0), 1.0) == ([True, False, True], [False] * 3)
    assert touched(LossWeights(bce=0.0), 1.0) == ([True, False, True], [True] * 3)


@pytest.mark.parametrize("labels", [[], [0.0, 0.0], [-1.0]])
@pytest.mark.parametrize("teacher", [True, False])
def test_a_batch_without_a_single_label_is_zero_and_finite(labels: list[float], teacher: bool) -> None:
    batch = make_batch(labels, teacher=teacher)
    output = make_output(batch)
    found = losses(batch, output, LossWeights(softmax=1.0))
    found.total.backward()
    assert all(bool(torch.isfinite(term)) for term in found)
    assert found.heatmap == 0 and found.spatial == 0
    assert (found.kd_heatmap > 0) == (teacher and -1.0 in labels)
    assert output.heatmap.grad is not None and bool(output.heatmap.grad.isfinite().all())


def test_a_nan_in_a_head_that_is_left_out_does_no_harm() -> None:
    batch = make_batch([1, 0])
    output = make_output(batch)
    assert batch.teacher_heatmap is not None
    clean = losses(batch, output)
    gradient = torch.autograd.grad(clean.total, output.heatmap)[0]
    batch.teacher_heatmap[1] = float("nan")  # a teacher's map means nothing for a head that looks out of the frame
    found = losses(batch, output)
    assert torch.equal(torch.stack(found), torch.stack(clean))
    assert torch.equal(torch.autograd.grad(found.total, output.heatmap)[0], gradient)
    batch.teacher_heatmap[0, 0, 0] = float("nan")
    assert not bool(torch.isfinite(losses(batch, output).total)), "a NaN that counts must be seen"


def test_micro_batches_add_up_to_the_step() -> None:
    batch = make_batch([1, 0, 1, -1, 0, 1, 1, -1, 0], seed=5)
    output, weights = make_output(batch, seed=6), LossWeights(softmax=0.5, inout=2.0, soft_bce=3.0, mse=5.0, dist=0.7, kd_inout=0.3, reliability=0.4)
    whole = losses(batch, output, weights)
    gradient = torch.autograd.grad(whole.total, output.heatmap, retain_graph=True)[0]
    counts, total = HeadCounts.of(batch), torch.zeros(len(Losses._fields))
    summed = torch.zeros_like(gradient)
    for rows in (slice(0, 2), slice(2, 3), slice(3, 9)):  # unequal in every count
        piece, answer = part(batch, output, rows)
        found = gaze_losses(answer, piece, counts, weights, distill_weight=0.5, temperature=2.0)
        total += torch.stack(found).detach()
        summed += torch.autograd.grad(found.total, output.heatmap, retain_graph=True)[0]
    torch.testing.assert_close(total, torch.stack(whole).detach())
    torch.testing.assert_close(summed, gradient)
    assert all(term > 0 for term in whole), "a term that is nothing shows nothing"
    naive = torch.stack([losses(*part(batch, output, rows), weights).total for rows in (slice(0, 2), slice(2, 3), slice(3, 9))]).sum()
    assert abs(naive.item() / 3 - whole.total.item()) > 1e-3, "means of means would do as well: the case shows nothing"


def test_without_weight_or_cache_nothing_is_distilled() -> None:
    batch = make_batch([1, -1])
    output = make_output(batch)
    for found in (losses(batch, output, w=0.0), losses(replace(batch, teacher_heatmap=None, teacher_inout=None), output)):
        assert found.kd_heatmap == 0 and found.kd_inout == 0
        torch.testing.assert_close(found.total, found.heatmap + found.inout)
    silent = losses(replace(batch, teacher_inout=None), output)
    assert silent.kd_inout == 0 and silent.kd_heatmap > 0


def test_a_student_without_inout_learns_from_maps_alone() -> None:
    batch = make_batch([1, 0, -1])
    found = losses(batch, make_output(batch, inout=False), w=0.5)
    assert found.inout == 0 and found.kd_inout == 0
    torch.testing.assert_close(found.total, found.heatmap + 0.5 * found.kd_heatmap)


def test_half_precision_answers_are_scored_in_float32() -> None:
    batch = make_batch([1, 1])
    output = make_output(batch)
    assert output.inout is not None
    rough = GazeOutput(output.heatmap.bfloat16(), output.inout.bfloat16())
    found = losses(batch, rough)
    assert all(term.dtype == torch.float32 for term in found)
    torch.testing.assert_close(found.total, losses(batch, GazeOutput(rough.heatmap.float(), rough.inout.float())).total)  # type: ignore[union-attr]


def brute_share(teacher: Tensor, temperature: float, radius: float) -> float:
    shares = []
    for heatmap in teacher.tolist():
        masses = {(r, c): math.exp(value / temperature) for r, row in enumerate(heatmap) for c, value in enumerate(row)}
        peak = max(masses, key=lambda cell: masses[cell])
        near = sum(mass for cell, mass in masses.items() if math.dist(cell, peak) <= radius)
        shares.append(near / sum(masses.values()))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mass_near_the_peak_counts_the_cells_within_three_sigma(temperature: float) -> None:
    # 3σ is 9 cells of 64, so 2.25 of 16: the knight's move from the peak is within, (2, 2) is not.
    teacher = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0)) * 4
    assert float(mass_near_peak(teacher, temperature)) == pytest.approx(brute_share(teacher, temperature, 2.25), rel=1e-5)


def test_mass_near_the_peak_in_numbers() -> None:
    flat = torch.zeros(1, 64, 64)
    flat[0, 32, 32] = 1e-4
    cells = sum(1 for row in range(-9, 10) for column in range(-9, 10) if row**2 + column**2 <= 81)
    assert float(mass_near_peak(flat, 1.0)) == pytest.approx(cells / 4096, rel=1e-3)
    sharp = torch.zeros(1, 64, 64)
    sharp[0, 5, 60] = 40.0
    assert float(mass_near_peak(sharp, 1.0)) == pytest.approx(1.0, abs=1e-6)
    assert float(mass_near_peak(sharp, 8.0)) < 0.2
    assert float(mass_near_peak(torch.zeros(0, 64, 64), 1.0)) == 1.0
