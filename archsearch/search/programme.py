"""Exact answers where costs add up over layers: integer programmes over how many layers each block takes (HiGHS, `scipy.optimize.milp`).

Variables: n[h, b], layers of block b at hidden size h; y[h, d], whether the layout has hidden size h and depth d; and, where budgets may be
missed, by how much (relative). A layout's order does not matter to its costs, so a solution stands for all orders of its blocks.

A latency with a law (`archsearch.walk`) is no sum: what a layer takes grows with the walk of the whole layout. The walk is cut into slices,
one of which a solution lies in, and within a slice every layer takes at least what it takes at the slice's beginning. Where a solution
misses the limit for all that, its slice is cut there.

A budget with a probability is convex in the counts: it begins as a limit on the value alone, and wherever a solution misses the limit,
the tangent there is added (cutting planes; Kelley, J. SIAM 1960). Both are lower bounds, so what is proved stays proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
SLICES = 8
MISSED = 1e-7
APART = 1e-5
"""Slices leave this share of the longest walk between them, so that a solution at the border lies in one alone."""
Row = tuple[np.ndarray, np.ndarray]
"""What each layer (H, B) and each hidden size (H,) takes of a budget, as a share of its limit."""


@dataclass(frozen=True, eq=False)
class _Slice:
    """Walks from `low` to `high`, in shares of the longest, and what a budget asks of layouts there."""

    low: float
    high: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class _Walks:
    """Bytes that layers (H, B) and hidden sizes (H,) add to the walk, in shares of the longest."""

    layers: np.ndarray
    constant: np.ndarray
    longest: float


@dataclass(frozen=True, eq=False)
class Solution:
    """A layout's counts, and a bound that no layout exceeds: of worth, or, where budgets may be missed, of minus the excess."""

    hidden: int
    counts: dict[BlockSpec, int]
    bound: float


