"""How well one order of layouts agrees with another, how sure that is, and what it costs to trust it. Lower values are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

RESAMPLES = 4000
INTERVAL = (0.05, 0.95)
TIE_BREAKS = 500
LEAST_LAYOUTS = 16
"""Of fewer, the bootstrap interval is itself too narrow to be believed."""
LEAST_TAU, WIDEST = 0.3, 0.6
"""An interval that reaches below the one leaves open whether the order is worth anything; one wider than the other, how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """A cheap order against the reference.

    Attributes:
        layouts: how many were compared.
        tau: Kendall's tau-b (ties count as neither); None where all values of one side are equal.
        low, high: 90 % bootstrap interval over layouts.
        regret_1, regret_3: by how much the reference's value of the best among the first one or three is above the best of all,
            on average over how ties may be broken; in the reference's unit.
    """

    layouts: int
    tau: float | None
    low: float | None
    high: float | None
    regret_1: float
    regret_3: float

    @property
    def verdict(self) -> Literal["validated", "unvalidated"]:
        if self.low is None or self.high is None or self.layouts < LEAST_LAYOUTS:
            return "unvalidated"
        return "validated" if self.low >= LEAST_TAU and self.high - self.low <= WIDEST else "unvalidated"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def rank(scores: Sequence[float], reference: Sequence[float], *, seed: int = 0) -> Ranking:
    """Compare the order of `scores` with that of `reference`.

    Raises:
        ValueError: they differ in length, or there are fewer than two.
    """
    a, b = np.asarray(scores, float), np.asarray(reference, float)
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"{len(a)} scores cannot be ranked against {len(b)} references")
    generator = np.random.default_rng(seed)
    signs_a, signs_b = (np.sign(x[:, None] - x[None, :]) for x in (a, b))
    draws = generator.integers(0, len(a), (RESAMPLES, len(a)))
    # A layout drawn twice makes a pair with itself, whose sign is 0 on both sides: it counts as nothing, as it should.
    taus = np.array([_tau(signs_a[np.ix_(draw, draw)], signs_b[np.ix_(draw, draw)]) for draw in draws])
    tau = _tau(signs_a, signs_b)
    known = taus[~np.isnan(taus)]
    low, high = np.quantile(known, INTERVAL) if len(known) and not np.isnan(tau) else (None, None)
    return Ranking(
        layouts=len(a),
        tau=None if np.isnan(tau) else float(tau),
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        regret_1=_regret(a, b, 1, generator),
        regret_3=_regret(a, b, 3, generator),
    )


def _tau(signs_a: np.ndarray, signs_b: np.ndarray) -> float:
    """Kendall's tau-b (Biometrika 33, 1945): concordant minus discordant pairs over the root of the pairs untied on either side."""
    untied = (signs_a**2).sum() * (signs_b**2).sum()
    return float((signs_a * signs_b).sum() / np.sqrt(untied)) if untied else float("nan")


def _regret(scores: np.ndarray, reference: np.ndarray, first: int, generator: np.random.Generator) -> float:
    """Ties are broken at random, many times."""
    found = [reference[np.lexsort((generator.random(len(scores)), scores))[:first]].min() for _ in range(TIE_BREAKS)]
    return max(0.0, float(np.mean(found) - reference.min()))  # not -0.0


def between_seeds(by_seed: Sequence[Sequence[float]], *, seed: int = 0) -> Ranking:
    """What one seed says of the mean of the others, averaged over which one is left out: no cheap tier can be expected to do better."""
    rows = np.asarray(by_seed, float)
    if len(rows) < 2:
        raise ValueError("one seed says nothing about another")
    parts = [rank(rows[i], np.delete(rows, i, axis=0).mean(axis=0), seed=seed) for i in range(len(rows))]

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return Ranking(
        layouts=rows.shape[1],
        tau=mean([part.tau for part in parts]),
        low=mean([part.low for part in parts]),
        high=mean([part.high for part in parts]),
        regret_1=float(np.mean([part.regret_1 for part in parts])),
        regret_3=float(np.mean([part.regret_3 for part in parts])),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How two layouts differ over the same seeds: the mean of the differences and its 95 % interval, None of one seed."""

    mean: float
    low: float | None
    high: float | None

    @property
    def word(self) -> Literal["better", "worse", "cannot tell"]:
        """Lower is better."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "cannot tell"
        return "better" if self.high < 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired(values: Sequence[float], base: Sequence[float]) -> Difference:
    """Paired by seed, which has the same data in the same order for both; the interval is Student's t.

    Raises:
        ValueError: they differ in length.
    """
    from scipy import stats

    if len(values) != len(base) or not values:
        raise ValueError(f"{len(values)} values cannot be paired with {len(base)}")
    differences = np.subtract(values, base)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Difference(mean=mean, low=None, high=None)
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return Difference(mean=mean, low=mean - half, high=mean + half)
