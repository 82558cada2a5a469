"""Hard limits on what a layout may cost: `decode_ms@4096<=20`, `P(decode_ms@4096<=20)>=0.95`, `parameters<=400M`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from archsearch.errors import BudgetError

LATENCY = {
    "decode_ms": "decode",
    "prefill_ms": "prefill",
    "decode_p95_ms": "decode",
    "prefill_p95_ms": "prefill",
    "decode_hot_ms": "decode",
    "prefill_hot_ms": "prefill",
}
"""Kinds of latency and their phase: as predicted, the 95th percentile of single runs, and on a device that is hot or throttled."""
SIZES = ("parameters", "non_embedding_parameters", "weights_mb")
"""Kinds that are counted: they have no interval, and can be held."""
KINDS = (*LATENCY, "memory_mb", *SIZES)
METRICS = ("decode_ms@CONTEXT", "prefill_ms@TOKENS", "memory_mb@CONTEXT", "parameters")
EXAMPLE = "for example decode_ms@4096<=20, prefill_ms@512<=900, memory_mb@4096<=400 or parameters<=400e6"
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9}
HELD_WITHIN = 0.01
NUMBER = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKmMbB])?\s*")
RISK = re.compile(r"\s*P\((.*)\)\s*>=\s*([0-9.]+)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class Metric:
    """A cost that is predicted: its name, the context or number of tokens it is taken at, and, of several devices, on which."""

    kind: str
    at: int | None = None
    device: str = ""

    def __str__(self) -> str:
        where = f"{self.device}/" if self.device else ""
        return where + (self.kind if self.at is None else f"{self.kind}@{self.at}")


@dataclass(frozen=True, slots=True, order=True)
class Budget:
    """`metric` must be at most `limit` (milliseconds, 10^6 bytes, or a number of parameters).

    Attributes:
        confidence: how likely that must be, by the prediction's interval; None takes the point prediction.
        at_least: the limit is a lower one: of a size that is held.
    """

    metric: Metric
    limit: float
    confidence: float | None = None
    at_least: bool = False

    def __str__(self) -> str:
        plain = f"{self.metric}{'>=' if self.at_least else '<='}{self.limit:.10g}"
        return plain if self.confidence is None else f"P({plain})>={self.confidence:g}"

    @property
    def name(self) -> str:
        """What tells it from other budgets of one search: the metric, where nothing else is said."""
        if self.at_least:
            return f"{self.metric}>="
        return str(self.metric) if self.confidence is None else f"P({self.metric})"

    @property
    def amount(self) -> str:
        """What is limited, among a layout's costs: the metric, or the percentile of it that the probability means."""
        return str(self.metric) if self.confidence is None else self.name

    def excess(self, value: Any) -> Any:
        """By how much a value, or an array of them, misses the limit, relative to it; at most 0 is kept."""
        return 1 - value / self.limit if self.at_least else value / self.limit - 1


def parse_metric(text: str) -> Metric:
    """A metric from its name, `[DEVICE/]KIND[@TOKENS]`.

    Raises:
        BudgetError: no such metric, or the context is missing or no positive number.
    """
    device, slash, name = text.strip().rpartition("/")
    kind, at_sign, at = name.partition("@")
    if slash and not device:
        raise BudgetError(f"budget {text!r}: a device is missing before /, {EXAMPLE}")
    if kind in SIZES and not at_sign:
        return Metric(kind, None, device)
    if kind not in (*LATENCY, "memory_mb"):
        close = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(METRICS)}"
        raise BudgetError(f"budget {text!r}: unknown metric {kind!r}; {hint}")
    if not at.isdecimal() or int(at) < 1:
        raise BudgetError(f"budget {text!r}: {kind} needs a number of tokens behind @, {EXAMPLE}")
    return Metric(kind, int(at), device)


def parse_budget(text: str) -> Budget:
    """A budget from `METRIC<=LIMIT` or `P(METRIC<=LIMIT)>=PROBABILITY`; limits of parameters may end in k, M or B.

    Raises:
        BudgetError: it does not parse; the message shows what does.
    """
    risk = RISK.fullmatch(text)
    if risk is not None:
        plain = parse_budget(risk[1])
        if plain.confidence is not None:
            raise BudgetError(f"budget {text!r}: P(...) stands within P(...); write it once, as P(decode_ms@4096<=20)>=0.95")
        return _checked(Budget(plain.metric, plain.limit, _number(risk[2], text), plain.at_least))
    at_least = ">=" in text and "<=" not in text and text.partition(">=")[0].strip().rpartition("/")[2] in SIZES
    left, operator, right = text.partition(">=" if at_least else "<=")
    if not operator or not right.strip():
        raise BudgetError(f"budget {text!r} is not of the form METRIC<=LIMIT, {EXAMPLE}")
    metric = parse_metric(left)
    return _checked(Budget(metric, _limit(right, metric, text), at_least=at_least))


