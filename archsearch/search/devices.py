"""What a search asks of one or several devices: their cost tables behind one face, with views of the tail and of the hot state.

A view is a table of its own over changed rounds. Of the tail: a chain's 95th percentile over all its single runs; adding those up says
that slow moments hit all layers of a run alike, which is how other tenants and interrupts come. Of the hot state: only rounds before,
during or after which the machine was hot or throttled (`devices.health.flags`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.budgets import SIZES, Budget, Metric
from archsearch.errors import BudgetError, MissingMeasurement
from archsearch.estimate import QUANTILE
from archsearch.predict import CostTable
from archsearch.spec import ArchSpec
from archsearch.store import Row
from archsearch.walk import WalkLaw
from devices.health import flags
from devices.protocol import decode_state
from operators.specs import BlockSpec, ModelDims

if TYPE_CHECKING:
    from archsearch.search.result import FrontPoint

HOT = {"hot", "throttled"}
TAIL = 0.95


class SearchTables:
    """The tables of one or several devices; metrics without a device are the first one's.

    Args:
        tables: by the names that the user gave, at least one.
    """

    def __init__(self, tables: Mapping[str, CostTable]) -> None:
        self.tables = dict(tables)
        self.devices = tuple(tables)
        self.device = self.devices[0]
        self._views: dict[tuple[str, str], CostTable] = {}

    @property
    def first(self) -> CostTable:
        return self.tables[self.device]

    def metrics(self) -> tuple[Metric, ...]:
        """What the first device was measured at, then the others' latencies and memory."""
        others = [
            replace(metric, device=device)
            for device in self.devices[1:]
            for metric in self.tables[device].metrics()
            if metric.kind not in SIZES
        ]
        return (*self.first.metrics(), *others)

    def at(self, metric: Metric) -> tuple[CostTable, Metric]:
        """The table that knows a metric, and the name it has there.

        Raises:
            MissingMeasurement: no round was measured in the state that is asked for.
        """
        phase, _, view = metric.kind.removesuffix("_ms").partition("_")
        device = metric.device or self.device
        if not metric.kind.endswith("_ms") or not view:
            return self.tables[device], replace(metric, device="")
        if (device, view) not in self._views:
            self._views[device, view] = viewed(self.tables[device], view)
        return self._views[device, view], Metric(f"{phase}_ms", metric.at)

    def additive(self, block: BlockSpec, dims: ModelDims, metric: Metric) -> float:
        table, own = self.at(metric)
        return float(table.additive(block, dims, own))

    def constant(self, spec: ArchSpec, metric: Metric) -> float:
        table, own = self.at(metric)
        return float(table.constant(spec, own))

    def law(self, metric: Metric) -> WalkLaw | None:
        table, own = self.at(metric)
        return table.law(own)

    def cold(self, block: BlockSpec, dims: ModelDims, metric: Metric) -> tuple[float, float]:
        table, own = self.at(metric)
        return table.cold(block, dims, own)

    def constant_cold(self, spec: ArchSpec, metric: Metric) -> tuple[float, float]:
        table, own = self.at(metric)
        return table.constant_cold(spec, own)

    def spread(self, budgets: Iterable[Budget]) -> tuple[Budget, ...]:
        """Budgets for each device: one that names none is every device's; sizes are no device's.

        Raises:
            BudgetError: a budget names a device that is not searched for.
        """
        found: dict[tuple[Metric, bool], Budget] = {}
        for budget in sorted(budgets, key=lambda budget: bool(budget.metric.device)):  # what is said of one device wins over the rest
            metric = budget.metric
            if metric.device and metric.device not in self.devices:
                raise BudgetError(f"budget {budget}: no such device among {', '.join(self.devices)}; add --device {metric.device}")
            for name in [metric.device] if metric.device else [self.device] if metric.kind in SIZES else self.devices:
                own = replace(metric, device="" if name == self.device else name)
                found[own, budget.at_least] = replace(budget, metric=own)
        return tuple(found.values())


def viewed(table: CostTable, view: str) -> CostTable:
    """A table over the tail ("p95") or the hot state ("hot") of another's rounds.

    Raises:
        MissingMeasurement: no round was measured in that state.
    """
    latency = [row for row in table.rows if row.purpose == "latency"]
    rows = [_tail(row) for row in latency] if view == "p95" else [hot for row in latency if (hot := _hot(row)).rounds]
    if not rows:
        raise MissingMeasurement(
            f"{table.device}: no round was measured while it was hot or throttled; profile it warmed up, or drop the budget on {view}"
        )
    # What whole models taught is about rest, and so is what drawn chains teach: a chain's tail over its parts' tails tells nothing.
    return CostTable(rows, device=table.device, widenings=table.widenings if view == "hot" else None, at_rest=table)


def _tail(row: Row) -> Row:
    """Rounds whose lower quartile is the 95th percentile of all single runs, and that differ as their own percentiles do."""
    each = {number: float(np.quantile(samples, TAIL)) for number, samples in row.rounds.items()}
    whole = float(np.quantile(np.concatenate(list(row.rounds.values())), TAIL))
    shift = whole - float(np.quantile(list(each.values()), QUANTILE))
    return replace(row, rounds={number: np.array([value + shift]) for number, value in each.items()})


def _hot(row: Row) -> Row:
    """The rounds before, during or after which the machine was hot or throttled."""
    hot = {number for number, looks in row.looks.items() if HOT & set(flags([decode_state(look) for look in looks]))}
    return replace(row, rounds={number: samples for number, samples in row.rounds.items() if number in hot})


def regrets(points: Sequence[FrontPoint], best: FrontPoint | None, latency: Metric, tables: SearchTables) -> dict[str, dict[str, Any]]:
    """For each device: what the shared layout costs beside the one that would be chosen for this device alone.

    Among the trained layouts, by the same rule; a regret is relative, 0 where the shared layout is the device's own, and negative where
    the device's own is slower because it is better (`recall_lost`, `text_regret`).
    """
    from archsearch.search.feasible import ROUNDING
    from archsearch.search.result import choose

    found = {}
    for device in tables.devices:
        name = "" if device == tables.device else device
        at = str(replace(latency, device=name))
        others = tuple(f"{other}/" for other in tables.devices[1:] if other != device)

        def concerns(budget: str, name: str = name, others: tuple[str, ...] = others) -> bool:
            plain = budget.removeprefix("P(")
            own = plain.startswith(f"{name}/") if name else not plain.startswith(others)
            return own or plain.startswith(SIZES)

        inside = [point for point in points if not any(v > ROUNDING and concerns(b) for b, v in point.costs.excess.items())]
        own = choose(inside, at)
        entry: dict[str, Any] = {"own": own.spec.spec_id if own else None, "metric": at, "latency_regret": None}
        if own is not None and best is not None:
            entry["own_ms"], entry["shared_ms"] = own.costs.values[at], best.costs.values[at]
            entry["latency_regret"] = best.costs.values[at] / own.costs.values[at] - 1
            entry["recall_lost"] = own.quality.solves_recall and not best.quality.solves_recall
            entry["text_regret"] = best.quality.text.value / own.quality.text.value - 1
        found[device] = entry
    return found
