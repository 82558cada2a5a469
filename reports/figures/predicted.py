"""Whole models: what was predicted from blocks, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures.chart import ACCENT, INK, MUTED, Chart, Figure, Table, View, axis, layout, log_axis, sparse
from reports.rows import PredictedRow, Report
from reports.text import listed, plain, plural, signed_percent, significant, with_unit, workload_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One workload of one model that was both predicted and measured."""

    model: str
    workload: str
    unit: str
    trained: bool
    predicted: float
    low: float
    high: float
    measured: float
    p95: float | None
    drift: float | None
    extrapolated: bool = False

    @property
    def error(self) -> float:
        """Signed: positive when the prediction was too slow (too large)."""
        return self.predicted / self.measured - 1

    @property
    def beside(self) -> float | None:
        """What the same blocks add up to when they are measured beside the model: apart from the prediction, the machine has changed."""
        return None if self.drift is None else self.predicted * self.drift

    @property
    def inside(self) -> bool:
        """Whether the interval of the prediction holds the measurement."""
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedInfo:
    compared: tuple[Compared, ...]
    not_compared: int
    """Rows with only one of the two."""

    @property
    def times(self) -> tuple[Compared, ...]:
        return tuple(row for row in self.compared if row.unit == "ms")


def predicted_info(report: Report) -> PredictedInfo | None:
    if not report.predicted:
        return None
    compared = tuple(
        Compared(
            model=row.model,
            workload=row.workload,
            unit=row.unit,
            trained=row.trained,
            predicted=row.predicted,
            low=row.predicted if row.low is None else row.low,
            high=row.predicted if row.high is None else row.high,
            measured=row.measured,
            p95=row.p95,
            drift=row.drift,
            extrapolated=row.extrapolated,
        )
        for row in report.predicted
        if row.predicted is not None and row.measured
    )
    return PredictedInfo(compared=compared, not_compared=len(report.predicted) - len(compared))


_BEYOND = " *: beyond the measured lengths, which the interval does not know of."
_DRIFT = " Diamond: what the same blocks add up to when measured beside the model; where it lies apart from the dot, the machine changed."


def predicted_chart(report: Report) -> Chart | None:
    info = predicted_info(report)
    if info is None:
        return None
    views = [View(label="Error of the prediction", figure=plot_errors(info))] if info.compared else []
    if info.times:
        views.append(View(label="Milliseconds", figure=plot(info)))
    models = list(dict.fromkeys(row.model for row in report.predicted))
    trained = [row.model for row in report.predicted if row.trained]
    return Chart(
        key="predicted",
        title="Predicted against measured",
        caption=(
            f"{listed(models)}: whole models as one ONNX graph each, measured on the device"
            f"{'; ' + trained[0] + ' is what this run trained' if trained and len(models) > 1 else ''}. "
            "Dot: the prediction from blocks with its interval, against the measured time; tick: the measured p95."
            f"{_DRIFT if any(row.drift is not None for row in report.predicted) else ''}"
            f"{_BEYOND if any(row.extrapolated for row in report.predicted) else ''}"
        ),
        summary=_summary(info),
        views=tuple(views),
        wide=True,
        table=_table(report),
    )


def plot_errors(info: PredictedInfo) -> Figure:
    """Signed error in per cent, one row a workload; zero is the measured time."""
    rows = info.compared
    places, yaxis, height = _places(rows)
    data: list[Figure] = []
    if any(row.p95 is not None for row in rows):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "measured p95",
                "x": [None if row.p95 is None else sparse((row.p95 / row.measured - 1) * 100) for row in rows],
                "y": places,
                "marker": {"symbol": "line-ns-open", "size": 12, "color": MUTED, "line": {"width": 2, "color": MUTED}},
                "customdata": [plain(with_unit(row.p95, row.unit)) for row in rows],
                "hovertemplate": "measured p95: %{customdata} (%{x:+.1f} %)<extra></extra>",
            }
        )
    data.append(
        _predictions(
            rows,
            places,
            middle=[row.error * 100 for row in rows],
            above=[(row.high - row.predicted) / row.measured * 100 for row in rows],
            below=[(row.predicted - row.low) / row.measured * 100 for row in rows],
        )
    )
    if any(row.beside is not None for row in rows):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "the same blocks, measured beside the model",
                "x": [None if row.beside is None else sparse((row.beside / row.measured - 1) * 100) for row in rows],
                "y": places,
                "marker": {"symbol": "diamond-open", "size": 9, "color": INK, "line": {"width": 1.5, "color": INK}},
                "customdata": [plain(with_unit(row.beside, row.unit)) for row in rows],
                "hovertemplate": "blocks measured beside the model: %{customdata} (%{x:+.1f} %)<extra></extra>",
            }
        )
    xaxis = axis("Predicted ÷ measured − 1", ticksuffix=" %", zeroline=True, zerolinecolor=INK, zerolinewidth=1.5)
    return {"data": data, "layout": layout(xaxis=xaxis, yaxis=yaxis, height=height)}


