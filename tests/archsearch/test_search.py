"""The search against problems whose answer is known: a small space, costs that add up, and a quality that is a formula."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_fakes import DECODE, METRICS, AnalyticTable, WalkingTable, as_table, space_of
from search_harness import brute_force_front, objectives, reachable, search, searcher_of, trials_of

from archsearch.budgets import Budget, Metric, parse_metric
from archsearch.errors import RunError
from archsearch.search import DesignSpace, study, write_results
from archsearch.search.designs import PLACEMENTS, positions, spread
from archsearch.search.feasible import CostModel
from archsearch.search.programme import Programme
from archsearch.search.result import TEXT_TIE, choose
from archsearch.search.table import CostArrays
from archsearch.spec import ArchSpec

TrialState = optuna.trial.TrialState


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "INNER_SAMPLES", 800)


# -- designs ------------------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 40), share=st.floats(0, 1), placement=st.sampled_from(PLACEMENTS))
def test_positions_are_distinct_and_inside(length: int, share: float, placement: Any) -> None:
    count = int(share * length)
    found = positions(length, count, placement)
    assert len(set(found)) == len(found) == count
    assert all(0 <= position < length for position in found)


def test_placements() -> None:
    assert positions(8, 2, "early") == [0, 1]
    assert positions(8, 2, "late") == [6, 7]
    assert positions(8, 2, "middle") == [3, 4]
    assert positions(8, 2, "spread") == [2, 6]


@given(counts=st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any))
def test_spread_keeps_the_counts(counts: list[int]) -> None:
    blocks = space_of().blocks
    wanted = {block: n for block, n in zip(blocks, counts, strict=True) if n}
    assert Counter(spread(wanted)) == wanted


def test_the_nearest_design_of_a_design_s_own_layout_has_its_counts() -> None:
    designs = DesignSpace(space_of(layers=[6, 8]))
    for spec in reachable(space_of(layers=[6])).values():
        again = designs.spec(designs.nearest(spec))
        assert Counter(b.operator for b in again.layers) == Counter(b.operator for b in spec.layers)


def test_baselines_are_what_anyone_would_ask_about() -> None:
    designs = DesignSpace(space_of(layers=16))
    first: dict[str, ArchSpec] = {}
    for label, design in designs.baselines():
        first.setdefault(label, designs.spec(design))
    assert set(first) == {"all short_conv", "all gqa", "LFM2's pattern"}
    assert [block.operator.kind for block in first["all gqa"].layers] == ["gqa"] * 16
    assert Counter(block.operator.kind for block in first["LFM2's pattern"].layers) == {"short_conv": 10, "gqa": 6}


# -- budgets ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AnalyticTable, WalkingTable])
@settings(max_examples=40, deadline=None)
@given(tightness=st.tuples(*[st.floats(0.3, 1.3)] * 3))
def test_the_nearest_layout_is_the_best_of_all(kind: type[AnalyticTable], tightness: tuple[float, ...]) -> None:
    """Against every multiset of blocks: integer programming finds the least violation, and a layout that keeps all if one does."""
    space = space_of(layers=4)
    table = as_table(kind())
    middle = CostModel(space, table, AnalyticTable().metrics(), ()).costs(space.spec([space.blocks[0], space.blocks[3]] * 2)).values
    limits = {"decode_ms@4096": 0, "memory_mb@4096": 1, "parameters": 2}
    budgets = [Budget(parse_metric(name), middle[name] * tightness[i]) for name, i in limits.items()]
    model = CostModel(space, table, AnalyticTable().metrics(), budgets)
    everything = [model.costs(space.spec(layers)) for layers in itertools.combinations_with_replacement(space.blocks, 4)]
    least = min(costs.violation for costs in everything)
    spec, costs = model.nearest()
    assert costs == model.costs(spec)
    assert costs.violation == pytest.approx(least, abs=1e-6)
    assert costs.feasible == any(other.feasible for other in everything)
    favourite = Programme(model).favourite({block: 1.0 for block in space.blocks if block.operator.kind == "gqa"})
    assert (favourite is not None) == costs.feasible
    if favourite is not None:
        assert model.costs(favourite).feasible


@pytest.mark.parametrize("kind", [AnalyticTable, WalkingTable])
def test_arrays_and_sums_give_the_same_costs_within_the_span(kind: type[AnalyticTable]) -> None:
    space = space_of(layers=[3, 4])
    model = CostModel(space, as_table(kind()), METRICS, ())
    arrays = CostArrays(model, METRICS)
    specs = [space.spec(layers) for n in (3, 4) for layers in itertools.combinations_with_replacement(space.blocks, n)]
    values = arrays.values(arrays.codec.encode(specs))
    low, high = arrays.span(DECODE)
    for spec, row in zip(specs, values, strict=True):
        expected = model.costs(spec).values
        assert row == pytest.approx([expected[str(metric)] for metric in arrays.metrics])
        assert low <= expected[str(DECODE)] * (1 + 1e-9)
        assert high >= expected[str(DECODE)] * (1 - 1e-9)


def test_no_trained_layout_misses_a_budget(tmp_path: Path) -> None:
    space = space_of(layers=[4, 6])
    open_searcher = searcher_of(tmp_path / "open", space)
    values = sorted(open_searcher.costs(spec).values[str(DECODE)] for spec in reachable(space).values())
    limit = values[len(values) // 3]
    (tmp_path / "run").mkdir()
    searcher = searcher_of(tmp_path / "run", space, [f"decode_ms@4096<={limit}", "parameters<=3.1M"], trials=12)
    result, events = search(searcher)
    trials = trials_of(searcher)
    assert result.feasible
    refused = [trial for trial in trials if trial.state == TrialState.PRUNED and not trial.user_attrs["reason"].startswith("the same")]
    for trial in trials:
        kept = all(value <= 0 for value in trial.constraints.values())
        if trial.state == TrialState.COMPLETE:
            assert kept
            assert trial.user_attrs["costs"]["decode_ms@4096"] <= limit
            assert trial.user_attrs["costs"]["parameters"] <= 3.1e6
    for trial in refused:
        assert " > " in trial.user_attrs["reason"]  # the constraint, by name and value
        assert any(value > 0 for value in trial.constraints.values())
        assert trial.values is None
    trained = {json.loads(line) for line in (tmp_path / "run" / "trained").read_text().splitlines()}
    assert len(trained) == 12
    assert not trained & {ArchSpec.from_dict(json.loads(trial.user_attrs["spec"])).spec_id for trial in refused}
    assert sum(event.outcome.startswith("over budget") for event in events) == len(refused)
    assert events[-1].trained == 12


def test_impossible_budgets_train_nothing_and_say_what_is_reachable(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=4), ["decode_ms@4096<=0.6", "parameters<=400M"])
    result, events = search(searcher)
    assert events == []
    assert not (tmp_path / "trained").exists()
    assert not (tmp_path / "study.db").exists()
    document = result.to_dict()
    assert set(document) == {"feasible", "front", "best", "unreachable", "proposed", "given_up"}
    assert (document["feasible"], document["front"], document["best"]) == (False, [], None)
    cheapest = min(searcher.costs(spec).values["decode_ms@4096"] for spec in reachable(space_of(layers=4)).values())
    assert document["unreachable"]["decode_ms@4096"]["limit"] == 0.6
    assert document["unreachable"]["decode_ms@4096"]["best_reachable"] == pytest.approx(cheapest)
    assert document["unreachable"]["parameters"]["best_reachable"] < 4e8
    assert result.nearest is not None
    json.dumps(document, allow_nan=False)
    with pytest.raises(RunError):
        write_results(result, searcher)


class Opposed(AnalyticTable):
    """Convolutions are fast and heavy, attention slow and light: each budget can be kept, both cannot."""

    def additive(self, block: Any, dims: Any, metric: Metric) -> float:
        cheap = (block.operator.kind == "short_conv") == (metric.kind == "decode_ms")
        return 1.0 if cheap else 10.0


def test_budgets_that_are_possible_alone_but_not_together(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=4), ["decode_ms@4096<=10", "memory_mb@4096<=10"], table=Opposed())
    result, _ = search(searcher)
    assert not result.feasible
    for entry in result.unreachable.values():
        assert entry["best_reachable"] == pytest.approx(4.5)
        assert entry["best_reachable"] < entry["limit"]
    # Two of each: 22.5 of 10 twice; any other split is as far away in sum, so the sum is what is checked.
    assert sum(entry["nearest_layout"] / entry["limit"] - 1 for entry in result.unreachable.values()) == pytest.approx(2.5)


def test_a_feasible_corner_that_random_designs_never_meet_is_found(tmp_path: Path) -> None:
    """Eight layers of at least two kinds in an order of magnitudes that only one count satisfies."""
    space = space_of(layers=24, ffn=[256, 512, 768, 1024])
    model = searcher_of(tmp_path, space)
    target = space.spec([space.blocks[0]] * 13 + [space.blocks[3]] * 11)
    values = model.costs(target).values
    budgets = [f"{name}<={values[name] * 1.0001}" for name in ("decode_ms@4096", "parameters")]
    result, _ = search(searcher_of(tmp_path, space, budgets, trials=3))
    assert result.feasible
    assert result.best is not None
    assert result.best.costs.feasible


def test_a_budget_that_equals_a_cost_is_kept(tmp_path: Path) -> None:
    space = space_of(layers=3, ffn=[512])
    value = searcher_of(tmp_path, space).costs(space.spec([space.blocks[0]] * 3)).values["decode_ms@4096"]
    result, _ = search(searcher_of(tmp_path, space, [f"decode_ms@4096<={value!r}"], trials=2))
    assert result.feasible
    assert [point.costs.values["decode_ms@4096"] for point in result.front] == pytest.approx([value])


# -- what is found ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.6], ids=["open", "budget"])
def test_the_front_is_the_true_one(tmp_path: Path, share: float) -> None:
    """With trials for all: it ends when no feasible layout is left, and its front is that of brute force."""
    space = space_of(layers=3)
    specs = reachable(space)
    values = sorted(searcher_of(tmp_path, space).costs(spec).values["parameters"] for spec in specs.values())
    searcher = searcher_of(tmp_path, space, [f"parameters<={values[int(share * (len(values) - 1))]}"], trials=1000)
    result, _ = search(searcher)
    trained = {json.loads(line) for line in (tmp_path / "trained").read_text().splitlines()}
    feasible = {spec_id for spec_id, spec in specs.items() if searcher.costs(spec).feasible}
    assert feasible <= trained
    assert {objectives(searcher, point.spec) for point in result.front} == brute_force_front(
        searcher, [point.spec for point in searcher.points]
    )
    extra = [point for point in searcher.points if point.spec.spec_id not in specs]
    assert len(extra) <= 1  # the layout nearest to the budgets, which the encoding may not know
    true = brute_force_front(searcher, list(specs.values()))
    assert {objectives(searcher, point.spec) for point in result.front} >= true or extra
    latencies = [point.costs.values[str(searcher.latency)] for point in result.front]
    assert latencies == sorted(latencies)
    assert result.best is not None
    assert result.best.quality.solves_recall
    assert result.best.spec.spec_id in {point.spec.spec_id for point in result.front}


def test_half_the_trials_find_most_of_the_front(tmp_path: Path) -> None:
    """Better than its own random designs: of the volume that the true front dominates, at least nine tenths."""
    import moocore

    space = space_of(layers=8)
    searcher = searcher_of(tmp_path, space, trials=24)
    result, _ = search(searcher)
    true = np.array(sorted(brute_force_front(searcher, list(reachable(space).values()))))
    found = np.array([objectives(searcher, point.spec) for point in result.front])
    worst = true.max(axis=0) * np.where(true.max(axis=0) > 0, 1.1, 0.1)
    assert moocore.hypervolume(found, ref=worst) > 0.9 * moocore.hypervolume(true, ref=worst)


def test_the_choice_prefers_recall_then_text_then_speed(tmp_path: Path) -> None:
    space = space_of(layers=4)
    searcher = searcher_of(tmp_path, space, trials=20)
    search(searcher)
    points = searcher.points
    best = choose(points, str(searcher.latency))
    assert best is not None
    solved = [point for point in points if point.quality.solves_recall]
    assert best in solved
    least = min(point.quality.text.value for point in solved)
    assert best.quality.text.value <= least * (1 + TEXT_TIE)
    tied = [point for point in solved if point.quality.text.value <= least * (1 + TEXT_TIE)]
    assert best.costs.values[str(DECODE)] == min(point.costs.values[str(DECODE)] for point in tied)
    unsolved = [point for point in points if not point.quality.solves_recall]
    assert choose(unsolved, str(searcher.latency)) in unsolved
    assert choose([], str(searcher.latency)) is None


def test_equal_seeds_search_alike_and_others_differ(tmp_path: Path) -> None:
    found = []
    for i, seed in enumerate((3, 3, 4)):
        run_dir = tmp_path / str(i)
        run_dir.mkdir()
        searcher = searcher_of(run_dir, space_of(layers=6), ["parameters<=4M"], trials=6, seed=seed)
        result, events = search(searcher)
        found.append((json.dumps(result.to_dict()), [(event.trial, event.pattern, event.outcome) for event in events]))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


def test_the_model_has_its_share(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=8), trials=12)
    search(searcher)
    sources = Counter(trial.user_attrs["source"] for trial in trials_of(searcher) if trial.state == TrialState.COMPLETE)
    assert sum(sources.values()) == 12
    assert sources["model"] >= 2
    assert {"LFM2's pattern", "all short_conv", "all gqa"} <= set(sources)


def test_what_is_written_says_where_it_came_from(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=4), ["parameters<=3M"], trials=6, seed=5)
    result, _ = search(searcher)
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "stale.toml").write_text("")
    path = write_results(result, searcher)
    assert result.best is not None
    chosen = ArchSpec.read(path)
    assert chosen.spec_id == result.best.spec.spec_id
    assert chosen.origin["trial"] == result.best.trial
    assert chosen.origin["seed"] == 5
    assert chosen.origin["budgets"] == ["parameters<=3000000"]
    assert chosen.origin["predicted"]["parameters"] == result.best.costs.values["parameters"]
    assert "not validated" in chosen.origin["evidence"]
    assert {ArchSpec.read(file).spec_id for file in (tmp_path / "front").glob("*.toml")} == {point.spec.spec_id for point in result.front}
