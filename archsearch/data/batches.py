"""Which tokens are trained on at which step: a pure function of seed and step, so that a resume goes on exactly.

Legend: B sequences of a batch, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from archsearch.data.streams import Stream, Tokens
from archsearch.errors import InputError

ROUND = 1000
"""Windows of a round of a mixture: shares are exact to a thousandth."""
ALL = slice(None)


class BatchSource(Protocol):
    def at(self, step: int, rows: slice = ALL) -> npt.NDArray[np.int64]:
        """Token ids of a step, [B, T + 1]: inputs are all but the last column, targets all but the first.

        Args:
            rows: which sequences of the step's batch; by default all.
        """


@dataclass(frozen=True)
class Batches:
    """Windows of `sequence + 1` tokens out of a stream, shuffled anew in every epoch.

    An epoch cuts the stream into windows that do not overlap, from an offset of its own, so that borders move from
    epoch to epoch. Documents are packed: a window may hold the end of one and the beginning of the next.

    Raises:
        InputError: the stream is shorter than one window.
    """

    stream: Stream
    sequence: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.stream) < 2 * self.sequence:
            have = f"only {len(self.stream)} tokens of training text"
            raise InputError(f"{have}, too few for sequences of {self.sequence}; give more text, or shorten --sequence")

    @property
    def windows(self) -> int:
        """Windows of one epoch: the same number whatever its offset."""
        return (len(self.stream) - self.sequence) // self.sequence

    def at(self, step: int, rows: slice = ALL) -> npt.NDArray[np.int64]:
        """Token ids of a step, as `BatchSource.at`."""
        windows = [self.window(step * self.batch + i) for i in range(self.batch)[rows]]
        return np.stack(windows).astype(np.int64)

    def window(self, number: int) -> Tokens:
        """The window that comes at this place, counted from the first of the training."""
        epoch, index = divmod(number, self.windows)
        offset, order = _epoch(self.seed, epoch, self.windows, self.sequence)
        start = offset + int(order[index]) * self.sequence
        window: Tokens = self.stream[start : start + self.sequence + 1]
        return window


@dataclass(frozen=True)
class MixedBatches:
    """Windows of several streams, each with its share of them.

    Every round of `ROUND` windows holds each source as often as its weight says, evenly spread, so that a short training
    gets its shares too. Each source is shuffled in epochs of its own: a small one with a large weight is seen again and again.
    """

    parts: tuple[Batches, ...]
    counts: tuple[int, ...]
    """Windows of each part in a round; they sum to `ROUND`."""
    batch: int
    seed: int = 0

    def at(self, step: int, rows: slice = ALL) -> npt.NDArray[np.int64]:
        """Token ids of a step, as `BatchSource.at`."""
        windows = [self._window(step * self.batch + i) for i in range(self.batch)[rows]]
        return np.stack(windows).astype(np.int64)

    def _window(self, number: int) -> Tokens:
        whole, slot = divmod(number, ROUND)
        part_of, index_of = _round(self.seed, whole, self.counts)
        part = int(part_of[slot])
        return self.parts[part].window(whole * self.counts[part] + int(index_of[slot]))


def mixed(streams: Sequence[Stream], names: Sequence[str], weights: Sequence[float], sequence: int, batch: int, seed: int) -> MixedBatches:
    """Batches of several streams by weight; those of weight 0 are never trained on.

    Raises:
        InputError: a stream of a weight above 0 is too short for a window; names it.
    """
    used = [i for i, weight in enumerate(weights) if weight > 0]
    parts = []
    for number, i in enumerate(used):
        try:
            parts.append(Batches(streams[i], sequence, batch, seed * 1_000_003 + number))
        except InputError as error:
            raise InputError(f"{names[i]}: {error}") from error
    return MixedBatches(tuple(parts), _counts([weights[i] for i in used]), batch, seed)


def _counts(weights: Sequence[float]) -> tuple[int, ...]:
    """Windows of a round by largest remainders (Hamilton's method), at least one each.

    Raises:
        InputError: a share below a thousandth.
    """
    quotas = [weight / sum(weights) * ROUND for weight in weights]
    if min(quotas) < 1:
        raise InputError(f"a weight of less than 1/{ROUND} of their sum is too small to be kept; raise it, or leave the source out")
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: ROUND - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


@lru_cache(maxsize=4)
def _round(seed: int, number: int, counts: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(part, how many of its windows came before in this round) of each place: stratified, so that every stretch is mixed."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, len(counts)])))
    part = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(count) for count in counts])
    when = (index + rng.random(len(part))) / np.asarray(counts)[part]
    order = np.argsort(when, kind="stable")
    return part[order], index[order]


@lru_cache(maxsize=32)
def _epoch(seed: int, epoch: int, windows: int, sequence: int) -> tuple[int, npt.NDArray[np.int64]]:
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return int(rng.integers(sequence)), rng.permutation(windows)
