"""Layouts as strips of cells: one cell a layer, coloured by operator, as high as its FFN is wide."""

from __future__ import annotations

from dataclasses import dataclass

from reports.rows import Cell, DesignRow, Report
from reports.text import metric_unit, millions, natural_key, percent, with_unit

STRIPS = 14
"""Strips shown at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One layout as a row of cells."""

    title: str
    details: tuple[str, ...]
    cells: tuple[Cell, ...]
    chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class StripsInfo:
    strips: tuple[Strip, ...]
    """Fastest first."""
    left_out: int
    widest_ffn: int
    longest_label: int
    legend: tuple[Cell, ...]
    """One cell of every operator that occurs."""


def strips_info(report: Report) -> StripsInfo | None:
    """The chosen layout, the front, and layouts with a name to compare them with; else the trained ones, else nothing."""
    chosen = [row for row in report.designs if row.chosen]
    front = [row for row in report.designs if row.on_front and not row.chosen]
    named = [row for row in report.designs if row.label and not row.on_front and not row.chosen]
    found = [*chosen, *front, *named] or [row for row in report.designs if row.trained]
    if not found:
        return None
    shown = sorted(found[:STRIPS], key=lambda row: row.latency_ms)
    legend = {(cell.family, cell.label): cell for row in shown for cell in row.cells}
    unit = metric_unit(report.latency_metric)
    return StripsInfo(
        strips=tuple(
            Strip(
                title=with_unit(row.latency_ms, unit),
                details=tuple(_strip_details(row)),
                cells=row.cells,
                chosen=row.chosen,
            )
            for row in shown
        ),
        left_out=len(found) - len(shown),
        widest_ffn=max(cell.ffn for row in shown for cell in row.cells),
        longest_label=max(len(cell.label) for row in shown for cell in row.cells),
        legend=tuple(legend[key] for key in sorted(legend, key=lambda key: (key[0], natural_key(key[1])))),
    )


def _strip_details(row: DesignRow) -> list[str]:
    words = [row.label] if row.label else []
    words.append(f"{millions(row.parameters)}, {len(row.cells)} × {row.hidden_size}")
    if row.text_bits_per_byte is not None:
        words.append(f"{row.text_bits_per_byte:.2f} bits/byte")
    if row.recall_accuracy is not None:
        words.append("recall solved" if row.recall_solved else f"recall {percent(row.recall_accuracy, 0)}")
    if not row.feasible:
        words.append("over budget")
    return words
