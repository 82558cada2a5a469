"""What a figure is to the page: a title, a sentence, views to choose from, and the same numbers as a table.

Every figure comes in two steps: `..._info(report)` takes from the rows what will be seen (None when there is nothing to see), and
`plot(info)` puts it into plotly's terms. Tests check the info.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.text import plain, tick_text

Figure = dict[str, Any]
"""A plotly figure as plain data: "data" and "layout". Colours are CSS variables; the page makes the legend."""

INK, MUTED, GRID, CARD = "var(--ink)", "var(--muted)", "var(--grid)", "var(--card)"
ACCENT, GOOD, BAD = "var(--front)", "var(--good)", "var(--bad)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The numbers of a chart, or a table of its own. The first column heads its row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})
    """Columns of words, set to the left; all others are numbers, set to the right."""
    marked: frozenset[int] = frozenset()
    """Rows that stand out: the chosen layout."""
    bad: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) that tell of a missed budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    label: str
    figure: Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One card of the page with a figure in it."""

    key: str
    title: str
    caption: str
    """What is seen, and under which conditions."""
    summary: str
    """What the figure says, in words, for those who do not see it."""
    views: tuple[View, ...]
    height: int = 320
    """Pixels, for views whose layout does not say its own."""
    wide: bool = False
    table: Table | None = None


def axis(title: str = "", **settings: Any) -> Figure:
    return {
        "title": {"text": plain(title), "standoff": 8, "font": {"size": 12, "color": MUTED}},
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "tickfont": {"size": 11, "color": MUTED},
        **settings,
    }


def log_axis(title: str, values: Sequence[float]) -> Figure:
    """A logarithmic axis with round ticks for these values."""
    ticks = log_ticks(values)
    return axis(title, type="log", tickvals=ticks, ticktext=[tick_text(tick) for tick in ticks])


def layout(*, xaxis: Figure, yaxis: Figure, **settings: Any) -> Figure:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif", "size": 12, "color": INK},
        "margin": {"l": 8, "r": 16, "t": 16, "b": 8},
        "hoverlabel": {"bgcolor": CARD, "bordercolor": GRID, "font": {"color": INK, "size": 12}, "align": "left"},
        "showlegend": False,
        "xaxis": xaxis,
        "yaxis": yaxis,
        **settings,
    }


def line_shape(*, x: float | None = None, y: float | None = None, color: str = BAD, dash: str = "dash") -> Figure:
    """A line across the whole plot at one x or one y."""
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"} if x is not None else {"x0": 0, "x1": 1, "y0": y, "y1": y, "xref": "paper"}
    return {"type": "line", "layer": "above", "line": {"color": color, "width": 1.5, "dash": dash}, **ends}


def note(text: str, **settings: Any) -> Figure:
    """A short label within the plot, legible over points."""
    return {
        "text": plain(text),
        "showarrow": False,
        "font": {"size": 11, "color": MUTED},
        "bgcolor": "var(--card-veil)",
        "borderpad": 2,
        **settings,
    }


TICKS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 5, 7))
"""Steps within a power of ten, sparse to dense."""


def log_ticks(values: Sequence[float]) -> list[float]:
    """Round ticks for a logarithmic axis: the sparsest steps of `TICKS` that put four or more within the range of values."""
    positive = [value for value in values if 0 < value < math.inf]
    if not positive:
        return []
    low, high = min(positive), max(positive)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in TICKS:
        every = [step * 10.0**power for power in powers for step in steps]
        if sum(low <= tick <= high for tick in every) >= 4:
            break
    return [tick for tick in every if low / 1.2 <= tick <= high * 1.2]


def sparse(value: float) -> float:
    """Five significant digits: no more is seen, and the file is smaller."""
    return float(f"{value:.5g}")
