"""Small trainings in worker processes, each result kept in a file as soon as it exists."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch.errors import RunError
from archsearch.quality.micro import TASKS, QualityResult, QualitySettings, Task, evaluate, settings_key
from archsearch.spec import ArchSpec


@dataclass(frozen=True, kw_only=True)
class LayoutQuality:
    """What is known of a layout: one result for each task."""

    spec: ArchSpec
    recall: QualityResult
    text: QualityResult

    @property
    def solves_recall(self) -> bool:
        return self.recall.status == "resolved"

    def to_dict(self) -> dict[str, Any]:
        return {
            "recall_accuracy": self.recall.value,
            "recall_status": self.recall.status,
            "recall_steps": self.recall.steps,
            "text_bits_per_byte": self.text.value,
            "seed": self.recall.seed,
            "tokens": self.recall.tokens + self.text.tokens,
        }


class Evaluator:
    """Evaluates layouts; results are cached in `path`, one JSON line each, so that nothing finished is trained twice.

    Use as a context manager: leaving it ends the workers, also in the middle of a training.
    """

    def __init__(self, path: Path, settings: QualitySettings, *, seed: int = 0, workers: int | None = None) -> None:
        self.path, self.settings, self.seed = path, settings, seed
        self.workers = workers or max(1, min(8, os.cpu_count() or 1))
        self.cache = _read(path)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            for process in processes:
                process.join()
            self._pool = None

    def cached(self, spec: ArchSpec) -> LayoutQuality | None:
        """The quality of a layout if both tasks are known already."""
        found = {task: self.cache.get(settings_key(spec, task, self.settings, self.seed)) for task in TASKS}
        if found["recall"] is None or found["text"] is None:
            return None
        return LayoutQuality(spec=spec, recall=found["recall"], text=found["text"])

    def evaluate_all(self, specs: Iterable[ArchSpec]) -> Iterator[LayoutQuality]:
        """Evaluate layouts side by side and yield each when both of its tasks are done.

        Raises:
            RunError: a worker died (out of memory, killed); what was finished is kept.
        """
        waiting = list(specs)
        running: dict[Future[QualityResult], str] = {}
        for spec in waiting:
            for task in TASKS:
                key = settings_key(spec, task, self.settings, self.seed)
                if key not in self.cache and key not in running.values():
                    running[self._submit(spec, task)] = key
        while True:
            ready = [(spec, quality) for spec in waiting if (quality := self.cached(spec)) is not None]
            for spec, quality in ready:
                waiting.remove(spec)
                yield quality
            if not waiting:
                return
            finished, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                self._keep(running.pop(future), future)

    def _submit(self, spec: ArchSpec, task: Task) -> Future[QualityResult]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_prepare, initargs=(os.getpid(),))
        return self._pool.submit(_train, spec.to_json(), task, self.settings, self.seed)

    def _keep(self, key: str, future: Future[QualityResult]) -> None:
        from concurrent.futures.process import BrokenProcessPool

        try:
            result = future.result()
        except BrokenProcessPool as error:
            raise RunError("a training worker died, most likely because memory ran out; finished trainings are kept: run the same command again") from error
        line = json.dumps({"key": key, **result.to_dict()}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:  # one write to the end: a killed process leaves a torn last line at worst
                if file.tell() and not _ends_with_newline(self.path):
                    line = "\n" + line
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}; free some space and run the same command again") from error
        self.cache[key] = result


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> dict[str, QualityResult]:
    if not path.exists():
        return {}
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            data = json.loads(line)
            found[data.pop("key")] = QualityResult.from_dict(data)
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill: that training is repeated
    return found


def _prepare(parent: int) -> None:
    """In the worker: one thread, Ctrl-C left to the parent, and no life without it."""
    import signal

    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(spec_json: str, task: Task, settings: QualitySettings, seed: int) -> QualityResult:
    return evaluate(ArchSpec.from_dict(json.loads(spec_json)), task, settings, seed)
