"""Other budgets, answered at once: from the cost table and from what is trained already. Nothing is measured, nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.budgets import Budget
from archsearch.search.certificate import certify
from archsearch.search.inner import Front
from archsearch.search.result import ProposedPoint, SearchResult
from archsearch.search.surrogate import FEWEST, Features, Surrogate, fit

if TYPE_CHECKING:
    from archsearch.search.study import Searcher

PROPOSALS = 4
CERTIFIED = 8


def resolve(searcher: Searcher, *, certified: bool = False) -> SearchResult:
    """The front of what is trained within today's budgets, and layouts that a model of the trainings expects beside it.

    Raises:
        StoreError: the study cannot be read.
    """
    searcher.look_up()
    result = searcher.result()
    if not result.feasible:
        return result
    front, model = searcher.proposer.front(*searcher.taught())
    result = replace(result, proposed=proposed(searcher, front, model))
    return replace(result, certificate=certificate(searcher)) if certified else result


def proposed(searcher: Searcher, front: Front, model: Surrogate) -> tuple[ProposedPoint, ...]:
    """Layouts of the expected front that are not trained, spread over latency; those that can recall first."""
    codec = searcher.proposer.codec
    known = {point.spec.spec_id for point in searcher.trained}
    specs = codec.decode(front.layouts)
    deviation = model.deviation(front.layouts)
    better = _improves(searcher, front)
    new = [i for i in range(len(front)) if specs[i].spec_id not in known and better[i]]
    recalls = [i for i in new if front.niche[i]]
    pool = recalls or new
    chosen = sorted({pool[round(k)] for k in np.linspace(0, len(pool) - 1, PROPOSALS)}) if pool else []
    guess = model.trained < FEWEST or model.left_out_error is None
    return tuple(
        ProposedPoint(
            spec=specs[i],
            costs=searcher.costs(specs[i]),
            text=None if guess else float(-front.quality[i]),
            deviation=None if guess else float(deviation[i]),
            can_recall=bool(front.niche[i]),
            basis=basis(model),
        )
        for i in chosen
    )


def basis(model: Surrogate) -> str:
    """What an expectation rests on."""
    if model.left_out_error is None or model.spread is None:
        return f"by size alone, for {model.trained} trainings teach nothing yet"
    weak = "" if model.tells else "; no better than guessing their mean"
    return (
        f"by a model of {model.trained} trainings, which errs by {model.left_out_error:.3f} bits/byte where each in turn is left out "
        f"(guessing their mean errs by {model.spread:.3f}){weak}"
    )


def _improves(searcher: Searcher, front: Front) -> list[bool]:
    """Whether each is expected to be better at text than every trained layout that is as fast and recalls as well."""
    latency = str(searcher.latency)
    points = [(p.costs.values[latency], p.quality.solves_recall, -p.quality.text.value) for p in searcher.points]
    found = []
    for at, niche, quality in zip(front.latency, front.niche, front.quality, strict=True):
        rivals = [text for t, solved, text in points if t <= at and (solved or not niche)]
        found.append(not rivals or quality > max(rivals))
    return found


def certificate(searcher: Searcher) -> dict[str, Any]:
    """How far the inner search can be from the best, where quality adds up over layers: under the additive model of the trainings."""
    proposer = searcher.proposer
    model = fit(Features(proposer.codec, additive=True), *searcher.taught())
    worth, shape_worth = model.features.worth(model.mean)
    found = proposer.search(model, evaluations=40_000, niches=False).front()
    front = replace(found, quality=found.quality - model.constant)
    latency = Budget(searcher.latency, 1.0)
    return certify(searcher.model, front, latency=latency, worth=worth, shape_worth=shape_worth, points=CERTIFIED).to_dict()
