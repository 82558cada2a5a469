"""Successive halving: who goes on, that going on is the same training, and what the book says of those that were stopped."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_fakes import FakeEvaluator, quality_of, space_of
from search_harness import TrialState, reachable, search, searcher_of, trials_of

from archsearch.errors import FileFormatError
from archsearch.quality import Evaluator, LayoutQuality, QualityResult, QualitySettings, Training, tasks
from archsearch.quality.states import begun, state_file, trim
from archsearch.search import Searcher, trials_frame
from archsearch.search.halving import rung_objectives, survivors
from archsearch.search.result import FrontPoint, choose, pareto_front
from archsearch.space import Space
from archsearch.spec import ArchSpec

SHORT = QualitySettings(recall_steps=50, text_steps=4)


def spec_of(letters: str) -> ArchSpec:
    space = space_of(layers=len(letters))
    conv, gqa = space.blocks[0], space.blocks[2]
    return space.spec([gqa if letter == "a" else conv for letter in letters])


# -- who goes on --------------------------------------------------------------------------------------------------------------


def test_what_others_beat_in_everything_is_stopped_first() -> None:
    rows = [[0, 2.0, 1.0], [0, 2.1, 1.1], [0, 1.9, 2.0], [1, 2.2, 1.2]]
    assert survivors(rows, 2) == [0, 2]
    assert survivors(rows, 3) == [0, 1, 2]
    assert survivors(rows, 4) == survivors(rows, 9) == [0, 1, 2, 3]
    assert survivors(rows, 0) == []


def test_of_a_front_those_go_on_that_it_would_miss_most() -> None:
    corner, between, knee, other = [0.0, 1.0], [0.02, 0.99], [0.3, 0.3], [1.0, 0.0]
    assert survivors([corner, between, knee, other], 1) == [2]
    assert survivors([between, corner, knee, other], 3) in ([0, 2, 3], [1, 2, 3])


def test_a_fast_layout_is_not_stopped_for_a_slow_one_that_is_better() -> None:
    """The front trades text for latency: whoever is alone at its latency goes on, also the one with the most bits a byte."""
    rows = [[0, 2.9, 1.0, 9.0], [0, 2.0, 5.0, 9.0], [0, 2.1, 5.2, 9.0], [0, 2.2, 5.3, 9.0]]
    assert survivors(rows, 2) == [0, 1]


def quality(text: float, *accuracies: float) -> LayoutQuality:
    def result(task: Any, value: float) -> QualityResult:
        status: Any = "resolved" if value >= tasks.SOLVED or task == "text" else "unresolved"
        return QualityResult(task=task, value=value, status=status, steps=2, tokens=10, seconds=0.1, seed=0, curve=((2, value),))

    recall, *others = [result(task, value) for task, value in zip(tasks.SYNTHETIC, accuracies, strict=False)]
    return LayoutQuality(spec=spec_of("ca"), recall=recall, text=result("text", text), others=tuple(others))


def test_the_plateau_is_not_bad() -> None:
    """What has not solved a task is equal to everything else that has not, however often it guesses right."""
    low, high = (rung_objectives(quality(2.0, accuracy), 1.0, 2.0) for accuracy in (0.1, 0.6))
    assert low == high
    assert rung_objectives(quality(2.0, 1.0), 1.0, 2.0) < low


# -- the trainings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["text", "recall"])
def test_what_is_stopped_and_goes_on_is_the_same_training(task: Any, tmp_path: Path) -> None:
    whole = Training(spec=spec_of("ca"), task=task, settings=SHORT, seed=3)
    first = whole.first_rung()
    assert first.until == {"text": 2, "recall": 25}[task]
    assert first.key != whole.key
    assert first.whole == whole
    assert Training.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    state = tmp_path / "state.pt"
    stopped, anew, at_once = first.run(state), first.run(), whole.run()
    assert state.exists()
    assert replace(stopped, seconds=0) == replace(anew, seconds=0)
    continued = whole.run(state)
    assert replace(continued, seconds=0) == replace(at_once, seconds=0)
    assert at_once.curve[: len(stopped.curve)] == stopped.curve
    assert stopped.steps == first.until < at_once.steps
    assert continued.seconds > stopped.seconds
    assert not state.exists()  # nothing is left to go on with


def test_of_what_was_stopped_the_newest_is_kept(tmp_path: Path) -> None:
    for at, name in enumerate("abcd"):
        path = state_file(tmp_path, name)
        path.write_bytes(b"x" * 100)
        os.utime(path, (at, at))
    trim(tmp_path, 250)
    assert begun(tmp_path) == {"c", "d"}


def test_there_is_no_look_before_the_end_of_a_short_training() -> None:
    whole = Training(spec=spec_of("ca"), task="recall", settings=QualitySettings(recall_steps=20), seed=0)
    assert whole.first_rung() == whole
    assert QualitySettings(recall_steps=400, text_steps=300).first_rung("recall") == 125
    assert QualitySettings(recall_steps=400, text_steps=300).first_rung("text") == 150


def test_evaluators_go_on_from_where_they_looked(tmp_path: Path) -> None:
    path = tmp_path / "quality.jsonl"
    with Evaluator(path, SHORT, workers=1, tasks=("recall", "selective_copy", "text")) as evaluator:
        (first,) = evaluator.begin_all([spec_of("ca")])
        assert isinstance(first, LayoutQuality)
        assert [result.task for result in first.synthetic] == ["recall", "selective_copy"]
        assert first.text.steps == 2
        assert evaluator.cached(spec_of("ca")) is None
        states = list(evaluator._states.iterdir()) if evaluator._states else []
        assert len(states) == 3
        (whole,) = evaluator.evaluate_all([spec_of("ca")])
        assert isinstance(whole, LayoutQuality)
        assert whole.text.steps == 4
        assert list(evaluator.begin_all([spec_of("ca")])) == [whole]  # known to its end
    assert not states[0].exists()
    keys = Counter(json.loads(line)["key"] for line in path.read_text().splitlines())
    assert set(keys.values()) == {1}
    assert len(keys) == 6


def test_a_task_that_is_solved_by_then_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(tmp_path / "quality.jsonl", SHORT, workers=1)
    asked: list[str] = []

    def solved(trainings: Any) -> Any:
        for training in trainings:
            asked.append(training.key)
            found = quality(2.0, 1.0)
            evaluator.results.keep(training.key, found.recall if training.task == "recall" else found.text)
            yield training.key, found.recall

    monkeypatch.setattr(evaluator, "_train", solved)
    list(evaluator.begin_all([spec_of("ca")]))
    list(evaluator.evaluate_all([spec_of("ca")]))
    recall, text = (training for training in evaluator.trainings(spec_of("ca")))
    assert asked == [recall.first_rung().key, text.first_rung().key, text.key]


# -- the search ---------------------------------------------------------------------------------------------------------------


def halving_search(run_dir: Path, **options: Any) -> Searcher:
    return searcher_of(run_dir, space_of(layers=8), **{"trials": 8, "halving": 2, **options})


def test_half_of_what_is_begun_is_trained_to_the_end(tmp_path: Path) -> None:
    searcher = halving_search(tmp_path)
    result, events = search(searcher)
    assert len(searcher.points) == 8
    trials = trials_of(searcher)
    stopped = [trial for trial in trials if trial.user_attrs.get("stopped")]
    assert len(stopped) == 8
    assert all(trial.state == TrialState.PRUNED and trial.values is None for trial in stopped)
    assert all("others promised more" in trial.user_attrs["reason"] for trial in stopped)
    assert all(trial.user_attrs["text_bits_per_byte"] > 2 for trial in stopped)
    assert sum(event.outcome.startswith("stopped at 1 of 300 steps") for event in events) == 8
    trained = {point.spec.spec_id for point in searcher.points}
    assert not trained & {ArchSpec.from_dict(json.loads(trial.user_attrs["spec"])).spec_id for trial in stopped}
    frame = trials_frame(searcher.url, searcher.study_name)
    assert frame.state.value_counts().to_dict() == {"trained": 8, "stopped": 8}
    assert result.best is not None


def test_halving_finds_better_layouts_for_as_many_whole_trainings(tmp_path: Path) -> None:
    """Here the first look tells the truth, so choosing among twice as many must pay."""
    found = {}
    for halving in (1, 4):
        texts = []
        for seed in range(3):
            searcher = halving_search(tmp_path / f"{halving}-{seed}", halving=halving, seed=seed)
            search(searcher)
            texts.append(np.mean([point.quality.text.value for point in searcher.points]))
        found[halving] = np.mean(texts)
    assert found[4] < found[1]


def test_what_was_stopped_is_not_begun_again_when_a_search_goes_on(tmp_path: Path) -> None:
    search(halving_search(tmp_path, trials=4))
    first = {trial.user_attrs["spec"] for trial in trials_of(halving_search(tmp_path))}
    again = halving_search(tmp_path, trials=8)
    search(again)
    specs = [trial.user_attrs["spec"] for trial in trials_of(again)]
    assert len(specs) == len(set(specs)) == 16
    assert first < set(specs)


def test_when_nothing_else_is_left_those_that_were_stopped_are_trained(tmp_path: Path) -> None:
    space = space_of(layers=2, ffn=[512])
    searcher = searcher_of(tmp_path, space, trials=50, halving=2)
    search(searcher)
    assert {point.spec.spec_id for point in searcher.trained} == set(reachable(space))
    assert any(trial.user_attrs["source"] == "stopped before" for trial in trials_of(searcher))


def test_one_that_was_stopped_and_then_cannot_be_trained_ends_no_search(tmp_path: Path) -> None:
    """It fails when it is taken up after all: once, and not for ever."""
    space = space_of(layers=2, ffn=[512])

    class Late(FakeEvaluator):
        def begin_all(self, specs: Any) -> Any:
            fails, self.fails = self.fails, set()
            yield from super().begin_all(specs)
            self.fails = fails

    first = searcher_of(tmp_path, space, trials=1, halving=2)
    search(first)
    stopped = {spec.spec_id for spec in first._stopped.values()}
    assert stopped
    searcher = searcher_of(tmp_path, space, trials=50, halving=2, evaluator=Late(tmp_path / "trained", fails=stopped))
    result, _ = search(searcher)
    assert {point.spec.spec_id for point in searcher.trained} == set(reachable(space)) - stopped
    assert {lost.spec.spec_id for lost in result.given_up} == stopped
    failed = [trial for trial in trials_of(searcher) if trial.state == TrialState.FAIL]
    assert len(failed) == len(stopped)


def test_the_baseline_and_what_is_asked_for_by_name_are_never_stopped(tmp_path: Path) -> None:
    space = space_of(layers=8)
    worst = max(reachable(space).values(), key=lambda spec: quality_of(spec)[1])
    searcher = searcher_of(tmp_path, space, trials=4, halving=3, baseline=worst)
    study = searcher.open_study()
    asked = searcher.designs.nearest(sorted(reachable(space).values(), key=lambda spec: quality_of(spec)[1])[-2])
    study.enqueue_trial(asked.to_dict())
    search(searcher)
    by_source = {trial.user_attrs["source"]: trial for trial in trials_of(searcher)}
    assert by_source["baseline"].state == TrialState.COMPLETE
    assert by_source["enqueued by hand"].state == TrialState.COMPLETE
    assert any(trial.user_attrs.get("stopped") for trial in trials_of(searcher))


def test_a_failure_at_the_first_look_is_one_of_its_layout(tmp_path: Path) -> None:
    bad = halving_search(tmp_path).seeds(halving_search(tmp_path).inner())[0].spec
    searcher = halving_search(tmp_path, evaluator=FakeEvaluator(tmp_path / "trained", fails=[bad.spec_id]))
    search(searcher)
    failed = [trial for trial in trials_of(searcher) if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["reason"] for trial in failed] == ["its training process died"]
    assert len(searcher.points) == 8


def test_interrupting_does_not_count_against_a_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C twice while the same layout trains: it is not given up, for nothing says that it ends processes."""

    class Interrupted(FakeEvaluator):
        def evaluate_all(self, specs: Any) -> Any:
            raise KeyboardInterrupt

    for _ in range(3):
        searcher = halving_search(tmp_path, halving=1, evaluator=Interrupted(tmp_path / "trained"))
        monkeypatch.setattr("archsearch.search.claims.is_gone", lambda who: True)  # as the next process sees it
        with pytest.raises(KeyboardInterrupt):
            search(searcher)
    searcher = halving_search(tmp_path, halving=1)
    search(searcher)
    assert searcher.given_up == []
    trained = {point.spec.spec_id for point in searcher.points}
    cut = [trial for trial in trials_of(searcher) if trial.user_attrs.get("interrupted")]
    assert cut
    assert {ArchSpec.from_dict(json.loads(trial.user_attrs["spec"])).spec_id for trial in cut} <= trained


