"""Layouts that nobody tuned for, to hold predictions against."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from archsearch.chains import mixed_chains
from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec

STRUCTURED = ("alternating", "another every third", "in runs")


def held_out(space: Space, count: int, *, seed: int = 0) -> list[tuple[str, ArchSpec]]:
    """`count` different layouts as (kind, spec): the structured ones first, then random ones; operators, widths, depths mixed.

    None of them consists of a single block: that would be a reference chain; nor of the layers of a chain that the profile measured.
    """
    draw = random.Random(seed)
    measured = {
        (dims, chain.blocks) for workload in space.workloads() for dims in space.all_dims for chain in mixed_chains(space, dims, workload)
    }
    operators, ffns = space.operators, space.ffns
    found: dict[tuple[int, tuple[BlockSpec, ...]], tuple[str, ArchSpec]] = {}

    def add(kind: str, name: str, hidden_size: int, layers: Sequence[BlockSpec]) -> None:
        key = hidden_size, tuple(layers)
        is_chain = (len(set(layers)) == 1 < len(space.blocks)) or (space.dims(hidden_size), tuple(layers)) in measured
        if key not in found and len(found) < count and not is_chain:
            found[key] = kind, space.spec(layers, hidden_size=hidden_size, name=name)

    deepest, others = max(space.depths), operators[1:] or operators
    for i, name in enumerate(STRUCTURED):
        chosen = {
            "alternating": [operators[n % len(operators)] for n in range(deepest)],
            "another every third": [others[n // 3 % len(others)] if n % 3 == 2 else operators[0] for n in range(deepest)],
            "in runs": [operators[n * len(operators) // deepest] for n in range(deepest)],
        }[name]
        layers = [BlockSpec(operator=operator, ffn=ffns[(n // 2 + i) % len(ffns)]) for n, operator in enumerate(chosen)]
        add("structured", name, space.hidden_sizes[i % len(space.hidden_sizes)], layers)
    for _ in range(100 * count):
        depth, hidden_size = draw.choice(space.depths), draw.choice(space.hidden_sizes)
        add("random", f"random {len(found) + 1}", hidden_size, [draw.choice(space.blocks) for _ in range(depth)])
    return list(found.values())


def held_out_contexts(space: Space) -> tuple[int, ...]:
    """One context between each two measured ones, at their geometric mean: predictions there are interpolated."""
    ordered = sorted(context for context in space.decode if context > 0)
    return tuple(round(math.sqrt(a * b)) for a, b in itertools.pairwise(ordered) if b > a + 1)
