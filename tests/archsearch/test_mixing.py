"""What mixing costs, against chains whose growth, scales and noise are known; and a device on which mixing costs something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archsearch.budgets import Metric
from archsearch.chains import FEWEST_COPIES, LONG_WALK_BYTES, MIXED_CHAINS, mixed_chains, walk_bytes
from archsearch.held_out import held_out
from archsearch.mixing import FEWEST, MixedChain, Mixing, between, fit_mixing
from archsearch.predict import CostTable
from archsearch.profile import profile
from archsearch.space import Space
from archsearch.store import Store
from archsearch.workload import Workload
from devices.plan import Case
from tests.archsearch.fake_device import FakeDevice
from tests.archsearch.spaces import small
from tests.archsearch.test_calibrate import law

GROWTH = 8e-10
SCALES = {"conv": 1.02, "gqa": 0.99}
NEAR, FAR = (Workload(phase="decode", tokens=1, context=context, precision="fp32") for context in (32, 64))


def chains(count: int, *, growth: float = GROWTH, cold: float = 0.4, noise: float = 0.0, seed: int = 0) -> list[MixedChain]:
    """Of two operators in any proportion, of walks of 20 to 70 MB."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        share, walk = draw.uniform(0.2, 0.8), draw.uniform(20e6, 70e6)
        shares = {"conv": share, "gqa": 1 - share}
        ratio = 1 + growth * walk * cold + sum(part * (SCALES[name] - 1) for name, part in shares.items())
        found.append(MixedChain(ratio=ratio * (1 + noise * draw.standard_normal()), shares=shares, cold=cold, walk_bytes=walk))
    return found


def off(found: Mixing, chain: MixedChain) -> float:
    """By how much what was fitted is off for a chain, relative."""
    told = 1 + found.growth_per_byte * chain.walk_bytes * chain.cold
    return told + sum(share * (found.scale(name) - 1) for name, share in chain.shares.items()) - chain.ratio


def test_what_mixing_costs_is_found_out() -> None:
    found = fit_mixing(chains(8))
    assert max(abs(off(found, chain)) for chain in chains(20, seed=1)) < 0.006
    assert 0 < found.reach < 0.02
    assert found.growth_per_byte == pytest.approx(GROWTH, rel=0.5)


def test_parts_that_add_up_are_left_alone() -> None:
    plain = [MixedChain(ratio=1.0, shares=chain.shares, cold=chain.cold, walk_bytes=chain.walk_bytes) for chain in chains(6)]
    found = fit_mixing(plain)
    assert (found.growth_per_byte, found.reach) == pytest.approx((0, 0))
    assert found.scales == pytest.approx({"conv": 1, "gqa": 1})


def test_too_few_chains_teach_nothing() -> None:
    assert fit_mixing(chains(FEWEST - 1)) == Mixing()
    assert Mixing().scale("conv") == 1


def test_where_nothing_is_cold_all_have_a_factor_in_common() -> None:
    found = fit_mixing([MixedChain(ratio=1.03, shares=chain.shares, cold=0.0, walk_bytes=0.0) for chain in chains(6)])
    assert found.growth_per_byte == 0
    assert found.scales == pytest.approx({"conv": 1.03, "gqa": 1.03}, abs=2e-3)


def test_a_byte_never_gets_cheaper_the_more_of_them_there_are() -> None:
    """The search relies on it; chains that take less than their parts are put down to the parts."""
    known = chains(8, growth=-GROWTH)
    found = fit_mixing(known)
    assert found.growth_per_byte == 0
    assert np.mean([off(found, chain) for chain in known]) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_the_reach_covers_as_often_as_it_claims(noise: float) -> None:
    held = []
    for seed in range(150):
        found = fit_mixing(chains(MIXED_CHAINS, noise=noise, seed=seed))
        held += [abs(off(found, chain)) <= found.reach for chain in chains(4, noise=noise, seed=1000 + seed)]
    assert 0.86 < np.mean(held) < 0.98


def test_between_two_contexts() -> None:
    low, high = (
        Mixing(growth_per_byte=1e-9, scales={"a": 1.0}, reach=0.01),
        Mixing(growth_per_byte=3e-9, scales={"a": 1.1, "b": 1.2}, reach=0.02),
    )
    middle = between(low, high, 0.5)
    assert (middle.growth_per_byte, middle.scale("a"), middle.scale("b"), middle.reach) == pytest.approx((2e-9, 1.05, 1.1, 0.02))


