"""The compiled plan: exact tables, the written schedule transcribed, stretching, purity, messages, `--thaw-by`."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from schedules.clock import needed_epochs
from schedules.config import PlanConfig
from schedules.errors import PlanError
from schedules.plan import Plan, compile_plan, solve_thaw_by


def config(epochs: int = 45, **values: Any) -> PlanConfig:
    return PlanConfig(epochs=epochs, steps_per_epoch=values.pop("steps_per_epoch", 10), **{"finetune": True, **values})


def opened(plan: Plan) -> list[int]:
    return [line.open_blocks for line in plan.epochs_table]


def test_defaults_are_the_guides() -> None:
    plain = PlanConfig(epochs=1, steps_per_epoch=1)
    assert (plain.finetune, plain.finetune_layers, plain.disable_progressive_unfreeze) == (False, 2, False)
    assert (plain.initial_freeze_epochs, plain.unfreeze_interval, plain.thaw_coupling) == (10, 3, 1.0)
    assert plain.backbone_rate == plain.lr / 10


def test_the_plain_table() -> None:
    plan = compile_plan(config(epochs=12, finetune_layers=2, initial_freeze_epochs=5, unfreeze_interval=2), blocks=6)
    lines = [(line.epoch, line.thaw_time, line.open_blocks, line.stem_open) for line in plan.epochs_table]
    assert lines == [
        (0, 0.0, 2, False),
        (1, 1.0, 2, False),
        (2, 2.0, 2, False),
        (3, 3.0, 2, False),
        (4, 4.0, 2, False),
        (5, 5.0, 3, False),
        (6, 6.0, 3, False),
        (7, 7.0, 4, False),
        (8, 8.0, 4, False),
        (9, 9.0, 5, False),
        (10, 10.0, 5, False),
        (11, 11.0, 6, True),
    ]
    assert plan.thaw_events == [(0, [0, 1]), (5, [2]), (7, [3]), (9, [4]), (11, [5, 6])]
    assert plan.final_unfreeze_epoch == 11
    assert plan.warnings == []
    assert plan.messages == [
        "Progressive unfreeze scheduled after 5 epochs, adding one block every 2 epochs.",
        "All 6 blocks and the stem are expected to be unfrozen at epoch 11 (epochs count from 0).",
    ]


def transcribed(n: int, n0: int, hold: int, interval: int, epoch: int) -> int:
    """The schedule as written, at κ = 0, where thaw time is the epoch."""
    if n0 <= 0:
        return n
    if epoch < hold:
        return min(n, n0)
    return min(n, n0 + (epoch - hold) // interval + 1)


def test_grid_against_the_written_schedule_at_no_coupling() -> None:
    for n, n0, hold, interval in itertools.product((1, 2, 12), (-1, 0, 1, 2, 4, 15), (0, 1, 10), (1, 3, 5)):
        values: dict[str, Any] = {
            "epochs": 40,
            "finetune_layers": n0,
            "initial_freeze_epochs": hold,
            "unfreeze_interval": interval,
        }
        expected = [transcribed(n, n0, hold, interval, epoch) for epoch in range(40)]
        clocks: tuple[dict[str, Any], ...] = ({"distill_weight": 0.0}, {"distill_weight": 2.0, "thaw_coupling": 0.0})
        for clock in clocks:
            plan = compile_plan(config(**values, **clock), blocks=n)
            assert opened(plan) == expected, (n, n0, hold, interval)
            assert [line.stem_open for line in plan.epochs_table] == [count == n for count in expected]
            final = next((epoch for epoch in range(1000) if transcribed(n, n0, hold, interval, epoch) == n), None)
            assert plan.final_unfreeze_epoch == final


def test_constant_weight_stretches_hold_and_interval_exactly() -> None:
    for weight, coupling in ((1.0, 1.0), (0.5, 2.0), (0.3, 1.0), (0.1, 1.0), (2.0, 1.5)):
        stretch = 1 + weight * coupling
        plan = compile_plan(config(epochs=200, distill_weight=weight, thaw_coupling=coupling), blocks=12)
        expected = [math.ceil(stretch * (10 + 3 * k) - 1e-9) for k in range(10)]
        assert [epoch for epoch, _ in plan.thaw_events[1:]] == expected


def test_the_boundary_is_not_left_to_rounding() -> None:
    # Fifteen times 1 / 1.5 is 10 on paper; added up in floating point it stays below.
    plan = compile_plan(config(distill_weight=0.5), blocks=12)
    assert 9.99 < plan.epochs_table[15].thaw_time < 10
    assert opened(plan)[14:16] == [2, 3]
    assert compile_plan(config(distill_weight=0.3), blocks=12).thaw_events[1] == (13, [2])
    # And well below a boundary nothing opens early.
    early = compile_plan(config(distill_weight=0.5, initial_freeze_epochs=10.000001), blocks=12)
    assert opened(early)[15:17] == [2, 3]


def test_thaw_time_is_the_sum_over_first_steps() -> None:
    plan = compile_plan(config(epochs=8, distill_weight="linear 1.0 -> 0.0"), blocks=12)
    weights = [1 - epoch / 8 for epoch in range(8)]
    assert [line.distill_weight for line in plan.epochs_table] == pytest.approx(weights)
    expected = [math.fsum(1 / (1 + weight) for weight in weights[:epoch]) for epoch in range(8)]
    assert [line.thaw_time for line in plan.epochs_table] == pytest.approx(expected)


def test_precedence() -> None:
    def table(**values: Any) -> tuple[int, int, bool, int | None]:
        plan = compile_plan(config(**values), blocks=12)
        first, last = plan.epochs_table[0], plan.epochs_table[-1]
        return first.open_blocks, last.open_blocks, last.stem_open, plan.final_unfreeze_epoch

    assert table(finetune=False, finetune_layers=0) == (0, 0, False, None)
    assert table(finetune_layers=0, disable_progressive_unfreeze=True) == (12, 12, True, 0)
    assert table(finetune_layers=-1, unfreeze_interval=0) == (12, 12, True, 0)
    assert table(disable_progressive_unfreeze=True) == (2, 2, False, None)
    assert table(disable_progressive_unfreeze=True, finetune_layers=12) == (12, 12, True, 0)
    assert table() == (2, 12, True, 37)


def test_durations_in_percent_and_steps_count_in_thaw_time() -> None:
    reference = compile_plan(config(initial_freeze_epochs=9, unfreeze_interval=2.5, distill_weight=0.5), blocks=12)
    other = compile_plan(
        config(initial_freeze_epochs="20%", unfreeze_interval="25 steps", distill_weight=0.5), blocks=12
    )
    assert opened(other) == opened(reference)
    assert other.epochs_table == reference.epochs_table


def test_an_interval_below_one_epoch_opens_several_blocks_at_once() -> None:
    plan = compile_plan(config(epochs=6, initial_freeze_epochs=2, unfreeze_interval=0.5), blocks=6)
    assert opened(plan) == [2, 2, 3, 5, 6, 6]
    assert plan.thaw_events == [(0, [0, 1]), (2, [2]), (3, [3, 4]), (4, [5, 6])]


def test_rates_step_by_step() -> None:
    plan = compile_plan(
        config(
            epochs=4,
            steps_per_epoch=4,
            finetune_layers=1,
            initial_freeze_epochs=1,
            unfreeze_interval=1,
            lr=1.0,
            backbone_lr=0.5,
            warmup="2 steps",
            thaw_warmup="4 steps",
            layer_decay=0.5,
            final_lr_ratio=0.1,
        ),
        blocks=2,
    )

    def fall(step: int) -> float:
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1, step / 16)))

    assert [plan.at(step).lr_head for step in (0, 1, 2, 8)] == pytest.approx([0.5, fall(1), fall(2), 0.55])
    # The last block has both warm-ups, the later two their own; each deeper stage has half the rate.
    assert plan.at(0).lr_stages == pytest.approx((0.5 * 0.25, 0, 0))
    assert plan.at(3).lr_stages == pytest.approx((0.5 * fall(3), 0, 0))
    assert plan.at(4).lr_stages == pytest.approx((0.5 * fall(4), 0.25 * fall(4) / 4, 0.125 * fall(4) / 4))
    assert plan.at(5).lr_stages == pytest.approx((0.5 * fall(5), 0.25 * fall(5) / 2, 0.125 * fall(5) / 2))
    assert plan.at(7).lr_stages == pytest.approx((0.5 * fall(7), 0.25 * fall(7), 0.125 * fall(7)))
    closed = plan.at(3)
    assert (closed.open_blocks, closed.stem_open, closed.lr_stages[1:]) == (1, False, (0.0, 0.0))
    assert (plan.at(4).open_blocks, plan.at(4).stem_open) == (2, True)


def test_rates_never_rise_after_the_planned_end() -> None:
    plan = compile_plan(config(epochs=5, unfreeze_interval=1, initial_freeze_epochs=1, finetune_layers=1), blocks=3)
    at_end = plan.at(50)
    assert at_end.lr_head == pytest.approx(1e-3 * 0.01)
    assert [plan.at(step).lr_head for step in (51, 100, 10_000)] == [at_end.lr_head] * 3
    assert plan.at(10_000).lr_stages == pytest.approx((1e-6,) * 4)
    # A run prolonged to 9 epochs keeps the shape that it was planned with, and its extra epochs the final values.
    longer = compile_plan(replace(plan.config, epochs=9, planned_epochs=5, distill_weight="linear 1 -> 0.2"), blocks=3)
    planned = compile_plan(replace(plan.config, distill_weight="linear 1 -> 0.2"), blocks=3)
    assert longer.epochs_table[:5] == planned.epochs_table
    assert [line.distill_weight for line in longer.epochs_table[5:]] == [0.2] * 4
    assert [line.lr_head for line in longer.epochs_table[5:]] == [at_end.lr_head] * 4
    assert longer.epochs_table[6].thaw_time - longer.epochs_table[5].thaw_time == pytest.approx(1 / 1.2)


def test_constant_rates() -> None:
    plan = compile_plan(config(epochs=4, lr_schedule="constant", warmup=0, thaw_warmup=0, lr=0.1), blocks=4)
    assert {plan.at(step).lr_head for step in range(60)} == {0.1}
    assert plan.at(39).lr_stages == (0.1 / 10, 0.1 / 10, 0.0, 0.0, 0.0)


def test_temperature() -> None:
    def temperatures(**values: Any) -> list[float]:
        return [line.temperature for line in compile_plan(config(epochs=4, **values), blocks=4).epochs_table]

    assert temperatures() == [1.0] * 4
    assert temperatures(distill_temp_start=1, distill_temp_end=5) == [1.0, 2.0, 3.0, 4.0]
    cosine = temperatures(distill_temp_start=1, distill_temp_end=5, distill_temp_shape="cosine")
    assert cosine == pytest.approx([1, 3 - 2 * math.sqrt(0.5), 3, 3 + 2 * math.sqrt(0.5)])
    assert temperatures(distill_temp_end=5, distill_temperature="stairs 0: 4, 50%: 2") == [4.0, 4.0, 2.0, 2.0]


def test_weight_is_in_force_per_step_and_the_clock_reads_first_steps() -> None:
    plan = compile_plan(config(epochs=4, distill_weight="linear 1 -> 0"), blocks=4)
    assert plan.at(5).distill_weight == pytest.approx(1 - 0.5 / 4)
    assert plan.at(10).distill_weight == plan.epochs_table[1].distill_weight == 0.75
    assert plan.epochs_table[1].thaw_time == 0.5


def test_a_plan_is_a_pure_function_of_configuration_and_step() -> None:
    values: dict[str, Any] = {"distill_weight": "cosine 1 -> 0", "distill_temp_end": 4.0, "layer_decay": 0.8}
    whole = compile_plan(config(**values), blocks=12)
    points = [whole.at(step) for step in range(460)]
    # As after a resume: another object, asked from the middle on, and backwards.
    again = compile_plan(config(**values), blocks=12)
    assert [again.at(step) for step in reversed(range(460))] == points[::-1]


def test_late_stages_are_warned_of_with_the_epochs_needed() -> None:
    plan = compile_plan(config(distill_weight=0.3), blocks=12)
    assert plan.final_unfreeze_epoch == 49
    (warning,) = plan.warnings
    assert "opens at epoch 49 only, beyond this run of 45 epochs" in warning
    assert "50 epochs would be needed" in warning
    assert compile_plan(replace(plan.config, epochs=50), 12).warnings == []
    assert len(compile_plan(replace(plan.config, epochs=49), 12).warnings) == 1
    assert compile_plan(replace(plan.config, epochs=49), 12).final_unfreeze_epoch == 49


def test_the_epochs_needed_are_enough_and_one_fewer_is_not() -> None:
    for spec in ("cosine 1 -> 0", "linear 0 -> 2", "warmup 20% 0.7"):
        late = config(epochs=20, distill_weight=spec)
        needed = needed_epochs(late, 12)
        assert needed is not None
        for epochs, fits in ((needed, True), (needed - 1, False)):
            final = compile_plan(replace(late, epochs=epochs), 12).final_unfreeze_epoch
            assert final is not None
            assert (final < epochs) is fits
    assert needed_epochs(config(initial_freeze_epochs="100%"), 12) is None


def test_nothing_unfrozen_is_said() -> None:
    short = compile_plan(config(epochs=10), blocks=12)
    assert any("Nothing is being unfrozen beyond the first 2 blocks" in warning for warning in short.warnings)
    (warning,) = compile_plan(config(finetune=False, finetune_layers=4), blocks=12).warnings
    assert warning == "Nothing is being unfrozen: --finetune-layers given without --finetune; add --finetune."
    assert compile_plan(config(finetune=False), blocks=0).warnings == []
    (warning,) = compile_plan(config(finetune_layers=0, backbone_lr=0.01), blocks=12).warnings
    assert "10x smaller" in warning


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"epochs must be .* at least 1, got 0"),
        ({"epochs": 2.5}, r"epochs must be a whole number"),
        ({"epochs": True}, r"epochs must be a whole number"),
        ({"steps_per_epoch": 0}, r"steps_per_epoch must be"),
        ({"finetune_layers": 1.5}, r"finetune_layers must be a whole number"),
        ({"finetune": "yes"}, r"finetune must be true or false"),
        ({"unfreeze_interval": 0}, r"unfreeze_interval must be above 0 .*got 0: nothing is being unfrozen; set"),
        ({"unfreeze_interval": "0%"}, r"unfreeze_interval must be above 0"),
        ({"unfreeze_interval": -1}, r"unfreeze_interval: a duration must be finite and not negative"),
        ({"initial_freeze_epochs": "soon"}, r"initial_freeze_epochs: 'soon' is not a duration"),
        ({"distill_weight": -0.1}, r"distill_weight must not be negative, got '-0.1'"),
        (
            {"distill_weight": "linear 1 -> -1"},
            r"distill_weight must not be negative, got 'linear 1.0 -> -1.0' with -1",
        ),
        ({"distill_weight": "piecewise 5: 1, 10%: 0"}, r"distill_weight: curve .* rising order"),
        ({"distill_weight": float("nan")}, r"distill_weight: nan in a curve is not finite"),
        ({"distill_temp_end": 0.0}, r"distill_temp_end must be above 0, got 0.0"),
        ({"distill_temperature": "linear 1 -> 0"}, r"distill_temperature must stay above 0"),
        ({"thaw_coupling": -1.0}, r"thaw_coupling must be at least 0, got -1.0"),
        ({"lr": 0.0}, r"lr must be above 0"),
        ({"lr": float("inf")}, r"lr must be above 0"),
        ({"backbone_lr": 0.0}, r"backbone_lr must be above 0, got 0.0; leave --finetune out"),
        ({"layer_decay": 1.5}, r"layer_decay must be above 0 and at most 1, got 1.5"),
        ({"final_lr_ratio": -0.1}, r"final_lr_ratio must be at least 0 and at most 1"),
        ({"lr_schedule": "step"}, r"lr_schedule must be cosine or constant, got 'step'"),
        ({"warmup": "x"}, r"warmup: 'x' is not a duration"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        config(**values)
    assert "\n" not in str(caught.value)


def test_no_stages_to_open_is_an_error_only_with_finetune() -> None:
    with pytest.raises(PlanError, match="yields no stages"):
        compile_plan(config(), blocks=0)
    frozen = compile_plan(config(finetune=False), blocks=0)
    assert frozen.at(3).lr_stages == (0.0,)
    with pytest.raises(PlanError, match="-1"):
        compile_plan(config(), blocks=-1)


@pytest.mark.parametrize("weight", [0.0, 1.0, "cosine 1 -> 0", "linear 0 -> 1"])
@pytest.mark.parametrize("by", ["80%", "33 epochs", "410 steps", "100%"])
def test_thaw_by_finds_the_longest_interval(weight: float | str, by: str) -> None:
    solved = solve_thaw_by(config(distill_weight=weight), 12, by)
    deadline = {"80%": 36, "33 epochs": 33, "410 steps": 41, "100%": 44}[by]
    final = compile_plan(solved, 12).final_unfreeze_epoch
    assert final is not None
    assert final <= deadline
    assert isinstance(solved.unfreeze_interval, float)
    longer = compile_plan(replace(solved, unfreeze_interval=solved.unfreeze_interval * 1.001), 12).final_unfreeze_epoch
    assert longer is not None
    assert longer > deadline
    assert replace(solved, unfreeze_interval=3) == config(distill_weight=weight)


def test_thaw_by_exact_value_and_cases_that_need_no_solving() -> None:
    assert solve_thaw_by(config(), 12, 37).unfreeze_interval == 3.0
    assert solve_thaw_by(config(finetune_layers=0), 12, "10%") == config(finetune_layers=0)
    assert solve_thaw_by(config(finetune_layers=11), 12, 10) == config(finetune_layers=11)


@pytest.mark.parametrize(
    ("values", "by", "message"),
    [
        ({"finetune": False}, "80%", "add --finetune"),
        ({"disable_progressive_unfreeze": True}, "80%", "leave it out"),
        ({}, "10 epochs", "at epoch 10 only 10 epochs of thaw time"),
        ({"distill_weight": 9.0}, "80%", "lower --initial-freeze-epochs"),
        ({"finetune_layers": 11}, "9 epochs", "initial hold takes 10"),
        ({}, "later", "not a duration"),
    ],
)
def test_thaw_by_that_cannot_be_is_refused_with_the_reason(values: dict[str, Any], by: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        solve_thaw_by(config(**values), 12, by)


def test_equal_schedules_have_equal_dicts_and_read_back() -> None:
    one = config(initial_freeze_epochs=10, distill_weight={"shape": "linear", "start": 1, "end": 0})
    two = config(initial_freeze_epochs="10 epochs", distill_weight="linear 1.0 -> 0.0")
    assert one.to_dict() == two.to_dict()
    assert PlanConfig(**json.loads(json.dumps(one.to_dict()))).to_dict() == one.to_dict()
