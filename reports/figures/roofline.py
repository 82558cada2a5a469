"""Arithmetic intensity against reached speed, below the device's roofs where these were measured."""

from __future__ import annotations

from dataclasses import dataclass

from reports.figures.chart import MUTED, Chart, Figure, Table, View, layout, log_axis, sparse
from reports.palette import Palette, operator_of
from reports.rows import Report, RooflinePoint
from reports.text import plain, significant

SYMBOLS = {"decode": "circle", "prefill": "diamond"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RooflineInfo:
    points: tuple[RooflinePoint, ...]
    roof: tuple[tuple[float, float], ...]
    """(intensity, GFLOP/s) from left to right: up the bandwidth's slope, then level. Empty when a roof was not measured."""
    gbps: float | None
    gflops: float | None


def roofline_info(report: Report) -> RooflineInfo | None:
    if not report.roofline:
        return None
    left = min(point.intensity for point in report.roofline) / 2
    right = max(point.intensity for point in report.roofline) * 2
    roof: tuple[tuple[float, float], ...] = ()
    if report.roof_gbps:
        if report.roof_gflops:
            knee = report.roof_gflops / report.roof_gbps
            roof = (
                (min(left, knee / 2), min(left, knee / 2) * report.roof_gbps),
                (knee, report.roof_gflops),
                (max(right, knee * 2), report.roof_gflops),
            )
        else:
            roof = ((left, left * report.roof_gbps), (right, right * report.roof_gbps))
    return RooflineInfo(points=report.roofline, roof=roof, gbps=report.roof_gbps, gflops=report.roof_gflops)


def roofline_chart(report: Report, palette: Palette) -> Chart | None:
    info = roofline_info(report)
    if info is None:
        return None
    fastest = max(info.points, key=lambda point: point.gflops)
    roofs = " and ".join(f"{significant(value)} {unit}" for value, unit in ((info.gbps, "GB/s"), (info.gflops, "GFLOP/s")) if value)
    return Chart(
        key="roofline",
        title="Roofline" if info.roof else "Arithmetic intensity",
        caption=(
            "One point a block: FLOP per byte of weights and caches (analytic, stored bytes) against the GFLOP/s reached; "
            + (f"line: the device's measured roof ({roofs})." if info.roof else "the device's roofs were not measured, so none is drawn.")
        ),
        summary=f"The fastest is {fastest.label} at {fastest.phase} with {significant(fastest.gflops)} GFLOP/s.",
        views=(View(label="Roofline", figure=plot(info, palette)),),
        table=Table(
            caption="Arithmetic intensity and reached speed",
            header=("Block", "Phase", "FLOP per byte", "GFLOP/s", "GB/s"),
            rows=tuple(
                (
                    point.label,
                    point.phase,
                    significant(point.intensity),
                    significant(point.gflops),
                    significant(point.gflops / point.intensity),
                )
                for point in info.points
            ),
            words=frozenset({0, 1}),
        ),
    )


def plot(info: RooflineInfo, palette: Palette) -> Figure:
    data: list[Figure] = []
    if info.roof:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "measured roof",
                "x": [sparse(x) for x, _ in info.roof],
                "y": [sparse(y) for _, y in info.roof],
                "line": {"color": MUTED, "width": 2},
                "hoverinfo": "skip",
            }
        )
    groups: dict[tuple[str, str], list[RooflinePoint]] = {}
    for point in info.points:
        groups.setdefault((point.family, operator_of(point.label)), []).append(point)
    for (family, operator), points in groups.items():
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(operator),
                "x": [sparse(point.intensity) for point in points],
                "y": [sparse(point.gflops) for point in points],
                "marker": {"size": 10, "color": palette.operator(family, operator), "symbol": [SYMBOLS[point.phase] for point in points]},
                "text": [f"<b>{plain(point.label)}</b>, {point.phase}" for point in points],
                "hovertemplate": "%{text}<br>%{x:.3~g} FLOP/byte, %{y:.3~g} GFLOP/s<extra></extra>",
            }
        )
    xs = [value for point in info.points for value in (point.intensity,)] + [x for x, _ in info.roof]
    ys = [point.gflops for point in info.points] + [y for _, y in info.roof]
    return {
        "data": data,
        "layout": layout(
            xaxis=log_axis("FLOP per byte  (● decode  ◆ prefill)", xs),
            yaxis=log_axis("GFLOP/s", ys),
        ),
    }
