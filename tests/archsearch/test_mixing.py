"""What mixing costs, against chains whose growth, scales and noise are known; and a device on which mixing costs something."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archsearch.budgets import Metric
from archsearch.chains import FEWEST_COPIES, LONG_WALK_BYTES, MIXED_CHAINS, mixed_chains, walk_bytes
from archsearch.held_out import held_out
from archsearch.mixing import FEWEST, MixedChain, Mixing, between, fit_mixing
from archsearch.predict import CostTable
from archsearch.profile import profile
from archsearch.search.devices import viewed
from archsearch.space import Space
from archsearch.spec import ArchSpec
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


def test_layers_that_are_all_alike_are_not_mixed_and_small_spaces_keep_their_layouts() -> None:
    alike = Space.from_dict(small(operators=[{"kind": "short_conv", "kernel_size": 3}]))
    assert mixed_chains(alike, alike.all_dims[0], NEAR) == ()
    eight = Space.from_dict(small(model={"name": "s", "hidden_size": 64, "vocab_size": 512, "layers": 3}))
    assert mixed_chains(eight, eight.all_dims[0], NEAR) == ()
    assert len(held_out(eight, 12)) == 6, "all but those of a single block"


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
    mixed = [spec for _, spec in held_out(known, 12) if len({layer.operator for layer in spec.layers}) > 1]
    assert len(mixed) > 6
    held = []
    for spec, workload in itertools.product(mixed, (NEAR, FAR)):
        truth = _true(spec, workload, more, tmp_path)
        found = table.latency(spec, workload)
        assert found.value == pytest.approx(truth, rel=0.012)
        held.append(found.low <= truth * 1.0005 and truth <= found.high * 1.0005)
    assert np.mean(held) > 0.8
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


def test_where_too_few_chains_could_be_measured_another_context_s_hold(tmp_path: Path) -> None:
    known = space()
    list(profile(known, tmp_path / "whole", Mixed(0.05)))
    with Store(tmp_path / "whole" / "measurements.db") as store:
        whole, rows = CostTable.load(store), store.rows()
    broken = frozenset([row.key for row in rows if row.mixed and row.purpose == "latency" and row.workload == FAR][:3])
    list(profile(known, tmp_path / "part", FakeDevice(lambda case: mixed_law(case, 0.05), broken=broken)))
    with Store(tmp_path / "part" / "measurements.db") as store:
        table = CostTable.load(store)
    assert len(broken) == 3
    assert table.chains.mixing(FAR) == table.chains.mixing(NEAR) == whole.chains.mixing(NEAR)


def test_a_tail_takes_what_mixing_costs_from_the_state_at_rest(tmp_path: Path) -> None:
    list(profile(space(), tmp_path, Mixed(0.05)))
    with Store(tmp_path / "measurements.db") as store:
        table = CostTable.load(store)
    assert viewed(table, "p95").chains.mixing(FAR) == table.chains.mixing(FAR) != Mixing()


class Dearer(FakeDevice):
    """50 µs a layer, and 0.2 ns for each byte that a cache of 400 kB misses; among others a price that grows with the walk."""

    def __init__(self) -> None:
        super().__init__(self.time)

    @staticmethod
    def time(case: Case) -> int:
        kinds = {name.split(".")[1]: name.split(".")[-1] for name in (state.input for state in case.states)}
        walk = sum(file.stat().st_size for file in case.model.parent.glob("model.onnx*"))
        decode = all(feed.shape[1] == 1 for feed in case.feeds if feed.name in ("input_ids", "hidden"))
        missed = decode / (1 + (400_000 / walk) ** 3)
        growth = 1 + 2e-7 * walk if len(set(kinds.values())) > 1 else 1
        vocabulary = any(feed.name == "input_ids" for feed in case.feeds)
        return round(50_000 * (len(kinds) + vocabulary) + 0.2 * walk * missed * growth)


def test_a_price_that_grows_with_the_walk_is_found_and_ends_where_measuring_did(tmp_path: Path) -> None:
    known = space(layers=[4, 8])
    list(profile(known, tmp_path, Dearer()))
    with Store(tmp_path / "measurements.db") as store:
        table = CostTable.load(store)
    law = table.chains.law(NEAR)
    assert law is not None
    assert law.growth_per_byte > 0
    assert np.isfinite(law.grown_bytes)
    longest = law.grown_bytes
    assert law.missed(10 * longest) <= 1 + law.growth_per_byte * longest
    assert float(law.missed(law.walk_at(0.5))) == pytest.approx(0.5)
    for _, spec in held_out(known, 8):
        found = table.latency(spec, NEAR)
        assert found.value == pytest.approx(_measured(Dearer.time, spec, NEAR, tmp_path), rel=0.05)
        assert table.point(spec, spec.block_counts(), Metric("decode_ms", 32)) == pytest.approx(found.value)


def _true(spec: ArchSpec, workload: Workload, more: float, run_dir: Path) -> float:
    return _measured(lambda case: mixed_law(case, more), spec, workload, run_dir)


def _measured(law_ns: Callable[[Case], int], spec: ArchSpec, workload: Workload, run_dir: Path) -> float:
    """Milliseconds that the device takes for a whole model."""
    from archsearch.cases import make_case, model_subject, write_subject
    from operators.graph import read_info

    path = write_subject(model_subject(spec), run_dir / "true", precision=workload.precision, max_context=128)
    case = make_case("true", path, read_info(path), workload)
    return law_ns(case) / 1e6
