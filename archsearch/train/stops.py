"""What stops a training before its update is made: a loss or gradient that is no number, or a loss that leaps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

import numpy as np
import numpy.typing as npt

RECENT = 50
"""Updates whose losses a new one is compared with."""
FEWEST = 10
"""Updates that must have been made before a loss can count as a spike."""
DEVIATIONS = 8.0
"""A spike also lies this many robust standard deviations above the median, so that small, uneven batches do not stop a training."""


class BadUpdate(Exception):
    """The update was not made: weights and moments are as before it. `ids_BT` is the batch (of several processes, this one's share of it),
    if it was one."""

    file: str
    advice: str

    def __init__(self, problem: str, ids_BT: npt.NDArray[np.int64] | None) -> None:
        super().__init__(problem)
        self.ids_BT = ids_BT


class NonFinite(BadUpdate):
    """Loss or gradient is not a number."""

    file = "nonfinite.safetensors"
    advice = "train again into another --out with a lower learning rate than {learning_rate:g}"


class Spike(BadUpdate):
    """The loss is far above those of the last updates."""

    file = "spike.safetensors"
    advice = "look at the batch, then go on with --resume --max-spike 0, or train again with a lower learning rate than {learning_rate:g}"


class SpikeWatch:
    """Knows the losses of the last updates.

    Args:
        limit: nats above their median that a loss may lie; 0 for any.
        recent: what an earlier session saw, so that a resumed training stops where an uninterrupted one does.
    """

    def __init__(self, limit: float = 0.0, recent: Iterable[float] = ()) -> None:
        self.limit = limit
        self.recent = deque(recent, maxlen=RECENT)

    def check(self, loss: float, ids_BT: npt.NDArray[np.int64]) -> None:
        """
        Raises:
            Spike: too far above the median.
        """
        if not self.limit or len(self.recent) < FEWEST:
            return
        middle = median(self.recent)
        deviation = 1.4826 * median(abs(past - middle) for past in self.recent)
        if loss - middle > max(self.limit, DEVIATIONS * deviation):
            problem = f"the loss leaps to {loss:.2f}, {loss - middle:.2f} above the median of the last {len(self.recent)} updates"
            raise Spike(problem, ids_BT)

    def add(self, loss: float) -> None:
        self.recent.append(loss)
