"""How long to train a spec: what published scaling laws say of its size, its tokens and its inference. No torch."""

from __future__ import annotations

from archsearch.overtraining.answers import LawAnswer, OvertrainingPlan, Quantity, plan
from archsearch.overtraining.laws import LAWS, Allocation, ScalingLaw
from archsearch.overtraining.sampling import T2File

__all__ = ["LAWS", "Allocation", "LawAnswer", "OvertrainingPlan", "Quantity", "ScalingLaw", "T2File", "plan"]
