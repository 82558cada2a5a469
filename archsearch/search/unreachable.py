"""Budgets that no layout keeps together: which of them are in the way, and by how much. Exact, because costs add up over layers."""

from __future__ import annotations

from archsearch.search.feasible import CostModel, Costs
from archsearch.search.programme import extreme


def unreachable(model: CostModel, nearest: Costs) -> dict[str, dict[str, float]]:
    """For each budget, by name:

    `limit`; `best_reachable`, the best value of any layout, other budgets aside; `nearest_layout`, the value of the layout that misses
    all budgets least; and, where loosening this budget alone is enough, `enough`: the limit to loosen it to.
    """
    found = {}
    for budget in model.budgets:
        best, enough = extreme(model, budget, ()), extreme(model, budget, [other for other in model.budgets if other != budget])
        assert best is not None  # without other budgets
        entry = {"limit": budget.limit, "best_reachable": best, "nearest_layout": nearest.values[budget.amount]}
        found[budget.name] = entry | ({"enough": enough} if enough is not None else {})
    return found
