"""What a search has left on the table at most, where quality adds up over layers: bounds that no layout exceeds, proved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archsearch.budgets import Budget
from archsearch.search.feasible import CostModel
from archsearch.search.inner import Front
from archsearch.search.programme import Programme


@dataclass(frozen=True, kw_only=True)
class CertifiedPoint:
    """At most `latency`: the best quality that was found, and the bound that no layout within the budgets exceeds."""

    latency: float
    found: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Bounds along a front. `span`: difference between the best and the worst quality on it, against which gaps are told."""

    points: tuple[CertifiedPoint, ...]
    span: float

    @property
    def gaps(self) -> np.ndarray:
        """(n,): what is left at each point, as a share of the span; 0 where the optimum was found."""
        return np.array([max(0.0, point.bound - point.found) for point in self.points]) / max(self.span, 1e-12)

    def to_dict(self) -> dict[str, Any]:
        points = [vars(point) | {"gap": float(gap)} for point, gap in zip(self.points, self.gaps, strict=True)]
        return {"points": points, "worst_gap": float(self.gaps.max()), "mean_gap": float(self.gaps.mean())}


def certify(
    model: CostModel, front: Front, *, latency: Budget, worth: np.ndarray, shape_worth: np.ndarray | None = None, points: int = 15
) -> Certificate:
    """Bounds at `points` latencies along a front.

    Args:
        latency: the budget whose metric the front was searched along.
        worth: quality that a layer adds, (hidden sizes, blocks); shape_worth: that hidden size and depth add, (hidden sizes, depths).

    Raises:
        ValueError: the front is empty.
    """
    if len(front) == 0:
        raise ValueError("there is no front to certify")
    chosen = np.unique(np.linspace(0, len(front) - 1, points).round().astype(int))
    best = np.maximum.accumulate(front.quality)
    others = [budget for budget in model.budgets if budget.metric != latency.metric or budget.confidence is not None]
    certified = []
    for i in chosen:
        limit = Budget(latency.metric, float(front.latency[i]))
        solution = Programme(model, [*others, limit]).solve(worth, shape_worth=shape_worth)
        bound = float(best[i]) if solution is None else solution.bound  # None: only by rounding, for the front's own point is inside
        certified.append(CertifiedPoint(latency=limit.limit, found=float(best[i]), bound=bound))
    return Certificate(points=tuple(certified), span=float(best.max() - best.min()))


def additive(worth: np.ndarray, shape_worth: np.ndarray | None, depths: Sequence[int]) -> Any:
    """The quality that a certificate is about, as a function of many layouts."""
    padded = np.concatenate([worth, np.zeros((len(worth), 1))], axis=1)

    def quality(layouts: Any) -> np.ndarray:
        layers = padded[layouts.hidden[:, None], layouts.codes].sum(axis=1)
        if shape_worth is None:
            return np.asarray(layers)
        depth = (layouts.codes < worth.shape[1]).sum(axis=1)
        index = np.searchsorted(np.sort(depths), depth)
        return np.asarray(layers + shape_worth[layouts.hidden, np.argsort(depths)[index]])

    return quality
