"""Sizes by arithmetic, and FFN widths solved so that a size is held: mixers differ in parameters, comparisons should not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.budgets import Budget, Metric
from archsearch.search.designs import positions
from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.costs import block_costs, head_weights, weight_bytes
from operators.specs import BlockSpec

if TYPE_CHECKING:
    from archsearch.search.feasible import CostModel

COUNTED = ("non_embedding_parameters", "weights_mb")
"""Sizes that no device has to be asked for, in the space's first precision."""


def block_size(space: Space, hidden_size: int, block: BlockSpec, metric: Metric) -> float:
    """Parameters, or megabytes (10^6) of weights, that a block adds."""
    costs = block_costs(block, space.dims(hidden_size))
    return float(costs.parameters) if metric.kind != "weights_mb" else costs.weight_bytes(space.precision) / 1e6


def head_size(space: Space, hidden_size: int, metric: Metric) -> float:
    """The same of a model without layers; of non-embedding parameters, those of the final norm."""
    weights = head_weights(space.dims(hidden_size), space.vocab_size, space.tie_embeddings)
    if metric.kind == "weights_mb":
        return sum(weight_bytes(weight, space.precision) for weight in weights) / 1e6
    return float(sum(weight.size for weight in weights if metric.kind == "parameters" or weight.name.endswith("norm.weight")))


def sizes_of(space: Space, spec: ArchSpec) -> dict[str, float]:
    """Every size of an architecture, by kind."""
    metrics = [Metric(kind) for kind in ("parameters", *COUNTED)]
    return {
        metric.kind: head_size(space, spec.hidden_size, metric)
        + sum(block_size(space, spec.hidden_size, block, metric) for block in spec.layers)
        for metric in metrics
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A size that is held between two limits."""

    metric: Metric
    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


def held(budgets: Sequence[Budget]) -> tuple[Held, ...]:
    """Which sizes budgets hold: those with a lower and an upper limit."""
    lows = {budget.metric: budget.limit for budget in budgets if budget.at_least}
    highs = {budget.metric: budget.limit for budget in budgets if not budget.at_least}
    return tuple(Held(metric=metric, low=low, high=highs[metric]) for metric, low in lows.items() if metric in highs)


def solved(spec: ArchSpec, model: CostModel, size: Held) -> ArchSpec:
    """The same operators with FFN widths that come nearest to a held size: one width everywhere, the next wider one in as many layers,
    spread evenly, as it takes. The nearest that the space's widths allow; whether that is near enough, the budgets say."""
    space, metric, depth = model.space, size.metric, len(spec.layers)
    widths = sorted(space.ffns, key=lambda ffn: ffn.intermediate_size)

    def total(layers: Sequence[BlockSpec]) -> float:
        added = sum(model.added(spec.hidden_size, block, metric) for block in layers)
        return model.constant(spec.hidden_size, metric) + added

    def with_widths(index: int, wider: int) -> list[BlockSpec]:
        at = set(positions(depth, wider, "spread"))
        return [BlockSpec(operator=block.operator, ffn=widths[index + (i in at)]) for i, block in enumerate(spec.layers)]

    plain = [total(with_widths(index, 0)) for index in range(len(widths))]
    index = max((i for i, value in enumerate(plain) if value <= size.middle), default=0)
    wider = 0
    if index + 1 < len(widths):
        share = (size.middle - plain[index]) / (plain[index + 1] - plain[index])
        wider = min(depth, max(0, round(depth * share)))
    return space.spec(with_widths(index, wider), hidden_size=spec.hidden_size)
