"""Operators at equal parameters, on a table whose times are known."""

from __future__ import annotations

from typing import cast

import pytest

from archsearch.estimate import Estimate
from archsearch.predict import CostTable
from archsearch.report.fair import _at
from archsearch.workload import Workload
from operators.costs import block_costs
from operators.specs import BlockSpec, FfnSpec, GqaSpec, ModelDims, ShortConvSpec
from reports.rows import Report
from reports.tables import equal_summary, equal_table

DIMS = ModelDims(hidden_size=512)
CONV, GQA = ShortConvSpec(kernel_size=3), GqaSpec(heads=8, kv_heads=2, head_dim=64)
WORKLOAD = Workload(phase="decode", tokens=1, context=512)


class Linear:
    """A block takes a nanosecond a parameter, GQA 1.1: slower a parameter, faster a layer, since its block is smaller."""

    def block(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Estimate:
        factor = 1.1 if block.operator == GQA else 1.0
        value = factor * block_costs(block, dims).parameters * 1e-6
        return Estimate(value, 0.99 * value, 1.01 * value)


def rows(*widths: int) -> tuple:
    ffns = [FfnSpec(intermediate_size=width) for width in widths]
    return tuple(_at(cast(CostTable, Linear()), [CONV, GQA], ffns, DIMS, WORKLOAD))


def test_the_ratio_at_equal_parameters_is_that_of_a_parameter() -> None:
    conv, gqa = rows(1024, 1536)
    assert conv.parameters > gqa.parameters
    assert gqa.time_ms < conv.time_ms, "a layer, GQA is faster here"
    assert gqa.equal_ms / conv.equal_ms == pytest.approx(1.1)
    assert (gqa.ffn, gqa.outside) == (1536, False)
    narrower = block_costs(BlockSpec(operator=CONV, ffn=FfnSpec(intermediate_size=round(conv.ffn))), DIMS).parameters
    assert narrower == pytest.approx(gqa.parameters, rel=1e-3)
    report = Report(title="", subtitle="", equal=(conv, gqa))
    assert equal_summary(report) == "Fastest at equal parameters: decode at 512: conv3 (a layer: gqa2)."
    table = equal_table(report)
    assert table is not None
    assert all(len(row) == len(table.header) for row in table.rows)


def test_a_lead_within_the_intervals_is_none() -> None:
    conv, gqa = rows(1024, 1536)
    wide = type(gqa)(**{name: getattr(gqa, name) for name in gqa.__slots__} | {"equal_low_ms": conv.equal_ms})
    assert "conv3 and gqa2 not told apart" in equal_summary(Report(title="", subtitle="", equal=(conv, wide)))


def test_a_width_outside_of_the_measured_ones_is_marked_and_a_single_width_tells_nothing() -> None:
    conv, gqa = rows(1500, 1536)
    assert conv.outside
    assert not gqa.outside
    assert conv.equal_ms == pytest.approx(gqa.equal_ms / 1.1)
    alone, smallest = rows(1536)
    assert alone.equal_ms is None
    assert smallest.equal_ms == smallest.time_ms
