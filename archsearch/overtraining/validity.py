"""Where a law must not be trusted."""

from __future__ import annotations

from archsearch.overtraining.laws import Allocation, ScalingLaw
from archsearch.overtraining.quantities import format_count

SARDANA_NOTE = "Fits at usual ratios promise too much of more tokens at extreme ones (Sardana et al., 2401.00448): expect a higher loss."


def beyond_fit(law: ScalingLaw, parameters: float, tokens: float, fitted_size: float, lifetime: Allocation | None) -> tuple[str, ...]:
    """What of the question, and of the answer, lies outside of what the law was fitted to; a few words each.

    Args:
        parameters: N as the law was given it; fitted_size: N as its fit would have counted it.
    """
    seen = law.fitted
    asked = [
        (parameters, seen.parameters, f"{format_count(parameters)} parameters"),
        (tokens, seen.tokens, f"{format_count(tokens)} tokens"),
        (tokens / parameters, seen.ratio, f"{_ratio(tokens / parameters)} tokens a parameter"),
    ]
    found = [f"{words} (its fit saw {_span(ends)})" for value, ends, words in asked if not ends[0] <= value <= ends[1]]
    if lifetime is not None and not seen.ratio[0] <= (ratio := lifetime.tokens / lifetime.parameters) <= seen.ratio[1]:
        found.append(f"{_ratio(ratio)} a parameter for its lifetime optimum")
    if parameters != fitted_size:
        found.append(f"{format_count(parameters)} parameters where its fit counted {law.counted} ones ({format_count(fitted_size)})")
    return tuple(found)


def notes(laws: list[tuple[ScalingLaw, float]]) -> tuple[str, ...]:
    """Sentences that hold for several laws; `laws` with their tokens a parameter."""
    return (SARDANA_NOTE,) if any(ratio > law.fitted.ratio[1] for law, ratio in laws) else ()


def _span(ends: tuple[float, float]) -> str:
    return f"{format_count(ends[0])} to {format_count(ends[1])}"


def _ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
