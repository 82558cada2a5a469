"""Exact answers where costs add up over layers: integer programmes over how many layers each block takes (HiGHS, `scipy.optimize.milp`).

Variables: n[h, b], layers of block b at hidden size h; y[h, d], whether the layout has hidden size h and depth d; and, where budgets may be
missed, by how much (relative). A layout's order does not matter to its costs, so a solution stands for all orders of its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.budgets import Budget
from archsearch.search.designs import spread
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec

if TYPE_CHECKING:
    from archsearch.search.feasible import CostModel

Counts = np.ndarray
"""(hidden sizes, blocks): layers of each block; all but one row are zero."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A layout's counts, and a bound that no layout exceeds: of worth, or, where budgets may be missed, of minus the excess."""

    hidden: int
    counts: dict[BlockSpec, int]
    bound: float


class Programme:
    """The layouts of a space within budgets."""

    def __init__(self, model: CostModel, budgets: Sequence[Budget] | None = None) -> None:
        self.model, self.space = model, model.space
        self.budgets = tuple(model.budgets if budgets is None else budgets)
        self.sizes, self.depths, self.blocks = self.space.hidden_sizes, self.space.depths, self.space.blocks
        self._rows = [self._row(budget) for budget in self.budgets]

    def _row(self, budget: Budget) -> tuple[np.ndarray, np.ndarray]:
        """What each layer and each hidden size takes of a budget, as a share of its limit: (H, B), (H,)."""
        metric, limit = budget.metric, budget.limit
        layers = np.array([[self.model.added(size, block, metric) for block in self.blocks] for size in self.sizes]) / limit
        constant = np.array([self.model.constant(size, metric) for size in self.sizes]) / limit
        return layers, constant

    def solve(self, worth: np.ndarray | None, *, shape_worth: np.ndarray | None = None) -> Solution | None:
        """The layout that is worth most within all budgets; None where none keeps them.

        Args:
            worth: of one layer, (H, B). None: budgets may be missed, and the layout that misses them least is wanted.
            shape_worth: of hidden size and depth, (H, D).
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        h, b, d = len(self.sizes), len(self.blocks), len(self.depths)
        layers, shapes, slacks = h * b, h * d, len(self.budgets) if worth is None else 0
        total = layers + shapes + slacks
        objective = np.zeros(total)
        if worth is None:
            objective[layers + shapes :] = 1.0
        else:
            objective[:layers] = -worth.ravel()
            if shape_worth is not None:
                objective[layers : layers + shapes] = -shape_worth.ravel()
        one = np.zeros((1, total))
        one[0, layers : layers + shapes] = 1.0
        depth = np.zeros((h, total))
        for i in range(h):
            depth[i, i * b : (i + 1) * b] = 1.0
            depth[i, layers + i * d : layers + (i + 1) * d] = [-float(n) for n in self.depths]
        constraints = [LinearConstraint(one, 1, 1), LinearConstraint(depth, 0, 0)]
        for k, (budget, (added, constant)) in enumerate(zip(self.budgets, self._rows, strict=True)):
            row = np.zeros(total)
            row[:layers], row[layers : layers + shapes] = added.ravel(), np.repeat(constant, d)
            sign = -1.0 if budget.at_least else 1.0
            if slacks:
                row[layers + shapes + k] = -sign
            constraints.append(LinearConstraint(sign * row[None, :], -np.inf, sign))
        deepest = float(max(self.depths))
        upper = np.concatenate([np.full(layers, deepest), np.ones(shapes), np.full(slacks, np.inf)])
        result: Any = milp(
            objective,
            integrality=np.concatenate([np.ones(layers + shapes), np.zeros(slacks)]),
            bounds=Bounds(0, upper),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None
        counts = np.rint(result.x[:layers]).astype(int).reshape(h, b)
        hidden = int(counts.sum(axis=1).argmax())
        chosen = {block: int(n) for block, n in zip(self.blocks, counts[hidden], strict=True) if n}
        return Solution(self.sizes[hidden], chosen, -float(result.mip_dual_bound))

    def spec(self, solution: Solution) -> ArchSpec:
        """A layout of these counts, each kind spread evenly."""
        return self.space.spec(spread(solution.counts), hidden_size=solution.hidden)

    def nearest(self) -> ArchSpec:
        """The layout that misses the budgets least, all relative excesses added up: one that keeps them all, if there is any."""
        solution = self.solve(None)
        assert solution is not None  # every budget may be missed
        return self.spec(solution)

    def favourite(self, worth: Mapping[BlockSpec, float]) -> ArchSpec | None:
        """Among the layouts that keep every budget, the one whose blocks are worth most together; None when there is none."""
        row = np.array([worth.get(block, 0.0) for block in self.blocks])
        solution = self.solve(np.tile(row, (len(self.sizes), 1)))
        return None if solution is None else self.spec(solution)
