"""Where the parameters go, beside well-known small models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reports.figures.chart import INK, MUTED, Chart, Figure, Table, View, axis, layout, sparse
from reports.palette import Palette
from reports.rows import Report
from reports.text import count, millions, percent, plain

NAMES = {"short_conv": "short conv", "gqa": "GQA", "swa": "SWA", "gla": "GLA", "ffn": "FFN", "gated_deltanet": "gated DeltaNet"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelParameters:
    model: str
    own: bool
    total: int
    embedding_share: float
    source: str
    counts: tuple[int, ...]
    """By part, in the order of `ParametersInfo.parts`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParametersInfo:
    parts: tuple[str, ...]
    models: tuple[ModelParameters, ...]


def parameters_info(report: Report) -> ParametersInfo | None:
    if not report.parameters:
        return None
    parts = tuple(dict.fromkeys(part for row in report.parameters for part in row.parts))
    order = {part: at for at, part in enumerate(("embedding", "head"))} | {
        part: 90 + at for at, part in enumerate(("ffn", "norms", "vision"))
    }
    parts = tuple(sorted(parts, key=lambda part: order.get(part, 10)))
    return ParametersInfo(
        parts=parts,
        models=tuple(
            ModelParameters(
                model=row.model,
                own=row.own,
                total=sum(row.parts.values()),
                embedding_share=row.embedding_share,
                source=row.source,
                counts=tuple(row.parts.get(part, 0) for part in parts),
            )
            for row in report.parameters
        ),
    )


def parameters_chart(report: Report, palette: Palette) -> Chart | None:
    info = parameters_info(report)
    if info is None:
        return None
    own = next((model for model in info.models if model.own), None)
    least = min(info.models, key=lambda model: model.embedding_share)
    most = max(info.models, key=lambda model: model.embedding_share)
    first = f"{own.model}: {percent(own.embedding_share)} of {millions(own.total)} parameters are embeddings. " if own else ""
    return Chart(
        key="parameters",
        title="Parameter budget",
        caption=(
            "Share of each part in a model's parameters, computed from configurations; at the right the share of the vocabulary "
            "(embedding, and the head where it is not tied)."
        ),
        summary=f"{first}From {percent(least.embedding_share)} ({least.model}) to {percent(most.embedding_share)} ({most.model}).",
        views=(View(label="Parameters", figure=plot(info, palette)),),
        height=90 + 36 * len(info.models),
        wide=True,
        table=Table(
            caption="Parameters by part",
            header=("Model", "Total", *(NAMES.get(part, part) for part in info.parts), "Embedding share", "Source"),
            rows=tuple(
                (
                    model.model,
                    count(model.total),
                    *(count(value) if value else "–" for value in model.counts),
                    percent(model.embedding_share),
                    model.source,
                )
                for model in info.models
            ),
            words=frozenset({0, 3 + len(info.parts)}),
            marked=frozenset(at for at, model in enumerate(info.models) if model.own),
        ),
    )


def plot(info: ParametersInfo, palette: Palette) -> Figure:
    names = [_name(model) for model in info.models]
    data: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(NAMES.get(part, part)),
            "y": names,
            "x": [sparse(model.counts[at] / model.total) for model in info.models],
            "marker": {"color": palette.part(part), "line": {"color": "var(--card)", "width": 1}},
            "customdata": [[millions(model.counts[at]), percent(model.counts[at] / model.total)] for model in info.models],
            "hovertemplate": f"{plain(NAMES.get(part, part))}: %{{customdata[0]}} (%{{customdata[1]}})<extra></extra>",
        }
        for at, part in enumerate(info.parts)
    ]
    return {
        "data": data,
        "layout": layout(
            xaxis=axis("Share of parameters", tickformat=".0%", range=[0, 1], tickvals=[0, 0.25, 0.5, 0.75, 1]),
            yaxis=axis(autorange="reversed", type="category", tickfont={"size": 11, "color": INK}, showgrid=False),
            barmode="stack",
            bargap=0.3,
            margin={"l": 8, "r": 54, "t": 22, "b": 8},
            annotations=[
                _beside("embedding", y=1, yref="paper", yanchor="bottom", color=MUTED, xanchor="right", xshift=48),
                *(_beside(percent(model.embedding_share), y=name) for name, model in zip(names, info.models, strict=True)),
            ],
        ),
    }


def _name(model: ModelParameters) -> str:
    """Name and total on two lines, so that a phone has room for the bars; a remark in brackets goes to the second."""
    name, bracket, remark = plain(model.model).partition(" (")
    return f"{f'<b>{name}</b>' if model.own else name}<br>{millions(model.total)}{bracket}{remark}"


def _beside(text: str, *, color: str = INK, **place: Any) -> Figure:
    """A text to the right of the plot."""
    return {
        "x": 1,
        "xref": "paper",
        "xanchor": "left",
        "xshift": 6,
        "text": text,
        "showarrow": False,
        "font": {"size": 11, "color": color},
        **place,
    }
