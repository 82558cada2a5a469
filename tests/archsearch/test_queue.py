"""The queue that workers share: what is in it is done once, whoever dies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from test_quality_evaluator import spec_of

from archsearch.errors import StoreError
from archsearch.quality import QualityResult, QualitySettings, Training
from archsearch.search import queue as queues
from archsearch.search.queue import DIED, DIED_ONCE, TrainingQueue
from archsearch.search.worker import patiently, work

SHORT = QualitySettings(recall_steps=2, text_steps=1)


def trainings(patterns: str, settings: QualitySettings = SHORT, task: Any = "recall") -> list[Training]:
    return [Training(spec=spec_of(pattern), task=task, settings=settings, seed=0) for pattern in patterns.split()]


def result_of(value: float) -> QualityResult:
    common: dict[str, Any] = {"steps": 1, "tokens": 10, "seconds": 0.1, "seed": 0}
    return QualityResult(task="recall", value=value, status="unresolved", curve=((1, value),), **common)


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_training_is_put_in_once_taken_once_and_known_afterwards(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'q.db'}"
    one, other = TrainingQueue(url), TrainingQueue(url)
    wanted = trainings("c ca")
    one.put(wanted)
    other.put([*wanted, *trainings("ca")])
    taken = [queue.take() for queue in (one, other, one)]
    assert {entry.training.key for entry in taken if entry} == {training.key for training in wanted}
    assert taken[2] is None
    assert taken[0] is not None
    assert taken[1] is not None
    assert one.outcomes([entry.training.key for entry in taken if entry]) == {}
    assert one.done(taken[0], result_of(0.5))
    assert other.done(taken[1], "ValueError: it cannot be")
    found = other.outcomes([training.key for training in wanted])
    assert found == {taken[0].training.key: result_of(0.5), taken[1].training.key: "ValueError: it cannot be"}
    other.put(wanted)  # what failed is tried anew, what is there is not
    again = one.take()
    assert again is not None
    assert again.training == taken[1].training
    assert one.take() is None


def test_a_training_of_another_version_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = TrainingQueue(f"sqlite:///{tmp_path / 'q.db'}")
    queue.put(trainings("c"))
    with monkeypatch.context() as patch:
        patch.setattr("archsearch.quality.tasks.VERSION", 99)
        assert queue.take() is None
    assert queue.take() is not None


@pytest.mark.slow
def test_what_a_dead_worker_had_is_tried_once_more_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    queue = TrainingQueue(f"sqlite:///{tmp_path / 'q.db'}", heartbeat_s=1)
    monkeypatch.setattr(queues.time, "monotonic", clock)
    (training,) = trainings("c")
    queue.put([training])
    for attempt in range(2):
        assert queue.take() is not None  # and never heard of again
        assert queue.outcomes([training.key]) == {}
        time.sleep(5)  # the database's own clock decides
        clock.now += 5
        found = queue.outcomes([training.key])
        assert found == ({} if attempt == 0 else {training.key: DIED})
    assert [trial.state for trial in queue.trials()] == [TrialState.FAIL, TrialState.FAIL]
    assert [trial.user_attrs["killed"] for trial in queue.trials()] == [DIED_ONCE, DIED]
    assert queue.take() is None
    queue.put([training])  # whoever asks for it again gets it tried again
    assert queue.take() is not None


def test_a_worker_first_takes_what_it_has_begun(tmp_path: Path) -> None:
    """Anything else would be begun anew, here and there."""
    queue = TrainingQueue(f"sqlite:///{tmp_path / 'q.db'}")
    wanted = trainings("c a ca ac cc aa")
    queue.put(wanted)
    begun = {wanted[4].key, wanted[5].key}
    taken = [queue.take(begun) for _ in range(6)]
    keys = [entry.training.key for entry in taken if entry is not None]
    assert set(keys[:2]) == begun
    assert set(keys) == {training.key for training in wanted}  # and then what others have begun: better than to be idle


def test_a_sign_of_life_keeps_a_training(tmp_path: Path) -> None:
    queue, other = (TrainingQueue(f"sqlite:///{tmp_path / 'q.db'}", heartbeat_s=1) for _ in range(2))
    queue.put(trainings("c"))
    taken = queue.take()
    assert taken is not None
    with queue.alive(taken):
        time.sleep(5)
        other.rescue()
        assert other.workers() == 1
    assert [trial.state for trial in queue.trials()] == [TrialState.RUNNING]
    assert queue.done(taken, result_of(1.0))


def test_a_worker_that_is_stopped_hands_its_training_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'q.db'}"
    queue = TrainingQueue(url)
    queue.put(trainings("c"))
    monkeypatch.setattr("archsearch.search.worker.outcome_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(work(url))
    states = [trial.state for trial in queue.trials()]
    assert sorted(states) == [TrialState.PRUNED, TrialState.WAITING]
    assert queue.workers() == 0
    assert queue.take() is not None


def test_what_is_nowhere_to_be_found_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a process is killed between failing a dead worker's trial and queueing its retry."""
    clock = Clock()
    queue = TrainingQueue(f"sqlite:///{tmp_path / 'q.db'}")
    monkeypatch.setattr(queues.time, "monotonic", clock)
    wanted = trainings("c")
    for _ in range(2):
        queue.mend(wanted)
        assert queue.take() is None
    clock.now += 60
    queue.mend(wanted)
    queue.mend(wanted)
    assert queue.take() is not None
    assert queue.take() is None


def test_two_that_put_back_the_same_training_have_it_done_once(tmp_path: Path) -> None:
    queue = TrainingQueue(f"sqlite:///{tmp_path / 'q.db'}")
    (training,) = trainings("c")
    for _ in range(2):
        queue._add(training, {"retry_history": [0]})
    first = queue.take()
    assert first is not None
    assert queue.done(first, result_of(0.4))
    assert queue.take() is None
    assert sorted(trial.state for trial in queue.trials()) == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_storage_that_comes_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("archsearch.search.worker.time.sleep", pauses.append)
    answers = iter([StoreError("gone"), StoreError("gone"), StoreError("gone"), 7])

    def call() -> int:
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    assert patiently(call, 100) == 7
    assert pauses == [1, 2, 4]
    with pytest.raises(StoreError):
        patiently(lambda: (_ for _ in ()).throw(StoreError("gone")), 0)


def test_two_searches_that_want_the_same_training_at_once_have_it_done_once(tmp_path: Path) -> None:
    """Each looked before the other had put it in; a worker that takes the later one finds the earlier, waiting, running or done."""
    queue = TrainingQueue(f"sqlite:///{tmp_path / 'q.db'}")
    (training,) = trainings("c")
    for _ in range(3):
        queue._add(training)
    taken = queue.take()
    assert taken is not None
    assert taken.trial.number == 0
    assert queue.take() is None
    assert queue.done(taken, result_of(0.4))
    assert sorted(trial.state for trial in queue.trials()) == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert queue.outcomes([training.key]) == {training.key: result_of(0.4)}
