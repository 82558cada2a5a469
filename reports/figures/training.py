"""Loss over the tokens trained on: of the batches, and of text held out."""

from __future__ import annotations

from dataclasses import dataclass

from reports.figures.chart import ACCENT, Chart, Figure, Table, View, axis, layout, sparse
from reports.rows import Report
from reports.text import count, significant

WINDOW = 9
"""Logged steps in the moving average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingInfo:
    tokens: tuple[int, ...]
    loss: tuple[float, ...]
    smooth: tuple[float, ...]
    held_out_tokens: tuple[int, ...]
    held_out: tuple[float, ...]
    """Bits per byte."""


def training_info(report: Report) -> TrainingInfo | None:
    training = report.training
    if training is None or not (training.steps or training.held_out):
        return None
    loss = tuple(step.loss_nats for step in training.steps)
    return TrainingInfo(
        tokens=tuple(step.tokens for step in training.steps),
        loss=loss,
        smooth=smoothed(loss),
        held_out_tokens=tuple(point.tokens for point in training.held_out),
        held_out=tuple(point.bits_per_byte for point in training.held_out),
    )


def smoothed(values: tuple[float, ...], window: int = WINDOW) -> tuple[float, ...]:
    """Centred moving average, which does not lag behind as a running one does; narrower and still centred at both ends."""
    out = []
    for at in range(len(values)):
        reach = min(window // 2, at, len(values) - 1 - at)
        near = values[at - reach : at + reach + 1]
        out.append(sum(near) / len(near))
    return tuple(out)


def training_chart(report: Report) -> Chart | None:
    info = training_info(report)
    if info is None or report.training is None:
        return None
    facts = ", ".join(f"{name}: {value}" for name, value in report.training.facts.items())
    return Chart(
        key="training",
        title="Training",
        caption=(
            "Loss of the batches in nats per token (thin: as logged; thick: centred moving average), "
            "and of held-out text in bits per byte. "
            f"{facts}."
        ),
        summary=_summary(info),
        views=(View(label="Loss", figure=plot(info)),),
        height=360,
        table=Table(
            caption="Held-out text",
            header=("Tokens trained on", "Bits per byte"),
            rows=tuple((count(tokens), f"{value:.4f}") for tokens, value in zip(info.held_out_tokens, info.held_out, strict=True)),
        )
        if info.held_out
        else None,
    )


def plot(info: TrainingInfo) -> Figure:
    color = "var(--scale-1)"
    data: list[Figure] = []
    if info.loss:
        common = {"type": "scatter", "mode": "lines", "x": list(info.tokens), "showlegend": False}
        data = [
            common | {"y": [sparse(y) for y in info.loss], "line": {"color": color, "width": 1}, "opacity": 0.35, "hoverinfo": "skip"},
            common
            | {
                "y": [sparse(y) for y in info.smooth],
                "line": {"color": color, "width": 2},
                "hovertemplate": "%{x:,} tokens: %{y:.3f} nats per token<extra></extra>",
            },
        ]
    both = bool(info.loss and info.held_out)
    if info.held_out:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(info.held_out_tokens),
                "y": [sparse(y) for y in info.held_out],
                "yaxis": "y2" if both else "y",
                "line": {"color": ACCENT, "width": 2},
                "marker": {"size": 7, "color": ACCENT},
                "cliponaxis": False,
                "showlegend": False,
                "hovertemplate": "%{x:,} tokens: %{y:.4f} bits per byte, held out<extra></extra>",
            }
        )
    xaxis = axis("Tokens trained on", rangemode="tozero", tickformat="~s")
    if not both:
        return {
            "data": data,
            "layout": layout(xaxis=xaxis, yaxis=axis("Training, nats per token" if info.loss else "Held out, bits per byte")),
        }
    return {
        "data": data,
        "layout": layout(
            xaxis=xaxis | {"anchor": "y2"},
            yaxis=axis("Training, nats per token", domain=[0.55, 1]),
            yaxis2=axis("Held out, bits per byte", domain=[0, 0.45]),
        ),
    }


def _summary(info: TrainingInfo) -> str:
    words = []
    if info.loss:
        last = info.loss[-WINDOW:]
        ends = f"from {significant(info.loss[0])} to {significant(sum(last) / len(last))} nats per token"
        words.append(f"The batches' loss went {ends} (mean of the last {len(last)} logged) over {count(info.tokens[-1])} tokens.")
    if info.held_out:
        words.append(f"Held-out text ends at {info.held_out[-1]:.3f} bits per byte.")
    return " ".join(words)
