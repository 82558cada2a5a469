"""What each operator costs: decode time over context, and prefill time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures.chart import Chart, Figure, Table, View, axis, layout, log_axis, sparse
from reports.palette import Palette
from reports.rows import OperatorCost, Phase, Report
from reports.text import count, listed, natural_key, plain, plural, short_count, span, with_unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One operator over context (decode) or over tokens (prefill), shortest first."""

    operator: str
    family: str
    at: tuple[int, ...]
    time_ms: tuple[float, ...]
    low_ms: tuple[float, ...]
    high_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorView:
    """All operators under one setting."""

    setting: str
    ffn: int
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorsInfo:
    phase: Phase
    views: tuple[OperatorView, ...]
    """Widest FFN first."""
    rounds: tuple[int, ...]
    runs: tuple[int, ...]
    settings: tuple[str, ...]
    """Device, precision, threads..., one of each that occurs."""


def operators_info(report: Report, phase: Phase) -> OperatorsInfo | None:
    rows = [row for row in report.operators if row.phase == phase]
    if not rows:
        return None
    groups: dict[tuple[str, int], list[OperatorCost]] = {}
    for row in rows:
        groups.setdefault((_setting(row, rows), row.ffn), []).append(row)
    order = list(dict.fromkeys(setting for setting, _ in groups))
    keys = sorted(groups, key=lambda key: (order.index(key[0]), -key[1]))
    views = tuple(OperatorView(setting=setting, ffn=ffn, curves=_curves(groups[setting, ffn], phase)) for setting, ffn in keys)
    return OperatorsInfo(
        phase=phase,
        views=views,
        rounds=tuple(row.rounds for row in rows),
        runs=tuple(row.runs for row in rows),
        settings=tuple(dict.fromkeys(_conditions(row) for row in rows)),
    )


def decode_chart(report: Report, palette: Palette) -> Chart | None:
    info = operators_info(report, "decode")
    if info is None:
        return None
    return Chart(
        key="decode",
        title="Decode time per operator",
        caption=(
            "Time of one block (operator and FFN) for one token within a chain of blocks, over context, both axes logarithmic. "
            f"{_conditions_sentence(info)}"
        ),
        summary=_decode_summary(info.views[0]),
        views=tuple(View(label=_view_label(view, info), figure=plot(view, info.phase, palette)) for view in info.views),
        table=_table(report, "decode"),
    )


def prefill_chart(report: Report, palette: Palette) -> Chart | None:
    info = operators_info(report, "prefill")
    if info is None:
        return None
    return Chart(
        key="prefill",
        title="Prefill time per operator",
        caption=f"Time of one block (operator and FFN) for a whole prompt. {_conditions_sentence(info)}",
        summary=_prefill_summary(info.views[0]),
        views=tuple(
            View(label=_prefill_label(view, info, tokens), figure=plot_bars(view, tokens, palette))
            for view in info.views
            for tokens in _tokens(view)
        ),
        table=_table(report, "prefill"),
    )


def plot(view: OperatorView, phase: Phase, palette: Palette) -> Figure:
    """Lines with their interval as a band; bars when there is one context only."""
    at = sorted({x for curve in view.curves for x in curve.at})
    if len(at) == 1:
        return plot_bars(view, at[0], palette)
    data = [_band(curve, palette) for curve in view.curves] + [_line(curve, palette) for curve in view.curves]
    values = [y for curve in view.curves for y in (*curve.low_ms, *curve.high_ms)]
    return {
        "data": data,
        "layout": layout(
            xaxis=axis("Context, tokens", type="log", tickvals=at, ticktext=[short_count(x) for x in at]),
            yaxis=log_axis("Time per block, ms", values),
        ),
    }


def _band(curve: Curve, palette: Palette) -> Figure:
    return {
        "type": "scatter",
        "x": [*curve.at, *reversed(curve.at)],
        "y": [sparse(y) for y in (*curve.high_ms, *reversed(curve.low_ms))],
        "fill": "toself",
        "fillcolor": palette.band(curve.family, curve.operator),
        "line": {"width": 0, "color": palette.operator(curve.family, curve.operator)},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "name": plain(curve.operator),
    }


def _line(curve: Curve, palette: Palette) -> Figure:
    name, color = plain(curve.operator), palette.operator(curve.family, curve.operator)
    intervals = zip(curve.time_ms, curve.low_ms, curve.high_ms, strict=True)
    return {
        "type": "scatter",
        "name": name,
        "x": list(curve.at),
        "y": [sparse(y) for y in curve.time_ms],
        "customdata": [[with_unit(value, "ms") for value in interval] for interval in intervals],
        "mode": "lines+markers",
        "line": {"color": color, "width": 2},
        "marker": {"size": 6, "color": color},
        "hovertemplate": f"<b>{name}</b> at %{{x:,}} tokens<br>%{{customdata[0]}} (%{{customdata[1]}} – %{{customdata[2]}})<extra></extra>",
    }


