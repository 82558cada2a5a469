"""What is trained before anything is known: layouts that anyone would ask about, and others spread evenly over latency."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from archsearch.quality import structure
from archsearch.search.designs import Design, DesignSpace
from archsearch.search.feasible import CostModel, Costs
from archsearch.search.programme import Programme
from archsearch.search.sizes import held, solved
from archsearch.spec import ArchSpec
from operators.costs import model_parameters

INNER_SAMPLES = 3000
FEW_FEASIBLE = 50
"""With fewer feasible layouts in the sample than this, some are found by integer programming."""
SEED_SHARE = 2 / 3
"""Of the trials, at most this share is fixed beforehand; the model, which learns from them, has the rest."""


@dataclass(frozen=True, kw_only=True)
class InnerDesign:
    """A layout with its predicted costs, and why it is looked at (`label`, of a baseline)."""

    design: Design
    spec: ArchSpec
    costs: Costs
    label: str = ""
    retry_of: int | None = None
    """The trial that was cut off with this layout."""


def inner_pass(designs: DesignSpace, model: CostModel, seed: int, samples: int) -> list[InnerDesign]:
    """Baselines, designs and the layout nearest to the budgets, with predicted costs; the same for the same seed.

    Where there are more than `samples` designs, as many at random.
    Where the budgets leave little room, layouts that use it to the full in various directions too. Where a size is held, the FFN
    widths of each are solved for it.
    """
    generator = random.Random(seed)
    sizes = held(model.budgets)
    found: dict[tuple[Any, ...], InnerDesign] = {}

    def add(spec: ArchSpec, design: Design, label: str = "") -> None:
        key = (spec.hidden_size, spec.layers)
        if key not in found:
            found[key] = InnerDesign(design=design, spec=spec, costs=model.costs(spec), label=label)

    def spec_of(design: Design) -> ArchSpec:
        spec = designs.spec(design)
        return solved(spec, model, sizes[0]) if sizes else spec

    done: set[str] = set()
    for label, design in designs.baselines():
        spec = spec_of(design)
        if label not in done and model.costs(spec).feasible:
            done.add(label)
            add(spec, design, label)
    for label, design in designs.baselines():
        if label not in done:  # over budget at every size: the largest is shown
            done.add(label)
            add(spec_of(design), design, label)
    for design in designs.all() if designs.size <= samples else (designs.random(generator) for _ in range(samples)):
        add(spec_of(design), design)
    nearest, costs = model.nearest()
    add(nearest, designs.nearest(nearest))
    if costs.feasible and sum(entry.costs.feasible for entry in found.values()) < FEW_FEASIBLE:
        programme = Programme(model)
        for _ in range(FEW_FEASIBLE):
            favourite = programme.favourite({block: generator.gauss(0, 1) for block in model.space.blocks})
            if favourite is not None:
                add(favourite, designs.nearest(favourite))
    return list(found.values())


def choose_seeds(inner: Iterable[InnerDesign], trials: int, latency: str) -> list[InnerDesign]:
    """What is trained first: feasible baselines in turn with layouts spread evenly over latency.

    Of those with about the same latency, one whose structure can recall (`quality.structure`), with operators that were
    not chosen yet, and with the most parameters.
    """
    wanted = max(1, round(trials * SEED_SHARE))
    feasible = [entry for entry in inner if entry.costs.feasible]
    baselines = sorted((entry for entry in feasible if entry.label), key=lambda entry: entry.label.startswith("all"))
    others = sorted((entry for entry in feasible if not entry.label), key=lambda entry: entry.costs.values[latency])
    bins = max(wanted - len(baselines), wanted // 2)
    chosen: list[InnerDesign] = []
    used: list[frozenset[Any]] = []
    for i in range(bins):
        group: Sequence[InnerDesign] = others[i * len(others) // bins : (i + 1) * len(others) // bins]
        if group:
            best = max(group, key=lambda entry: (structure(entry.spec).can_recall, -used.count(_kinds(entry)), _size(entry)))
            chosen.append(best)
            used.append(_kinds(best))
    pairs = itertools.zip_longest(baselines, chosen)
    return [entry for pair in pairs for entry in pair if entry is not None][:wanted]


def _kinds(entry: InnerDesign) -> frozenset[Any]:
    return frozenset(block.operator for block in entry.spec.layers)


def _size(entry: InnerDesign) -> int:
    spec = entry.spec
    return model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
