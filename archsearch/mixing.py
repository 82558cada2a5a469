"""What mixing costs: how much longer a model of different layers takes than its parts say, from a few chains of drawn layers.

A chain of copies of one block tells what the block takes among its like. Among others it takes more, where models walk through much memory
seen here as 1 to 6 %: between two layers of a kind, others have taken the caches that its code and its small buffers were in. So a few
chains of layers drawn like a model's are measured, too, and what they take beyond the sum of their parts is put down to two causes:

    measured / predicted - 1 = growth * (W * share of time that is cold) + sum over operators of share * (scale - 1)

growth: how the price of a missed byte rises with the walk W (where nothing is cold, or chains take less than their parts, a common factor
in its place); scale: what an operator's layers take more. Ridge regression, towards blocks that just add up. What is left of each chain
when the others predict it (leave-one-out) is left of a model, too, and belongs into the stated interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archsearch.estimate import CONFIDENCE

NOISE = 0.01
"""Relative error of a chain's ratio: what repeated processes differ by on a quiet machine."""
COMMON, OWN = 0.05, 0.03
"""How far, relative, models may be from the sum of their parts as a whole, and an operator's layers from the others: what was seen."""
FEWEST = 4
"""Chains from which anything is fitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedChain:
    """A measured chain of different layers.

    Attributes:
        ratio: its time over the sum of its parts.
        shares: share of that sum that each operator's measured blocks take; composed blocks may take some off.
        cold: share of that sum that is paid for missed bytes; 0 where nothing is.
        walk_bytes: what it walks.
    """

    ratio: float
    shares: Mapping[Any, float]
    cold: float
    walk_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """What is put on the parts of a model.

    Attributes:
        growth_per_byte: by how much, relative, each byte of the walk raises the price of a missed byte.
        scales: factor on the time of an operator's layers.
        common: of an operator that stands in no chain.
        grown_bytes: walk from which on a byte gets no dearer: the longest that was measured.
        reach: half of the 90 % interval, relative, that a model's time has about the sum of its parts so corrected.
    """

    growth_per_byte: float = 0.0
    scales: Mapping[Any, float] = field(default_factory=dict)
    common: float = 1.0
    grown_bytes: float = math.inf
    reach: float = 0.0

    def scale(self, operator: Any) -> float:
        return self.scales.get(operator, self.common)


def fit_mixing(chains: Iterable[MixedChain]) -> Mixing:
    """What chains of drawn layers teach; nothing of fewer than `FEWEST`."""
    found = list(chains)
    if len(found) < FEWEST:
        return Mixing()
    if any(chain.cold > 0 for chain in found):
        grown = _fitted(found, np.array([chain.walk_bytes * chain.cold for chain in found]))
        if grown.growth_per_byte >= 0:  # a byte that gets cheaper the more of them there are is no walk's doing
            return grown
    return _fitted(found, None)


def _fitted(chains: list[MixedChain], growth: np.ndarray | None) -> Mixing:
    """With what grows (of each chain, in bytes), or with a factor that all have in common."""
    operators = list(dict.fromkeys(operator for chain in chains for operator in chain.shares))
    common = np.ones(len(chains)) if growth is None else growth
    unit = float(np.abs(common).max())
    features = np.column_stack([common / unit, *([chain.shares.get(operator, 0.0) for chain in chains] for operator in operators)])
    wanted = np.array([chain.ratio - 1 for chain in chains])
    doubt = np.diag(np.array([COMMON, *[OWN] * len(operators)]) ** -2.0)
    inverse = np.linalg.inv(features.T @ features / NOISE**2 + doubt) @ features.T / NOISE**2
    first, *more = (inverse @ wanted).tolist()
    itself = np.einsum("ij,ji->i", features, inverse)  # how much each chain says of itself
    left = (wanted - features @ (inverse @ wanted)) / (1 - itself)
    from scipy.special import stdtrit

    reach = float(stdtrit(len(chains) - 1, (1 + CONFIDENCE) / 2) * math.sqrt(float(np.mean(left**2))))
    everywhere = first if growth is None else 0.0
    return Mixing(
        growth_per_byte=0.0 if growth is None else first / unit,
        scales={operator: 1.0 + everywhere + own for operator, own in zip(operators, more, strict=True)},
        common=1.0 + everywhere,
        grown_bytes=max(chain.walk_bytes for chain in chains),
        reach=reach,
    )


def between(left: Mixing, right: Mixing, share: float) -> Mixing:
    """Of a context between two measured ones, `share` of the way in its logarithm; as uncertain as the worse of both."""
    return Mixing(
        growth_per_byte=(1 - share) * left.growth_per_byte + share * right.growth_per_byte,
        scales={
            operator: (1 - share) * left.scale(operator) + share * right.scale(operator)
            for operator in dict.fromkeys([*left.scales, *right.scales])
        },
        common=(1 - share) * left.common + share * right.common,
        grown_bytes=max(left.grown_bytes, right.grown_bytes),
        reach=max(left.reach, right.reach),
    )
