"""Find the layout: designs are proposed, checked against hard budgets by prediction, and only then trained and judged."""

from archsearch.search.designs import Design, DesignSpace
from archsearch.search.events import SearchEvent
from archsearch.search.files import write_results
from archsearch.search.history import trials_frame
from archsearch.search.resolve import resolve
from archsearch.search.result import FrontPoint, ProposedPoint, SearchResult
from archsearch.search.study import Searcher

__all__ = [
    "Design",
    "DesignSpace",
    "FrontPoint",
    "ProposedPoint",
    "SearchEvent",
    "SearchResult",
    "Searcher",
    "resolve",
    "trials_frame",
    "write_results",
]
