"""What scaling laws say of a spec, as tables of at most 80 columns for two laws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape

from archsearch.cli.tables import count, stdout, table
from archsearch.overtraining.quantities import format_count, format_hours, format_power

if TYPE_CHECKING:
    from collections.abc import Callable

    from archsearch.overtraining import Allocation, LawAnswer, OvertrainingPlan, Quantity
    from archsearch.overtraining.sampling import Sampled
    from archsearch.overtraining.sampling_answer import T2Answer


def print_plan(plan: OvertrainingPlan) -> None:
    """What was asked, what the laws answer, and where they must not be trusted."""
    _print_question(plan)
    _print_laws(plan)
    if plan.t2 is not None:
        _print_t2(plan.t2)
    _print_warnings(plan)


def _print_question(plan: OvertrainingPlan) -> None:
    spec = plan.spec
    sizes = f"{count(plan.total)} parameters, {count(plan.non_embedding)} without embeddings"
    stdout.print(f"[bold]{escape(spec.name)}[/] · {spec.spec_id} · {sizes}", highlight=False)
    first = plan.answers[0]
    if plan.tokens is not None:
        ratio = plan.tokens / first.parameters
        asked = f" (C / 6 N of {format_power(plan.budget_flops)} FLOP)" if plan.budget_flops else ""
        stdout.print(
            f"{format_count(plan.tokens)} training tokens{asked}, {_number(ratio)} a parameter: 6 N D = {format_power(first.six_nd)} FLOP"
        )
        more = 100 * (plan.flops_per_token / (6 * first.parameters) - 1)
        stdout.print(
            f"By arithmetic {format_power(first.training_flops)} FLOP ({more:+.1f} %, in sequences of {plan.sequence:,}): "
            f"{format_hours(first.gpu_hours)} {_device(plan)}"
        )
    else:
        stdout.print(
            f"Trained until this size is the cheapest of its loss for {format_count(plan.inference_tokens or 0)} inference tokens;"
        )
        stdout.print(f"arithmetic in sequences of {plan.sequence:,}; {_device(plan)}")


def _device(plan: OvertrainingPlan) -> str:
    return f"{plan.accelerator.name} hours at {100 * plan.mfu:.0f} % MFU ({plan.accelerator.peak_tflops:,g} TFLOP/s peak)"


def _print_laws(plan: OvertrainingPlan) -> None:
    served = plan.inference_tokens

    def line(label: str, cell: Callable[[LawAnswer], str]) -> list[str]:
        return [label, *(cell(answer) for answer in plan.answers)]

    def own(answer: LawAnswer) -> float:
        return 6 * answer.parameters * answer.tokens + 2 * answer.parameters * (served or 0)

    rows = []
    if plan.tokens is None:
        rows += [
            line("training tokens", lambda a: format_count(a.tokens)),
            line("  tokens a parameter", lambda a: _number(a.tokens / a.parameters)),
            line("  6 N D, FLOP", lambda a: format_power(a.six_nd)),
            line("  by arithmetic, hours", lambda a: format_hours(a.gpu_hours)),
        ]
    rows += [
        line("this size is compute-optimal at", lambda a: _tokens(a.optimal_tokens)),
        line("loss, nats a token", lambda a: _loss(a.loss)),
        line("best for the same 6 N D", lambda a: _model(a.same_compute)),
        line("  loss this spec gives away", lambda a: _loss(a.excess_loss)),
        line("compute-optimal for the same loss", lambda a: _model(a.same_loss)),
        line("  6 N D of this spec over its", lambda a: _times(a.compute_ratio)),
        line("  cheaper than it from (inference)", lambda a: _tokens(a.break_even)),
        line("right size for (inference tokens)", lambda a: _tokens(a.right_for, none="none")),
    ]
    if served is not None:
        rows += [
            line(f"train + {format_count(served)} inference, FLOP", lambda a: format_power(own(a))),
            line("  best for this loss", lambda a: _model(a.lifetime)),
            line("  its FLOP", lambda a: format_power(a.lifetime.total_flops(served)) if a.lifetime else "-"),
            line("  this spec's over its", lambda a: f"{own(a) / a.lifetime.total_flops(served):.3g}x" if a.lifetime else "-"),
        ]
    stdout.print(table(["", *(answer.law.name for answer in plan.answers)], rows))
    for answer in plan.answers:
        stdout.print(f"{answer.law.name}: {answer.law.source}", style="dim")
    if any(answer.law.covariance for answer in plan.answers):
        stdout.print("In brackets: the 90 % interval that the fit leaves open, were its form and its data ours.", style="dim")


def _print_t2(found: T2Answer) -> None:
    stdout.print()
    answer = f" of {found.constants.answer_tokens:,} tokens" if found.constants.answer_tokens > 1 else ""
    k = f"{format_power(found.query_flops)} FLOP a query: {_number(found.samples)} samples{answer}"
    whose = escape(f"{found.constants.name} ({found.constants.source})")
    stdout.print(f"[bold]T²[/] with the constants of {whose}; {k}")
    rows = []
    if found.loss is not None:
        rows.append(["-log pass@k (loss form)", f"{found.loss:.4g}", *_sampled(found.best_loss)])
    if found.accuracy is not None:
        rows.append(["pass@k (accuracy form)", f"{found.accuracy:.4g}", *_sampled(found.best_accuracy)])
    stdout.print(table(["", "this spec", "best", "its N", "its D", "D / N", "its k"], rows))


def _sampled(found: Sampled | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    return [
        f"{found.value:.4g}",
        format_count(found.parameters),
        format_count(found.tokens),
        _number(found.tokens / found.parameters),
        _number(found.samples),
    ]


def _print_warnings(plan: OvertrainingPlan) -> None:
    said = [(answer.law.name, answer.beyond_fit) for answer in plan.answers] + [("T²", plan.t2.warnings if plan.t2 else ())]
    for name, warnings in said:
        if warnings:
            stdout.print(f"[yellow]{name}[/] is extrapolated: {'; '.join(warnings)}")
    for sentence in plan.notes:
        stdout.print(sentence)


def _model(found: Allocation | None) -> str:
    return "-" if found is None else f"{format_count(found.parameters)} on {format_count(found.tokens)}"


def _tokens(quantity: Quantity, *, none: str = "never") -> str:
    if quantity.value < 0:
        return none
    if quantity.low is None or quantity.high is None:
        return format_count(quantity.value)
    low = format_count(max(0.0, quantity.low))
    return f"{format_count(quantity.value)} ({low}-{format_count(quantity.high)})"


def _loss(quantity: Quantity) -> str:
    around = "" if quantity.low is None else f" ({quantity.low:.3f}-{quantity.high:.3f})"
    return f"{quantity.value:.3f}{around}"


def _times(quantity: Quantity) -> str:
    around = "" if quantity.low is None else f" ({_number(quantity.low)}-{_number(quantity.high or 0)})"
    return f"{_number(quantity.value)}{around}"


def _number(value: float) -> str:
    """Three digits, thousands set apart, no powers of ten."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