def plot_bars(view: OperatorView, at: int, palette: Palette) -> Figure:
    """One bar per operator at one number of tokens (or one context), with its interval."""
    shown = [(curve, curve.at.index(at)) for curve in view.curves if at in curve.at]
    return {
        "data": [
            {
                "type": "bar",
                "x": [plain(curve.operator) for curve, _ in shown],
                "y": [sparse(curve.time_ms[i]) for curve, i in shown],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [sparse(curve.high_ms[i] - curve.time_ms[i]) for curve, i in shown],
                    "arrayminus": [sparse(curve.time_ms[i] - curve.low_ms[i]) for curve, i in shown],
                    "color": "var(--ink)",
                    "thickness": 1.2,
                    "width": 4,
                },
                "marker": {"color": [palette.operator(curve.family, curve.operator) for curve, _ in shown]},
                "customdata": [
                    [with_unit(curve.time_ms[i], "ms"), with_unit(curve.low_ms[i], "ms"), with_unit(curve.high_ms[i], "ms")]
                    for curve, i in shown
                ],
                "hovertemplate": "<b>%{x}</b><br>%{customdata[0]} (%{customdata[1]} – %{customdata[2]})<extra></extra>",
                "showlegend": False,
            }
        ],
        "layout": layout(xaxis=axis(type="category", showgrid=False), yaxis=axis("Time per block, ms", rangemode="tozero"), bargap=0.35),
    }


def _curves(rows: Sequence[OperatorCost], phase: Phase) -> tuple[Curve, ...]:
    by_operator: dict[tuple[str, str], list[OperatorCost]] = {}
    for row in rows:
        by_operator.setdefault((row.family, row.operator), []).append(row)
    curves = []
    for (family, operator), own in by_operator.items():
        own.sort(key=lambda row: row.context if phase == "decode" else row.tokens)
        curves.append(
            Curve(
                operator=operator,
                family=family,
                at=tuple(row.context if phase == "decode" else row.tokens for row in own),
                time_ms=tuple(row.time_ms for row in own),
                low_ms=tuple(row.low_ms for row in own),
                high_ms=tuple(row.high_ms for row in own),
            )
        )
    return tuple(sorted(curves, key=lambda curve: (_FAMILY_ORDER.get(curve.family, 9), curve.family, natural_key(curve.operator))))


_FAMILY_ORDER = {"conv": 0, "gla": 1, "swa": 2, "gqa": 3}


def _setting(row: OperatorCost, rows: Sequence[OperatorCost]) -> str:
    """What differs between the rows' settings, in words; empty when nothing does."""
    words = []
    for name, said in (
        ("device", row.device),
        ("hidden_size", f"hidden {row.hidden_size}"),
        ("precision", row.precision),
        ("threads", plural(row.threads, "thread")),
        ("batch", f"batch {row.batch}"),
    ):
        if len({getattr(other, name) for other in rows}) > 1:
            words.append(said)
    return ", ".join(words)


def _conditions(row: OperatorCost) -> str:
    return f"{row.device}, {row.precision}, {plural(row.threads, 'thread')}, batch {row.batch}, hidden {count(row.hidden_size)}"


def _conditions_sentence(info: OperatorsInfo) -> str:
    where = listed(info.settings) if len(info.settings) <= 2 else f"{len(info.settings)} settings, see the menu"
    measured = f"Lower quartile over {span(info.rounds)} interleaved rounds ({span(info.runs)} runs a case)"
    return f"{measured}, with its 90 % interval over rounds and processes; {where}."


def _view_label(view: OperatorView, info: OperatorsInfo) -> str:
    return ", ".join(part for part in (view.setting, f"FFN {count(view.ffn)}") if part)


def _prefill_label(view: OperatorView, info: OperatorsInfo, tokens: int) -> str:
    return f"{_view_label(view, info)}, {count(tokens)} tokens"


def _tokens(view: OperatorView) -> list[int]:
    return sorted({at for curve in view.curves for at in curve.at})


def _at(view: OperatorView, at: int) -> list[tuple[float, str]]:
    return sorted((curve.time_ms[curve.at.index(at)], curve.operator) for curve in view.curves if at in curve.at)


def _compare(view: OperatorView, at: int, where: str) -> str:
    ordered = _at(view, at)
    (least, fastest), (most, slowest) = ordered[0], ordered[-1]
    if len(ordered) == 1:
        return f"{where}, {fastest} takes {with_unit(least, 'ms')} a block."
    ends = f"{fastest} takes {with_unit(least, 'ms')} a block and {slowest} {with_unit(most, 'ms')}"
    return f"{where}, {ends}: {most / least:.1f} times as long (FFN {count(view.ffn)})."


def _decode_summary(view: OperatorView) -> str:
    at = _tokens(view)[-1]
    return _compare(view, at, f"At {count(at)} tokens of context")


def _prefill_summary(view: OperatorView) -> str:
    at = _tokens(view)[0]
    return _compare(view, at, f"For {count(at)} tokens")


def _table(report: Report, phase: Phase) -> Table:
    rows = [row for row in report.operators if row.phase == phase]
    several = len({_conditions(row) for row in rows}) > 1
    header = (
        "Block",
        *(("Setting",) if several else ()),
        "Context" if phase == "decode" else "Tokens",
        "Time",
        "Low",
        "High",
        "Caches",
        "Rounds",
        "Runs",
    )
    return Table(
        caption=f"{phase.capitalize()} time of one block",
        header=header,
        rows=tuple(
            (
                row.label,
                *((_conditions(row),) if several else ()),
                count(row.context if phase == "decode" else row.tokens),
                *(with_unit(value, "ms") for value in (row.time_ms, row.low_ms, row.high_ms)),
                with_unit(row.state_mb, "MB"),
                count(row.rounds),
                count(row.runs),
            )
            for row in rows
        ),
        words=frozenset({0, 1}) if several else frozenset({0}),
    )
