"""What a byte costs in a larger model: the price of a walk through memory that the processor's caches do not hold.

A decode step reads all weights and caches of a model, and how much of them the last-level cache still holds from the step before depends on
the bytes W of the whole walk, not on the block. So a block takes `warm + cold * missed(W)` in a model that walks W, with

    missed(W) = 1 / (1 + (C / W) ** m)

between 0 (all of it is held) and 1 (none is). A cache that replaced at random would have m = 1, one that strictly replaced the oldest a
step at C; C and m are fitted to chains of several lengths, whose walks are known. `warm` and `cold` are a block's own: in theory, the time
of its arithmetic on data at hand, and the time that its bytes take from memory beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NOISE = 0.015
"""Relative error of a chain's time: what repeated processes differ by on a quiet machine."""
ALIKE = 0.3
"""By how much, relative, a byte's price differs between kinds of blocks: their access differs, the memory is the same."""
STEEPNESS = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
STEEP, DOUBT = 3.0, 0.3
"""From where on a steeper law has to earn it, and by how much, of its logarithm, m may differ: disturbed chains of middle lengths say
that a walk of twice the cache is missed as a whole, where 5 % of it were held. Chains of ten lengths told 2.4 to 3.6 from 10 to 32 MB."""
CAPACITIES = 40
REWEIGHTED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A measured chain: which block, how many copies, the bytes that a copy walks, and the milliseconds that it takes."""

    block: Any
    copies: int
    size_bytes: float
    each_ms: float

    @property
    def walk_bytes(self) -> float:
        return self.copies * self.size_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkLaw:
    """How much of a walk is missed, and what a missed byte costs.

    Attributes:
        capacity_bytes: walk of which half is missed, C.
        steepness: m.
        ms_per_byte: price of a missed byte, over all kinds of blocks.
        growth_per_byte: by how much, relative, each byte of the walk raises that price, at least 0; `archsearch.mixing` tells.
        grown_bytes: walk from which on it grows no more: the longest that was measured.
    """

    capacity_bytes: float
    steepness: float
    ms_per_byte: float
    growth_per_byte: float = 0.0
    grown_bytes: float = np.inf

    def missed(self, walk_bytes: Any) -> Any:
        """Share of a walk that is paid for: what the caches do not hold, at the price it has; of a number or an array of any shape."""
        walk = np.maximum(walk_bytes, 1.0)
        return (1.0 + self.growth_per_byte * np.minimum(walk, self.grown_bytes)) / (1.0 + (self.capacity_bytes / walk) ** self.steepness)

    def walk_at(self, missed: float) -> float:
        """The walk of which that share is paid for: the inverse of `missed`, for a share above 0 that some walk reaches."""
        from scipy.optimize import brentq

        longest = self.capacity_bytes
        while self.missed(longest) < missed:
            longest *= 2.0
        return float(brentq(lambda walk: float(self.missed(walk)) - missed, 1.0, longest))

    def cold_ms(self, short: Chain, long: Chain) -> float:
        """What a block takes more where all of it is missed, from two lengths of its chain.

        The least squares of both: their difference, known to `NOISE`, and the common price of its bytes, known to `ALIKE`. A block of which
        even the short chain is missed as much as the long one takes the common price, and its warm time follows from it.
        """
        usual = self.ms_per_byte * long.size_bytes
        change = float(self.missed(long.walk_bytes) - self.missed(short.walk_bytes))
        known, prior = (NOISE * (long.each_ms + short.each_ms)) ** -2, (ALIKE * usual) ** -2
        cold = (known * change * (long.each_ms - short.each_ms) + prior * usual) / (known * change**2 + prior)
        return max(0.0, cold)


def fit_walk(chains: Iterable[Chain]) -> WalkLaw | None:
    """The law that chains of several lengths follow; None where longer chains take no longer, so that blocks just add up.

    For each C and m of a grid, warm and cold times and the common price are linear: non-negative least squares of relative errors
    (`scipy.optimize.nnls`), reweighted so that single bad chains count little (soft L1). The cell that fits best wins.
    """
    found = list(chains)
    if len({chain.copies for chain in found}) < 2:
        return None
    walks = np.array([chain.walk_bytes for chain in found])
    price = _rough_price(found)
    if price <= 0:
        return None
    best: tuple[float, WalkLaw] | None = None
    for capacity in np.geomspace(walks.min(), walks.max(), CAPACITIES):
        for steepness in STEEPNESS:
            law = WalkLaw(capacity_bytes=float(capacity), steepness=steepness, ms_per_byte=price)
            cost, fitted = _fit(found, law.missed(walks), price)
            cost += (np.log(max(steepness, STEEP) / STEEP) / DOUBT) ** 2
            if best is None or cost < best[0]:
                best = cost, WalkLaw(capacity_bytes=float(capacity), steepness=steepness, ms_per_byte=fitted)
    return best[1] if best and best[1].ms_per_byte > 0 else None


def _rough_price(chains: Sequence[Chain]) -> float:
    """Milliseconds a byte: the middle of what each block's longest chain takes more than its shortest; only a scale for the fit."""
    by_block: dict[Any, list[Chain]] = {}
    for chain in chains:
        by_block.setdefault(chain.block, []).append(chain)
    found = []
    for own in by_block.values():
        short, long = min(own, key=lambda chain: chain.copies), max(own, key=lambda chain: chain.copies)
        if long.copies > short.copies:
            found.append((long.each_ms - short.each_ms) / long.size_bytes)
    return float(np.median(found)) if found else 0.0


def _fit(chains: Sequence[Chain], missed: np.ndarray, scale: float) -> tuple[float, float]:
    """Cost and common price of the best warm and cold times for given shares that are missed."""
    from scipy.optimize import nnls

    blocks = list(dict.fromkeys(chain.block for chain in chains))
    n, b = len(chains), len(blocks)
    sizes = {chain.block: chain.size_bytes for chain in chains}
    # Unknowns: b warm times, b prices in units of `scale`, the common price in the same unit.
    rows, wanted = np.zeros((n + b, 2 * b + 1)), np.zeros(n + b)
    for i, chain in enumerate(chains):
        own = blocks.index(chain.block)
        rows[i, own] = 1 / (chain.each_ms * NOISE)
        rows[i, b + own] = scale * sizes[chain.block] * missed[i] / (chain.each_ms * NOISE)
        wanted[i] = 1 / NOISE
    for own in range(b):
        rows[n + own, b + own], rows[n + own, 2 * b] = 1 / ALIKE, -1 / ALIKE
    weights = np.ones(n + b)
    for _ in range(REWEIGHTED):
        solution, _ = nnls(rows * weights[:, None], wanted * weights)
        errors = rows @ solution - wanted
        weights[:n] = (1 + errors[:n] ** 2) ** -0.25
    cost = float(2 * (np.sqrt(1 + errors[:n] ** 2) - 1).sum() + (errors[n:] ** 2).sum())
    return cost, float(solution[2 * b]) * scale
