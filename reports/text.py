"""How numbers and labels are written: in prose, on axes and in plotly's text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

UNITS = {"decode_ms": "ms", "prefill_ms": "ms", "memory_mb": "MB"}
"""Units of the metrics of budgets, by what stands before the @."""


AMOUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(label: str) -> str:
    """A label as plotly text, which reads a few HTML tags and entities."""
    return html.escape(label, quote=False)


def significant(value: float, digits: int = 3) -> str:
    """3 significant digits, thousands set apart, never in powers of ten: "0.0456", "12.3", "1,230"."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def tick_text(value: float) -> str:
    """A tick of a logarithmic axis without trailing zeros: "0.05", "1.5", "1,000"."""
    return f"{value:,.6f}".rstrip("0").rstrip(".")


def with_unit(value: float | None, unit: str) -> str:
    """A value with its unit, or a dash; microseconds below 0.1 ms; parameters (no unit) in millions."""
    if value is None:
        return "–"
    if unit == "ms" and 0 < abs(value) < 0.1:
        return f"{significant(value * 1000)} µs"
    if unit:
        return f"{significant(value)} {unit}"
    return millions(value) if value >= 1e5 else significant(value)


def millions(count: float) -> str:
    """A count of parameters: "6.17 M", "1.17 B"."""
    return f"{significant(count / 1e9)} B" if count >= 1e9 else f"{significant(count / 1e6)} M"


def amount(value: float, digits: int = 3) -> str:
    """Tokens or parameters as people write them: "354M", "28.0T"; powers of ten from 10^15 on."""
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded >= 1e15:
        return power(value, digits)
    size, letter = next(((size, letter) for size, letter in AMOUNTS if rounded >= size), (1.0, ""))
    return f"{significant(value / size, digits)}{letter}"


def power(value: float, digits: int = 3) -> str:
    """ "5.96·10²²"; a power of ten alone where one digit is asked for."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    raised = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return raised if mantissa == "1" else f"{mantissa}·{raised}"


def percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def signed_percent(share: float) -> str:
    return f"{share * 100:+.1f} %".replace("-", "−")


def count(number: int) -> str:
    return f"{number:,}"


def short_count(number: int) -> str:
    """Tokens on an axis: "512", "4k", "32k"; those that are no round number of 1024 stay whole."""
    return f"{number // 1024}k" if number >= 1024 and number % 1024 == 0 else f"{number:,}"


def span(values: Iterable[int]) -> str:
    """ "6" or "6 to 10"."""
    found = sorted(set(values))
    if not found:
        return "0"
    return count(found[0]) if len(found) == 1 else f"{count(found[0])} to {count(found[-1])}"


def plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def sentence(words: str) -> str:
    """With a capital first letter; the rest, a device's name say, as it is."""
    return words[:1].upper() + words[1:]


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def metric_name(metric: str) -> str:
    """ "decode_ms@4096" in words: "decode at 4,096 tokens"; of another device, "adb:X/decode_ms@4096", with "on adb:X"."""
    device, _, own = metric.rpartition("/")
    if device:
        return f"{metric_name(own)} on {device}"
    kind, _, at = metric.partition("@")
    words = {"decode_ms": "decode", "prefill_ms": "prefill", "memory_mb": "memory"}.get(kind, kind.replace("_", " "))
    if not at.isdigit():
        return f"{words} at {at}" if at else words
    return f"{words} of {count(int(at))} tokens" if kind == "prefill_ms" else f"{words} at {count(int(at))} tokens"


def metric_unit(metric: str) -> str:
    return UNITS.get(metric.rpartition("/")[2].partition("@")[0], "")


def workload_name(workload: str) -> str:
    """ "decode@4096" in words: "decode at 4,096"."""
    kind, _, at = workload.partition("@")
    return f"{kind} at {count(int(at))}" if at.isdigit() else workload


def natural_key(label: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "swa64" before "swa512"."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", label) if part)
