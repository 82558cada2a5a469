"""Exact answers where costs add up over layers: integer programmes over how many layers each block takes (HiGHS, `scipy.optimize.milp`).

Variables: n[h, b], layers of block b at hidden size h; y[h, d], whether the layout has hidden size h and depth d; and, where budgets may be
missed, by how much (relative). A layout's order does not matter to its costs, so a solution stands for all orders of its blocks.

A budget with a probability is convex in the counts: it begins as a limit on the value alone, and wherever a solution misses the limit,
the tangent there is added (cutting planes; Kelley, J. SIAM 1960). Tangents are lower bounds, so what is proved stays proved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.budgets import Budget
from archsearch.search.designs import spread
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec

if TYPE_CHECKING:
    from archsearch.search.feasible import CostModel

CUTS = 60
MISSED = 1e-7
Row = tuple[np.ndarray, np.ndarray]
"""What each layer (H, B) and each hidden size (H,) takes of a budget, as a share of its limit."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A layout's counts, and a bound that no layout exceeds: of worth, or, where budgets may be missed, of minus the excess."""

    hidden: int
    counts: dict[BlockSpec, int]
    bound: float


class Programme:
    """The layouts of a space within budgets.

    Args:
        budgets: limits that hold; the model's unless given.
        soft: limits that may be missed; a solution misses them as little as possible, all relative excesses added up.
    """

    def __init__(self, model: CostModel, budgets: Sequence[Budget] | None = None, *, soft: Sequence[Budget] = ()) -> None:
        self.model, self.space = model, model.space
        self.soft = tuple(soft)
        self.budgets = (*(model.budgets if budgets is None else budgets), *self.soft)
        self.sizes, self.depths, self.blocks = self.space.hidden_sizes, self.space.depths, self.space.blocks
        self._rows: list[list[Row]] = [[self._row(budget)] for budget in self.budgets]

    def _row(self, budget: Budget) -> Row:
        metric, limit = budget.metric, budget.limit
        layers = np.array([[self.model.added(size, block, metric) for block in self.blocks] for size in self.sizes]) / limit
        constant = np.array([self.model.constant(size, metric) for size in self.sizes]) / limit
        return layers, constant

    def solve(self, worth: np.ndarray | None = None, *, shape_worth: np.ndarray | None = None) -> Solution | None:
        """The layout that is worth most, or else misses the soft budgets least; None where none keeps the others.

        Args:
            worth: of one layer, (H, B).
            shape_worth: of hidden size and depth, (H, D).
        """
        found = self._solve(worth, shape_worth)
        for _ in range(CUTS):
            if found is None or not self._cut(*found):
                break
            found = self._solve(worth, shape_worth)
        return None if found is None else found[0]

    def _solve(self, worth: np.ndarray | None, shape_worth: np.ndarray | None) -> tuple[Solution, np.ndarray] | None:
        """A solution, and by how much it says each soft budget is missed."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        h, b, d = len(self.sizes), len(self.blocks), len(self.depths)
        layers, shapes, slacks = h * b, h * d, len(self.soft)
        first, total = layers + shapes, layers + shapes + slacks
        objective = np.zeros(total)
        objective[first:] = 1.0
        if worth is not None:
            objective[:layers] = -worth.ravel()
        if shape_worth is not None:
            objective[layers:first] = -shape_worth.ravel()
        one, depth = np.zeros((1, total)), np.zeros((h, total))
        one[0, layers:first] = 1.0
        for i in range(h):
            depth[i, i * b : (i + 1) * b] = 1.0
            depth[i, layers + i * d : layers + (i + 1) * d] = [-float(n) for n in self.depths]
        constraints = [LinearConstraint(one, 1, 1), LinearConstraint(depth, 0, 0)]
        hard = len(self.budgets) - slacks
        for k, (budget, rows) in enumerate(zip(self.budgets, self._rows, strict=True)):
            sign = -1.0 if budget.at_least else 1.0
            for added, constant in rows:
                row = np.concatenate([sign * added.ravel(), np.repeat(sign * constant, d), np.zeros(slacks)])
                if k >= hard:
                    row[first + k - hard] = -1.0
                constraints.append(LinearConstraint(row[None, :], -np.inf, sign))
        upper = np.concatenate([np.full(layers, float(max(self.depths))), np.ones(shapes), np.full(slacks, np.inf)])
        result: Any = milp(
            objective,
            integrality=np.concatenate([np.ones(first), np.zeros(slacks)]),
            bounds=Bounds(0, upper),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None
        counts = np.rint(result.x[:layers]).astype(int).reshape(h, b)
        hidden = int(counts.sum(axis=1).argmax())
        chosen = {block: int(n) for block, n in zip(self.blocks, counts[hidden], strict=True) if n}
        return Solution(self.sizes[hidden], chosen, -float(result.mip_dual_bound)), result.x[first:]

    def _cut(self, solution: Solution, slacks: np.ndarray) -> bool:
        """Add the tangents of budgets with a probability that a solution misses by more than it says."""
        hard, cut = len(self.budgets) - len(self.soft), False
        for k, budget in enumerate(self.budgets):
            if budget.confidence is None:
                continue
            excess = budget.excess(self.model.amount(solution.hidden, solution.counts, budget))
            if excess <= max(0.0, slacks[k - hard] if k >= hard else 0.0) + MISSED:
                continue
            i, (added, constant) = self.sizes.index(solution.hidden), self._rows[k][0]
            steps, offset = self.model.tangent(solution.hidden, solution.counts, budget)
            added, constant = added.copy(), constant.copy()
            added[i] += steps / budget.limit
            constant[i] += offset / budget.limit
            self._rows[k].append((added, constant))
            cut = True
        return cut

    def spec(self, solution: Solution) -> ArchSpec:
        """A layout of these counts, each kind spread evenly."""
        return self.space.spec(spread(solution.counts), hidden_size=solution.hidden)

    def favourite(self, worth: Mapping[BlockSpec, float]) -> ArchSpec | None:
        """Among the layouts that keep every budget, the one whose blocks are worth most together; None when there is none."""
        row = np.array([worth.get(block, 0.0) for block in self.blocks])
        solution = self.solve(np.tile(row, (len(self.sizes), 1)))
        return None if solution is None else self.spec(solution)


def nearest(model: CostModel) -> ArchSpec:
    """The layout that misses the model's budgets least, all relative excesses added up: one that keeps them all, if there is any."""
    programme = Programme(model, (), soft=model.budgets)
    solution = programme.solve()
    assert solution is not None  # every budget may be missed
    return programme.spec(solution)


def extreme(model: CostModel, budget: Budget, others: Sequence[Budget]) -> float | None:
    """The best value of a budget's amount that any layout within other budgets has; None where none keeps them."""
    far = replace(budget, limit=budget.limit * 100 if budget.at_least else budget.limit / 100)
    solution = Programme(model, others, soft=[far]).solve()
    return None if solution is None else model.amount(solution.hidden, solution.counts, budget)
