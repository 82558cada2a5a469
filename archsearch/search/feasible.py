"""Budgets against predicted costs: free, exact where costs add up, and always before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from archsearch.budgets import LATENCY, Budget, Metric
from archsearch.errors import MissingMeasurement
from archsearch.predict import CostTable
from archsearch.search.devices import SearchTables
from archsearch.search.risk import Spread, share_of_half, spread_of
from archsearch.search.sizes import COUNTED, block_size, head_size
from archsearch.space import Space
from archsearch.spec import ArchSpec
from archsearch.walk import WalkLaw
from operators.kinds import operator_for
from operators.specs import BlockSpec

ROUNDING = 1e-9
"""A budget that equals a cost is kept, in whatever order the cost was summed up."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Predicted costs of a layout, and by how much each budget is missed (relative; at most 0 is kept)."""

    values: dict[str, float]
    excess: dict[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        return not any(value > ROUNDING for value in self.excess.values())

    @property
    def violation(self) -> float:
        """Sum of relative excesses; 0 when every budget is kept."""
        return sum(value for value in self.excess.values() if value > ROUNDING)

    def reason(self, budgets: Sequence[Budget]) -> str | None:
        """Which budget is missed most, in words; None when all are kept."""
        missed = [budget for budget in budgets if self.excess[budget.name] > ROUNDING]
        if not missed:
            return None
        worst = max(missed, key=lambda budget: self.excess[budget.name])
        at = "" if worst.confidence is None else f" at {100 * worst.confidence:g} %"
        return f"{worst.metric}{at} {self.values[worst.amount]:.4g} {'<' if worst.at_least else '>'} {worst.limit:g}"


class CostModel:
    """Point predictions for thousands of layouts: what a model costs without layers, and what each block adds, asked for once.

    A latency with a law (`archsearch.walk`) is `value + cold * missed(walk)`, each of the three a sum over layers.
    """

    def __init__(self, space: Space, table: CostTable | SearchTables, metrics: Sequence[Metric], budgets: Sequence[Budget]) -> None:
        self.space, self.table, self.budgets = space, table, tuple(budgets)
        self.metrics = tuple(dict.fromkeys((*metrics, *(budget.metric for budget in budgets))))
        self._constants: dict[tuple[int, Metric], float] = {}
        self._added: dict[tuple[int, BlockSpec, Metric], float] = {}
        self._laws: dict[Metric, WalkLaw | None] = {}
        self._cold: dict[tuple[int, BlockSpec | None, Metric], tuple[float, float]] = {}
        self._spreads: dict[tuple[int, Metric], Spread] = {}

    def constant(self, hidden_size: int, metric: Metric) -> float:
        key = (hidden_size, metric)
        if key not in self._constants and metric.kind in COUNTED:
            self._constants[key] = head_size(self.space, hidden_size, metric)
        elif key not in self._constants:
            self._constants[key] = float(self.table.constant(self.space.spec((), hidden_size=hidden_size), metric))
        return self._constants[key]

    def added(self, hidden_size: int, block: BlockSpec, metric: Metric) -> float:
        key = (hidden_size, block, metric)
        if key not in self._added and metric.kind in COUNTED:
            self._added[key] = block_size(self.space, hidden_size, block, metric)
        elif key not in self._added:
            self._added[key] = float(self.table.additive(block, self.space.dims(hidden_size), metric))
        return self._added[key]

    def law(self, metric: Metric) -> WalkLaw | None:
        """How a metric depends on a layout's walk through memory; None where it just adds up."""
        if metric not in self._laws:
            self._laws[metric] = self.table.law(metric) if metric.kind in LATENCY else None
        return self._laws[metric]

    def cold(self, hidden_size: int, block: BlockSpec | None, metric: Metric) -> tuple[float, float]:
        """Of a metric with a law: what a block, or (None) a model without layers, adds where its walk is missed, and bytes of its walk."""
        key = (hidden_size, block, metric)
        if key not in self._cold:
            if block is None:
                self._cold[key] = self.table.constant_cold(self.space.spec((), hidden_size=hidden_size), metric)
            else:
                self._cold[key] = self.table.cold(block, self.space.dims(hidden_size), metric)
        return self._cold[key]

    def walked(self, hidden_size: int, counts: Mapping[BlockSpec, int], metric: Metric) -> tuple[float, float]:
        """Of a metric with a law: cold milliseconds and bytes of a layout's whole walk."""
        parts = [(1, self.cold(hidden_size, None, metric)), *((n, self.cold(hidden_size, block, metric)) for block, n in counts.items())]
        return sum(n * cold for n, (cold, _) in parts), sum(n * size for n, (_, size) in parts)

    def value(self, hidden_size: int, counts: Mapping[BlockSpec, int], metric: Metric) -> float:
        value = self.constant(hidden_size, metric) + sum(n * self.added(hidden_size, block, metric) for block, n in counts.items())
        law = self.law(metric)
        if law is None:
            return value
        cold, walk = self.walked(hidden_size, counts, metric)
        return value + cold * float(law.missed(walk))

    def costs(self, spec: ArchSpec) -> Costs:
        """All metrics of a layout, and how they stand to the budgets."""
        counts = spec.block_counts()
        values = {str(metric): self.value(spec.hidden_size, counts, metric) for metric in self.metrics}
        for budget in self.budgets:
            if budget.confidence is not None:
                values[budget.amount] = self.amount(spec.hidden_size, counts, budget)
        return Costs(values=values, excess={budget.name: budget.excess(values[budget.amount]) for budget in self.budgets})

    def amount(self, hidden_size: int, counts: Mapping[BlockSpec, int], budget: Budget) -> float:
        """What a budget limits: a metric's value, or the percentile of it that its probability means."""
        value = self.value(hidden_size, counts, budget.metric)
        if budget.confidence is None:
            return value
        row = self._row(counts)
        return value + share_of_half(budget.confidence) * float(self.spread(hidden_size, budget.metric)(row[None, :], np.array([value]))[0])

    def tangent(
        self, hidden_size: int, counts: Mapping[BlockSpec, int], budget: Budget, added: np.ndarray, constant: float
    ) -> tuple[np.ndarray, float]:
        """What a percentile adds to a value `constant + added @ counts`, in first order at these counts: by block, (B,), and a constant.

        Where that value is a lower bound of the metric, the tangent is one of what the percentile adds.
        """
        assert budget.confidence is not None
        row = self._row(counts)
        value = constant + float(added @ row)
        share, spread = share_of_half(budget.confidence), self.spread(hidden_size, budget.metric)
        slope = share * spread.slope(row, value, added)
        return slope, share * float(spread(row[None, :], np.array([value]))[0]) - float(slope @ row)

    def spread(self, hidden_size: int, metric: Metric) -> Spread:
        """The interval of a latency."""
        key = (hidden_size, metric)
        if key not in self._spreads:
            self._spreads[key] = spread_of(self.table, self.space, hidden_size, metric)
        return self._spreads[key]

    def _row(self, counts: Mapping[BlockSpec, int]) -> np.ndarray:
        return np.array([counts.get(block, 0) for block in self.space.blocks], dtype=float)

    def nearest(self) -> tuple[ArchSpec, Costs]:
        """The layout that misses the budgets least, exactly (`archsearch.search.programme`): one that keeps them all, if there is any."""
        from archsearch.search.programme import nearest

        spec = nearest(self)
        return spec, self.costs(spec)


def measured_space(space: Space, table: CostTable | SearchTables, metrics: Sequence[Metric]) -> tuple[Space, dict[str, str]]:
    """The space without operators that could not be measured, and why each was left out.

    Raises:
        MissingMeasurement: no operator is left.
    """
    left_out: dict[str, str] = {}
    usable = []
    last: MissingMeasurement | None = None
    metrics = [metric for metric in metrics if metric.kind not in COUNTED]
    for operator in space.operators:
        try:
            for ffn, dims, metric in itertools.product(space.ffns, space.all_dims, metrics):
                table.additive(BlockSpec(operator=operator, ffn=ffn), dims, metric)
        except MissingMeasurement as error:
            left_out[operator_for(operator).label(operator)] = str(error)
            last = error
        else:
            usable.append(operator)
    if not usable and last is not None:
        raise last
    return (replace(space, operators=tuple(usable)) if left_out else space), left_out


def search_metrics(table: CostTable | SearchTables, budgets: Sequence[Budget]) -> tuple[Metric, ...]:
    """What every layout is predicted for: all that was measured, and what the budgets name besides."""
    return tuple(dict.fromkeys((*table.metrics(), *(budget.metric for budget in budgets))))


def primary_latency(table: CostTable | SearchTables, budgets: Sequence[Budget]) -> Metric:
    """The latency the search trades against quality: the first decode budget, else decoding at the longest measured context."""
    for budget in budgets:
        if budget.metric.kind == "decode_ms" and not budget.metric.device:
            return budget.metric
    decode = [metric for metric in table.metrics() if metric.kind == "decode_ms" and not metric.device]
    return max(decode, key=lambda metric: metric.at or 0) if decode else table.metrics()[0]


def primary_memory(table: CostTable | SearchTables, budgets: Sequence[Budget]) -> Metric:
    """The memory the search reports: the first memory budget, else memory at the longest measured context, else parameters."""
    for budget in budgets:
        if budget.metric.kind == "memory_mb" and not budget.metric.device:
            return budget.metric
    memory = [metric for metric in table.metrics() if metric.kind == "memory_mb" and not metric.device]
    return max(memory, key=lambda metric: metric.at or 0) if memory else Metric("parameters")
