"""The learning rate of every step, from the plan alone."""

from __future__ import annotations

import math

from archsearch.train.settings import TrainPlan


def learning_rate(plan: TrainPlan, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_lr_share` of the peak (arXiv 1608.03983), or WSD: a plateau and a decay
    `1 - sqrt(progress)` to the same floor (arXiv 2405.18392).

    Args:
        step: of the update, counted from 0.
    """
    peak, floor = plan.learning_rate, plan.learning_rate * plan.final_lr_share
    done = plan.scheduled(step + 1)
    if done <= plan.warmup_steps:
        return peak * done / plan.warmup_steps
    decay_from = plan.steps - plan.decay_steps
    if done <= decay_from:
        return peak
    progress = min((done - decay_from) / plan.decay_steps, 1.0)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if plan.schedule == "cosine" else 1 - math.sqrt(progress)
    return floor + (peak - floor) * share


def phases(schedule: str, steps: int) -> tuple[int, int]:
    """(warmup_steps, decay_steps): a twentieth of the steps, at most 1000, then the cosine; WSD decays over the last fifth."""
    warmup = min(max(1, round(steps / 20)), 1000) if steps > 1 else 0
    rest = steps - warmup
    return warmup, rest if schedule == "cosine" else max(1, min(rest, round(steps / 5)))
