"""Small trainings in worker processes, each result kept in a file as soon as it exists."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch.quality.results import ResultFile
from archsearch.quality.states import state_file
from archsearch.quality.tasks import TASKS, QualityResult, QualitySettings, Task
from archsearch.quality.training import Training
from archsearch.spec import ArchSpec
from operators.specs import SpecError


@dataclass(frozen=True, kw_only=True)
class LayoutQuality:
    """What is known of a layout: one result for each task.

    Attributes:
        others: of further synthetic tasks, where a space asks for them.
    """

    spec: ArchSpec
    recall: QualityResult
    text: QualityResult
    others: tuple[QualityResult, ...] = ()

    @property
    def synthetic(self) -> tuple[QualityResult, ...]:
        return (self.recall, *self.others)

    @property
    def solves_recall(self) -> bool:
        return self.recall.status == "resolved"

    @property
    def solves_all(self) -> bool:
        """Whether every synthetic task is solved."""
        return all(result.status == "resolved" for result in self.synthetic)

    @property
    def ability(self) -> float:
        """How far the synthetic tasks are solved, in [0, 1]: their mean, where a solved one counts as 1 and any other as its accuracy."""
        return sum(1.0 if result.status == "resolved" else result.value for result in self.synthetic) / len(self.synthetic)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for result in self.synthetic:
            found |= {f"{result.task}_accuracy": result.value, f"{result.task}_status": result.status, f"{result.task}_steps": result.steps}
        tokens = self.text.tokens + sum(result.tokens for result in self.synthetic)
        return found | {"text_bits_per_byte": self.text.value, "seed": self.recall.seed, "tokens": tokens}


@dataclass(frozen=True, kw_only=True)
class EvaluationFailure:
    """A layout that could not be trained, and why."""

    spec: ArchSpec
    reason: str


class Evaluator:
    """Evaluates layouts; results are cached in `path`, one JSON line each, so that nothing finished is trained twice.

    Use as a context manager: leaving it ends the workers, also in the middle of a training.

    Args:
        tasks: what a layout is trained on: text, recall, and further synthetic tasks.

    Raises:
        RunError: `path` is there but cannot be read.
    """

    def __init__(
        self, path: Path, settings: QualitySettings, *, seed: int = 0, workers: int | None = None, tasks: Sequence[Task] = TASKS
    ) -> None:
        self.results, self.settings, self.seed, self.tasks = ResultFile(path), settings, seed, tuple(tasks)
        self._states: Path | None = None
        self._slots = workers or max(1, min(8, os.cpu_count() or 1))
        # A pool of one process for each worker: when a process dies, it is known of which training.
        self._pools: list[ProcessPoolExecutor | None] = [None] * self._slots

    @property
    def workers(self) -> int:
        """Trainings that go on side by side."""
        return self._slots

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers at once; what they had not finished is lost."""
        for slot in range(self._slots):
            self._end(slot)
        if self._states is not None:
            shutil.rmtree(self._states, ignore_errors=True)
            self._states = None

    def trainings(self, spec: ArchSpec) -> list[Training]:
        """What has to be known of a layout.

        Raises:
            SpecError: it cannot be narrowed.
        """
        return [Training(spec=spec, task=task, settings=self.settings, seed=self.seed) for task in self.tasks]

    def first_rungs(self, spec: ArchSpec) -> list[Training]:
        """What has to be known of a layout before successive halving looks first; of tasks that are known to their end, that.

        Raises:
            SpecError: it cannot be narrowed.
        """
        self.cached(spec)  # where results are shared, brings in what others have trained
        return [training if training.key in self.results else training.first_rung() for training in self.trainings(spec)]

    def cached(self, spec: ArchSpec) -> LayoutQuality | None:
        """The quality of a layout if all of its tasks are known already, here or to another process that writes into the same file."""
        try:
            trainings = self.trainings(spec)
        except SpecError:
            return None
        if any(training.key not in self.results for training in trainings):
            self.results.refresh()
        return self._known(spec, trainings)

    def _known(self, spec: ArchSpec, trainings: Sequence[Training]) -> LayoutQuality | None:
        results = [self.results.get(training.key) for training in trainings]
        found = {result.task: result for result in results if result is not None}
        if len(found) < len(results):
            return None
        recall, text = found.pop("recall"), found.pop("text")
        return LayoutQuality(spec=spec, recall=recall, text=text, others=tuple(found.values()))

    def evaluate_all(self, specs: Iterable[ArchSpec]) -> Iterator[LayoutQuality | EvaluationFailure]:
        """Evaluate layouts side by side and yield each when all of its tasks are done, or one of them has failed.

        Raises:
            RunError: a result cannot be written down.
        """
        yield from self._gather(specs, self.trainings)

    def begin_all(self, specs: Iterable[ArchSpec]) -> Iterator[LayoutQuality | EvaluationFailure]:
        """The same up to where successive halving looks first. What is evaluated later goes on from there.

        Raises:
            RunError: a result cannot be written down.
        """
        for quality in self._gather(specs, self.first_rungs):
            if isinstance(quality, LayoutQuality):
                self._keep_solved(quality)
            yield quality

    def _keep_solved(self, quality: LayoutQuality) -> None:
        """A synthetic training ends when it is solved, so one that was solved by then has no more steps to come."""
        solved = {result.task: result for result in quality.synthetic if result.status == "resolved"}
        for training in self.trainings(quality.spec):
            if training.task in solved and training.key not in self.results:
                self.results.keep(training.key, solved[training.task])

    def _gather(
        self, specs: Iterable[ArchSpec], trainings_of: Callable[[ArchSpec], list[Training]]
    ) -> Iterator[LayoutQuality | EvaluationFailure]:
        waiting: dict[int, tuple[ArchSpec, list[Training]]] = {}
        todo: list[Training] = []
        for number, spec in enumerate(specs):
            try:
                trainings = trainings_of(spec)
            except SpecError as error:
                yield EvaluationFailure(spec=spec, reason=str(error))
                continue
            waiting[number] = spec, trainings
            todo += trainings
        for key, result in self.train_all(todo):
            for number, (spec, trainings) in list(waiting.items()):
                if all(training.key != key for training in trainings):
                    continue
                quality = self._known(spec, trainings)
                if isinstance(result, str) or quality is not None:
                    del waiting[number]
                    yield quality or EvaluationFailure(spec=spec, reason=str(result))
            if not waiting:
                return

    def train_all(self, trainings: Iterable[Training]) -> Iterator[tuple[str, QualityResult | str]]:
        """Do small trainings side by side; yield each one's key with its result, or with the reason why there is none.

        What is known already comes at once; what shares a key is trained once.

        Raises:
            RunError: a result cannot be written down.
        """
        unique = {training.key: training for training in trainings}
        for key in unique:
            known = self.results.get(key)
            if known is not None:
                yield key, known
        yield from self._train([training for key, training in unique.items() if key not in self.results])

    def _train(self, trainings: Iterable[Training]) -> Iterator[tuple[str, QualityResult | str]]:
        todo = deque(trainings)
        running: dict[Future[QualityResult | str], tuple[int, str]] = {}
        try:
            while todo or running:
                idle = set(range(self._slots)) - {slot for slot, _ in running.values()}
                for slot in sorted(idle)[: len(todo)]:
                    training = todo.popleft()
                    running[self._submit(slot, training)] = slot, training.key
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                # All are kept before the first is handed over: the caller may not come back for the others.
                yield from [(key, self._finish(slot, key, future)) for future in finished for slot, key in [running.pop(future)]]
        finally:
            if running:  # the caller has gone: nobody waits for what is left
                self.close()

    def _submit(self, slot: int, training: Training) -> Future[QualityResult | str]:
        pool = self._pools[slot]
        with sigint_ignored():  # inherited by the process, so that Ctrl-C is left to us from its first moment on
            if pool is None:
                context = multiprocessing.get_context("spawn")
                pool = self._pools[slot] = ProcessPoolExecutor(1, mp_context=context, initializer=prepare_process)
            return pool.submit(outcome_of, training.to_dict(), self._state_of(training))

    def _state_of(self, training: Training) -> Path:
        """Where a training that is stopped leaves what it has learned, until the evaluator is closed."""
        if self._states is None:
            self._states = Path(tempfile.mkdtemp(prefix="archsearch-rungs-"))
        return state_file(self._states, training.whole.key)

    def _finish(self, slot: int, key: str, future: Future[QualityResult | str]) -> QualityResult | str:
        """Keep a result; the reason when there is none."""
        from concurrent.futures.process import BrokenProcessPool

        try:
            result = future.result()
        except BrokenProcessPool:
            self._end(slot)
            return "its training process died, most likely because memory ran out"
        if not isinstance(result, str):
            self.results.keep(key, result)
        return result

    def _end(self, slot: int) -> None:
        pool, self._pools[slot] = self._pools[slot], None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


@contextlib.contextmanager
def sigint_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def prepare_process() -> None:
    """In a process that trains: one thread, Ctrl-C left to the parent, and no life without it."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def outcome_of(training: dict[str, Any], state: Path | None = None) -> QualityResult | str:
    """The result, or why there is none: in words, because not every exception survives the way between two processes."""
    try:
        return Training.from_dict(training).run(state)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