# -- more than recall ---------------------------------------------------------------------------------------------------------


def point_of(text: float, *accuracies: float, latency: float = 1.0) -> FrontPoint:
    costs: Any = type("Costs", (), {"values": {"decode": latency, "memory": 1.0}})()
    found = quality(text, *accuracies)
    return FrontPoint(spec=replace(found.spec, name=f"{text} {accuracies}"), quality=found, costs=costs, trial=0)


def test_every_synthetic_task_counts() -> None:
    both, one, none = point_of(2.2, 1.0, 0.95), point_of(2.0, 1.0, 0.5), point_of(1.9, 0.4, 0.2)
    assert choose([both, one, none], "decode") is both
    assert choose([one, none], "decode") is one
    assert pareto_front([both, one, none], "decode", "memory") == (both, one, none)
    assert both.quality.ability == 1
    assert one.quality.ability == pytest.approx(0.75)
    assert both.quality.to_dict()["selective_copy_status"] == "resolved"
    assert "selective copy 10 tokens (unresolved)" in one.evidence()


@pytest.mark.parametrize("tasks", [["noisy_recall"], ["recall", "chess"], []])
def test_tasks_that_a_search_cannot_have_are_refused(tasks: list[str]) -> None:
    plain = {
        "model": {"hidden_size": 64, "vocab_size": 100, "layers": 2},
        "operators": [{"kind": "short_conv"}],
        "ffn": {"intermediate_size": 64},
    }
    with pytest.raises(FileFormatError, match="tasks"):
        Space.from_dict({**plain, "search": {"tasks": tasks}})
    assert Space.from_dict({**plain, "search": {"tasks": "recall"}}).search.tasks == ["recall"]
