"""Peak memory by part over context, with the budget and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from reports.figures.chart import BAD, INK, Chart, Figure, Table, View, axis, layout, line_shape, note, sparse
from reports.palette import Palette
from reports.rows import Report
from reports.text import count, plain, short_count, signed_percent, with_unit


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryInfo:
    contexts: tuple[int, ...]
    parts: dict[str, tuple[float, ...]]
    """Part to 10^6 bytes at each context, in the order of stacking."""
    totals: tuple[float, ...]
    measured: tuple[float | None, ...]
    budget: float | None


def memory_info(report: Report) -> MemoryInfo | None:
    if not report.memory:
        return None
    rows = sorted(report.memory, key=lambda row: row.context)
    parts = dict.fromkeys(part for row in rows for part in row.parts_mb)
    return MemoryInfo(
        contexts=tuple(row.context for row in rows),
        parts={part: tuple(row.parts_mb.get(part, 0.0) for row in rows) for part in parts},
        totals=tuple(sum(row.parts_mb.values()) for row in rows),
        measured=tuple(row.measured_mb for row in rows),
        budget=report.memory_budget_mb,
    )


def memory_chart(report: Report, palette: Palette) -> Chart | None:
    info = memory_info(report)
    if info is None:
        return None
    whose = "the chosen layout" if report.chosen_pattern else "one layout of the space"
    known = any(value is not None for value in info.measured)
    said = "diamonds: the peak that was measured in a fresh process" if known else "not measured yet"
    return Chart(
        key="memory",
        title="Memory by context",
        caption=f"Peak of the whole process for {whose}, predicted part by part; {said}.",
        summary=_summary(info),
        height=360,
        views=(View(label="Memory", figure=plot(info, palette)),),
        table=Table(
            caption="Peak memory by part",
            header=("Context", *(part.capitalize() for part in info.parts), "Predicted", "Measured"),
            rows=tuple(
                (
                    count(context),
                    *(with_unit(values[at], "MB") for values in info.parts.values()),
                    with_unit(info.totals[at], "MB"),
                    with_unit(info.measured[at], "MB"),
                )
                for at, context in enumerate(info.contexts)
            ),
        ),
    )


def plot(info: MemoryInfo, palette: Palette) -> Figure:
    x = [short_count(context) for context in info.contexts]
    data: list[Figure] = [
        {
            "type": "bar",
            "name": plain(part),
            "x": x,
            "y": [sparse(value) for value in values],
            "marker": {"color": palette.part(part)},
            "customdata": [with_unit(value, "MB") for value in values],
            "hovertemplate": f"{plain(part)}: %{{customdata}}<extra></extra>",
        }
        for part, values in info.parts.items()
    ]
    if any(value is not None for value in info.measured):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "measured peak",
                "x": x,
                "y": [None if value is None else sparse(value) for value in info.measured],
                "marker": {"symbol": "diamond", "size": 11, "color": INK, "line": {"color": "var(--card)", "width": 2}},
                "customdata": [with_unit(value, "MB") for value in info.measured],
                "hovertemplate": "measured peak: %{customdata}<extra></extra>",
            }
        )
    highest = max((*info.totals, *(value for value in info.measured if value is not None)))
    far = info.budget is not None and info.budget > highest * 2
    top = highest if info.budget is None or far else max(highest, info.budget)
    budget = with_unit(info.budget, "MB")
    shapes = [] if info.budget is None or far else [line_shape(y=info.budget)]
    notes: list[Figure] = []
    if info.budget is not None:
        said = f"budget {budget}, beyond this axis" if far else f"budget {budget}"
        place = {"yref": "paper", "y": 1, "yanchor": "top"} if far else {"y": info.budget, "yanchor": "bottom"}
        notes = [note(said, xref="paper", x=0.005, xanchor="left", font={"size": 11, "color": BAD}, bgcolor="rgba(0,0,0,0)", **place)]
    return {
        "data": data,
        "layout": layout(
            xaxis=axis("Context, tokens", type="category", showgrid=False),
            yaxis=axis("Peak memory, MB", range=[0, sparse(top * 1.12)]),
            barmode="stack",
            bargap=0.4,
            shapes=shapes,
            annotations=notes,
        ),
    }


def _summary(info: MemoryInfo) -> str:
    last = len(info.contexts) - 1
    words = f"At {count(info.contexts[last])} tokens of context {with_unit(info.totals[last], 'MB')} predicted"
    measured = info.measured[last]
    if measured is not None:
        words += f", {with_unit(measured, 'MB')} measured ({signed_percent(info.totals[last] / measured - 1)})"
    largest = max(info.parts, key=lambda part: info.parts[part][last])
    if info.budget is not None:
        over = (info.totals[last] if measured is None else measured) > info.budget
        words += f", {'over' if over else 'within'} the budget of {with_unit(info.budget, 'MB')}"
    return f"{words}; the largest part is {largest}."
