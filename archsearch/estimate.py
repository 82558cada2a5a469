"""A value with its interval, from the rounds of a measurement; and how a calibration widens it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from archsearch.store import Row

CONFIDENCE = 0.90
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 90 % interval; `extrapolated` when it lies outside what was measured."""

    value: float
    low: float
    high: float
    extrapolated: bool = False

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.extrapolated)

    @property
    def relative(self) -> float:
        """Half of the interval's width over the value: 0.02 means plus or minus 2 %."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0


@dataclass(frozen=True, slots=True)
class Widening:
    """What whole models taught about the intervals of one kind of workload.

    A prediction's half width h becomes `factor * sqrt(h² + error²)`, all relative to the value: noise of the parts and error of
    their sum are independent, and `factor` makes the result cover what it claims (split conformal prediction with a normalised
    score; Lei et al., Distribution-Free Predictive Inference for Regression, JASA 2018, section 5.2).
    """

    error: float
    """Of whole models, relative: their median |error|; of a profile's drawn chains, half of the 90 % interval that they give."""
    factor: float

    def apply(self, estimate: Estimate) -> Estimate:
        def wider(side: float) -> float:
            return self.factor * math.hypot(side, self.error * estimate.value)

        low, high = wider(estimate.value - estimate.low), wider(estimate.high - estimate.value)
        return Estimate(estimate.value, max(0.0, estimate.value - low), estimate.value + high, estimate.extrapolated)

    @classmethod
    def fit(cls, errors: Sequence[float], halves: Sequence[float]) -> Widening:
        """From relative errors of predictions, and the half widths of their stated intervals on the side of the truth.

        Raises:
            ValueError: no errors are given.
        """
        if not errors:
            raise ValueError("a widening needs errors of whole models")
        sizes = np.abs(np.asarray(errors, dtype=float))
        middle = float(np.median(sizes))
        scores = sizes / np.maximum(np.hypot(np.asarray(halves, dtype=float), middle), 1e-12)
        n = len(scores)
        rank = min(n, math.ceil((n + 1) * CONFIDENCE))
        # Models that were all met well, in one sitting, are no reason to promise more than the parts' own intervals do.
        return cls(error=middle, factor=max(1.0, float(np.sort(scores)[rank - 1])))


QUANTILE = 0.25
"""Other tenants of a core, interrupts and lower clocks only ever add time, often half of it and for seconds on end: a median over few
rounds jumps between two states of the machine. The minimum depends on how many samples there are; the lower quartile does not."""


def round_times(row: Row) -> np.ndarray:
    """The lower quartile of each round, in nanoseconds for one copy.

    Rounds are separated in time and spread over processes, so their spread is the uncertainty that matters.
    """
    return np.array([np.quantile(samples, QUANTILE) for _, samples in sorted(row.rounds.items())]) / row.copies


def by_process(row: Row) -> dict[str, float]:
    """Milliseconds for one copy in each process: the lower quartile of its rounds."""
    of: dict[str, list[float]] = {}
    for number, time_ns in zip(sorted(row.rounds), round_times(row), strict=True):
        of.setdefault(row.processes[number], []).append(time_ns)
    return {process: float(np.quantile(times, QUANTILE)) / 1e6 for process, times in of.items()}


def row_summary(row: Row, *, seed: int = 0) -> Estimate:
    """Milliseconds for one copy, with the interval that rounds and processes give together."""
    return summary(round_times(row), [row.processes[number] for number in sorted(row.rounds)], seed=seed)


def summary(rounds_ns: np.ndarray, processes: Sequence[str] = (), *, seed: int = 0) -> Estimate:
    """Lower quartile over rounds in milliseconds, with its 90 % interval.

    Rounds of one process share its memory layout and huge pages, so they are not independent. The interval is the wider one of a
    percentile bootstrap over rounds and, of two or more processes, Student's t over the processes' own lower quartiles: resampling so few
    processes would cover far less than it claims (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

    Args:
        rounds_ns: (rounds,) times in nanoseconds.
        processes: which process each round is of; none are told apart when it is empty.
    """
    value = float(np.quantile(rounds_ns, QUANTILE)) / 1e6
    if len(rounds_ns) < 2 or np.ptp(rounds_ns) == 0:
        return Estimate(value, value, value)
    # By hand: the numbers are those of scipy.stats.bootstrap, which takes 0.7 s to import before every answer.
    drawn = rounds_ns[np.random.default_rng(seed).integers(0, len(rounds_ns), (RESAMPLES, len(rounds_ns)))]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.quantile(drawn, QUANTILE, axis=1), [tail, 1 - tail]) / 1e6
    half = between_processes(rounds_ns, processes) / 1e6
    return Estimate(value, max(0.0, min(float(low), value - half)), max(float(high), value + half))


ALIKE = 3
OTHER_STATE = 1.2
"""A process this much slower than the fastest one was in another state, not in the noise of one: its weights found no huge pages, say,
which holds for all of its rounds. Seen: 1.6 times, for one of nine chains of a process."""


def in_one_state(times: Mapping[str, float]) -> dict[str, float]:
    """The processes among some that are in the fastest one's state."""
    least = min(times.values(), default=0.0)
    return {process: time for process, time in times.items() if time <= OTHER_STATE * least}


def between_processes(rounds_ns: np.ndarray, processes: Sequence[str]) -> float:
    """Half of the 90 % interval that processes alone give, in nanoseconds: Student's t over their lower quartiles; 0 for fewer than two.

    Where at least `ALIKE` are in the fastest one's state, the others, which the lower quartile over rounds leaves out, do not count.
    """
    names = list(dict.fromkeys(processes))
    if len(names) < 2:
        return 0.0
    of = np.array(processes)
    values = {name: float(np.quantile(rounds_ns[of == name], QUANTILE)) for name in names}
    alike = in_one_state(values)
    own = np.array(list((alike if len(alike) >= ALIKE else values).values()))
    from scipy.special import stdtrit

    return float(stdtrit(len(own) - 1, (1 + CONFIDENCE) / 2) * own.std(ddof=1) / np.sqrt(len(own)))
