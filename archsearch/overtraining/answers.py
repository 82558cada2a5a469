"""One spec, its tokens and its inference, under several laws: `archsearch plan`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archsearch.budget import parameter_budget
from archsearch.errors import InputError
from archsearch.files import write_atomic
from archsearch.overtraining.cost import (
    DEFAULT_ACCELERATOR,
    DEFAULT_MFU,
    DEFAULT_SEQUENCE,
    Accelerator,
    accelerator_named,
    hours,
    training_flops_per_token,
)
from archsearch.overtraining.curve import curve
from archsearch.overtraining.laws import DEFAULT_LAWS, Allocation, Counted, ScalingLaw, law_named
from archsearch.overtraining.lifetime import break_even, lifetime_optimum, right_for, tokens_for
from archsearch.overtraining.sampling import MISSING, T2File
from archsearch.overtraining.sampling_answer import T2Answer, answer_t2
from archsearch.overtraining.validity import beyond_fit, notes
from archsearch.spec import ArchSpec
from reports.plan_rows import PlanCurve


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that a law says, with the 90 % interval that its fit leaves open; no interval where that is not known."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """JSON has no word for infinities: null, where the value is one."""
        return {name: value if value is not None and math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class LawAnswer:
    """What one law says of the spec.

    Attributes:
        parameters: N as the law is given it; tokens: D.
        optimal_tokens: the tokens at which this size is compute-optimal.
        loss: at N and D, nats a token.
        same_compute: the compute-optimal model of the same 6 N D; excess_loss: what the spec loses to it.
        same_loss: the compute-optimal model of the same loss; compute_ratio: the spec's 6 N D over that model's.
        break_even: inference tokens from which on the spec is cheaper over its lifetime than `same_loss`; infinite for never.
        right_for: inference tokens for which no model of this loss is cheaper; below nought for none.
        lifetime: the cheapest model of this loss for the inference that was asked about; None when none was.
        training_flops: by arithmetic over the spec's operators, for D tokens; gpu_hours: for these.
        beyond_fit: what lies outside of what the law was fitted to.
    """

    law: ScalingLaw
    parameters: float
    tokens: float
    optimal_tokens: Quantity
    loss: Quantity
    same_compute: Allocation
    excess_loss: Quantity
    same_loss: Allocation
    compute_ratio: Quantity
    break_even: Quantity
    right_for: Quantity
    lifetime: Allocation | None
    training_flops: float
    gpu_hours: float
    beyond_fit: tuple[str, ...]
    curve: PlanCurve

    @property
    def six_nd(self) -> float:
        return 6 * self.parameters * self.tokens

    def to_dict(self, inference_tokens: float | None) -> dict[str, Any]:
        own = Allocation(self.parameters, self.tokens, self.loss.value)
        served = inference_tokens or 0.0
        lifetime = None
        if self.lifetime is not None:
            lifetime = _allocation(self.lifetime) | {
                "total_flops": self.lifetime.total_flops(served),
                "saved": 1 - self.lifetime.total_flops(served) / own.total_flops(served),
            }
        return {
            "law": self.law.name,
            "source": self.law.source,
            "constants": {name: getattr(self.law, name) for name in ("E", "A", "B", "alpha", "beta")},
            "fitted": {name: list(ends) for name, ends in asdict(self.law.fitted).items()},
            "counted": self.law.counted,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "tokens_per_parameter": self.tokens / self.parameters,
            "optimal_tokens": self.optimal_tokens.to_dict(),
            "loss": self.loss.to_dict(),
            "same_compute": _allocation(self.same_compute),
            "excess_loss": self.excess_loss.to_dict(),
            "same_loss": _allocation(self.same_loss),
            "compute_ratio": self.compute_ratio.to_dict(),
            "break_even_inference_tokens": self.break_even.to_dict(),
            "right_for_inference_tokens": _above_nought(self.right_for).to_dict(),
            "six_nd": self.six_nd,
            "training_flops": self.training_flops,
            "gpu_hours": self.gpu_hours,
            "total_flops": own.total_flops(served),
            "lifetime": lifetime,
            "beyond_fit": list(self.beyond_fit),
            "curve": {name: None if column is None else list(column) for name, column in asdict(self.curve).items()},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class OvertrainingPlan:
    """All laws' answers for one spec.

    Attributes:
        total, non_embedding: parameters; a tied embedding counts once.
        tokens: as asked for, or what the budget pays for; None where each law chose its own for the inference tokens.
        flops_per_token: of training, by arithmetic, in sequences of `sequence` tokens.
    """

    spec: ArchSpec
    total: int
    non_embedding: int
    counted: Counted | None
    tokens: float | None
    budget_flops: float | None
    inference_tokens: float | None
    sequence: int
    flops_per_token: float
    accelerator: Accelerator
    mfu: float
    answers: tuple[LawAnswer, ...]
    t2: T2Answer | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known of all answers."""
        return notes([(answer.law, answer.tokens / answer.parameters) for answer in self.answers])

    def to_dict(self) -> dict[str, Any]:
        """The document that `archsearch plan --json` prints and `plan.json` holds."""
        return {
            "name": self.spec.name,
            "spec_id": self.spec.spec_id,
            "parameters": {"total": self.total, "non_embedding": self.non_embedding},
            "counted": self.counted,
            "tokens": self.tokens,
            "budget_flops": self.budget_flops,
            "inference_tokens": self.inference_tokens,
            "training": {
                "sequence": self.sequence,
                "flops_per_token": self.flops_per_token,
                "over_6n": self.flops_per_token / (6 * self.total),
                "accelerator": self.accelerator.name,
                "peak_tflops": self.accelerator.peak_tflops,
                "peak_source": self.accelerator.source,
                "mfu": self.mfu,
            },
            "laws": [answer.to_dict(self.inference_tokens) for answer in self.answers],
            "t2": None if self.t2 is None else self.t2.to_dict(),
            "notes": list(self.notes),
        }


