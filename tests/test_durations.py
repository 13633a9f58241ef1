"""Durations: every unit, their length in epochs, and what is refused."""

import pytest

from schedules.durations import Duration
from schedules.errors import PlanError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, Duration(3.0, "epochs")),
        (2.5, Duration(2.5, "epochs")),
        ("3", Duration(3.0, "epochs")),
        ("3 epochs", Duration(3.0, "epochs")),
        ("1 epoch", Duration(1.0, "epochs")),
        ("2.5epochs", Duration(2.5, "epochs")),
        ("20%", Duration(20.0, "percent")),
        (" 12.5 % ", Duration(12.5, "percent")),
        ("500 steps", Duration(500.0, "steps")),
        ("1e3 Steps", Duration(1000.0, "steps")),
        (Duration(7.0, "steps"), Duration(7.0, "steps")),
        (0, Duration(0.0, "epochs")),
    ],
)
def test_parse(value: Duration | float | str, expected: Duration) -> None:
    assert Duration.parse(value) == expected


@pytest.mark.parametrize(
    ("value", "epochs"), [("3 epochs", 3.0), ("20%", 9.0), ("500 steps", 5.0), ("50 steps", 0.5), ("100%", 45.0)]
)
def test_length_in_epochs(value: str, epochs: float) -> None:
    assert Duration.parse(value).in_epochs(epochs=45, steps_per_epoch=100) == epochs


@pytest.mark.parametrize(
    "value", ["", "three", "3 weeks", "1.2.3", "%", -1, "-5%", "nan", float("nan"), float("inf"), True, None, [3]]
)
def test_refused_in_one_line_with_value_and_remedy(value: object) -> None:
    with pytest.raises(PlanError, match=r"'20%'") as caught:
        Duration.parse(value)  # type: ignore[arg-type]
    assert caught.value.mendable
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3, 2.5, "20%", "500 steps", "0.125 epochs", 1e-7])
def test_description_reads_back(value: float | str) -> None:
    duration = Duration.parse(value)
    assert Duration.parse(duration.describe()) == duration
