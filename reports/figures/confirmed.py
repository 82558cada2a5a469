"""Longer trainings of the search's layouts beside random ones and a baseline: every seed, the mean, and its interval."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from reports.confirmed_rows import Beside, ConfirmedRow, Contest, Role
from reports.figures.chart import ACCENT, INK, MUTED, Chart, Figure, Table, View, axis, layout, sparse
from reports.rows import Report
from reports.text import listed, plain, sentence

STYLES: dict[Role, tuple[str, str, str]] = {
    "search": (ACCENT, "circle", "the search's layouts"),
    "random": (MUTED, "diamond", "random layouts within the budgets"),
    "baseline": (INK, "square", "the baseline"),
}
ROW, BELOW = 40, 0.28
"""Pixels of a layout, and by how much of it its single trainings lie below their mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A layout in the figure: "search 1", its trainings and their mean."""

    name: str
    row: ConfirmedRow
    mean: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmedInfo:
    contests: tuple[tuple[Contest, tuple[Place, ...]], ...]


def confirmed_info(report: Report) -> ConfirmedInfo | None:
    if report.confirmed is None or not report.confirmed.contests:
        return None
    return ConfirmedInfo(contests=tuple((contest, places(contest.rows)) for contest in report.confirmed.contests))


def places(rows: tuple[ConfirmedRow, ...]) -> tuple[Place, ...]:
    """Each with a short name, which fits a phone: its pattern is in the table."""
    found, counts = [], dict.fromkeys(STYLES, 0)
    for row in rows:
        counts[row.role] += 1
        alone = sum(other.role == row.role for other in rows) == 1
        found.append(Place(name=row.role if alone else f"{row.role} {counts[row.role]}", row=row, mean=mean(row.seeds)))
    return tuple(found)


def confirmed_chart(report: Report) -> Chart | None:
    info = confirmed_info(report)
    if info is None or report.confirmed is None:
        return None
    contest, shown = info.contests[0]
    interval = (
        "the line its 95 % interval from the spread between seeds, pooled over layouts"
        if shown[0].row.half is not None
        else "of one seed there is no interval"
    )
    return Chart(
        key="confirmed",
        title="Confirmed by training",
        caption=f"{sentence(contest.note)}. Small open marks: one training each; large: their mean; {interval}. Less is better.",
        summary=_summary(report, info),
        views=tuple(View(label=contest.label, figure=plot(shown)) for contest, shown in info.contests),
        wide=True,
        table=_table(info),
    )


def plot(shown: tuple[Place, ...]) -> Figure:
    """Bits per byte along, layouts down, best first."""
    data = []
    for role, (color, symbol, name) in STYLES.items():
        of_role = [(at, place) for at, place in enumerate(shown) if place.row.role == role]
        if not of_role:
            continue
        each = [(value, at, place) for at, place in of_role for value in place.row.seeds]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "showlegend": False,
                "x": [sparse(value) for value, _, _ in each],
                "y": [at + BELOW for _, at, _ in each],
                "marker": {"size": 7, "color": color, "symbol": f"{symbol}-open", "opacity": 0.85},
                "text": [plain(f"{place.name}: {place.row.pattern}") for _, _, place in each],
                "hovertemplate": "%{text}<br>one training: %{x:.3f} bits per byte<extra></extra>",
            }
        )
        mean_of: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [sparse(place.mean) for _, place in of_role],
            "y": [at for at, _ in of_role],
            "marker": {"size": 12, "color": color, "symbol": symbol},
            "text": [plain(f"{place.name}: {place.row.pattern}") for _, place in of_role],
            "hovertemplate": "%{text}<br>mean: %{x:.3f} bits per byte<extra></extra>",
        }
        if of_role[0][1].row.half is not None:
            halves = [sparse(place.row.half or 0.0) for _, place in of_role]
            mean_of["error_x"] = {"type": "data", "array": halves, "color": color, "thickness": 2, "width": 5}
        data.append(mean_of)
    names = [f"<b>{plain(place.name)} ★</b>" if place.row.winner else plain(place.name) for place in shown]
    yaxis = axis(
        range=[len(shown) - 0.4, -0.5],
        tickvals=list(range(len(shown))),
        ticktext=names,
        tickfont={"size": 12, "color": INK},
        showgrid=False,
    )
    return {"data": data, "layout": layout(xaxis=axis("Bits per byte of held-out text"), yaxis=yaxis, height=76 + ROW * len(shown))}


def _summary(report: Report, info: ConfirmedInfo) -> str:
    confirmed, (_, shown) = report.confirmed, info.contests[0]
    assert confirmed is not None
    named = next((place for place in shown if place.row.winner), None)
    said = [f"Winner: {named.name} ({named.row.pattern}), which {confirmed.why}." if named else f"No winner: {confirmed.why}."]
    for what, of in (("the random layouts' mean", "random"), ("the baseline", "baseline")):
        picks = [(place.name, getattr(place.row, of)) for place in shown if place.row.role == "search"]
        told = [(name, beside.word) for name, beside in picks if beside is not None]
        if not told:
            continue
        words = {word: [name for name, own in told if own == word] for word in ("better", "worse", "cannot tell")}
        parts = [f"{listed(names)} better" for names in [words["better"]] if names]
        parts += [f"{listed(names)} worse" for names in [words["worse"]] if names]
        parts += [f"{listed(names)} not told apart" for names in [words["cannot tell"]] if names]
        said.append(f"Beside {what}: {'; '.join(parts)}.")
    if confirmed.at_scale:
        said.append(sentence(confirmed.at_scale) + ".")
    return " ".join(said)


def _table(info: ConfirmedInfo) -> Table:
    several = len(info.contests) > 1
    rows: list[tuple[str, ...]] = []
    marked = []
    for contest, shown in info.contests:
        for place in shown:
            row = place.row
            if row.winner:
                marked.append(len(rows))
            rows.append(
                (
                    f"{place.name}{' ★' if row.winner else ''}",
                    *((contest.label,) if several else ()),
                    row.pattern,
                    "–" if row.solved is None else f"{row.solved} of {row.synthetic}",
                    f"{place.mean:.3f}" + ("" if row.half is None else f" ± {row.half:.3f}"),
                    ", ".join(f"{value:.3f}" for value in row.seeds),
                    _beside(row.random),
                    _beside(row.baseline),
                )
            )
    header = (
        "Layout",
        *(("At",) if several else ()),
        "Pattern",
        "Recall solved",
        "Bits per byte",
        "Each seed",
        "Beside random",
        "Beside baseline",
    )
    known = [at for at in range(len(header)) if at < len(header) - 2 or any(row[at] != "–" for row in rows)]
    table = tuple(tuple(row[at] for at in known) for row in rows)
    return Table(
        caption="Longer trainings: the mean with its 95 % interval; beside random and the baseline: the difference in bits per byte, "
        "paired by seed, with its 95 % interval. Better and worse go by recall where that differs, else by text beyond the interval",
        header=tuple(header[at] for at in known),
        rows=table,
        words=frozenset(at for at, of in enumerate(known) if header[of] in ("Layout", "At", "Pattern", "Beside random", "Beside baseline")),
        marked=frozenset(marked),
    )


def _beside(beside: Beside | None) -> str:
    if beside is None:
        return "–"
    interval = "" if beside.low is None or beside.high is None else f" ({beside.low:+.3f} … {beside.high:+.3f})"
    return f"{beside.word}: {beside.mean:+.3f}{interval}".replace("-", "−")