# -- the chains ----------------------------------------------------------------------------------------------------------


def space(**model: object) -> Space:
    changes: dict[str, object] = {"name": "s", "hidden_size": 64, "vocab_size": 512, "layers": [3, 5]}
    return Space.from_dict(small(model=changes | model, ffn={"intermediate_size": [64, 96]}))


def test_drawn_chains_are_like_models_and_hold_every_operator() -> None:
    deep = space()
    found = mixed_chains(deep, deep.all_dims[0], NEAR)
    assert len(found) == len({chain.subject_id for chain in found}) == MIXED_CHAINS
    assert {len(chain.blocks) for chain in found} == {3, 5}
    assert {block.operator for block in found[0].blocks} == set(deep.operators)
    assert {block.ffn for chain in found for block in chain.blocks} == set(deep.ffns)
    assert found == mixed_chains(deep, deep.all_dims[0], FAR), "alike at every context"
    kept = {chain.blocks for chain in found}
    assert not any(spec.layers in kept for _, spec in held_out(deep, 60)), "none is held out"


def test_drawn_chains_are_no_longer_than_other_chains() -> None:
    large = space(hidden_size=2048, layers=[24, 32])
    for chain in mixed_chains(large, large.all_dims[0], NEAR):
        walks = [walk_bytes(block, chain.dims, NEAR) for block in chain.blocks]
        assert len(walks) == FEWEST_COPIES or sum(walks[:-1]) < LONG_WALK_BYTES


def test_layers_that_are_all_alike_are_not_mixed() -> None:
    alike = Space.from_dict(small(operators=[{"kind": "short_conv", "kernel_size": 3}]))
    assert mixed_chains(alike, alike.all_dims[0], NEAR) == ()


# -- a device on which mixing costs --------------------------------------------------------------------------------------


class Mixed(FakeDevice):
    """A law of sums, but among others a layer takes `more` of its 50 µs in addition."""

    def __init__(self, more: float) -> None:
        super().__init__(lambda case: mixed_law(case, more))


def mixed_law(case: Case, more: float) -> int:
    kinds: dict[str, set[str]] = {}
    for state in case.states:
        kinds.setdefault(state.input.split(".")[1], set()).add(state.input.split(".")[-1])
    mixed = len({frozenset(kind) for kind in kinds.values()}) > 1
    return round(law(case) + more * 50_000 * len(kinds) * mixed)


@pytest.mark.parametrize("more", [0.0, 0.05])
def test_models_of_different_layers_are_predicted_with_what_mixing_costs(tmp_path: Path, more: float) -> None:
    known = space()
    list(profile(known, tmp_path, Mixed(more)))
    with Store(tmp_path / "measurements.db") as store:
        table = CostTable.load(store)
    for _, spec in held_out(known, 8):
        if len({layer.operator for layer in spec.layers}) < 2:
            continue
        for workload in (NEAR, FAR):
            truth = _true(spec, workload, more, tmp_path)
            found = table.latency(spec, workload)
            assert found.value == pytest.approx(truth, rel=0.012)
            assert found.low <= truth * 1.012
            assert found.high >= truth * 0.988
    for workload in table.workloads():
        mixing = table.chains.mixing(workload)
        if not more:
            assert mixing.growth_per_byte == pytest.approx(0, abs=1e-12)
            assert list(mixing.scales.values()) == pytest.approx([1, 1], abs=1e-3)


def test_the_search_s_shortcut_knows_what_mixing_costs(tmp_path: Path) -> None:
    known = space()
    list(profile(known, tmp_path, Mixed(0.05)))
    with Store(tmp_path / "measurements.db") as store:
        table = CostTable.load(store)
    for _, spec in held_out(known, 5):
        for metric in (*table.metrics(), Metric("decode_ms", 45)):
            assert table.point(spec, spec.block_counts(), metric) == pytest.approx(table.cost(spec, metric).value)


def _true(spec, workload: Workload, more: float, run_dir: Path) -> float:  # type: ignore[no-untyped-def]
    """Milliseconds that the device takes for a whole model."""
    from archsearch.cases import make_case, model_subject, write_subject
    from operators.graph import read_info

    path = write_subject(model_subject(spec), run_dir / "true", precision=workload.precision, max_context=128)
    case = make_case("true", path, read_info(path), workload)
    return mixed_law(case, more) / 1e6
