"""An evaluator whose trainings are done by any number of workers on any number of machines, through a shared queue."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from archsearch.quality import Evaluator, LayoutQuality, QualityResult, QualitySettings, Training
from archsearch.quality.tasks import TASKS, Task
from archsearch.search.queue import HEARTBEAT_S, TrainingQueue
from archsearch.search.worker import PATIENCE_S, LocalWorkers, patiently
from archsearch.spec import ArchSpec
from operators.specs import SpecError

LOOK_S = 1.0
"""Seconds between two looks at what has come in."""


class SharedEvaluator(Evaluator):
    """Puts trainings into the queue of `url` and waits for their results, which it keeps in `path` too.

    Args:
        workers: processes to start on this machine while it waits; 0 where others do all of it.

    Raises:
        RunError: `path` is there but cannot be read.
    """

    def __init__(
        self,
        path: Path,
        settings: QualitySettings,
        *,
        url: str,
        seed: int = 0,
        workers: int | None = None,
        tasks: Sequence[Task] = TASKS,
        heartbeat_s: int = HEARTBEAT_S,
    ) -> None:
        super().__init__(path, settings, seed=seed, workers=workers or None, tasks=tasks)
        self._here = self._slots if workers is None else workers
        self.url, self._heartbeat_s = url, heartbeat_s
        self._queue: TrainingQueue | None = None
        self._local: LocalWorkers | None = None

    @property
    def queue(self) -> TrainingQueue:
        if self._queue is None:
            self._queue = TrainingQueue(self.url, heartbeat_s=self._heartbeat_s)
        return self._queue

    @property
    def workers(self) -> int:
        """Those at work anywhere, as far as is known; at least those of this machine."""
        return max(1, self._here, self.queue.workers())

    def cached(self, spec: ArchSpec) -> LayoutQuality | None:
        """What is known here, or was trained for somebody else's search."""
        known = super().cached(spec)
        if known is not None:
            return known
        try:
            keys = [training.key for training in self.trainings(spec) if training.key not in self.results]
        except SpecError:
            return None
        for key, outcome in self.queue.outcomes(keys).items():
            if not isinstance(outcome, str):
                self.results.keep(key, outcome)
        return super().cached(spec)

    def close(self) -> None:
        """End the workers of this machine; what they had not finished goes to others, or is done when the search goes on."""
        local, self._local = self._local, None
        if local is not None:
            local.__exit__()
        if self._queue is not None:
            self._queue.close()

    def _train(self, trainings: Iterable[Training]) -> Iterator[tuple[str, QualityResult | str]]:
        todo = {training.key: training for training in trainings}
        if not todo:
            return
        patiently(lambda: self.queue.put(todo.values()), PATIENCE_S)
        if self._local is None and self._here:
            self._local = LocalWorkers(self.url, self._here, heartbeat_s=self._heartbeat_s).__enter__()
        while todo:
            found = patiently(lambda: self.queue.outcomes(todo), PATIENCE_S)
            for key, outcome in found.items():
                if not isinstance(outcome, str):
                    self.results.keep(key, outcome)
            for key, outcome in found.items():
                del todo[key]
                yield key, outcome
            if todo and not found:
                time.sleep(LOOK_S)
                patiently(lambda: self.queue.mend(todo.values()), PATIENCE_S)
            if self._local is not None:
                self._local.events()
