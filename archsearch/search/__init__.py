"""Find the layout: designs are proposed, checked against hard budgets by prediction, and only then trained and judged."""

from archsearch.search.designs import Design, DesignSpace
from archsearch.search.files import write_results
from archsearch.search.history import trials_frame
from archsearch.search.result import FrontPoint, SearchResult
from archsearch.search.study import Searcher, SearchEvent

__all__ = ["Design", "DesignSpace", "FrontPoint", "SearchEvent", "SearchResult", "Searcher", "trials_frame", "write_results"]
