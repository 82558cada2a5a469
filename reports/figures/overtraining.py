"""How long to train: loss over training tokens by scaling laws, and what the same loss would cost at other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from reports.figures.chart import MUTED, Chart, Figure, Table, View, axis, layout, line_shape, sparse
from reports.plan_rows import Plan, PlanLaw
from reports.rows import Report
from reports.text import amount, listed, percent, plain, power, sentence

BEYOND = {True: "", False: ", extrapolated"}
WHICH = {True: ", the chosen layout", False: ", not the chosen layout", None: ""}
COLORS = ("var(--scale-1)", "var(--front)", "var(--scale-2)", "var(--scale-0)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A stretch of a law's curve: within what its fit had seen, or beyond."""

    fitted: bool
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    flops: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OvertrainingInfo:
    plan: Plan
    pieces: tuple[tuple[PlanLaw, tuple[Piece, ...]], ...]


def overtraining_info(report: Report) -> OvertrainingInfo | None:
    if report.plan is None or not report.plan.laws:
        return None
    return OvertrainingInfo(plan=report.plan, pieces=tuple((law, pieces(law)) for law in report.plan.laws))


def pieces(law: PlanLaw) -> tuple[Piece, ...]:
    """The curve cut where the fit's knowledge begins and ends; neighbours share a point, so that the line does not break."""
    curve, found = law.curve, []
    low, high = curve.fitted or (math.inf, math.inf)
    inside = [low <= tokens <= high for tokens in curve.tokens]
    start = 0
    for at in range(1, len(inside) + 1):
        if at < len(inside) and inside[at] == inside[start]:
            continue
        first, last = max(0, start - (1 if not inside[start] else 0)), min(len(inside), at + (0 if inside[start] else 1))
        found.append(
            Piece(
                fitted=inside[start],
                tokens=curve.tokens[first:last],
                loss=curve.loss[first:last],
                flops=curve.total_flops[first:last],
            )
        )
        start = at
    return tuple(found)


def overtraining_chart(report: Report) -> Chart | None:
    info = overtraining_info(report)
    if info is None:
        return None
    plan = info.plan
    return Chart(
        key="plan",
        title="How long to train",
        caption=(
            f"What scaling laws predict for {plan.spec} ({amount(plan.parameters)} parameters{WHICH[plan.chosen]}). Solid: models like it "
            "were in the law's fit; dashed: extrapolated; dotted: the cheapest size for each loss. ◆ compute-optimal for this size; "
            "● as planned; band: the 90 % interval that the fit leaves open. The fits' text, tokenizer and transformers were others: "
            "compare differences, not levels."
        ),
        summary=_summary(plan),
        views=(
            View(label="Loss over training tokens", figure=plot(info)),
            View(label=f"Loss against {'lifetime' if plan.inference_tokens else 'training'} FLOP", figure=plot_flops(info)),
        ),
        height=380,
        wide=True,
        table=_table(plan),
    )


def plot(info: OvertrainingInfo) -> Figure:
    """Loss over tokens, logarithmic."""
    data: list[Figure] = []
    for at, (law, parts) in enumerate(info.pieces):
        color = COLORS[at % len(COLORS)]
        curve = law.curve
        if curve.low:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": plain(law.name),
                    "showlegend": False,
                    "x": [sparse(x) for x in (*curve.tokens, *reversed(curve.tokens))],
                    "y": [sparse(y) for y in (*curve.low, *reversed(curve.high))],
                    "fill": "toself",
                    "fillcolor": color,
                    "opacity": 0.16,
                    "line": {"width": 0, "color": color},
                    "hoverinfo": "skip",
                }
            )
        data += _lines(law, parts, color, lambda piece: piece.tokens, amount, "tokens")
        data += _marks(law, color, law.optimal_tokens, law.tokens, amount, "tokens")
    shown = [tokens for law in info.plan.laws for tokens in law.curve.tokens]
    shapes = [] if info.plan.tokens is None else [line_shape(x=info.plan.tokens, color=MUTED, dash="dot")]
    return {
        "data": data,
        "layout": layout(xaxis=_power_axis("Training tokens", shown, amount), yaxis=axis("Loss, nats a token"), shapes=shapes),
    }


def plot_flops(info: OvertrainingInfo) -> Figure:
    """Loss against all FLOP: the spec, trained ever longer, beside the cheapest model of each loss."""
    data: list[Figure] = []
    served = f" and {amount(info.plan.inference_tokens)} tokens of inference" if info.plan.inference_tokens else ""
    for at, (law, parts) in enumerate(info.pieces):
        color, curve = COLORS[at % len(COLORS)], law.curve
        data += _lines(law, parts, color, lambda piece: piece.flops, power, f"FLOP of training{served}")
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{plain(law.name)}, best size",
                "x": [sparse(x) for x in curve.least_flops],
                "y": [sparse(y) for y in curve.loss],
                "line": {"color": color, "width": 1.5, "dash": "dot"},
                "text": [power(x) for x in curve.least_flops],
                "hovertemplate": f"best size for %{{y:.3f}} nats a token: %{{text}} FLOP<extra>{plain(law.name)}</extra>",
            }
        )
        data += _marks(law, color, None, law.total_flops, power, f"FLOP of training{served}")
    shown = [flops for law in info.plan.laws for flops in (*law.curve.total_flops, *law.curve.least_flops)]
    return {
        "data": data,
        "layout": layout(xaxis=_power_axis(f"FLOP of training{served}", shown, power), yaxis=axis("Loss, nats a token")),
    }


