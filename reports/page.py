"""A report as one HTML file that opens offline.

plotly.js is 4.8 MB; gzipped, in base64, and inflated by the browser's own `DecompressionStream`, the whole page stays near 2 MB.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from reports.figures import Chart, charts
from reports.figures.strips import StripsInfo, strips_info
from reports.palette import palette_of, theme_css
from reports.rows import Report
from reports.tables import (
    budgets_table,
    equal_summary,
    equal_table,
    failures_table,
    quality_table,
    same_conditions,
    series_table,
    unknown_conditions,
)
from reports.text import listed

CELL_LETTERS = 12
"""A longer label of an operator is cut in the strips; its tooltip has all of it."""


def render(report: Report) -> str:
    """The page: HTML with everything it needs inside.

    Raises:
        ValueError: a row holds NaN or an infinity, which JSON cannot carry.
    """
    palette = palette_of(report)
    drawn = charts(report, palette)
    templates = files("reports") / "templates"
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        charts=drawn,
        strips=strips_info(report),
        palette=palette,
        cell_width=cell_width,
        cell_letters=CELL_LETTERS,
        budgets=budgets_table(report),
        series=series_table(report),
        same=", ".join(f"{name} {value}" for name, value in same_conditions(report).items()),
        unknown=listed(unknown_conditions(report)),
        equal=equal_table(report),
        equal_says=equal_summary(report),
        failures=failures_table(report),
        quality=quality_table(report),
        themes=theme_css(palette),
        style=(templates / "style.css").read_text(encoding="utf-8"),
        script=(templates / "report.js").read_text(encoding="utf-8"),
        figures=figures_json(drawn),
        plotly=plotly_gzip(),
    )


def figures_json(drawn: dict[str, Chart]) -> str:
    """Figures by chart and view, as JSON that no HTML parser can take for markup."""
    document: dict[str, list[Any]] = {key: [view.figure for view in chart.views] for key, chart in drawn.items()}
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cell_width(strips: StripsInfo, letter: float) -> int:
    """Pixels of a cell that fit the longest label, at so many pixels a letter."""
    return max(34, math.ceil(letter * min(strips.longest_label, CELL_LETTERS)) + 4)


@cache
def plotly_gzip() -> str:
    """plotly.js as it comes with the Python package, gzipped, in base64."""
    library = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(library, 9, mtime=0)).decode()
