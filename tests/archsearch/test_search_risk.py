"""Budgets with a probability, on the tail, on a hot device, and on several devices at once, against tables that were profiled."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_device import INFO, NOW, FakeDevice
from scipy.stats import norm
from search_fakes import FakeEvaluator, as_evaluator

from archsearch.budgets import Budget, Metric, parse_budget
from archsearch.errors import BudgetError, MissingMeasurement
from archsearch.predict import CostTable
from archsearch.profile import profile
from archsearch.run import load_tables, make_searcher
from archsearch.search import Searcher, resolve
from archsearch.search.devices import SearchTables
from archsearch.search.feasible import CostModel
from archsearch.search.layouts import Codec
from archsearch.search.risk import share_of_half
from archsearch.search.table import CostArrays
from archsearch.space import Space
from archsearch.store import Store
from devices.base import DeviceInfo
from devices.plan import Case, Event, Look, RoundResult, RunPlan

DECODE = Metric("decode_ms", 64)
SPACE = Space.from_dict(
    {
        "model": {"name": "risky", "hidden_size": 64, "vocab_size": 512, "layers": [3, 5]},
        "operators": [{"kind": "short_conv"}, {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}],
        "ffn": {"intermediate_size": [96, 160]},
        "workloads": {"prefill": [16], "decode": [32, 64]},
        "measure": {"precision": "fp32", "passes": 2, "max_passes": 2, "rounds": 3, "min_time_ms": 5},
    }
)


class UnsteadyDevice(FakeDevice):
    """Attention is faster and much less steady than convolutions; every third round is hot, and half as slow again."""

    def __init__(
        self, name: str = "local", speed: Callable[[bool], float] = lambda attention: 0.8 if attention else 1.0, hot: bool = True
    ) -> None:
        super().__init__()
        self.name, self.speed, self.hot = name, speed, hot
        self.rng = np.random.default_rng(0)

    @property
    def info(self) -> DeviceInfo:
        return replace(INFO, device_id=self.name, fingerprint=f"{self.name:f>12}")

    def run(self, plan: RunPlan) -> Iterator[Event]:
        cases = {case.case_id: case for case in plan.cases}
        for event in super().run(plan):
            if not isinstance(event, RoundResult):
                yield event
                continue
            hot = self.hot and event.round % 3 == 2
            state = replace(NOW, temperature_c=95.0 if hot else 50.0)
            if event.round % 2 == 0:  # a round that takes long is looked at meanwhile
                yield Look(case_id=event.case_id, round=event.round, state=NOW)
            yield replace(event, wall_ns=self.samples(cases[event.case_id], hot), before=NOW, after=state)

    def samples(self, case: Case, hot: bool) -> tuple[int, ...]:
        attention = any(state.input.endswith(".key") for state in case.states)
        base = 1e5 * max(1, len({state.input.split(".")[1] for state in case.states})) * self.speed(attention) * (1.5 if hot else 1.0)
        noise = self.rng.gamma(2.0, 0.15 if attention else 0.01, size=20)
        return tuple(int(base * (1 + extra)) for extra in noise)


def profiled(run_dir: Path, *devices: UnsteadyDevice) -> Path:
    for device in devices:
        list(profile(SPACE, run_dir, device))
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    other = UnsteadyDevice("adb:X", speed=lambda attention: 4.0 if attention else 1.5, hot=False)
    return profiled(tmp_path_factory.mktemp("run"), UnsteadyDevice(), other)


@pytest.fixture(scope="module")
def tables(run_dir: Path) -> SearchTables:
    return load_tables(run_dir, ["local", "adb:X"])


def model_of(tables: SearchTables, *budgets: str) -> CostModel:
    return CostModel(SPACE, tables, tables.metrics(), tables.spread([parse_budget(budget) for budget in budgets]))


def every_layout() -> Iterator[Any]:
    for depth in SPACE.depths:
        for layers in itertools.combinations_with_replacement(SPACE.blocks, depth):
            yield SPACE.spec(layers)


# -- probability --------------------------------------------------------------------------------------------------------------


def test_the_percentile_is_that_of_the_prediction_s_interval(tables: SearchTables) -> None:
    """At 95 % the upper end itself, at 50 % the value; one by one and many at once."""
    codec = Codec(SPACE)
    layouts = codec.random(40, np.random.default_rng(0))
    workload = tables.first.workload(DECODE)
    for confidence in (0.5, 0.8, 0.95, 0.99):
        budget = Budget(DECODE, 0.5, confidence)
        model = CostModel(SPACE, tables, tables.metrics(), [budget])
        found = CostArrays(model, tables.metrics()).evaluate(layouts)
        for i, spec in enumerate(codec.decode(layouts)):
            estimate = tables.first.latency(spec, workload)
            wanted = estimate.value + (estimate.high - estimate.value) * norm.ppf(confidence) / norm.ppf(0.95)
            assert model.costs(spec).values["P(decode_ms@64)"] == pytest.approx(wanted, rel=1e-9)
            assert found.excess[i, 0] == pytest.approx(wanted / 0.5 - 1, rel=1e-6, abs=1e-9)
    assert share_of_half(0.95) == pytest.approx(1.0)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_the_safest_layout_is_the_best_of_all(tables: SearchTables, confidence: float) -> None:
    """Cutting planes against every multiset of blocks, where the fastest layout is not the one most likely to be fast."""
    free = model_of(tables, f"P(local/decode_ms@64<=1)>={confidence}")
    every = [free.costs(spec).values for spec in every_layout()]
    least = min(values["P(decode_ms@64)"] for values in every)
    for share, feasible in ((0.999, False), (1.001, True)):
        model = model_of(tables, f"P(local/decode_ms@64<={least * share!r})>={confidence}")
        spec, costs = model.nearest()
        assert costs.feasible is feasible
        assert costs.values["P(decode_ms@64)"] == pytest.approx(least, rel=1e-6 if not feasible else 1e-3)
    fastest = min(every, key=lambda values: values["decode_ms@64"])
    if confidence > 0.99:
        assert fastest["P(decode_ms@64)"] > least * 1.001
    assert model.costs(spec).reason(model.budgets) is None


def test_a_probability_changes_what_is_found_and_what_is_said(run_dir: Path, tmp_path: Path, tables: SearchTables) -> None:
    def search(*budgets: str) -> Searcher:
        evaluator = as_evaluator(FakeEvaluator(tmp_path / "trained"))
        parsed = tables.spread([parse_budget(budget) for budget in budgets])
        return Searcher(SPACE, tables, evaluator, tmp_path, budgets=parsed, trials=6)

    values = sorted(model_of(tables, "P(decode_ms@64<=1)>=0.99").costs(spec).values["P(decode_ms@64)"] for spec in every_layout())
    limit = values[len(values) // 2]
    certain = search(f"P(local/decode_ms@64<={limit!r})>=0.99")
    list(certain.run())
    workload = tables.first.workload(DECODE)
    for point in certain.points:
        estimate = tables.first.latency(point.spec, workload)
        assert estimate.value + (estimate.high - estimate.value) * share_of_half(0.99) <= limit * (1 + 1e-9)
    hopeless = resolve(search(f"P(local/decode_ms@64<={values[0] * 0.9!r})>=0.99"))
    assert hopeless.unreachable["P(decode_ms@64)"]["best_reachable"] == pytest.approx(values[0], rel=1e-6)
    assert hopeless.unreachable["P(decode_ms@64)"]["enough"] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("P(decode_ms@64<=20)>=1", "from 0.5 to 0.999"),
        ("P(decode_ms@64<=20)>=0.2", "from 0.5 to 0.999"),
        ("P(memory_mb@64<=20)>=0.9", "only latencies"),
        ("P(P(decode_ms@64<=20)>=0.9)>=0.9", "write it once"),
        ("P(decode_ms@64<=20)", "METRIC<=LIMIT|unknown metric"),
        ("/decode_ms@64<=20", "device is missing"),
    ],
)
def test_probabilities_that_make_no_sense_are_refused(text: str, says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        parse_budget(text)


@pytest.mark.parametrize("text", ["P(decode_ms@64<=20)>=0.95", "adb:X/decode_ms@64<=20", "P(adb:X/prefill_p95_ms@16<=2.5)>=0.9"])
def test_what_is_written_is_read_back(text: str) -> None:
    assert str(parse_budget(text)) == text


# -- tail and heat ------------------------------------------------------------------------------------------------------------


def test_the_tail_is_the_95th_percentile_of_single_runs(tables: SearchTables) -> None:
    table, own = tables.at(Metric("decode_p95_ms", 64))
    assert own == DECODE
    by_key = {row.key: row for row in tables.first.rows}
    for row in table.rows:
        whole = np.concatenate(list(by_key[row.key].rounds.values()))
        estimate = table.chains.summary(row)
        assert estimate.value == pytest.approx(np.quantile(whole, 0.95) / row.copies / 1e6)
        assert estimate.low <= estimate.value <= estimate.high
    spec = SPACE.spec([SPACE.blocks[0], SPACE.blocks[2], SPACE.blocks[3]])
    costs = model_of(tables, "decode_p95_ms@64<=1").costs(spec).values
    assert costs["decode_p95_ms@64"] > 1.1 * costs["decode_ms@64"]


def test_heat_counts_only_hot_rounds_and_must_have_been_measured(tables: SearchTables) -> None:
    spec = SPACE.spec([SPACE.blocks[0]] * 3)
    costs = model_of(tables, "local/decode_hot_ms@64<=1").costs(spec).values
    assert costs["decode_hot_ms@64"] / costs["decode_ms@64"] == pytest.approx(1.5, rel=0.05)
    with pytest.raises(MissingMeasurement, match="adb:X: no round was measured while it was hot"):
        model_of(tables, "adb:X/decode_hot_ms@64<=1").costs(spec)


# -- several devices ----------------------------------------------------------------------------------------------------------


def test_budgets_are_for_every_device_unless_they_name_one(tables: SearchTables) -> None:
    def spread(*texts: str) -> set[str]:
        return {str(budget) for budget in tables.spread([parse_budget(text) for text in texts])}

    assert spread("decode_ms@64<=2", "parameters<=1M") == {"decode_ms@64<=2", "adb:X/decode_ms@64<=2", "parameters<=1000000"}
    assert spread("adb:X/decode_ms@64<=3", "decode_ms@64<=2") == {"decode_ms@64<=2", "adb:X/decode_ms@64<=3"}
    assert spread("local/decode_ms@64<=3") == {"decode_ms@64<=3"}
    with pytest.raises(BudgetError, match="no such device among local, adb:X; add --device pixel"):
        spread("pixel/decode_ms@64<=3")


def test_a_shared_layout_keeps_all_budgets_and_its_regret_is_told(run_dir: Path, tmp_path: Path, tables: SearchTables) -> None:
    every = list(every_layout())
    slow = sorted(model_of(tables).costs(spec).values["adb:X/decode_ms@64"] for spec in every)
    budgets = tables.spread([parse_budget(f"adb:X/decode_ms@64<={slow[len(slow) // 3]!r}")])
    evaluator = as_evaluator(FakeEvaluator(tmp_path / "trained"))
    list(Searcher(SPACE, tables, evaluator, tmp_path, budgets=(), trials=14).run())
    searcher = Searcher(SPACE, tables, evaluator, tmp_path, budgets=budgets, trials=14)
    result = resolve(searcher)
    assert result.best is not None
    document = json.loads(json.dumps(result.to_dict()))["devices"]
    assert set(document) == {"local", "adb:X"}
    alone = load_tables(run_dir, ["local"])
    for point in result.front:
        assert point.costs.values["adb:X/decode_ms@64"] <= budgets[0].limit * (1 + 1e-9)
        assert point.costs.values["decode_ms@64"] == pytest.approx(model_of(alone).costs(point.spec).values["decode_ms@64"])
    assert document["adb:X"]["latency_regret"] == 0.0  # its budget is the only one
    # On the first device alone, without that budget, another layout would be chosen.
    own = next(point for point in searcher.trained if point.spec.spec_id == document["local"]["own"])
    shared = result.best.costs.values["decode_ms@64"]
    assert document["local"]["latency_regret"] == pytest.approx(shared / own.costs.values["decode_ms@64"] - 1)
    assert document["local"]["recall_lost"] == (own.quality.solves_recall and not result.best.quality.solves_recall)
    assert document["local"]["text_regret"] >= -0.011  # it is chosen among more; up to a tie


def test_a_searcher_of_several_devices_is_made_from_their_names(run_dir: Path, tables: SearchTables) -> None:
    searcher = make_searcher(SPACE, run_dir, tables, [parse_budget("decode_ms@64<=9")], trials=2, seed=0)
    assert {str(budget) for budget in searcher.budgets} == {"decode_ms@64<=9", "adb:X/decode_ms@64<=9"}
    with Store(run_dir / "measurements.db") as store:
        one = CostTable.load(store, device="adb:X")
    assert make_searcher(SPACE, run_dir, one, [], trials=2, seed=0).table.device == "adb:X"