def _limit(right: str, metric: Metric, text: str) -> float:
    match = NUMBER.fullmatch(right)
    if match is None or (match[2] and "parameters" not in metric.kind):
        raise BudgetError(f"budget {text!r}: {right.strip()!r} is no number, {EXAMPLE}")
    return _number(match[1], text) * SUFFIXES.get((match[2] or "").lower(), 1.0)


def _number(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise BudgetError(f"budget {text!r}: {value.strip()!r} is no number, {EXAMPLE}") from error


def parse_held(text: str, parent: Mapping[str, float] | None = None) -> tuple[Budget, Budget]:
    """Both limits of a size that is held: `parameters=354.5M`, `weights_mb=220+-2%`, `non_embedding_parameters=baseline`.

    Args:
        parent: sizes of the baseline, by metric; None where there is none.

    Raises:
        BudgetError: it does not parse, is no size, or there is no baseline.
    """
    left, equals, right = text.partition("=")
    value, _, within = right.partition("+-")
    metric = parse_metric(left)
    if not equals or metric.kind not in SIZES:
        raise BudgetError(f"{text!r} cannot be held; hold {', '.join(SIZES)}, for example parameters=354.5M or parameters=354.5M+-0.5%")
    if value.strip() == "baseline":
        if parent is None:
            raise BudgetError(f"{text!r}: there is no baseline; give one with --baseline SPEC")
        size = parent[metric.kind]
    else:
        size = _limit(value, metric, text)
    share = _number(within.strip().removesuffix("%"), text) / 100 if within else HELD_WITHIN
    if not 0 < share < 1:
        raise BudgetError(f"{text!r}: it is held within a share between 0 and 100 %, for example +-1%")
    low, high = Budget(metric, size * (1 - share), at_least=True), Budget(metric, size * (1 + share))
    return _checked(low), _checked(high)


def budgets_from_table(table: Mapping[str, Any]) -> tuple[Budget, ...]:
    """Budgets from a space file's `[budgets]`: metric to limit, or to `{ limit = 20, confidence = 0.95 }`.

    Raises:
        BudgetError: as `parse_budget`.
    """
    found = []
    for name, value in table.items():
        entry = dict(value) if isinstance(value, Mapping) else {"limit": value}
        if unknown := set(entry) - {"limit", "confidence"}:
            raise BudgetError(f"budget {name!r}: unknown key {min(unknown)!r}; known: limit, confidence")
        if "limit" not in entry:
            raise BudgetError(f"budget {name!r}: limit is missing, for example {{ limit = 20, confidence = 0.95 }}")
        for number in entry.values():
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise BudgetError(f"budget {name!r}: {number!r} is no number, {EXAMPLE}")
        found.append(_checked(Budget(parse_metric(name), float(entry["limit"]), entry.get("confidence"))))
    return tuple(found)


def held_from_table(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Sizes that a space file's `[hold]` holds, as `parse_held` reads them: a number, or "baseline"; `within`, a share.

    Raises:
        BudgetError: it is no size, or no number.
    """
    within = table.get("within", HELD_WITHIN)
    if isinstance(within, bool) or not isinstance(within, int | float):
        raise BudgetError(f"within {within!r} is no number; give a share such as 0.01")
    found = []
    for kind, value in table.items():
        if kind != "within":
            text = f"{kind}={value!r}" if not isinstance(value, str) else f"{kind}={value}"
            found.append(f"{text}+-{100 * within:.10g}%")
            parse_held(found[-1], parent=dict.fromkeys(SIZES, 1.0))
    return tuple(found)


def combine(base: Iterable[Budget], overriding: Iterable[Budget]) -> tuple[Budget, ...]:
    """Both together; where both limit the same metric on the same side, the second wins."""
    merged = {(budget.metric, budget.at_least): budget for budget in base}
    return tuple((merged | {(budget.metric, budget.at_least): budget for budget in overriding}).values())


def _checked(budget: Budget) -> Budget:
    if not 0 < budget.limit < float("inf"):
        raise BudgetError(f"budget {budget}: the limit must be a positive number")
    if budget.confidence is None:
        return budget
    if not 0.5 <= budget.confidence < 1:
        raise BudgetError(f"budget {budget}: a probability from 0.5 to 0.999 is needed, for example P(decode_ms@4096<=20)>=0.95")
    if budget.metric.kind not in LATENCY:
        raise BudgetError(f"budget {budget}: only latencies are predicted with an interval; write {budget.metric}<={budget.limit:g}")
    return budget
