"""How long the chains are that a profile measures, of one block or of drawn ones, and all subjects that follow from it.

A block's price depends on how much the model around it walks through memory (`archsearch.walk`), so its long chain walks as much as a deep
model of the space, or so much that no cache holds a useful share of it.
"""

from __future__ import annotations

import math
import random

import numpy as np

from archsearch import mixing
from archsearch.cases import Subject, block_subject, head_subject
from archsearch.space import Space
from archsearch.workload import Workload
from operators.costs import block_costs, head_weights, weight_bytes
from operators.specs import BlockSpec, ModelDims, Precision

LONG_WALK_BYTES = 200e6
"""A longer chain costs memory and time. A byte's price still grows beyond the cache, here of 32 MB: chains of 63 MB took 4 % more a block
than those of 40, and fp32 models of 200 MB 7 % more than chains of 96 told."""
MOST_COPIES = 32
FEWEST_COPIES = 4
SHORT_COPIES = 2
PREFILL_COPIES = 2
CURVE_LENGTHS = 5
"""Lengths between the short and the long chain."""
MIXED_CHAINS = 6
FEWEST_LAYOUTS = 10 * MIXED_CHAINS
"""A space with fewer keeps them for calibration."""
MIXED_PREFILL_LAYERS = 4
"""Of a chain of drawn layers whose prefill is timed: arithmetic does not depend on how many there are."""


def walk_bytes(block: BlockSpec, dims: ModelDims, workload: Workload) -> float:
    """Bytes of weights, as they are stored, and caches that a decode step reads in a block."""
    costs = block_costs(block, dims)
    return float(costs.weight_bytes(workload.precision) + costs.state_bytes(batch=workload.batch, cache=workload.cache))


def long_copies(space: Space, block: BlockSpec, dims: ModelDims, precision: Precision) -> int:
    """Copies in a block's long chain: as much of a walk, at the least context, as the deepest model's with average layers."""
    decode = [workload for workload in space.workloads(precision) if workload.phase == "decode"]
    if not decode:
        return FEWEST_COPIES
    least = min(decode, key=lambda workload: workload.context)
    head = sum(weight_bytes(weight, precision) for weight in head_weights(dims, space.vocab_size, space.tie_embeddings))
    layer = float(np.mean([walk_bytes(other, dims, least) for other in space.blocks]))
    copies = math.ceil(min(LONG_WALK_BYTES, head + max(space.depths) * layer) / walk_bytes(block, dims, least))
    return min(MOST_COPIES, max(FEWEST_COPIES, copies))


def curve_copies(space: Space, dims: ModelDims, precision: Precision) -> tuple[int, ...]:
    """Lengths between the short and the long chain, of the block that tells how price and walk go together: the space's first."""
    longest = long_copies(space, space.measured_blocks[0], dims, precision)
    lengths = np.geomspace(SHORT_COPIES, longest, CURVE_LENGTHS + 2)[1:-1]
    return tuple(n for n in dict.fromkeys(round(length) for length in lengths) if SHORT_COPIES < n < longest)


def decode_chains(space: Space, dims: ModelDims, workload: Workload) -> tuple[Subject, ...]:
    """What is measured of every block at a decode workload, and of the first one at the least context."""
    blocks = space.measured_blocks
    chains = [
        block_subject(block, dims, n) for block in blocks for n in (SHORT_COPIES, long_copies(space, block, dims, workload.precision))
    ]
    if workload.context == min(space.decode):
        chains += [block_subject(blocks[0], dims, n) for n in curve_copies(space, dims, workload.precision)]
    return tuple(chains)


def mixed_chains(space: Space, dims: ModelDims, workload: Workload) -> tuple[Subject, ...]:
    """Chains of layers drawn as in models of the space, which tell what mixing costs; none where there are too few to learn from.

    As deep as models are, the deepest first, until they walk `LONG_WALK_BYTES`; every operator that has room stands in the first.
    """
    if space.size < FEWEST_LAYOUTS:
        return ()
    draw = random.Random(f"mixed {dims.hidden_size}")
    depths = sorted(space.depths, reverse=True)
    least = min((w for w in space.workloads(workload.precision) if w.phase == "decode"), key=lambda w: w.context, default=None)
    walks = {block: walk_bytes(block, dims, least) if least is not None else 0.0 for block in space.blocks}
    found: dict[tuple[BlockSpec, ...], Subject] = {}
    for n in range(20 * MIXED_CHAINS):
        if len(found) == MIXED_CHAINS:
            break
        depth = depths[n % len(depths)]
        operators = [space.operators[i % len(space.operators)] for i in range(depth)] if n == 0 else draw.choices(space.operators, k=depth)
        draw.shuffle(operators)
        layers = [BlockSpec(operator=operator, ffn=draw.choice(space.ffns)) for operator in operators]
        if workload.phase == "prefill":
            layers = layers[:MIXED_PREFILL_LAYERS]
        else:
            walked = np.cumsum([walks[layer] for layer in layers])
            layers = layers[: max(FEWEST_COPIES, int(np.searchsorted(walked, LONG_WALK_BYTES)) + 1)]
        if len(set(layers)) > 1:
            label = f"mixed {len(found) + 1}/{dims.hidden_size}"
            found.setdefault(tuple(layers), Subject(blocks=tuple(layers), dims=dims, label=label))
    return tuple(found.values()) if len(found) >= mixing.FEWEST else ()


def one_of_each(space: Space, dims: ModelDims) -> Subject | None:
    """Every measured block once: what prefill needs where layers differ, as buffers of other sizes leave gaps. None for a single block."""
    blocks = space.measured_blocks
    return Subject(blocks=blocks, dims=dims, label="one of each") if len(blocks) > 1 else None


def subjects(space: Space, precision: Precision) -> tuple[Subject, ...]:
    """Everything a space's cost table consists of: chains for decode, short chains for prefill and memory, embedding and head."""
    found: list[Subject] = []
    for dims in space.all_dims:
        for block in space.measured_blocks:
            copies = {1, PREFILL_COPIES, SHORT_COPIES, long_copies(space, block, dims, precision)}
            found += [block_subject(block, dims, n) for n in sorted(copies)]
        found += [block_subject(space.measured_blocks[0], dims, n) for n in curve_copies(space, dims, precision)]
        found.append(head_subject(dims, space.vocab_size, space.tie_embeddings))
        found += [subject for workload in space.workloads(precision) for subject in mixed_chains(space, dims, workload)]
        if space.decode and space.prefill and (mixed := one_of_each(space, dims)) is not None:
            found.append(mixed)
    return tuple({subject.subject_id: subject for subject in found}.values())
