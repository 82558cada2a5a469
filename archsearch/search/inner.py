"""The inner search: hundreds of thousands of predicted layouts for what one training costs.

After MAP-Elites (Mouret and Clune, arXiv 1504.04909): latency is cut into cells, each keeps the best layout within the budgets,
and what is kept is changed in the domain's own terms (`archsearch.search.moves`). Niches keep layouts apart that are not to be
compared, such as those that can recall and those that cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from archsearch.budgets import Metric
from archsearch.search.layouts import Layouts
from archsearch.search.moves import Moves
from archsearch.search.sizes import Held, held
from archsearch.search.table import CostArrays

CELLS = 200
BATCH = 192
FIRST_BATCH = 32
RESIZES = 2
"""Steps of FFN widths that are tried for each layer to meet a size that is held."""
Quality = Callable[[Layouts], np.ndarray]
Niche = Callable[[Layouts], np.ndarray]


@dataclass(frozen=True, eq=False)
class Front:
    """Layouts that no other beats in quality and latency at once, within one niche; fastest first."""

    layouts: Layouts
    latency: np.ndarray
    quality: np.ndarray
    niche: np.ndarray

    def __len__(self) -> int:
        return len(self.layouts)


class InnerSearch:
    """Search one quality (the larger the better) against one latency, within all budgets.

    Args:
        quality: of many layouts at once, (n,).
        niche: a small whole number for each layout, (n,); one niche without it.
        niches: how many there are.
        start: layouts to begin with, beside random ones.
    """

    def __init__(
        self,
        arrays: CostArrays,
        quality: Quality,
        *,
        latency: Metric,
        niche: Niche | None = None,
        niches: int = 1,
        start: Layouts | None = None,
        cells: int = CELLS,
        seed: int = 0,
    ) -> None:
        self.arrays, self.quality, self.latency, self.niche, self.niches = arrays, quality, latency, niche, niches
        self.rng = np.random.default_rng(seed)
        self.codec = arrays.codec
        self.moves = Moves(self.codec, self.rng)
        self.column = arrays.metrics.index(latency)
        low, high = arrays.span(latency)
        limits = [budget.limit for budget in arrays.model.budgets if budget.metric == latency]
        self.edges = np.linspace(low, max(low * 1.001, min([high, *limits])), cells + 1)[1:-1]
        size = cells * niches
        self.kept = Layouts(np.zeros(size, dtype=np.int64), np.full((size, self.codec.deepest), self.codec.blocks, dtype=np.int64))
        self.best, self.at = np.full(size, -np.inf), np.full(size, np.inf)
        self.astray: tuple[Layouts, np.ndarray] | None = None
        """Layouts nearest to the budgets, and how far they are, until some keep them."""
        self.held = held(arrays.model.budgets)
        self.evaluations = 0
        self.add(self.codec.random(FIRST_BATCH, self.rng) if start is None else start.joined(self.codec.random(FIRST_BATCH, self.rng)))

    def add(self, layouts: Layouts) -> None:
        """Evaluate layouts and keep what is best in its cell; where a size is held, FFN widths are changed for it first."""
        self.evaluations += len(layouts)
        for size in self.held:
            layouts = self._resized(layouts, size)
        found = self.arrays.evaluate(layouts)
        feasible = found.feasible
        if not feasible.any():
            if not np.isfinite(self.best).any():
                self._keep_astray(layouts, found.violation)
            return
        layouts, latency = layouts[feasible], found.values[feasible, self.column]
        quality = self.quality(layouts)
        cell = np.searchsorted(self.edges, latency)
        if self.niche is not None:
            cell = cell + self.niche(layouts) * (len(self.edges) + 1)
        # Of several in one cell the best is written last, and stays.
        order = np.lexsort((-latency, quality))
        cell, quality, latency = cell[order], quality[order], latency[order]
        better = (quality > self.best[cell]) | ((quality == self.best[cell]) & (latency < self.at[cell]))
        cell, rows = cell[better], order[better]
        self.best[cell], self.at[cell] = quality[better], latency[better]
        self.kept.hidden[cell], self.kept.codes[cell] = layouts.hidden[rows], layouts.codes[rows]

    def _resized(self, layouts: Layouts, size: Held) -> Layouts:
        """Layer by layer at random, the next wider or narrower FFN, until the size is met or no layer is left to change."""
        column, layouts = self.arrays.metrics.index(size.metric), Layouts(layouts.hidden, layouts.codes.copy())
        for _ in range(RESIZES * self.codec.deepest):
            value = self.arrays.values(layouts)[:, column]
            step = np.where(value < size.low, 1, np.where(value > size.high, -1, 0))
            rows = np.flatnonzero(step)
            if not len(rows) or not self.moves.step_ffn(layouts.codes, rows, step[rows]):
                break
        return layouts

    def _keep_astray(self, layouts: Layouts, violation: np.ndarray) -> None:
        if self.astray is not None:
            layouts, violation = layouts.joined(self.astray[0]), np.concatenate([violation, self.astray[1]])
        nearest = np.argsort(violation)[:FIRST_BATCH]
        self.astray = layouts[nearest], violation[nearest]

    def step(self) -> None:
        """One generation: children of the front, and as many of whatever is kept."""
        filled = self.filled
        if len(filled) == 0:
            assert self.astray is not None
            pool = self.astray[0]
            parents = pool[self.rng.integers(len(pool), size=FIRST_BATCH)]
            mates = pool[self.rng.integers(len(pool), size=FIRST_BATCH)]
        else:
            batch = BATCH if self.evaluations > 10 * BATCH else FIRST_BATCH
            front = self._front_cells(filled)
            parents = self.kept[np.concatenate([self._drawn(front, batch - batch // 2), self._drawn(filled, batch // 2)])]
            mates = self.kept[self._drawn(front, batch)]
        self.add(self.moves.children(parents, mates))

    @property
    def filled(self) -> np.ndarray:
        """Cells that hold a layout; cells of one niche follow each other, fastest first."""
        return np.flatnonzero(np.isfinite(self.best))

    def _drawn(self, cells: np.ndarray, count: int) -> np.ndarray:
        return np.asarray(cells[self.rng.integers(len(cells), size=count)])

    def run(self, *, evaluations: int | None = None, cpu_seconds: float | None = None) -> Front:
        """Go on until one of the limits is reached, counted from the start of this search or of this call."""
        end = None if cpu_seconds is None else time.process_time() + cpu_seconds
        while (evaluations is None or self.evaluations < evaluations) and (end is None or time.process_time() < end):
            if evaluations is None and end is None:
                raise ValueError("give evaluations or cpu_seconds")
            self.step()
        return self.front()

    def _front_cells(self, filled: np.ndarray) -> np.ndarray:
        """Cells whose layout is better than those of all faster cells of its niche."""
        niche = filled // (len(self.edges) + 1)
        found = []
        for n in range(self.niches):
            cells = filled[niche == n]
            quality = self.best[cells]
            found.append(cells[quality > np.concatenate([[-np.inf], np.maximum.accumulate(quality)[:-1]])])
        return np.concatenate(found)

    def front(self) -> Front:
        filled = self.filled
        cells = self._front_cells(filled)
        cells = cells[np.argsort(self.at[cells], kind="stable")]
        return Front(self.kept[cells], self.at[cells], self.best[cells], cells // (len(self.edges) + 1))
