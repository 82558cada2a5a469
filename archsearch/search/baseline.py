"""A layout that somebody uses already, beside what a search finds: trained under the same rules, compared cost by cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.errors import InputError
from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.kinds import operator_for

if TYPE_CHECKING:
    from archsearch.search.result import FrontPoint
    from archsearch.search.study import Searcher

LABEL = "baseline"


def read_baseline(path: Path, space: Space) -> ArchSpec:
    """The baseline, if the space holds it: then its blocks are measured like all others.

    Raises:
        FileFormatError: no spec.
        InputError: it is not of this space; names what the space lacks.
    """
    spec = ArchSpec.read(path)
    fixed = ("vocab_size", "tie_embeddings")
    lacks = [f"{name} {getattr(spec, name)}".lower() for name in fixed if getattr(spec, name) != getattr(space, name)]
    if spec.hidden_size not in space.hidden_sizes:
        lacks.append(f"hidden_size {spec.hidden_size}")
    if len(spec.layers) not in space.depths:
        lacks.append(f"layers {len(spec.layers)}")
    operators = dict.fromkeys(block.operator for block in spec.layers if block.operator not in space.operators)
    widths = dict.fromkeys(block.ffn.intermediate_size for block in spec.layers if block.ffn not in space.ffns)
    lacks += [f"operator {operator_for(operator).label(operator)}" for operator in operators]
    lacks += [f"ffn.intermediate_size {width}" for width in widths]
    if lacks:
        raise InputError(f"{path}: not of this space, which lacks {', '.join(lacks)}; add it to the space, so that it is measured too")
    # As the space has it: what is not part of a layout (norm_eps, rope_theta) is the same for all.
    return space.spec(spec.layers, hidden_size=spec.hidden_size, name=spec.name)


def compared(searcher: Searcher, best: FrontPoint | None) -> dict[str, Any]:
    """The baseline beside the choice: costs, budgets, quality where it is trained, and how the choice differs, relative to it."""
    spec = searcher.baseline
    assert spec is not None
    costs = searcher.costs(spec)
    point = next((point for point in searcher.trained if point.spec.spec_id == spec.spec_id), None)
    document: dict[str, Any] = {
        "name": spec.name,
        "spec": spec.to_dict(),
        "spec_id": spec.spec_id,
        "feasible": costs.feasible,
        "reason": costs.reason(searcher.budgets),
        "costs": costs.values,
        "quality": point.quality.to_dict() if point else None,
        "difference": None,
    }
    if best is not None:
        change = {name: best.costs.values[name] / value - 1 for name, value in costs.values.items()}
        if point is not None:
            change["text_bits_per_byte"] = best.quality.text.value / point.quality.text.value - 1
        document["difference"] = change
    return document
