"""How far the preparation of a text is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["streaming", "reading", "tokenizer", "tokenising"]


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """Something that takes a while before the training can begin.

    Attributes:
        done, total: bytes of text, or documents of a stream; `total` is 0 where nobody knows it.
        seconds_left: estimated, None where nobody knows.
    """

    stage: Stage
    done: int
    total: int
    seconds_left: float | None = None


Progress = Callable[[Preparing], None]


class Ticker:
    """Tells a `Progress` of one stage, at most five times a second."""

    EVERY_S = 0.2
    KNOWN = 0.01
    """Share of the work from which on its end is estimated: a first small document that waited says nothing."""

    def __init__(self, progress: Progress | None, stage: Stage, total: int, *, done: int = 0) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._first, self._done = done, done
        self._began = self._told = time.monotonic()

    def add(self, amount: int) -> None:
        self._done += amount
        if self._progress and time.monotonic() - self._told >= self.EVERY_S:
            self._told = time.monotonic()
            here = self._done - self._first
            known = here > 0 and here >= self.KNOWN * self._total > 0
            left = (self._told - self._began) * (self._total - self._done) / here if known else None
            self._progress(Preparing(stage=self._stage, done=self._done, total=self._total, seconds_left=left))
