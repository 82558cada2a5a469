"""Large counts as people write them: "28T" tokens, "6e22" FLOP."""

from __future__ import annotations

import math
import re

from archsearch.errors import InputError

SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "z": 1e21, "y": 1e24}
"""No letter for 1e18: E stands for an exponent."""
_FORM = re.compile(r"(\d[\d_,]*(?:\.\d*)?|\.\d+)(e[+-]?\d+)?\s*([kmbgtpzy]?)", re.IGNORECASE)


def parse_count(text: str, what: str) -> float:
    """ "28T", "300B", "2M", "1e12", "1_000_000": a number above nought with a suffix of thousands, or none; case does not matter.

    Raises:
        InputError: anything else; names `what` it was for.
    """
    found = _FORM.fullmatch(text.strip())
    value = math.nan
    if found:
        number, exponent, suffix = found.groups()
        value = float(number.replace(",", "").replace("_", "") + (exponent or "")) * SUFFIXES[suffix.lower()]
    if not (0 < value < math.inf):
        raise InputError(f"{what}: {text!r} is no count above 0; write it as 28T, 300B, 2M or 1e12")
    return value


def format_count(value: float, digits: int = 3) -> str:
    """Tokens and parameters: "354M", "28.0T"; powers of ten beyond 999T, whole numbers below 1000."""
    if not math.isfinite(value):
        return "never" if value > 0 else "-"
    rounded = float(f"{value:.{digits - 1}e}")
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return format_power(value, digits) if rounded >= 1e15 else f"{_plain(rounded / size, digits)}{letter}"
    return f"{value:.{digits}g}"


def format_hours(hours: float) -> str:
    """ "43,281" or "0.029": whole hours from ten on, two digits below."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def format_power(value: float, digits: int = 3) -> str:
    """FLOP: "5.96e22"."""
    if not math.isfinite(value):
        return "-"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _plain(value: float, digits: int) -> str:
    """So many significant digits without an exponent: 8.4 as "8.40", 28 as "28.0"."""
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(value)))}f}"
