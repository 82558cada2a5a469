"""How wrong predictions of held-out models were: one strip of points a workload, against a band of 5 %."""

from __future__ import annotations

import random
from dataclasses import dataclass

from reports.figures.chart import ACCENT, BAD, INK, Chart, Figure, Table, View, axis, layout, sparse
from reports.rows import CalibrationSummary, HeldOutRow, Report
from reports.text import percent, plain, plural, signed_percent, with_unit, workload_name

BAND = 0.05
JITTER = 0.24


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationInfo:
    """`rows` by workload and setting, in order; `shown` are their names."""

    rows: tuple[HeldOutRow, ...]
    shown: tuple[str, ...]
    layouts: int

    @property
    def within(self) -> int:
        return sum(abs(row.error) <= BAND for row in self.rows)


def calibration_info(report: Report) -> CalibrationInfo | None:
    if not report.held_out:
        return None
    return CalibrationInfo(
        rows=report.held_out,
        shown=tuple(dict.fromkeys(_name(row) for row in report.held_out)),
        layouts=len({row.layout for row in report.held_out}),
    )


def calibration_chart(report: Report) -> Chart | None:
    info = calibration_info(report)
    if info is None:
        return None
    return Chart(
        key="calibration",
        title="How far to trust the predictions",
        caption=(
            "Whole models that nobody chose, measured beside the table's own chains. "
            "A point is a layout, its bar the stated 90 % interval; the band is ±5 %."
        ),
        summary=_summary(info),
        views=(View(label="Error", figure=plot(info)),),
        wide=True,
        table=_table(report),
    )


def plot(info: CalibrationInfo) -> Figure:
    """Error in per cent along, workloads down; points that the stated interval covers are filled."""
    draw = random.Random(0)
    places = {name: at for at, name in enumerate(info.shown)}
    data = []
    for covered in (True, False):
        rows = [row for row in info.rows if row.covered is covered]
        if not rows:
            continue
        marker = {"size": 8, "color": ACCENT if covered else BAD, "opacity": 0.8, "symbol": "circle" if covered else "diamond-open"}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "within the stated 90 % interval" if covered else "outside of it",
                "x": [sparse(100 * row.error) for row in rows],
                "y": [round(places[_name(row)] + draw.uniform(-JITTER, JITTER), 3) for row in rows],
                "marker": marker,
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [sparse(100 * (row.high - row.predicted) / row.measured) for row in rows],
                    "arrayminus": [sparse(100 * (row.predicted - row.low) / row.measured) for row in rows],
                    "color": marker["color"],
                    "thickness": 1,
                    "width": 0,
                },
                "customdata": [[plain(text) for text in _words(row)] for row in rows],
                "text": [signed_percent(row.error) for row in rows],
                "hovertemplate": "%{customdata[0]}: predicted %{customdata[1]}, measured %{customdata[2]}, error %{text}<extra></extra>",
            }
        )
    yaxis = axis(
        range=[len(info.shown) - 0.4, -0.6],
        tickvals=list(places.values()),
        ticktext=["<br>".join(plain(part) for part in name.split(", ", 1)) for name in info.shown],  # two lines: narrow screens
        tickfont={"size": 11, "color": INK},
        showgrid=False,
    )
    ends = [abs(end / row.measured - 1) for row in info.rows for end in (row.predicted, row.low, row.high)]
    farthest = 100 * max(BAND, *ends) * 1.06
    xaxis = axis(
        "Predicted ÷ measured − 1",
        ticksuffix=" %",
        zeroline=True,
        zerolinecolor=INK,
        zerolinewidth=1.5,
        range=[-farthest, farthest],
    )
    band = {
        "type": "rect",
        "x0": -100 * BAND,
        "x1": 100 * BAND,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "fillcolor": ACCENT,
        "opacity": 0.12,
        "line": {"width": 0},
        "layer": "below",
    }
    height = 84 + 38 * len(info.shown)
    return {"data": data, "layout": layout(xaxis=xaxis, yaxis=yaxis, height=height, shapes=[band])}


def _name(row: HeldOutRow) -> str:
    return f"{workload_name(row.workload)}, {row.setting}"


def _summary(info: CalibrationInfo) -> str:
    worst = max(info.rows, key=lambda row: abs(row.error))
    return (
        f"{info.within} of {plural(len(info.rows), 'prediction')} for {plural(info.layouts, 'held-out layout')} lie within 5 %; "
        f"the largest error is {signed_percent(worst.error)} ({worst.layout}, {_name(worst)})."
    )


def _table(report: Report) -> Table:
    return Table(
        caption="Errors of predictions for held-out layouts. Covered: by the stated 90 % intervals; widened: by intervals that an earlier "
        "calibration with other layouts had widened; drift: the table's chains now over then, which is corrected for",
        header=("Workload", "Setting", "Layouts", "Median", "95th percentile", "Worst", "Bias", "Rank", "Covered", "Widened", "Drift"),
        rows=tuple(
            (
                workload_name(row.workload) + (" (interpolated)" if row.interpolated else ""),
                row.setting,
                str(row.layouts),
                percent(row.median),
                "–" if row.p95 is None else percent(row.p95),
                percent(row.worst),
                signed_percent(row.bias),
                "–" if row.rank_correlation is None else f"{row.rank_correlation:.2f}",
                _share(row.coverage),
                _share(row.coverage_widened),
                "–" if row.drift is None else f"{row.drift[0]:.2f} – {row.drift[1]:.2f}",
            )
            for row in report.calibration
        ),
        words=frozenset({0, 1}),
        bad=frozenset((at, 5) for at, row in enumerate(report.calibration) if _large(row)),
    )


def _large(row: CalibrationSummary) -> bool:
    return row.worst > 2 * BAND


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value, 0)


def _words(row: HeldOutRow) -> tuple[str, str, str]:
    return row.layout, with_unit(row.predicted, row.unit), with_unit(row.measured, row.unit)
