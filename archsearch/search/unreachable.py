"""Budgets that no layout keeps together: which of them are in the way, and by how much. Exact, because costs add up over layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archsearch.search.feasible import CostModel, Costs
from archsearch.search.programme import extreme


def unreachable(model: CostModel, nearest: Costs) -> dict[str, dict[str, Any]]:
    """For each budget, by name:

    `budget` as it was given, `limit`; `best_reachable`, the best value of any layout, other budgets aside; `nearest_layout`, the value
    of the layout that misses all budgets least; and, where loosening this budget alone is enough, `enough`: the limit to loosen it to.
    """
    found = {}
    for budget in model.budgets:
        best, enough = extreme(model, budget, ()), extreme(model, budget, [other for other in model.budgets if other != budget])
        assert best is not None  # without other budgets
        entry = {"budget": str(budget), "limit": budget.limit, "best_reachable": best, "nearest_layout": nearest.values[budget.amount]}
        found[budget.name] = entry | ({"enough": enough} if enough is not None else {})
    return found


def explained(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What is impossible and what would be enough, in one line."""
    parts = ", ".join(f"{entry['budget']} (best reachable {entry['best_reachable']:.4g})" for entry in found.values())
    ways = [f"{name.removesuffix('>=')} to {entry['enough']:.4g}" for name, entry in found.items() if "enough" in entry]
    if ways and len(found) > 1:
        hint = f"the others kept, it is enough to loosen {' or '.join(ways)}"
    elif ways:
        hint = f"loosen {ways[0]}"
    else:
        nearest = ", ".join(f"{name.removesuffix('>=')} {entry['nearest_layout']:.4g}" for name, entry in found.items())
        hint = f"loosening one is not enough; the nearest layout has {nearest}"
    return f"impossible budgets: {parts}: {hint}; or widen the space"