def plan(
    spec: ArchSpec,
    *,
    tokens: float | None = None,
    budget_flops: float | None = None,
    inference_tokens: float | None = None,
    laws: Sequence[str] = DEFAULT_LAWS,
    counted: Counted | None = None,
    sequence: int = DEFAULT_SEQUENCE,
    accelerator: Accelerator | None = None,
    mfu: float = DEFAULT_MFU,
    t2: T2File | None = None,
    query_flops: float | None = None,
) -> OvertrainingPlan:
    """What the laws say of a spec.

    Args:
        tokens: training tokens D; or
        budget_flops: training compute C, of which D = C / (6 N).
        inference_tokens: tokens read and written over the model's life. Alone, each law chooses D so that this size is the cheapest
            of its loss for so much inference.
        laws: names from `LAWS`.
        counted: which parameters N means, in place of what each law's fit counted.
        sequence: tokens of a training sequence, for the arithmetic of attention.
        t2: constants of T²; with `query_flops`, what a query may cost.

    Raises:
        InputError: a combination that asks nothing or two things, or a number that cannot be.
    """
    _check(tokens, budget_flops, inference_tokens, sequence, mfu, t2, query_flops)
    budget = parameter_budget(spec)
    non_embedding = budget.total - sum(budget.parts.get(part, 0) for part in ("embedding", "head"))
    sizes: dict[Counted, int] = {"total": budget.total, "non-embedding": non_embedding}
    chosen = accelerator or accelerator_named(DEFAULT_ACCELERATOR)
    per_token = training_flops_per_token(spec, sequence)

    def training_tokens(law: ScalingLaw, size: float) -> float:
        if tokens is not None:
            return tokens
        return budget_flops / (6 * size) if budget_flops is not None else tokens_for(law, size, inference_tokens or 0.0)

    known = [law_named(name) for name in dict.fromkeys(laws)]
    inputs = [(law, sizes[counted or law.counted]) for law in known]
    trained = [training_tokens(law, size) for law, size in inputs]
    answers = tuple(
        _answer(law, size, d, inference_tokens, sizes[law.counted], per_token * d, hours(per_token * d, chosen, mfu), trained)
        for (law, size), d in zip(inputs, trained, strict=True)
    )
    shared = trained[0] if tokens is not None or budget_flops is not None else None
    answer = None
    if t2 is not None and query_flops is not None:
        assert shared is not None
        answer = answer_t2(t2, sizes[t2.counted], shared, query_flops)
    return OvertrainingPlan(
        spec=spec,
        total=budget.total,
        non_embedding=non_embedding,
        counted=counted,
        tokens=shared,
        budget_flops=budget_flops,
        inference_tokens=inference_tokens,
        sequence=sequence,
        flops_per_token=per_token,
        accelerator=chosen,
        mfu=mfu,
        answers=answers,
        t2=answer,
    )


