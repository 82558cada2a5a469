"""What came of a search so far: the front of what is trained within the budgets, and the choice among it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archsearch.search.baseline import compared
from archsearch.search.devices import SearchTables, regrets
from archsearch.search.result import SearchResult, choose, pareto_front
from archsearch.search.unreachable import unreachable

if TYPE_CHECKING:
    from archsearch.search.study import Searcher


def outcome(searcher: Searcher) -> SearchResult:
    """Impossible budgets are recognised exactly, by integer programming, not by a lack of luck."""
    nearest = searcher.nearest
    if nearest is not None and not nearest.costs.feasible:
        compared_with = compared(searcher, None) if searcher.baseline is not None else None
        missed = unreachable(searcher.model, nearest.costs)
        return SearchResult(feasible=False, unreachable=missed, nearest=nearest.spec, baseline=compared_with)
    latency, memory = str(searcher.latency), str(searcher.memory)
    front = pareto_front(searcher.points, latency, memory)
    best = choose(front, latency)
    compared_with = compared(searcher, best) if searcher.baseline is not None else None
    table = searcher.table
    tables = table if isinstance(table, SearchTables) and len(table.devices) > 1 else None
    regret = regrets(searcher.trained, best, searcher.latency, tables) if tables is not None else None
    trained = {point.spec.spec_id for point in searcher.trained}
    lost = tuple(lost for lost in searcher.given_up if lost.spec.spec_id not in trained and searcher.costs(lost.spec).feasible)
    return SearchResult(feasible=True, front=front, best=best, baseline=compared_with, devices=regret, given_up=lost)
