"""Budgets against predicted costs: free, exact where costs add up, and always before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from archsearch.budgets import Budget, Metric
from archsearch.predict import CostTable
from archsearch.space import Space
from archsearch.spec import ArchSpec


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Predicted costs of a layout, and by how much each budget is missed (relative; at most 0 is kept)."""

    values: dict[str, float]
    excess: dict[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.excess.values())

    @property
    def violation(self) -> float:
        """Sum of relative excesses; 0 when every budget is kept."""
        return sum(max(0.0, value) for value in self.excess.values())

    def reason(self, budgets: Sequence[Budget]) -> str | None:
        """Which budget is missed most, in words; None when all are kept."""
        missed = [budget for budget in budgets if self.excess[str(budget.metric)] > 0]
        if not missed:
            return None
        worst = max(missed, key=lambda budget: self.excess[str(budget.metric)])
        return f"{worst.metric} {self.values[str(worst.metric)]:.4g} > {worst.limit:g}"


def predicted_costs(spec: ArchSpec, table: CostTable, metrics: Sequence[Metric], budgets: Sequence[Budget]) -> Costs:
    """Point predictions of all metrics, and how they stand to the budgets."""
    counts = spec.block_counts()
    values = {str(metric): table.point(spec, counts, metric) for metric in metrics}
    return Costs(values=values, excess={str(b.metric): values[str(b.metric)] / b.limit - 1 for b in budgets})


def search_metrics(table: CostTable, budgets: Sequence[Budget]) -> tuple[Metric, ...]:
    """What every layout is predicted for: all that was measured, and what the budgets name besides."""
    return tuple(dict.fromkeys((*table.metrics(), *(budget.metric for budget in budgets))))


def primary_latency(table: CostTable, budgets: Sequence[Budget]) -> Metric:
    """The latency the search trades against quality: the first decode budget, else decoding at the longest measured context."""
    for budget in budgets:
        if budget.metric.kind == "decode_ms":
            return budget.metric
    decode = [metric for metric in table.metrics() if metric.kind == "decode_ms"]
    return max(decode, key=lambda metric: metric.at or 0) if decode else table.metrics()[0]


def primary_memory(table: CostTable, budgets: Sequence[Budget]) -> Metric:
    """The memory the search reports: the first memory budget, else memory at the longest measured context, else parameters."""
    for budget in budgets:
        if budget.metric.kind == "memory_mb":
            return budget.metric
    memory = [metric for metric in table.metrics() if metric.kind == "memory_mb"]
    return max(memory, key=lambda metric: metric.at or 0) if memory else Metric("parameters")


def best_reachable(space: Space, table: CostTable, metric: Metric) -> tuple[float, ArchSpec]:
    """The smallest value any layout of the space has, exact because costs add up over layers: the cheapest block everywhere."""
    found = []
    for hidden, depth in itertools.product(space.hidden_sizes, space.depths):
        dims = space.dims(hidden)
        cheapest = min(space.blocks, key=lambda block: table.additive(block, dims, metric))
        spec = space.spec([cheapest] * depth, hidden_size=hidden)
        found.append((table.point(spec, spec.block_counts(), metric), spec))
    return min(found, key=lambda pair: pair[0])


def unreachable(space: Space, table: CostTable, budgets: Sequence[Budget], nearest: Costs | None) -> dict[str, dict[str, float]]:
    """For impossible budgets: each limit, the best value any layout reaches, and what the least violating layout has."""
    return {
        str(budget.metric): {
            "limit": budget.limit,
            "best_reachable": best_reachable(space, table, budget.metric)[0],
            **({"nearest_layout": nearest.values[str(budget.metric)]} if nearest is not None else {}),
        }
        for budget in budgets
    }
