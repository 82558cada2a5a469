"""Tables of the page that belong to no figure: budgets, conditions, failures."""

from __future__ import annotations

from reports.figures.chart import Table
from reports.rows import BudgetRow, EqualCost, Report, SeriesRow
from reports.text import count, listed, metric_name, millions, percent, sentence, significant, with_unit, workload_name


def budgets_table(report: Report) -> Table | None:
    """Every limit, where the chosen layout stands, and what is reachable when the budgets are impossible."""
    if not report.budgets:
        return None
    impossible = any(row.best_reachable is not None for row in report.budgets)
    rows = []
    for row in report.budgets:
        value = _standing(row)
        share = "" if value is None else percent(value / row.limit, 0).replace(" ", "\u00a0")  # never a % alone on a line
        state = "–" if value is None else f"{'kept' if row.keeps(value) else 'missed'}, {share}"
        rows.append(
            (
                sentence(metric_name(row.metric)) + (", at least" if row.at_least else ""),
                with_unit(row.limit, row.unit),
                with_unit(row.predicted, row.unit),
                with_unit(row.measured, row.unit),
                state,
                *((with_unit(row.best_reachable, row.unit),) if impossible else ()),
            )
        )
    return Table(
        caption="Budgets, and where the chosen layout stands",
        header=("Budget", "Limit", "Predicted", "Measured", "Of the limit", *(("Best reachable by itself",) if impossible else ())),
        rows=tuple(rows),
        bad=frozenset((at, 4) for at, row in enumerate(report.budgets) if (value := _standing(row)) is not None and not row.keeps(value)),
    )


def _standing(row: BudgetRow) -> float | None:
    """Where the chosen layout stands: measured if it was, else predicted."""
    return row.measured if row.measured is not None else row.predicted


def equal_table(report: Report) -> Table | None:
    """Operators at equal parameters, one row an operator and workload."""
    if not report.equal:
        return None
    return Table(
        caption="Time of one block with the widest FFN, per million parameters, and at equal parameters",
        header=("Operator", "Workload", "Parameters", "Time", "Per M parameters", "FFN at equal", "Time at equal", "90 % interval"),
        rows=tuple(
            (
                row.operator,
                workload_name(row.workload),
                millions(row.parameters),
                with_unit(row.time_ms, "ms"),
                with_unit(row.time_ms / row.parameters * 1e6, "ms"),
                "–" if row.ffn is None else f"{count(round(row.ffn))}{'*' if row.outside else ''}",
                with_unit(row.equal_ms, "ms"),
                "–" if row.equal_ms is None else f"{with_unit(row.equal_low_ms, 'ms')} – {with_unit(row.equal_high_ms, 'ms')}",
            )
            for row in report.equal
        ),
        words=frozenset({0, 1}),
    )


def equal_summary(report: Report) -> str:
    """By workload, the fastest operator a layer and at equal parameters; a lead within the intervals is none."""
    said = []
    for workload in dict.fromkeys(row.workload for row in report.equal):
        rows = [row for row in report.equal if row.workload == workload and row.equal_ms is not None]
        if len(rows) < 2:
            continue
        first, second = sorted(rows, key=lambda row: row.equal_ms or 0.0)[:2]
        layer = min(rows, key=lambda row: row.time_ms)
        if _overlap(first, second):
            said.append(f"{workload_name(workload)}: {listed([row.operator for row in rows if _overlap(first, row)])} not told apart")
        else:
            changed = f" (a layer: {layer.operator})" if layer.operator != first.operator else ""
            said.append(f"{workload_name(workload)}: {first.operator}{changed}")
    return f"Fastest at equal parameters: {'; '.join(said)}." if said else ""


def _overlap(a: EqualCost, b: EqualCost) -> bool:
    return (b.equal_low_ms or 0.0) <= (a.equal_high_ms or 0.0)


