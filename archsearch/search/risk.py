"""How likely a latency stays within a limit: the prediction's interval, for many layouts at once.

`archsearch.predict` gives a 90 % interval: errors of different chains add in quadrature, copies of one share their error, and what
drawn chains and whole models taught widens it. Its upper end is taken for the 95th percentile of a normal error, and other percentiles
follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from archsearch.budgets import Metric
from archsearch.errors import BudgetError
from archsearch.search.devices import SearchTables
from archsearch.space import Space

if TYPE_CHECKING:
    from archsearch.predict import CostTable

UPPER = 0.95
"""What the upper end of a prediction's interval stands for."""


@dataclass(frozen=True, eq=False)
class Spread:
    """The upper half of an interval, as a function of how many layers each block takes; B blocks, P measured parts.

    Attributes:
        parts: (B, P), how often each measured part counts in a block; negative where it is taken off.
        up, down: (P,), how far a part's interval reaches above and below its value, milliseconds.
        head: how far that of embedding and head reaches above.
        error, factor: the widening (`archsearch.estimate.Widening`).
    """

    parts: np.ndarray
    up: np.ndarray
    down: np.ndarray
    head: float
    error: float
    factor: float

    def __call__(self, counts: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Milliseconds above `value` (n,) that the interval of layouts with these block counts (n, B) reaches."""
        n = counts @ self.parts
        noise = np.maximum(n * self.up, -n * self.down)
        return np.asarray(self.factor * np.sqrt((noise**2).sum(axis=-1) + self.head**2 + (self.error * value) ** 2))

    def slope(self, counts: np.ndarray, value: float, added: np.ndarray) -> np.ndarray:
        """(B,): by how much it grows with each block, where a block adds `added` (B,) to the value.

        It is convex in the counts, so that its tangents are lower bounds.
        """
        n = counts @ self.parts
        side = np.where(n >= 0, self.up, self.down) ** 2
        whole = float(self(counts[None, :], np.array([value]))[0])
        return np.asarray(self.factor**2 * (self.parts @ (n * side) + self.error**2 * value * added) / max(whole, 1e-300))


def share_of_half(confidence: float) -> float:
    """How much of the interval's upper half a probability takes: 1 at 95 %, 0 at 50 %."""
    normal = NormalDist()
    return normal.inv_cdf(confidence) / normal.inv_cdf(UPPER)


def spread_of(table: CostTable | SearchTables, space: Space, hidden_size: int, metric: Metric) -> Spread:
    """The spread of a latency for all blocks of a space.

    Raises:
        BudgetError: the table predicts without intervals.
        MissingMeasurement: a block was not measured.
    """
    if isinstance(table, SearchTables):
        table, metric = table.at(metric)
    if not hasattr(table, "parts"):
        raise BudgetError(f"{table.device}: predictions of {metric} have no interval; drop P(...)")
    dims, workload = space.dims(hidden_size), table.workload(metric)
    made = [table.parts(block, dims, workload) for block in space.blocks]
    names = list(dict.fromkeys(part for parts in made for part in parts))
    estimates = [table.chains.part_terms(part, dims, workload).warm for part in names]
    head = table.chains.head_terms(space.spec((), hidden_size=hidden_size), workload).warm
    widening = table.widening(workload)
    return Spread(
        parts=np.array([[parts.get(name, 0) for name in names] for parts in made], dtype=float),
        up=np.array([estimate.high - estimate.value for estimate in estimates]),
        down=np.array([estimate.value - estimate.low for estimate in estimates]),
        head=head.high - head.value,
        error=widening.error,
        factor=widening.factor,
    )
