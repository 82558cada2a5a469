"""Loss and total compute over training tokens, for one size under one law: the lines of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from archsearch.overtraining.laws import Allocation, ScalingLaw
from archsearch.overtraining.lifetime import lifetime_optimum
from reports.plan_rows import PlanCurve

POINTS = 61


def curve(law: ScalingLaw, parameters: float, inference_tokens: float, shown: Sequence[float]) -> PlanCurve:
    """From a tenth of the compute-optimal tokens to well beyond them and all that is `shown`, with the ends of what the fit had seen."""
    best = law.optimal_tokens(parameters)
    low = min(best, *shown) / 10
    high = max(30 * best, *(3 * tokens for tokens in shown))
    fitted = fitted_tokens(law, parameters)
    ends_of_fit = [tokens for tokens in fitted or () if low < tokens < high]
    tokens = sorted({*map(float, np.geomspace(low, high, POINTS)), *ends_of_fit})
    losses = [law.loss(parameters, d) for d in tokens]
    ends = [law.interval(lambda one, d=d: one.loss(parameters, d)) for d in tokens]  # type: ignore[misc]
    optima = [lifetime_optimum(law, loss, inference_tokens) for loss in losses]
    return PlanCurve(
        tokens=tuple(tokens),
        loss=tuple(losses),
        low=tuple(end[0] for end in ends if end),
        high=tuple(end[1] for end in ends if end),
        total_flops=tuple(Allocation(parameters, d, loss).total_flops(inference_tokens) for d, loss in zip(tokens, losses, strict=True)),
        least_flops=tuple(optimum.total_flops(inference_tokens) for optimum in optima),
        fitted=fitted,
    )


def fitted_tokens(law: ScalingLaw, parameters: float) -> tuple[float, float] | None:
    """Between which training tokens the fit had seen models of about this size and ratio; None for sizes it had not."""
    seen = law.fitted
    if not seen.parameters[0] <= parameters <= seen.parameters[1]:
        return None
    low = max(seen.tokens[0], seen.ratio[0] * parameters)
    high = min(seen.tokens[1], seen.ratio[1] * parameters)
    return (low, high) if low < high and math.isfinite(high) else None
