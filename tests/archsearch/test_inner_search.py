"""The inner search and its proofs, against brute force on spaces small enough to list every layout."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_fakes import DECODE, MEMORY, METRICS, AnalyticTable, as_table, space_of

from archsearch.budgets import Budget, parse_budget
from archsearch.search.certificate import additive, certify
from archsearch.search.feasible import CostModel
from archsearch.search.inner import InnerSearch
from archsearch.search.layouts import Codec, Layouts
from archsearch.search.moves import WEIGHTS, Moves
from archsearch.search.table import CostArrays
from archsearch.space import Space

SMALL = space_of(layers=[3, 5])
WIDE = Space.from_dict(
    {
        "model": {"hidden_size": [256, 192], "vocab_size": 1000, "layers": [6, 4, 9]},
        "operators": [{"kind": "short_conv", "kernel_size": [3, 7]}, {"kind": "gqa", "heads": 4, "kv_heads": [1, 2], "head_dim": 64}],
        "ffn": {"intermediate_size": [768, 512, 640]},
        "workloads": {"prefill": [512], "decode": [4096]},
    }
)


def arrays_of(space: Space, *budgets: str) -> CostArrays:
    model = CostModel(space, as_table(AnalyticTable()), METRICS, tuple(parse_budget(budget) for budget in budgets))
    return CostArrays(model, METRICS)


def everything(space: Space) -> Layouts:
    """Every layout of a space."""
    codec = Codec(space)
    rows = [
        (hidden, [*layers, *[codec.blocks] * (codec.deepest - depth)])
        for hidden, depth in itertools.product(range(len(space.hidden_sizes)), space.depths)
        for layers in itertools.product(range(codec.blocks), repeat=depth)
    ]
    return Layouts(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))


def bumpy(layouts: Layouts) -> np.ndarray:
    """A quality in which order matters, and neighbouring layouts differ much."""
    place = np.arange(layouts.codes.shape[1]) + 1
    return np.asarray(np.sin(layouts.codes * place * 0.7).sum(axis=1) + 0.3 * layouts.hidden)


def test_architectures_come_back_from_integers() -> None:
    codec = Codec(WIDE)
    layouts = codec.random(200, np.random.default_rng(0))
    again = codec.encode(codec.decode(layouts))
    assert codec.keys(again) == codec.keys(layouts)
    other = space_of(layers=5)
    with pytest.raises(ValueError, match="not in this space"):
        codec.encode([other.spec([other.blocks[0]] * 5)])


def test_costs_of_many_are_the_costs_of_each() -> None:
    arrays = arrays_of(WIDE, "decode_ms@4096<=30", "parameters>=4M")
    layouts = arrays.codec.random(100, np.random.default_rng(1))
    found = arrays.evaluate(layouts)
    for i, spec in enumerate(arrays.codec.decode(layouts)):
        costs = arrays.model.costs(spec)
        assert [costs.values[str(metric)] for metric in arrays.metrics] == pytest.approx(list(found.values[i]), rel=1e-12)
        assert list(costs.excess.values()) == pytest.approx(list(found.excess[i]))
        assert costs.feasible == found.feasible[i]
        assert costs.violation == pytest.approx(found.violation[i])
    low, high = arrays.span(DECODE)
    assert low <= found.values[:, 0].min() <= found.values[:, 0].max() <= high


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_move_gives_layouts_of_the_space(name: str) -> None:
    codec = Codec(WIDE)
    moves = Moves(codec, np.random.default_rng(2))
    layouts, mates = codec.random(300, moves.rng), codec.random(300, moves.rng)
    before = codec.keys(layouts)
    after = getattr(moves, f"_{name}")(Layouts(layouts.hidden.copy(), layouts.codes.copy()), mates)
    assert codec.keys(codec.encode(codec.decode(after))) == codec.keys(after)  # layers first, then none
    assert sum(a != b for a, b in zip(before, codec.keys(after), strict=True)) > 50
    assert codec.keys(layouts) == before  # the parents stay as they are


def test_another_depth_keeps_the_pattern() -> None:
    codec, moves = Codec(WIDE), Moves(Codec(WIDE), np.random.default_rng(0))
    one = Layouts(np.array([0]), np.array([[1, 1, 7, 1, 1, 7, codec.blocks, codec.blocks, codec.blocks]]))
    longer = moves._stretched(one, np.array([9]), np.array([0.5]))[0]
    assert list(longer) == [1, 1, 1, 7, 1, 1, 1, 7, 7]
    assert list(moves._stretched(one, np.array([6]), np.array([0.3]))[0]) == list(one.codes[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_front_of_a_small_space_is_found(seed: int) -> None:
    """With more cells than distinct latencies, the front is the one of all layouts."""
    arrays = arrays_of(SMALL, "decode_ms@4096<=30", "memory_mb@4096<=28")
    every = everything(SMALL)
    found = arrays.evaluate(every)
    kept = found.feasible
    assert 0.1 < kept.mean() < 0.9
    latency, quality = found.values[kept, arrays.metrics.index(DECODE)], bumpy(every)[kept]
    true = {(t, q) for t, q in zip(latency, quality, strict=True) if not ((latency <= t) & (quality > q)).any()}
    best_at = {round(t, 9): max(q for u, q in true if u == t) for t, _ in true}
    front = InnerSearch(arrays, bumpy, latency=DECODE, cells=5000, seed=seed).run(evaluations=20_000)
    assert {round(t, 9): q for t, q in zip(front.latency, front.quality, strict=True)} == pytest.approx(best_at)


def test_niches_have_fronts_of_their_own() -> None:
    arrays = arrays_of(SMALL)

    def niche(layouts: Layouts) -> np.ndarray:
        return np.asarray((layouts.codes // 2 == 1).any(axis=1) * 1)  # any gqa

    search = InnerSearch(arrays, bumpy, latency=DECODE, niche=niche, niches=2, cells=50, seed=0)
    front = search.run(evaluations=4000)
    assert set(front.niche) == {0, 1}
    assert list(niche(front.layouts)) == list(front.niche)
    assert list(front.latency) == sorted(front.latency)
    for n in (0, 1):
        assert (np.diff(front.quality[front.niche == n]) > 0).all()


def test_budgets_that_random_layouts_never_keep() -> None:
    """One layout in two thousand is inside; the search walks there by how far it is from the budgets."""
    space = space_of(layers=10)
    free = arrays_of(space)
    sample = free.values(free.codec.random(4000, np.random.default_rng(5)))
    limits = [np.quantile(sample[:, free.metrics.index(metric)], 0.002) for metric in (DECODE, MEMORY)]
    arrays = arrays_of(space, f"decode_ms@4096<={limits[0]}", f"memory_mb@4096<={limits[1]}", f"parameters>={0.9e6}")
    search = InnerSearch(arrays, bumpy, latency=DECODE, seed=0)
    front = search.run(evaluations=20_000)
    assert len(front)
    assert arrays.evaluate(front.layouts).feasible.all()


def test_equal_seeds_find_equal_fronts() -> None:
    arrays = arrays_of(WIDE, "decode_ms@4096<=30")
    a, b = (InnerSearch(arrays, bumpy, latency=DECODE, seed=4).run(evaluations=3000) for _ in range(2))
    assert arrays.codec.keys(a.layouts) == arrays.codec.keys(b.layouts)
    with pytest.raises(ValueError, match="evaluations or cpu_seconds"):
        InnerSearch(arrays, bumpy, latency=DECODE).run()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.2, 0.9))
def test_the_certificate_is_the_optimum_of_all_layouts(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    worth, shape = rng.normal(size=(1, 4)), rng.normal(size=(1, 2))
    free = arrays_of(SMALL)
    every = everything(SMALL)
    limit = float(np.quantile(free.values(every)[:, free.metrics.index(MEMORY)], share))
    arrays = arrays_of(SMALL, f"memory_mb@4096<={limit!r}")
    quality: Any = additive(worth, shape, SMALL.depths)
    front = InnerSearch(arrays, quality, latency=DECODE, cells=1000, seed=0).run(evaluations=5000)
    found = arrays.evaluate(every)
    latency, kept = found.values[:, arrays.metrics.index(DECODE)], found.feasible
    certificate = certify(arrays.model, front, latency=Budget(DECODE, 1.0), worth=worth, shape_worth=shape, points=5)
    for point in certificate.points:
        true = quality(every)[kept & (latency <= point.latency * (1 + 1e-9))].max()
        assert point.bound == pytest.approx(true, abs=1e-6)
        assert point.found <= point.bound + 1e-6
    assert certificate.gaps.max() == pytest.approx(0.0, abs=1e-6)  # so small a space is searched through


def test_a_certificate_tells_what_is_missing() -> None:
    """A front with its best layouts taken out has a gap, and the bound stays."""
    arrays = arrays_of(SMALL)
    worth = np.array([[0.1, 0.3, 0.5, 1.0]])
    quality: Any = additive(worth, None, SMALL.depths)
    search = InnerSearch(arrays, quality, latency=DECODE, cells=1000, seed=0)
    whole = search.run(evaluations=5000)
    worse = type(whole)(whole.layouts, whole.latency, whole.quality - np.linspace(0, 0.5, len(whole)), whole.niche)
    good = certify(arrays.model, whole, latency=Budget(DECODE, 1.0), worth=worth).to_dict()
    bad = certify(arrays.model, worse, latency=Budget(DECODE, 1.0), worth=worth).to_dict()
    assert good["worst_gap"] == pytest.approx(0, abs=1e-6)
    assert bad["worst_gap"] > 0.05
    assert [point["bound"] for point in bad["points"]] == pytest.approx([point["bound"] for point in good["points"]])
