"""Which layout to train next: the inner search under a quality that the trainings so far allow (Thompson sampling)."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from archsearch.budgets import Metric
from archsearch.quality.rules import keeps_all
from archsearch.search.inner import Front, InnerSearch
from archsearch.search.layouts import Layouts
from archsearch.search.surrogate import Features, Surrogate, fit
from archsearch.search.table import CostArrays

EVALUATIONS = 4000
RECALLERS = 2 / 3
"""Share of proposals that must be able to recall by their structure, where the space has both sorts."""


class Proposer:
    """Learns from trained layouts, proposes others within the budgets.

    Args:
        latency: what quality is traded against.
    """

    def __init__(self, arrays: CostArrays, latency: Metric, *, seed: int = 0) -> None:
        self.arrays, self.latency, self.codec = arrays, latency, arrays.codec
        self.rng = np.random.default_rng(seed)
        space = self.codec.space
        self._keeps = np.array([keeps_all(operator, space.dims(space.hidden_sizes[0])) for operator in space.operators])
        self.features = Features(self.codec)

    def niche(self, layouts: Layouts) -> np.ndarray:
        """1 where the structure can recall, else 0, (n,): `archsearch.quality.structure` of many at once."""
        here = layouts.codes < self.codec.blocks
        keeps = np.where(here, self._keeps[np.minimum(layouts.codes, self.codec.blocks - 1) // len(self.codec.space.ffns)], False)
        return np.asarray((keeps.any(axis=1) & ((keeps.argmax(axis=1) > 0) | (keeps.sum(axis=1) > 1))).astype(int))

    def search(
        self,
        model: Surrogate,
        weights: np.ndarray | None = None,
        *,
        start: Layouts | None = None,
        evaluations: int = EVALUATIONS,
        niches: bool = True,
    ) -> InnerSearch:
        """The inner search under a model; with `niches`, layouts that can recall are kept apart from the others."""

        def quality(layouts: Layouts) -> np.ndarray:
            return model(layouts, weights)

        search = InnerSearch(
            self.arrays,
            quality,
            latency=self.latency,
            niche=self.niche if niches else None,
            niches=2 if niches else 1,
            start=start,
            seed=int(self.rng.integers(2**31)),
        )
        search.run(evaluations=evaluations)
        return search

    def front(self, trained: Layouts, quality: np.ndarray, *, evaluations: int = 10 * EVALUATIONS) -> tuple[Front, Surrogate]:
        """The front that is expected from all trainings, and the model that expects it."""
        model = fit(self.features, trained, quality)
        return self.search(model, start=trained if len(trained) else None, evaluations=evaluations).front(), model

    def propose(self, trained: Layouts, quality: np.ndarray, seen: Container[bytes]) -> Layouts | None:
        """One layout that keeps the budgets and was not seen; None when the search finds no other.

        The one that would add most to the front, if a quality drawn from what the trainings allow were the truth.
        """
        model = fit(self.features, trained, quality)
        weights = model.draw(self.rng)
        search = self.search(model, weights, start=trained if len(trained) else None)
        cells = search.filled
        new = np.array([key not in seen for key in self.codec.keys(search.kept[cells])], dtype=bool)
        if not new.any():
            return None
        cells = cells[new]
        niche = cells // (len(search.edges) + 1)
        wanted = int(self.rng.random() < RECALLERS)
        if (niche == wanted).any():
            cells = cells[niche == wanted]
        known = model(trained, weights) if len(trained) else quality
        gain = self._gain(search, search.at[cells], search.best[cells], trained, known, wanted)
        return search.kept[cells[[int(gain.argmax())]]]

    def _gain(
        self, search: InnerSearch, latency: np.ndarray, quality: np.ndarray, trained: Layouts, known: np.ndarray, niche: int
    ) -> np.ndarray:
        """Hypervolume that each candidate would add to what is trained, (n,), along the cells' latencies."""
        reached = np.full(len(search.edges) + 1, quality.min() - 0.1 * max(float(np.ptp(quality)), 1e-9))
        if len(trained):
            found = self.arrays.evaluate(trained)
            own = found.feasible & (self.niche(trained) == niche)
            cell = np.searchsorted(search.edges, found.values[own, search.column])
            np.maximum.at(reached, cell, known[own])
        reached = np.maximum.accumulate(reached)
        above = np.maximum(0.0, quality[:, None] - reached[None, :])
        return np.asarray((above * (np.arange(len(reached)) >= np.searchsorted(search.edges, latency)[:, None])).sum(axis=1))
