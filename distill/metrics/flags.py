"""What is wrong with a model although its table looks like one: heads that say the same whatever they see."""

from __future__ import annotations

import numpy as np

from distill.metrics.bootstrap import Interval
from distill.metrics.rows import HeadRows

COLLAPSED = 0.1  # share of the way from the prevalence to 1 that an in/out head must have gone
SAME_POINT = 0.9  # share of heads with one predicted point from which a map says nothing of the head
_ENOUGH = 20  # of fewer heads any of this may be chance


def flags(rows: HeadRows, ap: Interval | None = None) -> list[str]:
    """One line for each thing that is wrong, empty for a sound model; ``ap`` is the interval of in/out AP, if one was taken.

    *In/out collapsed*: AP is within a tenth of the way from the prevalence (what a score that knows nothing has) to 1, or the interval
    reaches down to the prevalence. *Constant in/out*, *constant heatmaps*, *one point for nearly everybody*: what the names say.
    """
    found = []
    metrics = rows.metrics()
    if metrics.ap is not None and metrics.ap_prevalence is not None:
        known = metrics.ap_prevalence
        told = f"in/out collapsed: AP {metrics.ap:.3f}, and a score that knows nothing has the prevalence, {known:.3f}"
        if metrics.ap - known < COLLAPSED * (1 - known):
            found.append(told)
        elif ap is not None and ap.low <= known:
            found.append(f"in/out not shown to know anything: the interval of AP {metrics.ap:.3f} reaches {ap.low:.3f}, the prevalence is {known:.3f}")
    if rows.has_inout and len(rows) > 1 and np.ptp(rows.inout_logit) == 0:
        found.append(f"constant in/out: the same score for all {len(rows)} heads")
    if constant := int(rows.constant.sum()):
        found.append(f"constant heatmaps: all cells are equal for {constant} of {len(rows)} heads, whose predicted point means nothing")
    if len(rows) >= _ENOUGH:
        _, counts = np.unique(rows.predicted, axis=0, return_counts=True)
        share = counts.max() / len(rows)
        if share >= SAME_POINT:
            found.append(f"one point for nearly everybody: {share:.0%} of {len(rows)} heads have the same predicted point")
    return found
