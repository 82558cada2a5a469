"""Figures of the report, one file a subject, each in two steps: info from the rows, plot from the info."""

from __future__ import annotations

from reports.figures.calibration import calibration_chart
from reports.figures.chart import Chart, Figure, Table, View
from reports.figures.confirmed import confirmed_chart
from reports.figures.designs import designs_chart
from reports.figures.memory import memory_chart
from reports.figures.operators import decode_chart, prefill_chart
from reports.figures.overtraining import overtraining_chart
from reports.figures.parameters import parameters_chart
from reports.figures.predicted import predicted_chart
from reports.figures.roofline import roofline_chart
from reports.figures.samples import samples_chart
from reports.figures.training import training_chart
from reports.palette import Palette
from reports.rows import Report

__all__ = ["Chart", "Figure", "Table", "View", "charts"]


def charts(report: Report, palette: Palette) -> dict[str, Chart]:
    """Every chart that the report has data for, by its key."""
    found = (
        decode_chart(report, palette),
        prefill_chart(report, palette),
        samples_chart(report, palette),
        roofline_chart(report, palette),
        designs_chart(report),
        confirmed_chart(report),
        predicted_chart(report),
        calibration_chart(report),
        memory_chart(report, palette),
        parameters_chart(report, palette),
        overtraining_chart(report),
        training_chart(report),
    )
    return {chart.key: chart for chart in found if chart is not None}