def _check(
    tokens: float | None,
    budget_flops: float | None,
    inference_tokens: float | None,
    sequence: int,
    mfu: float,
    t2: T2File | None,
    query_flops: float | None,
) -> None:
    """Refuse what asks nothing, or two things."""
    if tokens is not None and budget_flops is not None:
        raise InputError("--tokens and --budget-flops say the same thing twice; give one of them")
    if tokens is None and budget_flops is None and inference_tokens is None:
        raise InputError("nothing to plan for; give --tokens or --budget-flops, --inference-tokens, or both")
    for name, value in (("tokens", tokens), ("budget-flops", budget_flops), ("inference-tokens", inference_tokens)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} must be above 0, got {value:g}")
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu is a share of the peak between 0 and 1, got {mfu:g}")
    if sequence < 1:
        raise InputError(f"--sequence must be at least 1, got {sequence}")
    if query_flops is not None and t2 is None:
        raise InputError(MISSING)
    if t2 is not None and query_flops is None:
        raise InputError("--t2 needs --query-flops: what one query may cost, over all its samples")
    if t2 is not None and tokens is None and budget_flops is None:
        raise InputError("--t2 needs --tokens or --budget-flops: its optimum is for a given training compute")


def _answer(
    law: ScalingLaw,
    size: float,
    tokens: float,
    inference_tokens: float | None,
    fitted_size: float,
    training_flops: float,
    gpu_hours: float,
    all_tokens: Sequence[float],
) -> LawAnswer:
    compute = 6 * size * tokens
    loss = law.loss(size, tokens)
    lifetime = None if inference_tokens is None else lifetime_optimum(law, loss, inference_tokens)

    def said(of: Callable[[ScalingLaw], float]) -> Quantity:
        return Quantity(of(law), *(law.interval(of) or ()))

    return LawAnswer(
        law=law,
        parameters=size,
        tokens=tokens,
        optimal_tokens=said(lambda one: one.optimal_tokens(size)),
        loss=said(lambda one: one.loss(size, tokens)),
        same_compute=law.optimum(compute),
        excess_loss=said(lambda one: one.loss(size, tokens) - one.optimum(compute).loss),
        same_loss=law.cheapest(loss),
        compute_ratio=said(lambda one: compute / one.cheapest(one.loss(size, tokens)).flops),
        break_even=said(lambda one: break_even(one, size, tokens)),
        right_for=said(lambda one: right_for(one, size, tokens)),
        lifetime=lifetime,
        training_flops=training_flops,
        gpu_hours=gpu_hours,
        beyond_fit=beyond_fit(law, size, tokens, fitted_size, lifetime),
        curve=curve(law, size, inference_tokens or 0.0, all_tokens),
    )


def _allocation(found: Allocation) -> dict[str, float]:
    return {
        "parameters": found.parameters,
        "tokens": found.tokens,
        "tokens_per_parameter": found.tokens / found.parameters,
        "loss": found.loss,
        "flops": found.flops,
    }


def _above_nought(quantity: Quantity) -> Quantity:
    """An amount of inference that would have to be negative is none: null in JSON."""
    ends = (end if end is None or end >= 0 else math.inf for end in (quantity.value, quantity.low, quantity.high))
    return Quantity(*ends)  # type: ignore[arg-type]


def keep(found: OvertrainingPlan, run: Path) -> Path:
    """Write `plan.json` into a run directory, for the report; returns its path.

    Raises:
        InputError: the directory holds no run.
        RunError: it cannot be written.
    """
    if not (run / "space.toml").exists():
        raise InputError(f"{run}: not a run; `archsearch profile SPACE --run {run}` makes one")
    path = run / "plan.json"
    write_atomic(path, json.dumps(found.to_dict(), allow_nan=False) + "\n")
    return path
