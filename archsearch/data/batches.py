"""Which tokens are trained on at which step: a pure function of seed and step, so that a resume goes on exactly.

Legend: B sequences of a batch, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from archsearch.data.tokens import Tokens
from archsearch.errors import InputError


@dataclass(frozen=True)
class Batches:
    """Windows of `sequence + 1` tokens out of a stream, shuffled anew in every epoch.

    An epoch cuts the stream into windows that do not overlap, from an offset of its own, so that borders move from
    epoch to epoch. Documents are packed: a window may hold the end of one and the beginning of the next.

    Raises:
        InputError: the stream is shorter than one window.
    """

    stream: Tokens
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

    def at(self, step: int) -> npt.NDArray[np.int64]:
        """Token ids of a step, [B, T + 1]: inputs are all but the last column, targets all but the first."""
        windows = [self._window(step * self.batch + i) for i in range(self.batch)]
        return np.stack(windows).astype(np.int64)

    def _window(self, number: int) -> Tokens:
        epoch, index = divmod(number, self.windows)
        offset, order = _epoch(self.seed, epoch, self.windows, self.sequence)
        start = offset + int(order[index]) * self.sequence
        return self.stream[start : start + self.sequence + 1]


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, windows: int, sequence: int) -> tuple[int, npt.NDArray[np.int64]]:
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return int(rng.integers(sequence)), rng.permutation(windows)