def plot(info: PredictedInfo) -> Figure:
    """Milliseconds on a logarithmic axis: measured time as a ring, prediction as a dot with its interval."""
    rows = info.times
    places, yaxis, height = _places(rows)
    measured = {
        "type": "scatter",
        "mode": "markers",
        "name": "measured",
        "x": [sparse(row.measured) for row in rows],
        "y": places,
        "marker": {"symbol": "circle-open", "size": 15, "color": INK, "line": {"width": 2, "color": INK}},
        "customdata": [[with_unit(row.measured, "ms"), with_unit(row.p95, "ms")] for row in rows],
        "hovertemplate": "measured %{customdata[0]}, p95 %{customdata[1]}<extra></extra>",
    }
    predicted = _predictions(
        rows,
        places,
        middle=[row.predicted for row in rows],
        above=[row.high - row.predicted for row in rows],
        below=[row.predicted - row.low for row in rows],
    )
    xaxis = log_axis("Milliseconds", [value for row in rows for value in (row.low, row.high, row.measured)])
    return {"data": [measured, predicted], "layout": layout(xaxis=xaxis, yaxis=yaxis, height=height)}


def _predictions(rows: Sequence[Compared], places: list[int], *, middle: list[float], above: list[float], below: list[float]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "predicted, with interval",
        "x": [sparse(value) for value in middle],
        "y": places,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [sparse(value) for value in above],
            "arrayminus": [sparse(value) for value in below],
            "color": ACCENT,
            "thickness": 2,
            "width": 5,
        },
        "marker": {"size": 9, "color": ACCENT},
        "customdata": [[plain(with_unit(value, row.unit)) for value in (row.predicted, row.low, row.high, row.measured)] for row in rows],
        "text": [signed_percent(row.error) for row in rows],
        "hovertemplate": (
            "predicted %{customdata[0]} (%{customdata[1]} – %{customdata[2]})<br>measured %{customdata[3]}, error %{text}<extra></extra>"
        ),
    }


def _places(rows: Sequence[Compared]) -> tuple[list[int], Figure, int]:
    """Where each row stands from the top, the axis that names them, and the figure's height; every model has a heading."""
    places: list[int] = []
    names: list[str] = []
    model = None
    for row in rows:
        if row.model != model:
            model = row.model
            names.append(f"<b>{plain(row.model)}</b>")
        places.append(len(names))
        names.append(plain(workload_name(row.workload)) + ("*" if row.extrapolated else ""))
    yaxis = axis(
        range=[len(names) - 0.4, -0.6],
        tickvals=list(range(len(names))),
        ticktext=names,
        tickfont={"size": 11, "color": INK},
        showgrid=False,
    )
    return places, yaxis, 76 + 23 * len(names)


def _summary(info: PredictedInfo) -> str:
    if not info.compared:
        return "Nothing was both predicted and measured yet."
    worst = max(info.compared, key=lambda row: abs(row.error))
    pairs = f"predicted {with_unit(worst.predicted, worst.unit)}, measured {with_unit(worst.measured, worst.unit)}"
    largest = f"The largest error is {signed_percent(worst.error)}: {worst.model}, {workload_name(worst.workload)}, {pairs}."
    if not info.times:
        return largest
    inside = sum(row.inside for row in info.times)
    found = f"{inside} of {plural(len(info.times), 'measured time')} lie within the prediction's interval. {largest}"
    drifts = [row.drift for row in info.times if row.drift is not None]
    if not drifts or max(abs(drift - 1) for drift in drifts) < 0.05:
        return found
    return f"{found} Beside the models, the blocks took {min(drifts):.2f} to {max(drifts):.2f} times as long as in the profile."


def _table(report: Report) -> Table:
    drifted = any(row.drift is not None for row in report.predicted)
    header = ("Model", "Workload", "Predicted", "Interval", "Measured", "p95", "Error", *(("Blocks' drift",) if drifted else ()))
    return Table(
        caption="Predicted and measured, whole models"
        + ("; drift: how much slower the same blocks ran beside the model than when they were profiled" if drifted else ""),
        header=header,
        rows=tuple(
            (
                row.model,
                workload_name(row.workload) + (" (extrapolated)" if row.extrapolated else ""),
                with_unit(row.predicted, row.unit),
                "–"
                if row.low is None or row.high is None
                else f"{significant(row.low)} – {with_unit(row.high, row.unit)}"
                if row.high >= 0.1
                else f"{with_unit(row.low, row.unit)} – {with_unit(row.high, row.unit)}",
                with_unit(row.measured, row.unit),
                with_unit(row.p95, row.unit),
                _error(row),
                *(("–" if row.drift is None else f"{row.drift:.3f}",) if drifted else ()),
            )
            for row in report.predicted
        ),
        words=frozenset({0, 1}),
        marked=frozenset(index for index, row in enumerate(report.predicted) if row.trained),
    )


def _error(row: PredictedRow) -> str:
    return signed_percent(row.predicted / row.measured - 1) if row.predicted is not None and row.measured else "–"
