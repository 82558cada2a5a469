"""Values at contexts and prompt lengths that were not measured, from those that were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from archsearch.estimate import Estimate
from archsearch.store import Row
from archsearch.workload import Workload


def position(workload: Workload) -> int:
    """What measurements of a setting are ordered by: the context of a decode step, the tokens of a prefill."""
    return workload.context if workload.phase == "decode" else workload.tokens


def interpolated(
    rows: Sequence[Row], workload: Workload, value: Callable[[Row], Estimate], *, grows: bool, flops: Callable[[Workload], Any]
) -> Estimate:
    """A value at a workload: measured, or between measurements.

    Decode of a growing cache is linear in the context (it reads every key and value once); of a fixed state it does not
    depend on it. Prefill between measured lengths is linear too, and beyond them scaled by FLOPs.
    """
    exact = [row for row in rows if row.workload == workload]
    if exact:
        return value(exact[0])

    ordered = sorted(rows, key=lambda row: position(row.workload))
    at = position(workload)
    below = [row for row in ordered if position(row.workload) <= at]
    above = [row for row in ordered if position(row.workload) > at]
    if below and above:
        left, right = value(below[-1]), value(above[0])
        share = (at - position(below[-1].workload)) / (position(above[0].workload) - position(below[-1].workload))

        def between(a: float, b: float) -> float:
            return (1 - share) * a + share * b

        return Estimate(between(left.value, right.value), between(left.low, right.low), between(left.high, right.high))
    nearest = below[-1] if below else above[0]
    estimate = value(nearest)
    if workload.phase == "decode" and not grows:
        return replace(estimate, extrapolated=False)
    if workload.phase == "decode" and len(ordered) > 1:
        a, b = (ordered[-2], ordered[-1]) if below else (ordered[0], ordered[1])
        slope = (value(b).value - value(a).value) / (position(b.workload) - position(a.workload))
        moved = estimate.value + max(0.0, slope) * (at - position(nearest.workload))
        factor = max(moved, 1e-9) / max(estimate.value, 1e-9)
    else:
        factor = flops(workload) / flops(nearest.workload)
    return replace(estimate.scaled(factor), extrapolated=True)
