"""Curves: values at given epochs, the text and table forms, and what is refused."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from schedules.curves import CurveSpec, parse_curve
from schedules.errors import PlanError


def values(spec: CurveSpec, epochs: list[float], run: int = 10) -> list[float]:
    return [parse_curve(spec).at(epoch, epochs=run, steps_per_epoch=4) for epoch in epochs]


def test_constant() -> None:
    assert values(0.3, [0, 5.5, 10, 99]) == [0.3] * 4
    assert values("0.3", [0, 10]) == [0.3, 0.3]
    assert values(1, [3]) == [1.0]
    assert values({"shape": "constant", "value": 2}, [3]) == [2.0]


def test_linear_reaches_its_end_at_the_end_of_the_run_and_stays() -> None:
    assert values("linear 1.0 -> 0.0", [0, 2.5, 5, 10, 11, 1000]) == [1.0, 0.75, 0.5, 0.0, 0.0, 0.0]


def test_linear_between_two_times() -> None:
    expected = [1.0, 1.0, 0.5, 0.0, 0.0]
    assert values("linear 1 -> 0 from 20% until 80%", [0, 2, 5, 8, 9]) == expected
    table = {"shape": "linear", "start": 1, "end": 0, "from": "20%", "until": "8 epochs"}
    assert values(table, [0, 2, 5, 8, 9]) == expected
    assert values("linear 1 -> 0 from 8 steps until 32 steps", [0, 2, 5, 8, 9]) == expected


def test_cosine() -> None:
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert values("cosine 1.0 -> 0.0", [0, 2.5, 5, 10, 12]) == pytest.approx([1.0, quarter, 0.5, 0.0, 0.0], abs=1e-15)
    assert values("cosine 1 → 4", [0, 5, 10]) == pytest.approx([1.0, 2.5, 4.0])


def test_warmup_multiplies() -> None:
    assert values("warmup 2 epochs 0.5", [0, 0.5, 1, 2, 9]) == [0.0, 0.125, 0.25, 0.5, 0.5]
    assert values("warmup 20% 0.5", [0, 1, 2]) == [0.0, 0.25, 0.5]
    assert values("warmup 2 0.5", [1]) == [0.25]
    assert values("warmup 8 steps linear 1 -> 0", [0, 1, 5]) == [0.0, 0.45, 0.5]
    assert values({"shape": "warmup", "over": 2, "curve": {"shape": "constant", "value": 0.5}}, [1]) == [0.25]
    assert values("warmup 0 epochs 0.5", [0]) == [0.5]


def test_piecewise_and_stairs() -> None:
    epochs = [0.0, 2.5, 5, 7.5, 10]
    assert values("piecewise 0: 1.0, 50%: 0.5, 10 epochs: 0", epochs) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert values("stairs 0: 1.0, 50%: 0.5, 10 epochs: 0", epochs) == [1.0, 1.0, 0.5, 0.5, 0.0]
    assert values({"shape": "piecewise", "points": [[2, 1.0], ["8 epochs", 0.4]]}, [0, 2, 5, 9]) == [1, 1, 0.7, 0.4]


def test_a_point_beyond_the_run_is_approached_and_the_value_at_the_end_kept() -> None:
    assert values("piecewise 0: 1.0, 20 epochs: 0", [5, 10, 15, 20, 30]) == [0.75, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "spec",
    [
        0.3,
        "linear 1.0 -> 0.1",
        "cosine 1.0 -> 0.0 from 20% until 30 steps",
        "warmup 2 epochs 0.5",
        "warmup 5% cosine 1.0 -> 0.0",
        "piecewise 0: 1.0, 50%: 0.3, 9 epochs: 0",
        "stairs 0: 1.0, 50%: 0.3",
        {"shape": "linear", "start": 1, "end": 1e-3, "until": "80%"},
    ],
)
def test_description_reads_back(spec: CurveSpec) -> None:
    curve = parse_curve(spec)
    assert parse_curve(curve.describe()) == curve
    assert parse_curve(curve) is curve


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "fast",
        "linear 1.0",
        "linear 1.0 -> much",
        "piecewise 0 1.0",
        "piecewise 0: 1.0, 50%",
        "warmup 0.5",
        "stairs soon: 1",
        "nan",
        "inf",
        float("nan"),
        True,
        None,
        {"shape": "parabola"},
        {"start": 1, "end": 0},
        {"shape": "linear", "start": 1},
        {"shape": "linear", "start": 1, "end": 0, "to": "80%"},
        {"shape": "piecewise", "points": []},
        {"shape": "piecewise", "points": [1, 2]},
    ],
)
def test_refused_in_one_line(spec: Any) -> None:
    with pytest.raises(PlanError) as caught:
        parse_curve(spec)
    assert "\n" not in str(caught.value)


def test_a_refusal_teaches_the_grammar() -> None:
    with pytest.raises(PlanError, match=r"'fast' is not a curve; write a number, 'linear 1.0 -> 0.1', 'cosine"):
        parse_curve("fast")
    spec: Mapping[str, Any] = {"shape": "linear", "start": 1, "end": 0, "to": "80%"}
    with pytest.raises(PlanError, match=r"'linear' has no to; it takes \['end', 'from', 'start', 'until'\]"):
        parse_curve(spec)


def test_times_must_rise_in_this_run() -> None:
    curve = parse_curve("piecewise 0: 1.0, 50%: 0.3, 6 epochs: 0")
    curve.check(epochs=10, steps_per_epoch=4)
    with pytest.raises(PlanError, match=r"from epoch 10 to epoch 6 in this run of 20 epochs"):
        curve.check(epochs=20, steps_per_epoch=4)
    with pytest.raises(PlanError, match=r"begins at epoch 8 and ends at epoch 2"):
        parse_curve("warmup 1 linear 1 -> 0 from 80% until 20%").check(epochs=10, steps_per_epoch=4)