def _binaries(slices: Sequence[_Slice]) -> int:
    """Variables that say which slice a walk lies in; none where there is but one."""
    return len(slices) if len(slices) > 1 else 0


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
        self._walks = [self._walk(budget) for budget in self.budgets]
        self._slices = [self._begun(budget, walks) for budget, walks in zip(self.budgets, self._walks, strict=True)]

    def _row(self, budget: Budget, missed: float = 0.0) -> Row:
        """Where that share of a walk is missed."""
        metric, limit = budget.metric, budget.limit
        layers = np.array([[self.model.added(size, block, metric) for block in self.blocks] for size in self.sizes])
        constant = np.array([self.model.constant(size, metric) for size in self.sizes])
        if missed:
            layers += missed * np.array([[self.model.cold(size, block, metric)[0] for block in self.blocks] for size in self.sizes])
            constant += missed * np.array([self.model.cold(size, None, metric)[0] for size in self.sizes])
        return layers / limit, constant / limit

    def _walk(self, budget: Budget) -> _Walks | None:
        if self.model.law(budget.metric) is None:
            return None
        layers = np.array([[self.model.cold(size, block, budget.metric)[1] for block in self.blocks] for size in self.sizes])
        constant = np.array([self.model.cold(size, None, budget.metric)[1] for size in self.sizes])
        longest = float((constant + layers.max(axis=1) * max(self.depths)).max())
        return _Walks(layers / longest, constant / longest, longest)

    def _begun(self, budget: Budget, walks: _Walks | None) -> list[_Slice]:
        law = self.model.law(budget.metric)
        if walks is None or law is None:
            return [_Slice(0.0, 1.0, (self._row(budget),))]
        shortest = float((walks.constant + walks.layers.min(axis=1) * min(self.depths)).min())
        least, most = (float(law.missed(walk * walks.longest)) for walk in (shortest, 1.0))
        inner = [law.walk_at(missed) / walks.longest for missed in np.linspace(least, most, SLICES + 1)[1:-1]] if most > least else []
        edges = [shortest, *(edge for edge in inner if shortest < edge < 1.0)]
        ends = [*(edge - APART for edge in edges[1:]), 1.0 + APART]
        return [_Slice(low, high, (self._row(budget, self._missed(budget, low)),)) for low, high in zip(edges, ends, strict=True)]

    def _missed(self, budget: Budget, walk: float) -> float:
        law, walks = self.model.law(budget.metric), self._walks[self.budgets.index(budget)]
        return float(law.missed(walk * walks.longest)) if law is not None and walks is not None else 0.0

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
        layers, shapes = h * b, h * d
        first = layers + shapes + sum(map(_binaries, self._slices))
        total = first + len(self.soft)
        objective = np.zeros(total)
        objective[first:] = 1.0
        if worth is not None:
            objective[:layers] = -worth.ravel()
        if shape_worth is not None:
            objective[layers : layers + shapes] = -shape_worth.ravel()
        one, depth = np.zeros((1, total)), np.zeros((h, total))
        one[0, layers : layers + shapes] = 1.0
        for i in range(h):
            depth[i, i * b : (i + 1) * b] = 1.0
            depth[i, layers + i * d : layers + (i + 1) * d] = [-float(n) for n in self.depths]
        constraints = [LinearConstraint(one, 1, 1), LinearConstraint(depth, 0, 0)]
        for k in range(len(self.budgets)):
            constraints += [LinearConstraint(row[None, :], least, most) for row, least, most in self._asked(k, first, total)]
        upper = np.concatenate([np.full(layers, float(max(self.depths))), np.ones(first - layers), np.full(total - first, np.inf)])
        result: Any = milp(
            objective,
            integrality=np.concatenate([np.ones(first), np.zeros(total - first)]),
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

    def _asked(self, k: int, first: int, total: int) -> Iterator[tuple[np.ndarray, float, float]]:
        """Constraints of budget k as (row, least, most): on its limit, and on which slice the walk lies in."""
        budget, slices, walks = self.budgets[k], self._slices[k], self._walks[k]
        sign, soft = -1.0 if budget.at_least else 1.0, k - (len(self.budgets) - len(self.soft))
        at = len(self.sizes) * (len(self.blocks) + len(self.depths)) + sum(map(_binaries, self._slices[:k]))
        own = range(at, at + _binaries(slices))

        def over(row: Row) -> np.ndarray:
            """A row over all variables, from what layers and hidden sizes take."""
            found = np.zeros(total)
            taken = np.concatenate([row[0].ravel(), np.repeat(row[1], len(self.depths))])
            found[: len(taken)] = taken
            return found

        if walks is not None and own:
            which, low, high = np.zeros(total), over((walks.layers, walks.constant)), over((walks.layers, walks.constant))
            which[own], low[own], high[own] = 1.0, [-piece.low for piece in slices], [-piece.high for piece in slices]
            yield which, 1.0, 1.0
            yield low, 0.0, np.inf
            yield high, -np.inf, 0.0
        for j, piece in enumerate(slices):
            for added, constant in piece.rows:
                row, free = sign * over((added, constant)), 0.0
                if soft >= 0:
                    row[first + soft] = -1.0
                if own:  # of a layout in another slice this asks nothing: at most what the dearest layout takes
                    free = max(0.0, float((constant + added.max(axis=1) * max(self.depths)).max()))
                    row[own[j]] = free
                yield row, -np.inf, sign + free

    def _cut(self, solution: Solution, slacks: np.ndarray) -> bool:
        """Make budgets stricter that a solution misses by more than it says: by cutting a slice there, or by a tangent."""
        hard, cut = len(self.budgets) - len(self.soft), False
        for k, (budget, walks) in enumerate(zip(self.budgets, self._walks, strict=True)):
            if budget.confidence is None and walks is None:
                continue
            excess = budget.excess(self.model.amount(solution.hidden, solution.counts, budget))
            if excess <= max(0.0, slacks[k - hard] if k >= hard else 0.0) + MISSED:
                continue
            cut |= (walks is not None and self._cut_slice(k, solution)) or (
                budget.confidence is not None and self._add_tangent(k, solution)
            )
        return cut

    def _place(self, k: int, solution: Solution) -> tuple[int, float]:
        """The slice of a budget that a solution lies in, and its walk."""
        walks = self._walks[k]
        if walks is None:
            return 0, 0.0
        walk = self.model.walked(solution.hidden, solution.counts, self.budgets[k].metric)[1] / walks.longest
        return max(j for j, piece in enumerate(self._slices[k]) if j == 0 or piece.low <= walk + APART / 2), walk

    def _cut_slice(self, k: int, solution: Solution) -> bool:
        """Whether the slice that a solution lies in could be cut where the solution lies."""
        j, walk = self._place(k, solution)
        piece, budget = self._slices[k][j], self.budgets[k]
        if walk <= piece.low + APART:
            return False
        after = _Slice(walk - APART / 2, piece.high, (self._row(budget, self._missed(budget, walk)),))
        self._slices[k][j : j + 1] = [replace(piece, high=walk - APART), after]
        return True

    def _add_tangent(self, k: int, solution: Solution) -> bool:
        (j, _), budget = self._place(k, solution), self.budgets[k]
        piece, i = self._slices[k][j], self.sizes.index(solution.hidden)
        added, constant = piece.rows[0]
        steps, offset = self.model.tangent(
            solution.hidden, solution.counts, budget, added[i] * budget.limit, float(constant[i]) * budget.limit
        )
        added, constant = added.copy(), constant.copy()
        added[i] += steps / budget.limit
        constant[i] += offset / budget.limit
        self._slices[k][j] = replace(piece, rows=(*piece.rows, (added, constant)))
        return True

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
