"""Results as tables for people: on stdout, 80 columns wide where nothing is known of the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

stdout = Console(highlight=False, soft_wrap=False)
stderr = Console(stderr=True, highlight=False)

FAMILY_STYLES = {"conv": "blue", "gla": "magenta", "swa": "green", "gqa": "yellow"}


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str | None = None, numbers_from: int = 1
) -> RenderableType:
    """A plain table; columns from `numbers_from` on are right-aligned. Its title may be wider than the table."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, column in enumerate(columns):
        result.add_column(column, justify="right" if i >= numbers_from else "left", overflow="fold")
    for row in rows:
        result.add_row(*row)
    return Group(Text(title, style="bold"), result) if title else result


def milliseconds(value: float | None) -> str:
    """Three significant digits, as people read latencies; "-" for what was not measured."""
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """An interval as distances from its value: "-3/+5 %"; empty where there is none (a single round tells of no spread)."""
    if not value or low is None or high is None or low == high:
        return ""
    return f"-{100 * (1 - low / value):.0f}/+{100 * (high / value - 1):.0f} %"


def count(value: float) -> str:
    """1,234 as is, 12.3M and 1.17B above."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"
