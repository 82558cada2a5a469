"""Operators at equal parameters: mixers differ in size by up to 1.6 times, so times a layer alone favour the small ones.

Every operator gets the FFN width at which its block has as many parameters as the smallest operator's with the widest FFN. Time is
linear in that width (a product's work and its weights are), so measured widths tell it; the width is named, and marked where it lies
outside of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from archsearch.errors import MissingMeasurement
from archsearch.estimate import Estimate
from archsearch.predict import CostTable
from archsearch.report.files import RunFiles
from archsearch.workload import Workload
from operators.costs import block_costs
from operators.kinds import operator_for
from operators.specs import BlockSpec, FfnSpec, ModelDims, OperatorSpec
from reports.rows import EqualCost


def equal_costs(run: RunFiles) -> Iterator[EqualCost]:
    """Of the report's device at its primary setting, every workload and operator; of several hidden sizes the widest."""
    dims, table = run.space.all_dims[-1], run.table
    for workload in table.workloads():
        if (workload.precision, workload.threads, workload.batch) == table.primary:
            yield from _at(table, run.space.operators, run.space.ffns, dims, workload)


def _at(
    table: CostTable, operators: Sequence[OperatorSpec], ffns: Sequence[FfnSpec], dims: ModelDims, workload: Workload
) -> Iterator[EqualCost]:
    widths = sorted(ffns, key=lambda ffn: ffn.intermediate_size)
    widest = widths[-1]
    known: dict[OperatorSpec, tuple[float, Estimate]] = {}
    for operator in dict.fromkeys(operators):
        block = BlockSpec(operator=operator, ffn=widest)
        try:
            known[operator] = block_costs(block, dims).parameters, table.block(block, dims, workload)
        except MissingMeasurement:
            continue  # it is among the failures
    if not known:
        return
    target = min(parameters for parameters, _ in known.values())
    for operator, (parameters, time) in known.items():
        block = BlockSpec(operator=operator, ffn=widest)
        width, equal, outside = float(widest.intermediate_size), time if parameters == target else None, False
        if len(widths) > 1:
            slope = _per_width(block, widths[0], dims)
            width = widest.intermediate_size - (parameters - target) / slope
            outside = width < widths[0].intermediate_size
            equal = _between(table, block, widths, dims, workload, width)
        yield EqualCost(
            operator=operator_for(operator).label(operator),
            family=operator_for(operator).family,
            workload=workload.label,
            parameters=parameters,
            time_ms=time.value,
            ffn=width if equal is not None else None,
            equal_ms=equal.value if equal is not None else None,
            equal_low_ms=equal.low if equal is not None else None,
            equal_high_ms=equal.high if equal is not None else None,
            outside=outside,
        )


def _per_width(block: BlockSpec, narrow: FfnSpec, dims: ModelDims) -> float:
    """Parameters that one more unit of FFN width costs."""
    fewer = block_costs(replace(block, ffn=narrow), dims).parameters
    return (block_costs(block, dims).parameters - fewer) / (block.ffn.intermediate_size - narrow.intermediate_size)


def _between(
    table: CostTable, block: BlockSpec, widths: Sequence[FfnSpec], dims: ModelDims, workload: Workload, at: float
) -> Estimate | None:
    """The block's time at an FFN width, from the two measured around it, below the narrowest on their line."""
    upper = next(i for i in range(1, len(widths)) if widths[i].intermediate_size >= at or i == len(widths) - 1)
    low, high = widths[upper - 1], widths[upper]
    try:
        ends = [table.block(replace(block, ffn=ffn), dims, workload) for ffn in (low, high)]
    except MissingMeasurement:
        return None
    share = (at - low.intermediate_size) / (high.intermediate_size - low.intermediate_size)
    value = (1 - share) * ends[0].value + share * ends[1].value
    # Both ends hold the same chains, so their errors add up rather than cancel at random.
    below = abs(1 - share) * (ends[0].value - ends[0].low) + abs(share) * (ends[1].value - ends[1].low)
    above = abs(1 - share) * (ends[0].high - ends[0].value) + abs(share) * (ends[1].high - ends[1].value)
    return Estimate(value, max(0.0, value - below), value + above, extrapolated=share < 0)
