"""Layouts: quality against latency with budgets and front, and the costs of everything that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.figures.chart import ACCENT, BAD, INK, MUTED, Chart, Figure, Table, View, axis, layout, line_shape, note, sparse
from reports.rows import DesignRow, Report
from reports.text import count, listed, metric_name, metric_unit, millions, percent, plain, plural, with_unit

MEMORY_SCALE = [
    [0.0, "var(--scale-0)"],
    [0.25, "var(--scale-1)"],
    [0.5, "var(--scale-2)"],
    [0.75, "var(--scale-3)"],
    [1.0, "var(--scale-4)"],
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """One measure of quality."""

    key: str
    label: str
    value: Callable[[DesignRow], float | None]
    larger_is_better: bool
    tickformat: str


QUALITIES = (
    Quality(key="text", label="Text, bits per byte", value=lambda row: row.text_bits_per_byte, larger_is_better=False, tickformat=".2f"),
    Quality(key="recall", label="Recall accuracy", value=lambda row: row.recall_accuracy, larger_is_better=True, tickformat=".0%"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoInfo:
    """Trained layouts by one measure of quality."""

    quality: Quality
    over_budget: tuple[DesignRow, ...]
    feasible: tuple[DesignRow, ...]
    front: tuple[DesignRow, ...]
    """Nothing that is faster is better: by latency, ascending. Among those that solve recall, when any does."""
    solved_only: bool
    chosen: DesignRow | None
    latency_limit: float | None


def pareto_info(report: Report, quality: Quality) -> ParetoInfo | None:
    rows = [row for row in report.designs if row.trained and quality.value(row) is not None]
    if not rows:
        return None
    feasible = [row for row in rows if row.feasible]
    solved = [row for row in feasible if row.recall_solved]
    solved_only = quality.key == "text" and bool(solved)
    return ParetoInfo(
        quality=quality,
        over_budget=tuple(row for row in rows if not row.feasible),
        feasible=tuple(feasible),
        front=front_of(solved if solved_only else feasible, quality),
        solved_only=solved_only and len(solved) < len(feasible),
        chosen=next((row for row in rows if row.chosen), None),
        latency_limit=_limit(report, report.latency_metric),
    )


def front_of(rows: Sequence[DesignRow], quality: Quality) -> tuple[DesignRow, ...]:
    """Rows that no other equals or beats in both latency and quality, fastest first."""
    sign = -1.0 if quality.larger_is_better else 1.0

    def cost(row: DesignRow) -> float:
        value = quality.value(row)
        return float("inf") if value is None else sign * value

    front: list[DesignRow] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms, cost(row))):
        if not front or cost(row) < cost(front[-1]):
            front.append(row)
    return tuple(front)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsInfo:
    """Latency against memory of all layouts, whether trained or not."""

    over_budget: tuple[DesignRow, ...]
    feasible: tuple[DesignRow, ...]
    trained: tuple[DesignRow, ...]
    chosen: DesignRow | None
    latency_limit: float | None
    memory_limit: float | None


def costs_info(report: Report) -> CostsInfo | None:
    if not report.designs or not any(row.memory_mb for row in report.designs):
        return None
    return CostsInfo(
        over_budget=tuple(row for row in report.designs if not row.feasible),
        feasible=tuple(row for row in report.designs if row.feasible and not row.trained),
        trained=tuple(row for row in report.designs if row.feasible and row.trained),
        chosen=next((row for row in report.designs if row.chosen), None),
        latency_limit=_limit(report, report.latency_metric),
        memory_limit=_limit(report, report.memory_metric),
    )


COSTS_VIEW = "Costs of every layout"


def designs_chart(report: Report) -> Chart | None:
    infos = [info for quality in QUALITIES if (info := pareto_info(report, quality)) is not None]
    costs = costs_info(report)
    views = [View(label=info.quality.label, figure=plot(info, report)) for info in infos]
    if costs is not None:
        views.append(View(label=COSTS_VIEW, figure=plot_costs(costs, report)))
    if not views:
        return None
    trained = sum(row.trained for row in report.designs)
    over = sum(not row.feasible for row in report.designs)
    known = f"Quality is known of the {trained} trained as small copies; the view “{COSTS_VIEW}” has all. " if costs else ""
    caption = (
        f"{metric_name(report.latency_metric).capitalize()} and memory of {plural(len(report.designs), 'layout')}, "
        f"predicted from the measured blocks. Grey: over a budget ({over}). "
        + (known + "Orange: the best quality at or below each latency. Ring: the chosen layout." if infos else "No quality was measured.")
    )
    return Chart(
        key="designs",
        title="Quality against latency" if infos else "Latency against memory",
        caption=caption,
        summary=_summary(infos[0]) if infos else _costs_summary(costs),
        views=tuple(views),
        height=400,
        wide=True,
        table=_table(report),
    )


def plot(info: ParetoInfo, report: Report) -> Figure:
    quality = info.quality
    unit = metric_unit(report.latency_metric)
    data: list[Figure] = []
    if info.over_budget:
        data.append(_points(info.over_budget, report, quality, name="over budget", marker={"color": MUTED, "opacity": 0.28, "size": 7}))
    shown_bar = False
    for name, rows, symbol in (
        ("feasible, recall solved", [row for row in info.feasible if row.recall_solved], "circle"),
        (
            "feasible, recall unresolved" if any(row.recall_solved for row in info.feasible) else "feasible",
            [row for row in info.feasible if not row.recall_solved],
            "diamond-open",
        ),
    ):
        if rows:
            data.append(
                _points(
                    rows,
                    report,
                    quality,
                    name=name,
                    marker=_memory_marker(rows, info.feasible, report, bar=not shown_bar) | {"symbol": symbol},
                )
            )
            shown_bar = True
    if info.front:
        ends = max(row.latency_ms for row in info.feasible)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "front, recall solved" if info.solved_only else "front",
                "x": [*(sparse(row.latency_ms) for row in info.front), sparse(ends)],
                "y": [sparse(quality.value(row) or 0.0) for row in (*info.front, info.front[-1])],
                "line": {"color": ACCENT, "width": 2, "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    if info.chosen is not None:
        data.append(_chosen(info.chosen, sparse(info.chosen.latency_ms), sparse(quality.value(info.chosen) or 0.0)))
    everything = (*info.over_budget, *info.feasible)
    shapes, notes, span = _budget_line(
        [row.latency_ms for row in everything], [row.latency_ms for row in info.feasible], info.latency_limit, unit, "x"
    )
    return {
        "data": data,
        "layout": layout(
            xaxis=axis(f"{metric_name(report.latency_metric).capitalize()}, {unit} (predicted)", range=span),
            yaxis=axis(f"{quality.label} (up is better)", tickformat=quality.tickformat, **_quality_range(everything, quality)),
            shapes=shapes,
            annotations=notes,
        ),
    }


def plot_costs(info: CostsInfo, report: Report) -> Figure:
    data: list[Figure] = []
    for name, rows, marker in (
        ("over budget", info.over_budget, {"color": MUTED, "opacity": 0.28, "size": 5}),
        ("feasible", info.feasible, {"color": "var(--scale-2)", "opacity": 0.8, "size": 6}),
        ("feasible, trained", info.trained, {"color": "var(--scale-0)", "size": 8, "line": {"color": "var(--card)", "width": 1}}),
    ):
        if rows:
            data.append(_points(rows, report, None, name=name, marker=marker))
    if info.chosen is not None:
        data.append(_chosen(info.chosen, sparse(info.chosen.latency_ms), sparse(info.chosen.memory_mb)))
    inside = (*info.feasible, *info.trained)
    everything = (*info.over_budget, *inside)
    unit = metric_unit(report.latency_metric)
    across, across_notes, x_span = _budget_line(
        [row.latency_ms for row in everything], [row.latency_ms for row in (*info.feasible, *info.trained)], info.latency_limit, unit, "x"
    )
    upright, upright_notes, y_span = _budget_line(
        [row.memory_mb for row in everything], [row.memory_mb for row in (*info.feasible, *info.trained)], info.memory_limit, "MB", "y"
    )
    return {
        "data": data,
        "layout": layout(
            xaxis=axis(f"{metric_name(report.latency_metric).capitalize()}, {unit} (predicted)", range=x_span),
            yaxis=axis(f"{metric_name(report.memory_metric).capitalize()}, MB (predicted)", range=y_span),
            shapes=[*across, *upright],
            annotations=[*across_notes, *upright_notes],
        ),
    }


def _limit(report: Report, metric: str) -> float | None:
    return next((budget.limit for budget in report.budgets if budget.metric == metric and not budget.at_least), None)


def _hover(row: DesignRow, report: Report) -> str:
    lines = [
        f"{row.spec_id}, {millions(row.parameters)} parameters",
        f"{metric_name(report.latency_metric)}: {with_unit(row.latency_ms, metric_unit(report.latency_metric))}",
    ]
    if row.memory_mb:
        lines.append(f"{metric_name(report.memory_metric)}: {with_unit(row.memory_mb, 'MB')}")
    if row.text_bits_per_byte is not None:
        lines.append(f"text: {row.text_bits_per_byte:.3f} bits per byte")
    if row.recall_accuracy is not None:
        lines.append(f"recall: {percent(row.recall_accuracy)}{' (solved)' if row.recall_solved else ''}")
    if row.why:
        lines.append(row.why)
    title = row.pattern + (f" ({row.label})" if row.label else "")
    return "<br>".join([f"<b>{plain(title)}</b>", *map(plain, lines)])


def _points(rows: Sequence[DesignRow], report: Report, quality: Quality | None, *, name: str, marker: Figure) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [sparse(row.latency_ms) for row in rows],
        "y": [sparse((quality.value(row) if quality else row.memory_mb) or 0.0) for row in rows],
        "text": [_hover(row, report) for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
    }


def _memory_marker(rows: Sequence[DesignRow], every: Sequence[DesignRow], report: Report, *, bar: bool) -> Figure:
    """Colours by memory, one scale for all feasible layouts; one colour where memory does not differ or is not known."""
    low, high = min(row.memory_mb for row in every), max(row.memory_mb for row in every)
    if high <= low:
        return {"color": "var(--scale-1)", "size": 9}
    marker: Figure = {
        "size": 9,
        "color": [sparse(row.memory_mb) for row in rows],
        "colorscale": MEMORY_SCALE,
        "cmin": sparse(low),
        "cmax": sparse(high),
        "showscale": bar,
    }
    if bar:
        marker["colorbar"] = {
            "title": {
                "text": plain(f"{metric_name(report.memory_metric).capitalize()}, MB"),
                "side": "right",
                "font": {"size": 11, "color": MUTED},
            },
            "thickness": 10,
            "len": 0.9,
            "outlinewidth": 0,
            "tickfont": {"size": 10, "color": MUTED},
            "nticks": 6,
        }
    return marker


def _chosen(row: DesignRow, x: float, y: float) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "chosen",
        "x": [x],
        "y": [y],
        "marker": {"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 2.5, "color": INK}},
        "hoverinfo": "skip",
    }


def _budget_line(
    values: Sequence[float], feasible: Sequence[float], limit: float | None, unit: str, side: str
) -> tuple[list[Figure], list[Figure], list[float]]:
    """The line of a budget with its label, and the axis' range.

    The range holds what is feasible and the budget. Layouts far over it stay outside rather than squeeze the others; a note tells of them.
    """
    low, high = min(values), max(values)
    near = limit is not None and low / 1.5 <= limit <= high * 1.5
    if limit is not None and near:
        low, high = min(low, limit), max(high, limit)
    wanted = max((*feasible, limit or 0.0)) if feasible else high
    outside = 0
    if low + 2 * (wanted - low) < high and wanted > low:
        high = low + 1.35 * (wanted - low)
        outside = sum(value > high for value in values)
    pad = (high - low or abs(high) or 1.0) * 0.06
    span = [sparse(low - pad), sparse(high + pad)]
    notes: list[Figure] = []
    if outside:
        place = {"x": 0.995, "xanchor": "right", "y": 0.995, "yanchor": "top", "yshift": 0 if side == "x" else -18}
        said = f"{count(outside)} over budget lie further {'right' if side == 'x' else 'up'}, to {with_unit(max(values), unit)}"
        notes.append(note(said, xref="paper", yref="paper", **place))
    if limit is None:
        return [], notes, span
    if not near:
        beyond = limit > high
        where = "beyond this axis" if beyond else "below this axis"
        if side == "x":
            at: Figure = {
                "x": 0.99 if limit > high else 0.01,
                "xanchor": "right" if limit > high else "left",
                "y": 0.01,
                "yanchor": "bottom",
            }
        else:
            at = {"x": 0.005, "xanchor": "left", "y": 0.99 if beyond else 0.06, "yanchor": "top" if beyond else "bottom"}
        return [], [*notes, note(f"budget {with_unit(limit, unit)}, {where}", xref="paper", yref="paper", **at)], span
    label: Figure = {"text": f"budget {with_unit(limit, unit)}", "font": {"size": 11, "color": BAD}}
    if side == "x":
        toward = "right" if limit > (span[0] + span[1]) / 2 else "left"
        notes.append(note(**label, x=limit, y=0.01, yref="paper", yanchor="bottom", xanchor=toward))
        return [line_shape(x=limit)], notes, span
    notes.append(note(**label, y=limit, x=0.005, xref="paper", xanchor="left", yanchor="bottom"))
    return [line_shape(y=limit)], notes, span


def _quality_range(rows: Sequence[DesignRow], quality: Quality) -> Figure:
    values = [value for row in rows if (value := quality.value(row)) is not None]
    low, high = min(values), max(values)
    pad = (high - low or 0.1) * 0.08
    return {"range": [low - pad, high + pad] if quality.larger_is_better else [high + pad, low - pad]}


def _summary(info: ParetoInfo) -> str:
    words = [f"{plural(len(info.feasible), 'trained layout')} within the budgets, {len(info.front)} on the front."]
    if info.chosen is not None:
        value = info.quality.value(info.chosen) or 0.0
        said = percent(value) if info.quality.key == "recall" else f"{value:.3f} bits per byte"
        words.append(f"Chosen: {info.chosen.pattern}, {with_unit(info.chosen.latency_ms, 'ms')}, {said}.")
    return " ".join(words)


def _costs_summary(info: CostsInfo | None) -> str:
    if info is None:
        return ""
    feasible = len(info.feasible) + len(info.trained)
    return f"{plural(feasible, 'layout')} of those shown {'is' if feasible == 1 else 'are'} within the budgets."


def _table(report: Report) -> Table | None:
    """What was trained, and layouts with a name; fastest first."""
    rows = sorted((row for row in report.designs if row.trained or row.label), key=lambda row: row.latency_ms)
    if not rows:
        return None
    unit = metric_unit(report.latency_metric)
    return Table(
        caption="Trained layouts, and layouts with a name",
        header=("Layout", "Remarks", "Parameters", metric_name(report.latency_metric).capitalize(), "Memory", "Recall", "Bits per byte"),
        rows=tuple(
            (
                row.pattern,
                listed(
                    [word for word in ("chosen" if row.chosen else "", "on the front" if row.on_front else "", row.label, row.why) if word]
                ),
                millions(row.parameters),
                with_unit(row.latency_ms, unit),
                with_unit(row.memory_mb or None, "MB"),
                "–" if row.recall_accuracy is None else percent(row.recall_accuracy, 0) + (" solved" if row.recall_solved else ""),
                "–" if row.text_bits_per_byte is None else f"{row.text_bits_per_byte:.3f}",
            )
            for row in rows
        ),
        words=frozenset({0, 1}),
        marked=frozenset(index for index, row in enumerate(rows) if row.chosen),
    )
