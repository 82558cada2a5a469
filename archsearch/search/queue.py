"""The queue that workers share: small trainings to do, being done and done, as trials of one Optuna study.

Whoever wants something trained puts it in; any process that reaches the storage takes it out, on whatever machine. While it
trains it gives a sign of life; when that stops, the training is failed by whoever notices first and put into the queue once
more. A result is a function of its key, so that one trained twice is no harm, and one that is there is never trained again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archsearch.errors import StoreError
from archsearch.quality import QualityResult, Training
from archsearch.search.owner import owner
from archsearch.search.storage import QUEUE, RETRIES, experimental_is_known, is_database, open_storage, shown, storage_errors, with_driver

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

HEARTBEAT_S = 20
MISSED = 3
"""So many signs of life in a row have to be missing before a worker counts as dead."""
WINDOW = 16
"""A worker takes one of the first so many, at random: a thousand that all try the first one would wait for each other."""
DIED_ONCE = "its worker was killed, or stood still; it is tried once more"
DIED = "its worker was killed, twice; most likely memory ran out"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A training that this process has taken out of the queue."""

    training: Training
    trial: FrozenTrial


def check_shared(url: str) -> None:
    """Raises:
    StoreError: several processes cannot share what is at `url`.
    """
    if not is_database(url):
        raise StoreError(f"{shown(url)}: workers share a database; give postgresql://USER@HOST/NAME, or sqlite:///FILE on one machine")


