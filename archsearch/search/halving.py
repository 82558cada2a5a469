"""Successive halving: of layouts that were begun together, those that the front would miss most go on to their last step.

A synthetic training that is not solved yet is unresolved, not bad: all such are equal here, and what is stopped is kept as such.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archsearch.quality import LayoutQuality


def rung_objectives(quality: LayoutQuality, latency: float, memory: float) -> list[float]:
    """All to be made small: synthetic tasks that are not solved yet, bits a byte so far, and what the layout costs."""
    unsolved = sum(result.status == "unresolved" for result in quality.synthetic)
    return [float(unsolved), quality.text.value, latency, memory]


def survivors(objectives: Sequence[Sequence[float]], keep: int) -> list[int]:
    """Which `keep` of them go on, in their order: whole fronts of what no other beats in everything, one after the other; of the front
    that does not go on as a whole, those with the most hypervolume of their own.

    Args:
        objectives: one row a layout, all to be made small.
    """
    import moocore

    rows = np.asarray(objectives, float)
    if keep >= len(rows):
        return list(range(len(rows)))
    span = np.ptp(rows, axis=0)
    scaled = (rows - rows.min(axis=0)) / np.where(span > 0, span, 1.0)
    ranks = moocore.pareto_rank(scaled)
    chosen: list[int] = []
    for rank in range(int(ranks.max()) + 1):
        front = np.flatnonzero(ranks == rank)
        room = keep - len(chosen)
        if len(front) > room:
            own = moocore.hv_contributions(scaled[front], ref=[1.1] * rows.shape[1])
            front = front[np.argsort(-own, kind="stable")[:room]]
        chosen += front.tolist()
        if len(chosen) == keep:
            break
    return sorted(chosen)
