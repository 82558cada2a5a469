"""How long chains are: as long as a deep model's walk, or as any cache is certain to miss."""

from __future__ import annotations

import pytest

from archsearch.chains import (
    FEWEST_COPIES,
    LONG_WALK_BYTES,
    MOST_COPIES,
    SHORT_COPIES,
    curve_copies,
    decode_chains,
    long_copies,
    subjects,
    walk_bytes,
)
from archsearch.space import Space
from operators.costs import head_weights, weight_bytes
from tests.archsearch.spaces import small


def space(**model: object) -> Space:
    return Space.from_dict(small(model={"name": "s", "hidden_size": 64, "vocab_size": 512, "layers": 2} | model))


def walks(space: Space, precision: str) -> list[float]:
    """Bytes that the long chains walk at the least context."""
    dims, first = space.all_dims[0], next(w for w in space.workloads(precision) if w.phase == "decode")
    return [long_copies(space, block, dims, precision) * walk_bytes(block, dims, first) for block in space.measured_blocks]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_long_chain_walks_as_much_as_the_deepest_model_of_average_layers(precision: str) -> None:
    deep = space(layers=[2, 12])
    dims, least = deep.all_dims[0], next(w for w in deep.workloads(precision) if w.context == 32)
    layers = [walk_bytes(block, dims, least) for block in deep.blocks]
    model = 12 * sum(layers) / len(layers)
    head = sum(weight_bytes(weight, precision) for weight in head_weights(dims, 512, True))
    assert all(model + head <= walk < model + head + max(layers) for walk in walks(deep, precision))
    assert all(FEWEST_COPIES < long_copies(deep, block, dims, precision) < MOST_COPIES for block in deep.blocks)


def test_large_blocks_need_few_copies_and_small_ones_do_not_get_more_than_fit() -> None:
    large, many = space(hidden_size=2048, layers=16), space(hidden_size=64, layers=100)
    assert long_copies(large, large.blocks[0], large.all_dims[0], "fp32") == FEWEST_COPIES
    assert walks(large, "fp32")[0] >= LONG_WALK_BYTES
    assert {long_copies(many, block, many.all_dims[0], "fp32") for block in many.blocks} == {MOST_COPIES}


def test_the_curve_lies_between_and_only_at_the_least_context() -> None:
    deep = space(layers=12)
    dims, longest = deep.all_dims[0], long_copies(deep, deep.blocks[0], deep.all_dims[0], "fp32")
    curve = curve_copies(deep, dims, "fp32")
    assert len(curve) >= 4
    assert list(curve) == sorted(set(curve))
    assert SHORT_COPIES < curve[0] < curve[-1] < longest
    near, far = (w for w in deep.workloads("fp32") if w.phase == "decode")
    lengths = [[s.copies for s in decode_chains(deep, dims, w) if s.blocks[0] == deep.blocks[0]] for w in (near, far)]
    assert sorted(lengths[0]) == [SHORT_COPIES, *curve, longest]
    assert sorted(lengths[1]) == [SHORT_COPIES, longest]


def test_every_measured_chain_is_among_the_subjects() -> None:
    deep = space(layers=12)
    written = {subject.subject_id for subject in subjects(deep, "int4")}
    for workload in deep.workloads("int4"):
        if workload.phase == "decode":
            assert {subject.subject_id for subject in decode_chains(deep, deep.all_dims[0], workload)} <= written
    assert len(written) == len(subjects(deep, "int4")), "none is written twice"


def test_a_space_without_decoding_has_short_chains() -> None:
    prompts = Space.from_dict(small(workloads={"prefill": [16], "decode": []}))
    assert {long_copies(prompts, block, prompts.all_dims[0], "fp32") for block in prompts.blocks} == {FEWEST_COPIES}