class TrainingQueue:
    """The queue in a storage, made if there is none.

    Args:
        url: a database: SQLite for the processes of one machine, PostgreSQL for many machines.
        heartbeat_s: seconds between two signs of life. Whoever makes the queue decides for all.

    Raises:
        StoreError: the storage cannot be used.
    """

    def __init__(self, url: str, *, heartbeat_s: int = HEARTBEAT_S) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.url = with_driver(url)
        check_shared(url)
        self._storage = open_storage(self.url, heartbeat_s=heartbeat_s, grace_s=MISSED * heartbeat_s)
        with storage_errors(self.url, opening=True):
            self._study = optuna.create_study(study_name=QUEUE, storage=self._storage, load_if_exists=True)
            agreed = self._study.user_attrs.get("heartbeat_s")
            if agreed is None:
                self._study.set_user_attr("heartbeat_s", heartbeat_s)
                agreed = heartbeat_s
        self.heartbeat_s = self._storage.heartbeat_interval = int(agreed)
        self._storage.grace_period = MISSED * self.heartbeat_s
        self._looked = 0.0
        self._missed: dict[str, float] = {}

    def close(self) -> None:
        """Let go of the connections."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self) -> list[FrozenTrial]:
        """Everything that was ever in the queue."""
        with storage_errors(self.url):
            return self._study.get_trials(deepcopy=False)

    # -- who wants something trained ------------------------------------------------------------------------------------

    def put(self, trainings: Iterable[Training]) -> None:
        """Add what is not there yet; what failed is tried anew."""
        import optuna

        live = {key for key, trials in self._by_key().items() if trials[-1].state != optuna.trial.TrialState.FAIL}
        for training in trainings:
            if training.key not in live:
                live.add(training.key)
                self._add(training)

    def outcomes(self, keys: Iterable[str]) -> dict[str, QualityResult | str]:
        """What is known of those that have ended: the result, or why there is none."""
        import optuna

        self.rescue()
        known = self._by_key()
        found: dict[str, QualityResult | str] = {}
        for key in keys:
            trials = known.get(key, [])
            done = next((trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE), None)
            if done is not None:
                found[key] = QualityResult.from_dict(json.loads(done.user_attrs["result"]))
            elif trials and trials[-1].state == optuna.trial.TrialState.FAIL:
                reason = trials[-1].user_attrs.get("reason")
                if reason is not None:
                    found[key] = reason
                elif len(trials[-1].system_attrs.get("retry_history", ())) >= RETRIES:
                    found[key] = DIED
        return found

    def mend(self, trainings: Iterable[Training]) -> None:
        """Put back what is nowhere to be found: whoever was about to do so was itself killed between two steps."""
        import optuna

        known = self._by_key()
        for training in trainings:
            trials = known.get(training.key, [])
            if trials and trials[-1].state != optuna.trial.TrialState.FAIL:
                self._missed.pop(training.key, None)
            elif time.monotonic() - self._missed.setdefault(training.key, time.monotonic()) > self.heartbeat_s:
                del self._missed[training.key]
                self._add(training, {"retry_history": [trial.number for trial in trials]} if trials else {})

    def rescue(self) -> None:
        """Fail what dead workers have left, which puts it into the queue once more; at most once in a heartbeat."""
        import optuna

        if time.monotonic() < self._looked + self.heartbeat_s:
            return
        self._looked = time.monotonic()
        with storage_errors(self.url), experimental_is_known():
            self._say_why()
            optuna.storages.fail_stale_trials(self._study)

    def _say_why(self) -> None:
        """The reason into each trial that is about to be failed; afterwards nothing can be written into it."""
        from optuna.exceptions import UpdateFinishedTrialError

        for trial_id in self._storage._get_stale_trial_ids(self._study._study_id):
            last = len(self._storage.get_trial(trial_id).system_attrs.get("retry_history", ())) >= RETRIES
            with contextlib.suppress(UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id, "killed", DIED if last else DIED_ONCE)

    def workers(self) -> int:
        """Processes that have asked for work lately, by this machine's clock: an estimate."""
        with storage_errors(self.url):
            signs = [value for name, value in self._study.user_attrs.items() if name.startswith("worker ")]
        return sum(value is not None and time.time() - value < MISSED * self.heartbeat_s for value in signs)

    # -- who trains -----------------------------------------------------------------------------------------------------

    def sign_on(self, present: bool = True) -> None:
        """Say that this process takes work, or that it no longer does."""
        who = owner()
        with storage_errors(self.url):
            self._study.set_user_attr(f"worker {who['host']} {who['pid']}", time.time() if present else None)

    def take(self, begun: Container[str] = ()) -> Taken | None:
        """A training that nobody else does; None when there is none that this version of the program can do.

        Args:
            begun: keys of trainings whose first steps were done on this machine: they are taken first, for they go on from there.
        """
        import optuna

        self.rescue()
        with storage_errors(self.url):
            waiting = self._storage.get_all_trials(self._study._study_id, deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
            ours = [trial for trial in waiting if trial.user_attrs.get("key") in begun]
            others = [trial for trial in waiting if trial.user_attrs.get("key") not in begun]
            first, rest = others[:WINDOW], others[WINDOW:]
            for some in (ours, first):
                random.shuffle(some)
            for trial in (*ours, *first, *rest):
                training = _readable(trial.user_attrs)
                if training is None or not self._claim(trial):
                    continue
                if self._done_elsewhere(trial, training.key):
                    self._end(trial, optuna.trial.TrialState.PRUNED, reason="the same training is done by another trial")
                    continue
                self._storage.set_trial_user_attr(trial._trial_id, "pid", os.getpid())
                return Taken(training=training, trial=trial)
        return None

    def _claim(self, trial: FrozenTrial) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            # Signs of life first: a trial that runs without any would never be found dead.
            self._storage.record_heartbeat(trial._trial_id)
            return bool(self._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING))
        except UpdateFinishedTrialError:
            return False

    def _done_elsewhere(self, trial: FrozenTrial, key: str) -> bool:
        """Two searches that want the same training at once may both put it in, as may two that find the same worker dead: the one that
        came first is done. Trials are numbered in the order in which they are written, so the later one sees the earlier."""
        from optuna.trial import TrialState

        others = [other for other in self._by_key().get(key, []) if other.number != trial.number]
        return any(
            other.state == TrialState.COMPLETE or (other.state != TrialState.FAIL and other.number < trial.number) for other in others
        )

    @contextlib.contextmanager
    def alive(self, taken: Taken) -> Iterator[None]:
        """Signs of life in the background while a training goes on; a storage that is out of reach for a while is no reason to stop."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self.heartbeat_s):
                with contextlib.suppress(StoreError), storage_errors(self.url):
                    self._storage.record_heartbeat(taken.trial._trial_id)
                with contextlib.suppress(StoreError):
                    self.sign_on()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def done(self, taken: Taken, result: QualityResult | str, *, continued: bool = False) -> bool:
        """Write down what came of it; False when it was taken for dead meanwhile, and another does it.

        Args:
            continued: it went on from where it had been stopped, instead of beginning anew.
        """
        from optuna.trial import TrialState

        if isinstance(result, str):
            return self._end(taken.trial, TrialState.FAIL, reason=result)
        found = json.dumps(result.to_dict())
        return self._end(taken.trial, TrialState.COMPLETE, value=result.value, result=found, continued=continued)

    def hand_back(self, taken: Taken) -> None:
        """Give up in the middle: another takes it at once, and it does not count as a failure."""
        from optuna.trial import TrialState

        self._add(taken.training, taken.trial.system_attrs)
        self._end(taken.trial, TrialState.PRUNED, reason="its worker was stopped; handed to another")

    def _add(self, training: Training, system_attrs: Mapping[str, Any] | None = None) -> None:
        import optuna

        state = optuna.trial.TrialState.WAITING
        with storage_errors(self.url):
            self._study.add_trial(optuna.create_trial(state=state, user_attrs=training.to_dict(), system_attrs=dict(system_attrs or {})))

    def _end(self, trial: FrozenTrial, state: Any, *, value: float | None = None, **attributes: str | bool) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        with storage_errors(self.url):
            try:
                for name, what in {**attributes, "worker": json.dumps(owner())}.items():
                    self._storage.set_trial_user_attr(trial._trial_id, name, what)
                self._storage.set_trial_state_values(trial._trial_id, state=state, values=None if value is None else [value])
            except UpdateFinishedTrialError:
                return False
        return True

    def _by_key(self) -> dict[str, list[FrozenTrial]]:
        """All trials, the oldest first; those that were put back by a worker that stopped do not count."""
        import optuna

        found: dict[str, list[FrozenTrial]] = {}
        for trial in self.trials():
            if trial.state != optuna.trial.TrialState.PRUNED:
                found.setdefault(trial.user_attrs.get("key", ""), []).append(trial)
        return found


def _readable(attributes: Mapping[str, Any]) -> Training | None:
    """The training, if this version of the program, with its operators, would come to the same result as who asked for it."""
    try:
        training = Training.from_dict(attributes)
    except Exception:
        return None
    return training if training.key == attributes["key"] else None
