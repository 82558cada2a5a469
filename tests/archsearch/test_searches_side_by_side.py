"""Several searches that write into one book at the same moment: no layout is trained twice, nothing that was cut off is lost."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from command_line import ENVIRONMENT
from postgres import postgres
from search_fakes import FakeEvaluator, space_of
from search_harness import search, searcher_of, trials_of

from archsearch.search import study
from archsearch.search.claims import asked_first, fail_cut_off
from archsearch.search.storage import open_storage
from archsearch.search.study import Searcher

TrialState = optuna.trial.TrialState
ELSEWHERE = {"host": "another machine", "pid": 1, "started": 0.0}
GONE = {"host": platform.node(), "pid": 2**22 - 1, "started": 0.0}


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "INNER_SAMPLES", 200)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        yield f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else stack.enter_context(postgres())


@pytest.mark.slow
def test_searches_on_several_machines_write_into_one_book(tmp_path: Path, url: str) -> None:
    """The same line three times, each with a run directory of its own, as on three machines. With one seed all want the same layouts
    in the same order, and they begin at the same moment: the book alone keeps them apart."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(tests=str(Path(__file__).parent), run=str(tmp_path / str(i)), url=url)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for i in range(3)
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    found = [json.loads(program.communicate(timeout=240)[0]) for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0]
    trained = Counter(spec_id for result in found for spec_id in result["trained"])
    assert 10 <= len(trained) <= 12  # each may go one beyond, that was begun before the last of the ten was told
    assert set(trained.values()) == {1}
    assert all(result["trained"] for result in found)
    assert all(len(result["points"]) == len(set(result["points"])) >= 10 for result in found)
    storage = open_storage(url)
    trials = optuna.load_study(study_name=found[0]["study"], storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()
    told = Counter(trial.user_attrs["spec_id"] for trial in trials if trial.state == TrialState.COMPLETE)
    assert told == trained
    assert all("of another search" in trial.user_attrs["reason"] for trial in trials if trial.state == TrialState.PRUNED)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


PROGRAM = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from search_harness import searcher_of
from search_fakes import FakeEvaluator, space_of
from archsearch.search import study

study.INNER_SAMPLES = 200

class Slow(FakeEvaluator):
    workers = 1
    def cached(self, spec):
        return self._quality(spec)  # as a shared queue knows everybody's results
    def evaluate_all(self, specs):
        for quality in super().evaluate_all(specs):
            time.sleep(0.3)
            yield quality

run = Path({run!r})
run.mkdir()
searcher = searcher_of(run, space_of(layers=8), trials=10, evaluator=Slow(run / "trained"), storage={url!r})
searcher.open_study()
print("ready", flush=True)
sys.stdin.readline()
list(searcher.run())
mine = [json.loads(line) for line in (run / "trained").read_text().splitlines()] if (run / "trained").exists() else []
points = [point.spec.spec_id for point in searcher.points]
print(json.dumps({{"trained": mine, "points": points, "study": searcher.study_name}}))
"""


# -- who has a layout ---------------------------------------------------------------------------------------------------------


class Knowing(FakeEvaluator):
    """Knows everybody's results, as a shared queue does."""

    def cached(self, spec: Any) -> Any:
        return self._quality(spec)


def begun(tmp_path: Path, who: dict[str, Any], **options: Any) -> tuple[Searcher, optuna.Trial, Any]:
    """A search whose first trial is another process's."""
    searcher = searcher_of(tmp_path, space_of(layers=4), **options)
    opened = searcher.open_study()
    trial, spec = searcher.propose(opened, searcher.seeds(searcher.inner()), [], 1).accepted[0]
    trial.set_user_attr("owner", who)
    return searcher, trial, spec


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another search had asked between our look at the book and our own trial."""
    monkeypatch.setattr("archsearch.search.claims.running_elsewhere", lambda _: {})


def test_the_later_of_two_that_ask_at_once_leaves_the_layout_to_the_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher, first, spec = begun(tmp_path, ELSEWHERE)
    blind(monkeypatch)
    opened = searcher.open_study()
    batch = searcher.propose(opened, searcher.seeds(searcher.inner()), [], 1)
    assert batch.accepted[0][1].spec_id != spec.spec_id
    refused = [trial for trial in trials_of(searcher) if trial.state == TrialState.PRUNED]
    assert [trial.user_attrs["reason"] for trial in refused] == [f"the same layout as trial {first.number}, of another search"]
    assert asked_first(opened, first.number, spec, searcher.evaluator) is None  # the earlier one has it


def test_a_layout_that_was_finished_meanwhile_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Knowing(tmp_path / "trained")
    searcher, first, spec = begun(tmp_path, ELSEWHERE, evaluator=evaluator)
    searcher.open_study().tell(first.number, [1.0, 2.0, 3.0, 4.0])
    assert asked_first(searcher.open_study(), 9, spec, searcher.evaluator) == first.number
    forgetful = searcher_of(tmp_path, space_of(layers=4))  # its results are lost: nothing of it is left to be trusted
    assert asked_first(forgetful.open_study(), 9, spec, forgetful.evaluator) is None


def test_a_layout_of_a_process_that_is_gone_is_nobodys(tmp_path: Path) -> None:
    searcher, _, spec = begun(tmp_path, GONE)
    assert asked_first(searcher.open_study(), 9, spec, searcher.evaluator) is None


def test_a_layout_of_a_machine_that_is_gone_for_good_is_set_free_by_hand(tmp_path: Path) -> None:
    """As `optuna tell --state fail` does: it is proposed again, and nobody says that it was given up."""
    searcher, trial, spec = begun(tmp_path, ELSEWHERE)
    opened = searcher.open_study()
    assert asked_first(opened, 9, spec, searcher.evaluator) == trial.number
    opened.tell(trial.number, state=TrialState.FAIL)
    assert asked_first(opened, 9, spec, searcher.evaluator) is None
    result, _ = search(searcher)
    assert spec.spec_id in {point.spec.spec_id for point in searcher.points}
    assert result.given_up == ()


def test_of_two_that_find_the_same_trial_cut_off_one_takes_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher, _, spec = begun(tmp_path, GONE)
    one, other = fail_cut_off(searcher.open_study()), fail_cut_off(searcher.open_study())
    found = [next(one)]
    assert list(other) == []
    assert list(one) == []
    assert [(cut.spec.spec_id, cut.again) for cut in found] == [(spec.spec_id, True)]


def test_a_trial_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """What another search sees the moment that a trial is there: its layout and its process."""
    searcher = searcher_of(tmp_path, space_of(layers=4))
    opened = searcher.open_study()
    seen: list[dict[str, Any]] = []
    create = opened._storage.create_new_trial

    def watched(*arguments: Any, **options: Any) -> int:
        number = create(*arguments, **options)
        seen.extend(trial.user_attrs | trial.params for trial in trials_of(searcher))
        return number

    opened._storage.create_new_trial = watched  # type: ignore[method-assign]
    ((trial, spec),) = searcher.propose(opened, searcher.seeds(searcher.inner()), [], 1).accepted
    assert len(seen) == 1
    assert seen[0]["spec_id"] == spec.spec_id
    assert seen[0]["owner"]["host"] == platform.node()
    assert searcher.designs.design(seen[0]) == searcher.designs.design(trial.params)


def test_what_was_put_into_the_queue_by_hand_is_taken_by_one_search(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=4), trials=3)
    opened = searcher.open_study()
    asked = searcher.designs.nearest(searcher.inner()[5].spec)
    opened.enqueue_trial(asked.to_dict())
    search(searcher)
    by_hand = [trial for trial in trials_of(searcher) if trial.user_attrs["source"] == "enqueued by hand"]
    assert len(by_hand) == 1
    assert by_hand[0].user_attrs["spec_id"] == searcher.designs.spec(asked).spec_id
    assert not [trial for trial in trials_of(searcher) if trial.state == TrialState.WAITING]
