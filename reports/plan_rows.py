"""What scaling laws say of one spec, as plain data: `archsearch plan`. Losses are nats a token; N parameters, D training tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCurve:
    """Columns over training tokens.

    Attributes:
        low, high: the loss's 90 % interval; empty where none is known.
        total_flops: of training and of the inference that was asked about; least_flops: of the cheapest model of the same loss.
        fitted: between which tokens the law's fit had seen models like this one; None for no tokens.
    """

    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    total_flops: tuple[float, ...]
    least_flops: tuple[float, ...]
    fitted: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanLaw:
    """One law's answer.

    Attributes:
        tokens: D as planned; optimal_tokens: at which this size is compute-optimal.
        excess: loss above that of the compute-optimal model of the same training compute.
        same_loss: N and D of the compute-optimal model of the same loss; compute_ratio: training compute over that model's.
        break_even: inference tokens from which on the spec is cheaper over its lifetime than that model; None for never.
        right_for: inference tokens for which no model of this loss is cheaper; None for none.
        lifetime: N, D and total FLOP of the cheapest model of this loss for the inference that was asked about; None when none was.
        beyond_fit: what the law's fit had not seen.
    """

    name: str
    source: str
    tokens: float
    loss: float
    loss_low: float | None
    loss_high: float | None
    total_flops: float
    optimal_tokens: float
    optimal_loss: float
    excess: float
    same_loss: tuple[float, float]
    compute_ratio: float
    break_even: float | None
    right_for: float | None
    lifetime: tuple[float, float, float] | None
    beyond_fit: tuple[str, ...]
    curve: PlanCurve


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Of which spec, and for what.

    Attributes:
        chosen: whether it is the layout that the search chose; None before there is one.
        tokens: as asked for; None where each law chose its own for `inference_tokens`.
        hours: "43,281 h100 hours at 40 % MFU"; empty without common tokens.
        notes: sentences that hold for all laws.
    """

    spec: str
    spec_id: str
    chosen: bool | None
    parameters: float
    tokens: float | None
    inference_tokens: float | None
    hours: str
    laws: tuple[PlanLaw, ...]
    notes: tuple[str, ...] = ()
