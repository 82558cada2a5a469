"""Small trainings in worker processes, each result kept in a file as soon as it exists."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch.errors import RunError
from archsearch.quality.micro import TASKS, QualityResult, QualitySettings, Task, evaluate, settings_key
from archsearch.spec import ArchSpec
from operators.specs import SpecError


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


@dataclass(frozen=True, kw_only=True)
class EvaluationFailure:
    """A layout that could not be trained, and why."""

    spec: ArchSpec
    reason: str


class Evaluator:
    """Evaluates layouts; results are cached in `path`, one JSON line each, so that nothing finished is trained twice.

    Use as a context manager: leaving it ends the workers, also in the middle of a training.

    Raises:
        RunError: `path` is there but cannot be read.
    """

    def __init__(self, path: Path, settings: QualitySettings, *, seed: int = 0, workers: int | None = None) -> None:
        self.path, self.settings, self.seed = path, settings, seed
        self.workers = workers or max(1, min(8, os.cpu_count() or 1))
        self.cache = _read(path)
        # A pool of one process for each worker: when a process dies, it is known of which training.
        self._pools: list[ProcessPoolExecutor | None] = [None] * self.workers

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers at once; what they had not finished is lost."""
        for slot in range(self.workers):
            self._end(slot)

    def cached(self, spec: ArchSpec) -> LayoutQuality | None:
        """The quality of a layout if both tasks are known already."""
        try:
            found = {task: self.cache.get(settings_key(spec, task, self.settings, self.seed)) for task in TASKS}
        except SpecError:
            return None
        if found["recall"] is None or found["text"] is None:
            return None
        return LayoutQuality(spec=spec, recall=found["recall"], text=found["text"])

    def evaluate_all(self, specs: Iterable[ArchSpec]) -> Iterator[LayoutQuality | EvaluationFailure]:
        """Evaluate layouts side by side and yield each when both of its tasks are done, or one of them has failed.

        Layouts with the same narrow copy share its trainings.

        Raises:
            RunError: a result cannot be written down.
        """
        waiting: list[tuple[ArchSpec, list[str]]] = []
        todo: deque[tuple[str, ArchSpec, Task]] = deque()
        for spec in specs:
            try:
                keys = [settings_key(spec, task, self.settings, self.seed) for task in TASKS]
            except SpecError as error:
                yield EvaluationFailure(spec=spec, reason=str(error))
                continue
            waiting.append((spec, keys))
            known = {*self.cache, *(key for key, _, _ in todo)}
            todo.extend((key, spec, task) for key, task in zip(keys, TASKS, strict=True) if key not in known)
        failures: dict[str, str] = {}
        running: dict[Future[QualityResult | str], tuple[int, str]] = {}
        try:
            while True:
                for entry in list(waiting):
                    spec, keys = entry
                    reason = next((failures[key] for key in keys if key in failures), None)
                    quality = self.cached(spec)
                    if reason is not None or quality is not None:
                        waiting.remove(entry)
                        yield quality or EvaluationFailure(spec=spec, reason=reason or "")
                if not waiting:
                    return
                idle = set(range(self.workers)) - {slot for slot, _ in running.values()}
                for slot in sorted(idle)[: len(todo)]:
                    key, spec, task = todo.popleft()
                    running[self._submit(slot, spec, task)] = slot, key
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    slot, key = running.pop(future)
                    reason = self._finish(slot, key, future)
                    if reason is not None:
                        failures[key] = reason
        finally:
            if running:  # the caller has gone: nobody waits for what is left
                self.close()

    def _submit(self, slot: int, spec: ArchSpec, task: Task) -> Future[QualityResult | str]:
        pool = self._pools[slot]
        with _sigint_ignored():  # inherited by the process, so that Ctrl-C is left to us from its first moment on
            if pool is None:
                context = multiprocessing.get_context("spawn")
                pool = self._pools[slot] = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)
            return pool.submit(_train, spec.to_json(), task, self.settings, self.seed)

    def _finish(self, slot: int, key: str, future: Future[QualityResult | str]) -> str | None:
        """Keep a result; the reason when there is none."""
        from concurrent.futures.process import BrokenProcessPool

        try:
            result = future.result()
        except BrokenProcessPool:
            self._end(slot)
            return "its training process died, most likely because memory ran out"
        if isinstance(result, str):
            return result
        self._keep(key, result)
        return None

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

    def _keep(self, key: str, result: QualityResult) -> None:
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
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}; move it away to train anew") from error
    found = {}
    for line in lines:
        try:
            data = json.loads(line)
            key = data.pop("key")
            found[key] = QualityResult.from_dict(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # torn by a kill: that training is repeated
    return found


@contextlib.contextmanager
def _sigint_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare() -> None:
    """In the worker: one thread, Ctrl-C left to the parent, and no life without it."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(spec_json: str, task: Task, settings: QualitySettings, seed: int) -> QualityResult | str:
    """The result, or why there is none: in words, because not every exception survives the way between two processes."""
    try:
        return evaluate(ArchSpec.from_dict(json.loads(spec_json)), task, settings, seed)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
