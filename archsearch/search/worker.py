"""A worker: takes small trainings out of a shared queue until it is told to stop. It needs the storage's URL and nothing else."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, TypeVar

from archsearch.errors import ArchsearchError, RunError, StoreError
from archsearch.quality.evaluator import outcome_of, prepare_process, sigint_ignored
from archsearch.quality.states import begun, state_file
from archsearch.search.queue import HEARTBEAT_S, Taken, TrainingQueue

log = logging.getLogger(__name__)
T = TypeVar("T")
Status = Literal["trained", "failed", "late"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
"""An idle worker looks again after this long, then less and less often: a thousand idle ones must not keep the server busy."""
PATIENCE_S = 900
"""A storage may be out of reach for so long (a restart, a network that is down) before a worker gives up."""
DEATHS = 10
"""So many processes of one machine may die before it is the machine that is to blame."""


@dataclass(frozen=True, kw_only=True)
class WorkerEvent:
    """A training began (`outcome` is empty) or ended, with how many this worker has done so far.

    Attributes:
        status: "late" where the worker was taken for dead meanwhile, so that another's result counts.
    """

    done: int
    pattern: str
    task: str
    seed: int
    outcome: str = ""
    status: Status = "trained"


def work(
    url: str,
    *,
    heartbeat_s: int = HEARTBEAT_S,
    idle_s: float | None = None,
    patience_s: float = PATIENCE_S,
    states: Path | None = None,
) -> Iterator[WorkerEvent]:
    """Train what the queue holds, one training at a time; between two of them the generator may be closed.

    Args:
        states: a folder of this machine where what a stopped training has learned is kept, so that it goes on from there.
        idle_s: end when there was nothing to do for so long; None: go on until stopped. What is stopped in the middle of a training
            (Ctrl-C, SIGTERM) hands it to others.

    Raises:
        StoreError: the storage cannot be used, or was out of reach for longer than `patience_s`.
    """
    queue = TrainingQueue(url, heartbeat_s=heartbeat_s)
    done, pause, idle_since, signed = 0, FIRST_PAUSE_S, time.monotonic(), 0.0
    try:
        while idle_s is None or time.monotonic() - idle_since < idle_s:
            if time.monotonic() - signed >= queue.heartbeat_s:
                patiently(queue.sign_on, patience_s)
                signed = time.monotonic()
            taken = patiently(lambda: queue.take(begun(states) if states is not None else ()), patience_s)
            if taken is None:
                time.sleep(min(pause, queue.heartbeat_s))
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            training = taken.training
            event = WorkerEvent(done=done, pattern=training.spec.pattern, task=training.task, seed=training.seed)
            yield event
            status, outcome = _train(queue, taken, patience_s, states)
            done += status == "trained"
            yield replace(event, done=done, outcome=outcome, status=status)
            pause, idle_since = FIRST_PAUSE_S, time.monotonic()
    finally:
        with contextlib.suppress(StoreError):
            queue.sign_on(False)
            queue.close()


def _train(queue: TrainingQueue, taken: Taken, patience_s: float, states: Path | None) -> tuple[Status, str]:
    state = state_file(states, taken.training.whole.key) if states is not None else None
    continued = state is not None and state.exists()
    try:
        with queue.alive(taken):
            result = outcome_of(taken.training.to_dict(), state)
    except BaseException:  # stopped, for `outcome_of` turns what goes wrong into words
        queue.hand_back(taken)
        raise
    counted = patiently(lambda: queue.done(taken, result, continued=continued), patience_s)
    if not counted:
        return "late", "was taken for dead meanwhile; another worker's result counts"
    if isinstance(result, str):
        return "failed", f"failed: {result}"
    return "trained", f"{result.value:.3f} ({result.status}{', continued' if continued else ''})"


def patiently(call: Callable[[], T], patience_s: float) -> T:
    """Try again while the storage is out of reach, after 1, 2, 4 … at most 60 s.

    Raises:
        StoreError: it was for longer than `patience_s`.
    """
    pause, began = 1.0, time.monotonic()
    while True:
        try:
            return call()
        except StoreError as error:
            if time.monotonic() - began + pause > patience_s:
                raise
            log.warning("%s; trying again in %.0f s", error, pause)
            time.sleep(pause)
            pause = min(2 * pause, 60.0)


class LocalWorkers:
    """Workers in processes of their own on this machine; one that dies is replaced. A context manager: leaving it ends them.

    Where successive halving stops a training, any of them goes on with it later.

    Args:
        idle_s: each ends when there was nothing to do for so long.
    """

    def __init__(self, url: str, count: int, *, heartbeat_s: int = HEARTBEAT_S, idle_s: float | None = None) -> None:
        self._url, self._heartbeat_s, self._idle_s = url, heartbeat_s, idle_s
        self._states = Path()
        self._slots: list[tuple[Any, Connection] | None] = [None] * count
        self._deaths = 0

    def __enter__(self) -> LocalWorkers:
        self._states = Path(tempfile.mkdtemp(prefix="archsearch-rungs-"))
        for slot in range(len(self._slots)):
            self._start(slot)
        return self

    def __exit__(self, *_: object) -> None:
        processes = [process for process, _ in filter(None, self._slots)]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        self._slots = [None] * len(self._slots)
        shutil.rmtree(self._states, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process, _ in filter(None, self._slots)]

    def events(self, timeout_s: float = 0.0) -> list[WorkerEvent] | None:
        """What happened meanwhile; None when all have ended by themselves, having been idle.

        Raises:
            RunError: the storage is out of reach, or `DEATHS` workers have died.
        """
        running = [connection for process, connection in filter(None, self._slots) if process.exitcode != 0 or connection.poll()]
        if not running:
            return None
        found = []
        for slot, entry in enumerate(self._slots):
            if entry is None or entry[1] not in wait(running, timeout_s):
                continue
            process, connection = entry
            try:
                event = connection.recv()
            except (EOFError, OSError):  # torn by a kill
                process.join()
                if process.exitcode == 0:
                    self._slots[slot] = None
                    continue
                self._deaths += 1
                log.warning("worker %d died (%s); another takes its place", process.pid, process.exitcode)
                if self._deaths >= DEATHS:
                    why = "most likely memory runs out: start fewer with --workers"
                    raise RunError(f"{self._deaths} workers have died on this machine; {why}") from None
                self._start(slot)
                continue
            if isinstance(event, str):
                raise RunError(event)
            found.append(event)
        return found

    def _start(self, slot: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(theirs, self._url, self._heartbeat_s, self._idle_s, self._states), daemon=True)
        with sigint_ignored():
            process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._slots[slot] = process, ours


def _serve(connection: Connection, url: str, heartbeat_s: int, idle_s: float | None, states: Path) -> None:
    prepare_process()
    signal.signal(signal.SIGTERM, _stop)
    try:
        for event in work(url, heartbeat_s=heartbeat_s, idle_s=idle_s, states=states):
            connection.send(event)
    except ArchsearchError as error:
        connection.send(str(error))


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)
