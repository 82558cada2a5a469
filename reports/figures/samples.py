"""How raw samples are distributed: cumulative shares with p50, p90 and p99."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures.chart import MUTED, Chart, Figure, Table, View, axis, layout, log_axis, note, sparse
from reports.palette import Palette, operator_of
from reports.rows import Report
from reports.text import count, plain, span, with_unit, workload_name

POINTS = 160
"""Points of one curve. More is not seen."""
MARKS = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    label: str
    family: str
    n: int
    milliseconds: tuple[float, ...]
    """Ascending, thinned to `POINTS`; the smallest and the largest sample are always among them."""
    share: tuple[float, ...]
    """Share of the samples that took at most so long, ascending to 1."""
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesInfo:
    workload: str
    distributions: tuple[Distribution, ...]


def samples_info(report: Report) -> tuple[SamplesInfo, ...]:
    """The distributions of each workload; empty when there are none."""
    workloads = dict.fromkeys(row.workload for row in report.samples if row.milliseconds)
    return tuple(
        SamplesInfo(
            workload=workload,
            distributions=tuple(
                _distribution(row.label, row.family, row.milliseconds)
                for row in report.samples
                if row.workload == workload and row.milliseconds
            ),
        )
        for workload in workloads
    )


def samples_chart(report: Report, palette: Palette) -> Chart | None:
    infos = samples_info(report)
    if not infos:
        return None
    every = [distribution for info in infos for distribution in info.distributions]
    widest = max(every, key=lambda distribution: distribution.p99 / distribution.p50)
    return Chart(
        key="samples",
        title="Distribution of raw samples",
        caption=(
            f"Share of runs that took at most so long, per block, {', '.join(workload_name(info.workload) for info in infos)}; "
            f"every timed run, none taken out; {span(distribution.n for distribution in every)} samples a curve, time axis logarithmic."
        ),
        summary=f"The widest is {widest.label}: its p99 is {widest.p99 / widest.p50:.2f} times its median ({with_unit(widest.p50, 'ms')}).",
        views=tuple(View(label=workload_name(info.workload), figure=plot(info, palette)) for info in infos),
        table=Table(
            caption="Quantiles of the raw samples, per block",
            header=("Block", "Workload", "Samples", "p50", "p90", "p99", "Longest"),
            rows=tuple(
                (
                    d.label,
                    workload_name(info.workload),
                    count(d.n),
                    *(with_unit(value, "ms") for value in (d.p50, d.p90, d.p99, d.milliseconds[-1])),
                )
                for info in infos
                for d in info.distributions
            ),
            words=frozenset({0, 1}),
        ),
    )


def plot(info: SamplesInfo, palette: Palette) -> Figure:
    values = [x for d in info.distributions for x in (d.milliseconds[0], d.milliseconds[-1])]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "name": plain(d.label),
                "x": [sparse(x) for x in d.milliseconds],
                "y": [sparse(y) for y in d.share],
                "line": {"shape": "hv", "width": 2, "color": palette.operator(d.family, operator_of(d.label))},
                "hovertemplate": f"<b>{plain(d.label)}</b><br>%{{y:.1%}} within %{{x:.4~g}} ms<extra></extra>",
            }
            for d in info.distributions
        ],
        "layout": layout(
            xaxis=log_axis("Time per block, ms", values),
            yaxis=axis("Share of samples", tickformat=".0%", range=[0, 1.07], tickvals=[0, 0.25, 0.5, 0.75, 1]),
            shapes=[
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": mark,
                    "y1": mark,
                    "line": {"color": MUTED, "width": 1, "dash": "dot"},
                }
                for mark in MARKS
            ],
            annotations=[_mark(mark) for mark in MARKS],
        ),
    }


def _mark(mark: float) -> Figure:
    """ "p90" at the right end of its line: below it, but p99 above, so that the two keep apart."""
    side = "bottom" if mark > 0.9 else "top"
    return note(f"p{mark * 100:.0f}", xref="paper", x=1, xanchor="right", y=mark, yanchor=side, font={"size": 10, "color": MUTED})


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between samples, as numpy's default."""
    at = share * (len(ordered) - 1)
    low = int(at)
    return ordered[low] if low + 1 == len(ordered) else ordered[low] + (at - low) * (ordered[low + 1] - ordered[low])


def _distribution(label: str, family: str, milliseconds: Sequence[float]) -> Distribution:
    ordered = sorted(milliseconds)
    n = len(ordered)
    kept = sorted({round(i * (n - 1) / (POINTS - 1)) for i in range(POINTS)}) if n > POINTS else list(range(n))
    return Distribution(
        label=label,
        family=family,
        n=n,
        milliseconds=tuple(ordered[i] for i in kept),
        share=tuple((i + 1) / n for i in kept),
        p50=quantile(ordered, 0.5),
        p90=quantile(ordered, 0.9),
        p99=quantile(ordered, 0.99),
    )
