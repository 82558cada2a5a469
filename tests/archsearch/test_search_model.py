"""What the search learns and proposes, its Optuna sampler, and answers to other budgets without any training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from search_fakes import DECODE, AnalyticTable, FakeEvaluator, as_evaluator, as_table, quality_of, space_of
from test_inner_search import WIDE, arrays_of

from archsearch.budgets import parse_budget
from archsearch.errors import RunError
from archsearch.quality import structure
from archsearch.search import Searcher, resolve, trials_frame
from archsearch.search.layouts import Codec, Layouts
from archsearch.search.proposer import Proposer
from archsearch.search.sampler import LayoutSampler, _distinct
from archsearch.search.surrogate import FEWEST, Features, by_size, fit
from archsearch.space import Space
from archsearch.spec import ArchSpec

TrialState = optuna.trial.TrialState


def linear(codec: Codec, rng: np.random.Generator) -> tuple[Features, np.ndarray]:
    features = Features(codec, additive=True)
    return features, rng.normal(size=features(codec.random(1, rng)).shape[1])


def test_a_linear_truth_is_learned_and_its_error_told() -> None:
    codec, rng = Codec(WIDE), np.random.default_rng(0)
    features, weights = linear(codec, rng)
    seen, new = codec.random(60, rng), codec.random(500, rng)
    noise = 0.05
    model = fit(features, seen, features(seen) @ weights + 2.0 + noise * rng.normal(size=60))
    error = model(new) - (features(new) @ weights + 2.0)
    assert np.sqrt((error**2).mean()) < 1.5 * noise
    assert model.left_out_error is not None
    assert 0.6 * noise < model.left_out_error < 2 * noise
    assert model.tells
    # The stated deviation is that of the error.
    assert 0.5 < np.sqrt((error**2).mean()) / np.sqrt((model.deviation(new) ** 2).mean()) < 2.0


def test_the_left_out_error_is_that_of_fitting_without_each() -> None:
    codec, rng = Codec(WIDE), np.random.default_rng(3)
    features, weights = linear(codec, rng)
    seen = codec.random(40, rng)
    quality = features(seen) @ weights + 0.3 * rng.normal(size=40)
    whole = fit(features, seen, quality)
    left_out = []
    for i in range(40):
        others = np.delete(np.arange(40), i)
        left_out.append(fit(features, seen[others], quality[others])(seen[[i]])[0] - quality[i])
    assert whole.left_out_error == pytest.approx(np.sqrt(np.mean(np.square(left_out))), rel=0.15)


def test_noise_teaches_nothing_and_says_so() -> None:
    codec, rng = Codec(WIDE), np.random.default_rng(1)
    model = fit(Features(codec), codec.random(12, rng), rng.normal(size=12))
    assert not model.tells
    few = fit(Features(codec), codec.random(FEWEST - 1, rng), rng.normal(size=FEWEST - 1))
    assert few.left_out_error is None
    assert not few.tells


def test_before_anything_is_known_larger_is_better() -> None:
    codec = Codec(WIDE)
    model = by_size(Features(codec))
    blocks, ffns = codec.blocks, len(WIDE.ffns)
    narrow, wide = (Layouts(np.array([0]), np.array([[code] * 6 + [blocks] * 3])) for code in (1, 0))
    assert WIDE.ffns[1].intermediate_size < WIDE.ffns[0].intermediate_size
    assert model(wide) > model(narrow)
    deep = Layouts(np.array([0]), np.array([[0] * 9]))
    assert model(deep) > model(wide)
    assert ffns == 3


def test_what_blocks_are_worth_adds_up_to_the_additive_model() -> None:
    codec, rng = Codec(WIDE), np.random.default_rng(2)
    features, weights = linear(codec, rng)
    worth, shape = features.worth(weights)
    layouts = codec.random(100, rng)
    padded = np.concatenate([worth, np.zeros((len(worth), 1))], axis=1)
    depth = codec.depth(layouts)
    total = padded[layouts.hidden[:, None], layouts.codes].sum(axis=1) + shape[layouts.hidden, [WIDE.depths.index(d) for d in depth]]
    assert total == pytest.approx(features(layouts) @ weights)


def test_the_niche_is_the_structure_s_word() -> None:
    proposer = Proposer(arrays_of(WIDE), DECODE)
    layouts = proposer.codec.random(300, np.random.default_rng(0))
    only_gqa = proposer.codec.encode([WIDE.spec([WIDE.blocks[6]] + [WIDE.blocks[0]] * 5), WIDE.spec([WIDE.blocks[6]] * 6)])
    every = layouts.joined(only_gqa)
    said = proposer.niche(every)
    assert list(said) == [int(structure(spec).can_recall) for spec in proposer.codec.decode(every)]
    assert list(said[-2:]) == [0, 1]


def test_proposals_are_new_within_the_budgets_and_end() -> None:
    arrays = arrays_of(space_of(layers=2), "decode_ms@4096<=14")
    proposer, codec = Proposer(arrays, DECODE, seed=0), arrays.codec
    none = codec.encode([])
    seen: set[bytes] = set()
    while (found := proposer.propose(none, np.array([]), seen)) is not None:
        assert arrays.evaluate(found).feasible.all()
        assert seen.isdisjoint(codec.keys(found))
        seen |= set(codec.keys(found))
        assert len(seen) < 100
    assert len(seen) >= 3


# -- the sampler --------------------------------------------------------------------------------------------------------------


def bits(spec: ArchSpec) -> float:
    return quality_of(spec)[1]


def hypervolume(study: optuna.Study) -> float:
    import moocore

    points = np.array([trial.values for trial in study.trials if trial.state == TrialState.COMPLETE])
    return float(moocore.hypervolume(points, ref=[4.0, 75.0]))


def optimized(sampler: LayoutSampler, trials: int, limit: float, under: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """As a user of Optuna writes it; over-budget layouts cost a trial there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=under or sampler)
    model = sampler.arrays.model

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        spec = sampler.suggest(trial)
        cost = model.costs(spec).values["decode_ms@4096"]
        if cost > limit:
            raise optuna.TrialPruned
        return bits(spec), cost

    study.optimize(objective, n_trials=trials)
    return study


