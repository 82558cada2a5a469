"""A workload: what is asked of a model when it is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from operators.specs import Precision

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Workload:
    """`tokens` new tokens after `context` tokens that are already in the caches.

    Prefill of a fresh prompt is `tokens=T, context=0`; decode is `tokens=1, context=C`.
    """

    phase: Phase
    tokens: int
    context: int
    batch: int = 1
    precision: Precision = "int4"
    threads: int = 1

    @property
    def label(self) -> str:
        """ "decode@4096" or "prefill@512": the name that budgets use."""
        return f"decode@{self.context}" if self.phase == "decode" else f"prefill@{self.tokens}"

    @property
    def cache(self) -> int:
        """Positions a full-context cache needs room for."""
        return self.context + self.tokens
