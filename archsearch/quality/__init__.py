"""How good a layout is likely to be, before it is trained in earnest: small trainings of a narrow copy of it.

Recall (can it find what it was told?) and text (how well does it predict bytes?) are kept apart: they hardly agree, and a
budgeted search needs both. A training that has not left its plateau is *unresolved*, which is not the same as bad.
"""

from archsearch.quality.evaluator import EvaluationFailure, Evaluator, LayoutQuality
from archsearch.quality.proxy import narrow
from archsearch.quality.results import ResultFile
from archsearch.quality.rules import Structure, structure
from archsearch.quality.tasks import QualityResult, QualitySettings
from archsearch.quality.training import Training

__all__ = [
    "EvaluationFailure",
    "Evaluator",
    "LayoutQuality",
    "QualityResult",
    "QualitySettings",
    "ResultFile",
    "Structure",
    "Training",
    "narrow",
    "structure",
]
