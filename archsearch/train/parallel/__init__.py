"""Processes that train one model together: `Team` is a process alone, `Several` (in `several`, which needs Lightning Fabric) many.

The trainer is written against `Team`. Every process calls the same methods in the same order, reads its share of each batch, and
sees the same losses, plans and decisions; the first one alone writes and speaks. See docs/cluster.md.
"""

from archsearch.train.parallel.launch import Launch, launched, open_team
from archsearch.train.parallel.team import ALONE, Team

__all__ = ["ALONE", "Launch", "Team", "launched", "open_team"]