def _lines(
    law: PlanLaw,
    parts: tuple[Piece, ...],
    color: str,
    along: Callable[[Piece], tuple[float, ...]],
    words: Callable[[float], str],
    unit: str,
) -> list[Figure]:
    solid = any(piece.fitted for piece in parts)
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plain(law.name),
            "showlegend": piece.fitted if solid else piece is parts[0],
            "x": [sparse(x) for x in along(piece)],
            "y": [sparse(y) for y in piece.loss],
            "line": {"color": color, "width": 2.5, "dash": "solid"} if piece.fitted else {"color": color, "width": 1.75, "dash": "dash"},
            "text": [words(x) for x in along(piece)],
            "hovertemplate": f"%{{text}} {unit}: %{{y:.3f}} nats a token<extra>{plain(law.name)}{BEYOND[piece.fitted]}</extra>",
        }
        for piece in parts
    ]


def _marks(law: PlanLaw, color: str, optimal: float | None, planned: float, words: Callable[[float], str], unit: str) -> list[Figure]:
    points = [] if optimal is None else [(optimal, law.optimal_loss, "diamond", "compute-optimal for this size")]
    points.append((planned, law.loss, "circle", "as planned"))
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(law.name),
            "showlegend": False,
            "x": [sparse(x) for x, *_ in points],
            "y": [sparse(y) for _, y, *_ in points],
            "marker": {
                "size": 11,
                "color": color,
                "symbol": [symbol for *_, symbol, _ in points],
                "line": {"color": "var(--card)", "width": 1.5},
            },
            "text": [f"{what}: {words(x)} {unit}" for x, _, _, what in points],
            "hovertemplate": f"%{{text}}, %{{y:.3f}} nats a token<extra>{plain(law.name)}</extra>",
        }
    ]


def _power_axis(title: str, values: list[float], text: Callable[[float, int], str]) -> Figure:
    """A logarithmic axis with a tick at every power of ten, or so many of them that there are at most nine."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    step = max(1, math.ceil((last - first) / 8))
    ticks = [10.0**exponent for exponent in range(first, last + 1, step)]
    return axis(title, type="log", tickvals=ticks, ticktext=[text(tick, 1) for tick in ticks])


def _summary(plan: Plan) -> str:
    words = []
    for law in plan.laws:
        off = "never" if law.break_even is None else f"after {amount(law.break_even)} tokens of inference"
        around = "" if law.loss_low is None or law.loss_high is None else f" ({law.loss_low:.3f} to {law.loss_high:.3f})"
        words.append(
            f"{law.name} predicts {law.loss:.3f}{around} nats a token at {amount(law.tokens)} tokens, {law.excess:.3f} above the best for "
            f"the same compute; as much loss could be had for 1/{law.compute_ratio:,.3g} of the compute by "
            f"{amount(law.same_loss[0])} parameters, against which this size pays off {off}."
        )
    if plan.hours:
        words.append(f"Training takes {plan.hours}.")
    beyond = [law.name for law in plan.laws if law.beyond_fit]
    if beyond:
        words.append(f"{sentence(listed(beyond))} {'is' if len(beyond) == 1 else 'are'} extrapolated here.")
    return " ".join((*words, *plan.notes))


def _table(plan: Plan) -> Table:
    """One column a law, so that each line can say what it is."""
    served = plan.inference_tokens

    def line(label: str, cell: Callable[[PlanLaw], str]) -> tuple[str, ...]:
        return (label, *(cell(law) for law in plan.laws))

    lines = [
        line("Training tokens", lambda law: amount(law.tokens)),
        line("Loss, nats a token", _loss),
        line("Compute-optimal at", lambda law: f"{amount(law.optimal_tokens)} tokens"),
        line("Loss above the best", lambda law: f"{law.excess:.3f}, for the same training FLOP"),
        line("Same loss, least training", lambda law: f"{_model(law.same_loss)}, for 1/{law.compute_ratio:,.3g} of the FLOP"),
        line("Cheaper than that", lambda law: "never" if law.break_even is None else f"after {amount(law.break_even)} tokens of inference"),
        line("The right size", lambda law: "for none" if law.right_for is None else f"for {amount(law.right_for)} tokens of inference"),
    ]
    if served:
        lines.append(line(f"Cheapest for {amount(served)}", _lifetime))
    lines += [
        line("Beyond its fit", lambda law: "; ".join(law.beyond_fit) or "–"),
        line("Source", lambda law: law.source),
    ]
    return Table(
        caption="What each law says",
        header=("", *(law.name for law in plan.laws)),
        rows=tuple(lines),
        words=frozenset(range(len(plan.laws) + 1)),
    )


def _loss(law: PlanLaw) -> str:
    return f"{law.loss:.3f}" if law.loss_low is None else f"{law.loss:.3f} ({law.loss_low:.3f} – {law.loss_high:.3f})"


def _model(size: tuple[float, ...]) -> str:
    return f"{amount(size[0])} on {amount(size[1])}"


def _lifetime(law: PlanLaw) -> str:
    """The cheapest model of the same loss over a lifetime, and the share of all FLOP that it saves."""
    if law.lifetime is None:
        return "–"
    return f"{_model(law.lifetime)}, saves {percent(max(0.0, 1 - law.lifetime[2] / law.total_flops))} of all FLOP"
