"""Hard limits on what a layout may cost: `decode_ms@4096<=20`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from archsearch.errors import BudgetError

LATENCY = {"decode_ms": "decode", "prefill_ms": "prefill"}
METRICS = ("decode_ms@CONTEXT", "prefill_ms@TOKENS", "memory_mb@CONTEXT", "parameters")
EXAMPLE = "for example decode_ms@4096<=20, prefill_ms@512<=900, memory_mb@4096<=400 or parameters<=400e6"
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True, slots=True, order=True)
class Metric:
    """A cost that is predicted: its name, and the context or number of tokens it is taken at."""

    kind: str
    at: int | None = None

    def __str__(self) -> str:
        return self.kind if self.at is None else f"{self.kind}@{self.at}"


@dataclass(frozen=True, slots=True, order=True)
class Budget:
    """`metric` must be at most `limit` (milliseconds, 10^6 bytes, or a number of parameters)."""

    metric: Metric
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}<={self.limit:g}"


def parse_metric(text: str) -> Metric:
    """A metric from its name.

    Raises:
        BudgetError: no such metric, or the context is missing or no positive number.
    """
    kind, at_sign, at = text.strip().partition("@")
    if kind == "parameters" and not at_sign:
        return Metric(kind)
    if kind not in (*LATENCY, "memory_mb"):
        close = difflib.get_close_matches(kind, [*LATENCY, "memory_mb", "parameters"], n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(METRICS)}"
        raise BudgetError(f"budget {text!r}: unknown metric {kind!r}; {hint}")
    if not at.isdecimal() or int(at) < 1:
        raise BudgetError(f"budget {text!r}: {kind} needs a number of tokens behind @, {EXAMPLE}")
    return Metric(kind, int(at))


def parse_budget(text: str) -> Budget:
    """A budget from `METRIC<=LIMIT`; limits of parameters may end in k, M or B.

    Raises:
        BudgetError: it does not parse; the message shows what does.
    """
    left, operator, right = text.partition("<=")
    if not operator or not right.strip():
        raise BudgetError(f"budget {text!r} is not of the form METRIC<=LIMIT, {EXAMPLE}")
    metric = parse_metric(left)
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKmMbB])?\s*", right)
    if match is None or (match[2] and metric.kind != "parameters"):
        raise BudgetError(f"budget {text!r}: {right.strip()!r} is no number, {EXAMPLE}")
    try:
        limit = float(match[1]) * SUFFIXES.get((match[2] or "").lower(), 1.0)
    except ValueError as error:
        raise BudgetError(f"budget {text!r}: {right.strip()!r} is no number, {EXAMPLE}") from error
    return _checked(Budget(metric, limit))


def budgets_from_table(table: Mapping[str, float]) -> tuple[Budget, ...]:
    """Budgets from a space file's `[budgets]`, metric to limit.

    Raises:
        BudgetError: as `parse_budget`.
    """
    return tuple(_checked(Budget(parse_metric(name), float(limit))) for name, limit in table.items())


def combine(base: Iterable[Budget], overriding: Iterable[Budget]) -> tuple[Budget, ...]:
    """Both together; where both limit the same metric, the second wins."""
    merged = {budget.metric: budget for budget in base} | {budget.metric: budget for budget in overriding}
    return tuple(merged.values())


def _checked(budget: Budget) -> Budget:
    if not 0 < budget.limit < float("inf"):
        raise BudgetError(f"budget {budget}: the limit must be a positive number")
    return budget