@pytest.mark.slow
def test_a_plain_optimize_finds_more_of_the_front_than_optuna_s_default() -> None:
    space = space_of(layers=12, ffn=[256, 512, 768, 1024])
    budgets = [parse_budget("decode_ms@4096<=75")]
    ours, theirs = [], []
    for seed in range(3):
        sampler = LayoutSampler(space, as_table(AnalyticTable()), budgets=budgets, seed=seed)
        study = optimized(sampler, 40, 75.0)
        assert all(trial.state == TrialState.COMPLETE for trial in study.trials)  # every proposal keeps the budgets
        assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == 40  # and none comes twice
        ours.append(hypervolume(study))
        theirs.append(hypervolume(optimized(sampler, 40, 75.0, optuna.samplers.TPESampler(seed=seed))))
    assert min(ours) > max(theirs)


def test_a_sampler_that_goes_on_knows_what_was_tried(tmp_path: Path) -> None:
    """Another process, another sampler, the same study in a file."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    space = space_of(layers=[4, 6])

    def go_on(trials: int, seed: int) -> optuna.Study:
        sampler = LayoutSampler(space, as_table(AnalyticTable()), seed=seed)
        study = optuna.create_study(study_name="s", storage=url, directions=["minimize"], sampler=sampler, load_if_exists=True)
        study.optimize(lambda trial: bits(sampler.suggest(trial)), n_trials=trials)
        return study

    go_on(8, 0)
    study = go_on(8, 0)
    shown = {json.dumps(trial.params, sort_keys=True) for trial in study.trials}
    assert len(shown) == len(study.trials) == 16
    depths = {trial.params["layers"]: sum(name.startswith("operator.") for name in trial.params) for trial in study.trials}
    assert all(layers == said for layers, said in depths.items())


def test_trials_that_run_at_once_differ() -> None:
    sampler = LayoutSampler(space_of(layers=4), as_table(AnalyticTable()), startup=0)
    study = optuna.create_study(sampler=sampler)
    specs = [sampler.suggest(study.ask()).spec_id for _ in range(5)]
    assert len(set(specs)) == 5


def test_a_sampler_without_room_says_which_budget() -> None:
    with pytest.raises(RunError, match=r"decode_ms@4096 .* > 0\.6; loosen"):
        LayoutSampler(space_of(layers=4), as_table(AnalyticTable()), budgets=[parse_budget("decode_ms@4096<=0.6")])


def test_operators_that_share_a_label_are_told_apart() -> None:
    assert _distinct(["conv3", "gla4", "gla4"]) == ["conv3", "gla4 #1", "gla4 #2"]


# -- other budgets, answered at once ------------------------------------------------------------------------------------------


def searcher_of(run_dir: Path, space: Space, *budgets: str, trials: int = 10) -> Searcher:
    evaluator = as_evaluator(FakeEvaluator(run_dir / "trained"))
    parsed = [parse_budget(budget) for budget in budgets]
    return Searcher(space, as_table(AnalyticTable()), evaluator, run_dir, budgets=parsed, trials=trials)


def test_other_budgets_are_answered_from_what_is_trained(tmp_path: Path) -> None:
    space = space_of(layers=8)
    list(searcher_of(tmp_path, space).run())
    before = (tmp_path / "trained").read_text(), trials_frame(*named(tmp_path, space)).to_json()
    again = searcher_of(tmp_path, space, "decode_ms@4096<=35", trials=16)  # the space's default; ten were asked for, and are there
    assert again.finished()
    result = resolve(again, certified=True)
    assert ((tmp_path / "trained").read_text(), trials_frame(*named(tmp_path, space)).to_json()) == before  # nothing was paid for
    assert result.best is not None
    assert {point.spec.spec_id for point in result.front} <= {json.loads(line) for line in before[0].splitlines()}
    assert result.proposed
    for point in (*result.front, *result.proposed):
        assert point.costs.values["decode_ms@4096"] <= 35 * (1 + 1e-9)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert all(point["trained"] for point in document["front"])
    for point in document["proposed"]:
        assert not point["trained"]
        assert point["spec_id"] not in before[0]
        assert "not trained; expected by a model of 10 trainings" in point["evidence"]
        assert point["quality"]["text_deviation"] > 0
    assert document["certificate"]["worst_gap"] < 0.02


def named(run_dir: Path, space: Space) -> tuple[str, str]:
    searcher = searcher_of(run_dir, space)
    return searcher.url, searcher.study_name


def test_a_run_without_trainings_can_still_be_asked(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=8))
    assert not searcher.finished()
    result = resolve(searcher)
    assert (result.feasible, result.front, result.best) == (True, (), None)
    assert result.proposed
    assert all(point.text is None and "teach nothing yet" in point.evidence() for point in result.proposed)
    assert not (tmp_path / "study.db").exists()


def test_budgets_that_cannot_be_kept_say_what_would_be_enough(tmp_path: Path) -> None:
    space = space_of(layers=4)
    arrays = arrays_of(space)
    every = [arrays.model.costs(space.spec(layers)).values for layers in itertools.combinations_with_replacement(space.blocks, 4)]
    cheapest = min(values["parameters"] for values in every)
    limit = cheapest * 0.99
    result = resolve(searcher_of(tmp_path, space, f"parameters<={limit!r}", "decode_ms@4096<=1000"))
    assert not result.feasible
    assert result.unreachable["parameters"]["enough"] == pytest.approx(cheapest)
    assert "enough" not in result.unreachable["decode_ms@4096"]
    fastest = min(values["decode_ms@4096"] for values in every)
    apart = resolve(searcher_of(tmp_path, space, f"parameters<={limit!r}", f"decode_ms@4096<={fastest * 0.99!r}"))
    assert all("enough" not in entry for entry in apart.unreachable.values())


def test_what_anyone_puts_into_the_queue_is_checked_and_trained(tmp_path: Path) -> None:
    space = space_of(layers=8)
    searcher = searcher_of(tmp_path, space, "decode_ms@4096<=35", trials=8)
    study = searcher.open_study()
    plain: dict[str, Any] = {
        "hidden": 0, "depth": 0, "second": 1, "third": 0, "thirds": 0, "placement": "late", "main_ffn": 0, "other_ffn": 0,
    }  # fmt: skip
    study.enqueue_trial({"main": 0, "seconds": 1, **plain})
    study.enqueue_trial({"main": 1, "seconds": 0, **plain})  # attention everywhere: over budget
    list(searcher.run())
    frame = trials_frame(searcher.url, searcher.study_name).set_index("trial")
    assert list(frame.loc[[0, 1], "source"]) == ["enqueued by hand"] * 2
    assert frame.loc[0, "pattern"] == "conv3 x7, gqa2"
    assert frame.loc[0, "state"] == "trained"
    assert frame.loc[1, "state"] == "refused"
    assert "decode_ms@4096" in str(frame.loc[1, "reason"])


def test_dashboards_see_why_a_layout_was_refused_and_no_values(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=8), "decode_ms@4096<=35", trials=6)
    list(searcher.run())
    trials = optuna.load_study(study_name=searcher.study_name, storage=searcher.url).get_trials()
    refused = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert refused  # at least the baseline of attention alone
    for trial in refused:
        assert trial.values is None
        assert trial.constraints["decode_ms@4096"] > 0
        assert "decode_ms@4096" in trial.user_attrs["reason"]
    again = searcher_of(tmp_path, space_of(layers=8), "decode_ms@4096<=35", trials=7)
    list(again.run())  # what was refused is not written down twice
    now = optuna.load_study(study_name=searcher.study_name, storage=searcher.url).get_trials()
    assert len(now) == len(trials) + 1
