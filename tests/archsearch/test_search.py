"""The search against problems whose answer is known: a small space, costs that add up, and a quality that is a formula."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_fakes import DECODE, AnalyticTable, FakeEvaluator, as_evaluator, as_table, quality_of, space_of

from archsearch.budgets import Budget, Metric, parse_budget, parse_metric
from archsearch.errors import MissingMeasurement, RunError, StoreError
from archsearch.search import DesignSpace, Searcher, SearchEvent, SearchResult, study, trials_frame, write_results
from archsearch.search.designs import PLACEMENTS, positions, spread
from archsearch.search.feasible import CostModel
from archsearch.search.programme import Programme
from archsearch.search.result import TEXT_TIE, choose
from archsearch.space import Space
from archsearch.spec import ArchSpec

TrialState = optuna.trial.TrialState


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "INNER_SAMPLES", 800)


def searcher_of(run_dir: Path, space: Space, budgets: Sequence[str] = (), **options: Any) -> Searcher:
    table = options.pop("table", None) or AnalyticTable()
    evaluator = options.pop("evaluator", None) or FakeEvaluator(run_dir / "trained")
    parsed = tuple(parse_budget(budget) for budget in budgets)
    return Searcher(space, as_table(table), as_evaluator(evaluator), run_dir, budgets=parsed, **{"trials": 8, **options})


def search(searcher: Searcher) -> tuple[SearchResult, list[SearchEvent]]:
    events = list(searcher.run())
    return searcher.result(), events


def trials_of(searcher: Searcher) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=searcher.study_name, storage=searcher.url).get_trials()


def reachable(space: Space) -> dict[str, ArchSpec]:
    """Every layout that the encoding can say."""
    designs = DesignSpace(space)
    specs = map(designs.spec, designs.all())
    return {spec.spec_id: spec for spec in specs}


def objectives(searcher: Searcher, spec: ArchSpec) -> tuple[float, ...]:
    recall, text = quality_of(spec)
    costs = searcher.costs(spec).values
    return (-1.0 if recall > 0.9 else -recall, text, costs[str(searcher.latency)], costs[str(searcher.memory)])


def brute_force_front(searcher: Searcher, specs: Sequence[ArchSpec]) -> set[tuple[float, ...]]:
    found = [objectives(searcher, spec) for spec in specs if searcher.costs(spec).feasible]
    return {p for p in found if not any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in found)}


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


@settings(max_examples=40, deadline=None)
@given(tightness=st.tuples(*[st.floats(0.3, 1.3)] * 3))
def test_the_nearest_layout_is_the_best_of_all(tightness: tuple[float, ...]) -> None:
    """Against every multiset of blocks: integer programming finds the least violation, and a layout that keeps all if one does."""
    space = space_of(layers=4)
    table = as_table(AnalyticTable())
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
    assert set(document) == {"feasible", "front", "best", "unreachable", "proposed"}
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


# -- failures and resumption --------------------------------------------------------------------------------------------------


def test_a_finished_search_goes_on_from_where_it_was(tmp_path: Path) -> None:
    space = space_of(layers=8)
    search(searcher_of(tmp_path, space, trials=6))
    first = (tmp_path / "trained").read_text().splitlines()
    searcher = searcher_of(tmp_path, space, trials=6)
    _, events = search(searcher)
    assert events == []
    result, _ = search(searcher_of(tmp_path, space, trials=9))
    trained = (tmp_path / "trained").read_text().splitlines()
    assert trained[:6] == first
    assert len(trained) == len(set(trained)) == 9
    assert result.best is not None


def test_other_budgets_predict_anew_and_train_nothing_twice(tmp_path: Path) -> None:
    space = space_of(layers=8)
    search(searcher_of(tmp_path, space, trials=6))
    costs = sorted(searcher_of(tmp_path, space).costs(spec).values["parameters"] for spec in reachable(space).values())
    limit = costs[len(costs) // 2]
    result, _ = search(searcher_of(tmp_path, space, [f"parameters<={limit}"], trials=6))
    assert all(point.costs.values["parameters"] <= limit for point in result.front)
    trained = (tmp_path / "trained").read_text().splitlines()
    assert len(trained) == len(set(trained))


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_search import searcher_of
from search_fakes import FakeEvaluator, space_of

class Slow(FakeEvaluator):
    def evaluate_all(self, specs):
        for number, quality in enumerate(super().evaluate_all(specs)):
            yield quality
            print("trained", flush=True)
            time.sleep(600 if len(self.known) >= 5 else 0)

run = Path({run!r})
for event in searcher_of(run, space_of(layers=8), trials=9, evaluator=Slow(run / "trained")).run():
    print(event.outcome, flush=True)
"""


