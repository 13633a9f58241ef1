"""Which cases are shown: the best, the median and the worst of a model, none of them twice."""

from __future__ import annotations

from collections.abc import Sequence


def pick_cases(errors: Sequence[float], count: int) -> list[tuple[str, int]]:
    """("best" | "median" | "worst", index into ``errors``), at most ``count`` of them and each index once.

    A third each, in this order and from the extremes inwards; what a third does not divide goes to the worst, where there is most to learn. Equal
    errors keep their order. ``errors`` are finite.
    """
    order = sorted(range(len(errors)), key=lambda number: errors[number])
    count = min(count, len(order))
    if count < 2:
        return [("best", number) for number in order[:count]]
    third = max(1, count // 3)
    middle = third if count > 2 else 0
    best, rest = order[:third], order[third:]
    worst = rest[len(rest) - (count - third - middle) :][::-1]
    left = rest[: len(rest) - len(worst)]
    # Of all cases, not of those that are left: the median case is the one in the middle of the whole order.
    start = min(max(0, len(order) // 2 - middle // 2 - third), len(left) - middle)
    median = left[start : start + middle]
    return [*(("best", number) for number in best), *(("median", number) for number in median), *(("worst", number) for number in worst)]