def series_table(report: Report) -> Table | None:
    """One row per process that measured. Conditions that are the same in all of them, or known of none, are said in words instead."""
    if not report.series:
        return None
    same, conditions = same_conditions(report), _conditions(report)
    columns = {
        "Started (UTC)": [row.started.replace("+00:00", "").replace("T", " ") for row in report.series],
        **{name: values for name, values in conditions.items() if name not in same and any(value != "–" for value in values)},
        "Cases": [count(row.measurements) for row in report.series],
        "Rounds": [count(row.rounds) for row in report.series],
        "Spread": [_share(row.spread) for row in report.series],
        "Flags": [", ".join(row.flags) or "–" for row in report.series],
    }
    phone = {"power", "screen", "fixed-performance mode", "thermal status"}
    words = {"Started (UTC)", "device", "runtime", "huge pages", "governor", "Flags"} | phone
    return Table(
        caption="Conditions of every process that measured",
        header=tuple(f"{name[:1].upper()}{name[1:]}" for name in columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        words=frozenset(at for at, name in enumerate(columns) if name in words),
    )


def same_conditions(report: Report) -> dict[str, str]:
    """Conditions that all of several processes shared."""
    if len(report.series) < 2:
        return {}
    return {name: values[0] for name, values in _conditions(report).items() if len(set(values)) == 1 and values[0] != "–"}


def _conditions(report: Report) -> dict[str, list[str]]:
    rows = report.series
    return {
        "device": [row.device for row in rows],
        "runtime": [row.runtime for row in rows],
        "agent": [row.agent for row in rows],
        "threads": [count(row.threads) for row in rows],
        "cores": [row.cores for row in rows],
        "clock, MHz": [_whole(row.clock_mhz) for row in rows],
        "temperature, °C": [_whole(row.temperature_c) for row in rows],
        "load": [_number(row.load_1m) for row in rows],
        "others' share": [_share(row.busy_other_share) for row in rows],
        "steal, ticks": [_whole(row.steal_ticks) for row in rows],
        "huge pages": [row.huge_pages or "–" for row in rows],
        "governor": [row.governor or "–" for row in rows],
        "power": [row.power or "–" for row in rows],
        "screen": [row.screen or "–" for row in rows],
        "fixed-performance mode": [row.clocks or "–" for row in rows],
        "thermal status": [row.thermal_status or "–" for row in rows],
    }


def unknown_conditions(report: Report) -> tuple[str, ...]:
    """What the platform tells of no process at all."""
    names = {
        "temperature_c": "temperature",
        "clock_mhz": "clock",
        "governor": "governor",
        "huge_pages": "huge pages",
        "steal_ticks": "steal",
    }
    return tuple(name for field, name in names.items() if report.series and all(_missing(row, field) for row in report.series))


def failures_table(report: Report) -> Table | None:
    if not report.failures:
        return None
    return Table(
        caption="What could not be measured or trained",
        header=("What", "Workload", "Reason", "Detail"),
        rows=tuple((row.label, row.workload, row.reason, row.detail) for row in report.failures),
        words=frozenset(range(4)),
    )


def quality_table(report: Report) -> Table | None:
    """How far the cheap judgements of layouts can be trusted."""
    if not report.quality_checks:
        return None
    rows = []
    for row in report.quality_checks:
        interval = "–" if row.low is None or row.high is None else f"{row.low:+.2f} … {row.high:+.2f}"
        tau = "–" if row.tau is None else f"{row.tau:+.2f}"
        regrets = (significant(row.regret_1), significant(row.regret_3))
        rows.append((row.subject, row.judge, tau, interval, *regrets, _number(row.cpu_s), row.verdict))
    return Table(
        caption="Cheap judgements against longer trainings",
        header=("Of", "Judged by", "tau-b", "90 % interval", "Regret", "Best of 3", "CPU s", ""),
        rows=tuple(rows),
        words=frozenset((0, 1, 7)),
        bad=frozenset((at, 7) for at, row in enumerate(report.quality_checks) if row.verdict == "unvalidated"),
    )


def _missing(row: SeriesRow, field: str) -> bool:
    return getattr(row, field) is None


def _number(value: float | None) -> str:
    return "–" if value is None else significant(value)


def _whole(value: float | None) -> str:
    return "–" if value is None else count(round(value))


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)