def test_kill_9_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """A real process is killed between the end of a training and the end of its trial; the same command goes on."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent), run=str(tmp_path)))
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "trained").exists() or len((tmp_path / "trained").read_text().splitlines()) < 5:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
    before = (tmp_path / "trained").read_text().splitlines()
    searcher = searcher_of(tmp_path, space_of(layers=8), trials=9)
    cut = [trial for trial in searcher.open_study().get_trials() if trial.state == TrialState.RUNNING]
    assert cut
    result, _ = search(searcher)
    after = (tmp_path / "trained").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 9
    trials = trials_of(searcher)
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    for trial in cut:
        now = trials[trial.number]
        assert now.state == TrialState.FAIL
        assert "tried again" in now.user_attrs["reason"]
    retries = [trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs]
    assert sorted(retries) == [trial.number for trial in cut]  # each once
    assert len(searcher.points) == 9
    assert result.best is not None


def test_a_layout_that_is_cut_off_twice_is_given_up(tmp_path: Path) -> None:
    space = space_of(layers=4)
    gone = {"host": __import__("platform").node(), "pid": 2**22 - 1, "started": 0.0}
    searcher = searcher_of(tmp_path, space, trials=2)
    for _ in range(2):
        opened = searcher.open_study()
        batch = searcher.propose(opened, searcher.recover(opened) + searcher.seeds(searcher.inner()), [], 1)
        trial, spec = batch.accepted[0]
        trial.set_user_attr("owner", gone)
    resumed = searcher_of(tmp_path, space, trials=3)
    search(resumed)
    assert spec.spec_id not in {json.loads(line) for line in (tmp_path / "trained").read_text().splitlines()}
    states = [(trial.state, trial.user_attrs.get("reason", "")) for trial in trials_of(resumed)[:2]]
    assert [state for state, _ in states] == [TrialState.FAIL, TrialState.FAIL]
    assert "tried again" in states[0][1]
    assert "second time" in states[1][1]


def test_a_trial_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    space = space_of(layers=4)
    other = searcher_of(tmp_path, space)
    trial, _ = other.propose(other.open_study(), [], [], 1).accepted[0]
    searcher = searcher_of(tmp_path, space, trials=3)
    search(searcher)
    assert trials_of(searcher)[trial.number].state == TrialState.RUNNING


def test_a_failed_training_is_kept_with_its_reason(tmp_path: Path) -> None:
    space = space_of(layers=4)
    bad = searcher_of(tmp_path, space).seeds(searcher_of(tmp_path, space).inner())[0].spec
    searcher = searcher_of(tmp_path, space, trials=5, evaluator=FakeEvaluator(tmp_path / "trained", fails=[bad.spec_id]))
    result, events = search(searcher)
    assert len(searcher.points) == 5
    assert bad.spec_id not in {point.spec.spec_id for point in result.front}
    failed = [trial for trial in trials_of(searcher) if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["reason"] for trial in failed] == ["its training process died"]
    assert [event.outcome for event in events if "failed" in event.outcome] == ["failed: its training process died"]


def test_when_every_training_fails_so_does_the_search(tmp_path: Path) -> None:
    space = space_of(layers=2, ffn=[512])
    evaluator = FakeEvaluator(tmp_path / "trained", fails=reachable(space))
    with pytest.raises(RunError, match=r"no layout could be trained: .*its training process died"):
        search(searcher_of(tmp_path, space, evaluator=evaluator))


def test_an_operator_without_measurements_is_left_out(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=4), trials=3, table=AnalyticTable(missing="gqa"))
    result, _ = search(searcher)
    assert searcher.left_out == {"gqa2": "analytic: gqa was not measured"}
    assert all(block.operator.kind == "short_conv" for point in result.front for block in point.spec.layers)
    with pytest.raises(MissingMeasurement, match="gqa was not measured"):
        searcher_of(tmp_path, Space.from_dict(ONLY_GQA), table=AnalyticTable(missing="gqa"))


ONLY_GQA = {
    "model": {"hidden_size": 256, "vocab_size": 1000, "layers": 4},
    "operators": [{"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 64}],
    "ffn": {"intermediate_size": 512},
}


def test_every_trial_is_in_the_table_with_its_reason(tmp_path: Path) -> None:
    space = space_of(layers=[4, 6])
    values = sorted(searcher_of(tmp_path, space).costs(spec).values["parameters"] for spec in reachable(space).values())
    searcher = searcher_of(tmp_path, space, [f"parameters<={values[len(values) // 3]}"], trials=6)
    search(searcher)
    frame = trials_frame(searcher.url, searcher.study_name)
    assert list(frame["trial"]) == list(range(len(frame)))
    trained, refused = frame[frame["state"] == "trained"], frame[frame["state"] == "refused"]
    assert set(trained["spec_id"]) == {point.spec.spec_id for point in searcher.points}
    assert trained["reason"].isna().all()
    assert trained[["parameters", "decode_ms@4096", "text_bits_per_byte", "recall_accuracy"]].notna().all(axis=None)
    assert refused["reason"].notna().all()
    assert refused["text_bits_per_byte"].isna().all()
    with pytest.raises(RunError, match="no search of that space"):
        trials_frame(searcher.url, "another")


# -- storage ------------------------------------------------------------------------------------------------------------------


def test_sqlite_is_in_wal_mode_and_elsewhere_if_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere' / 'my.db'}"
    searcher = searcher_of(tmp_path, space_of(layers=2), trials=1, storage=url)
    search(searcher)
    assert not (tmp_path / "study.db").exists()
    with sqlite3.connect(tmp_path / "elsewhere" / "my.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "cannot be used as the study's storage"),
        ("postgresql+nodriver://user:secret@localhost/x", "cannot be used as the study's storage"),
        ("sqlite:////proc/none/study.db", "cannot be used as the study's storage"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as error:
        search(searcher_of(tmp_path, space_of(layers=2), storage=url))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_corrupt_study_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database, but long enough to be read as one" * 50)
    with pytest.raises(StoreError, match=r"study\.db: cannot be used") as error:
        search(searcher_of(tmp_path, space_of(layers=2)))
    assert "\n" not in str(error.value)
