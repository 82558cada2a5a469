"""Trainings in worker processes: what is finished is kept, whatever ends the search or a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from archsearch.errors import RunError
from archsearch.quality import EvaluationFailure, Evaluator, LayoutQuality, QualitySettings
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec, FfnSpec, GqaSpec, ShortConvSpec

TINY = QualitySettings(recall_steps=1, text_steps=1)


def spec_of(pattern: str, *, name: str = "x", hidden: int = 128) -> ArchSpec:
    operators = {"c": ShortConvSpec(kernel_size=3), "a": GqaSpec(heads=4, kv_heads=2, head_dim=hidden // 4)}
    return ArchSpec(
        name=name,
        hidden_size=hidden,
        vocab_size=1000,
        layers=tuple(BlockSpec(operator=operators[kind], ffn=FfnSpec(intermediate_size=2 * hidden)) for kind in pattern),
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition: object, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


TWINS = (spec_of("c"), spec_of("ca"), spec_of("c", hidden=256, name="the same narrow copy"))
BROKEN = ArchSpec(name="broken", hidden_size=128, vocab_size=1000, layers=())  # refused by the worker, which reads it
Found = list[LayoutQuality | EvaluationFailure]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """Two layouts, one more with a narrow copy of theirs, and one that cannot be trained."""
    path = tmp_path_factory.mktemp("quality") / "run" / "quality.jsonl"
    with Evaluator(path, TINY, workers=2) as evaluator:
        assert evaluator.cached(TWINS[0]) is None
        found = list(evaluator.evaluate_all([BROKEN, *TWINS]))
        assert all(evaluator.cached(spec) is not None for spec in TWINS)
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return path, found


def test_each_training_is_done_once_and_kept(trained: tuple[Path, Found]) -> None:
    path, found = trained
    good = [quality for quality in found if isinstance(quality, LayoutQuality)]
    assert sorted(quality.spec.spec_id for quality in good) == sorted(spec.spec_id for spec in TWINS)
    assert len(lines(path)) == 4  # two copies, two tasks
    again = Evaluator(path, TINY, workers=1)
    assert sorted(map(repr, again.evaluate_all(TWINS))) == sorted(map(repr, good))
    assert again._pools == [None]  # nothing was left to train
    assert Evaluator(path, QualitySettings(recall_steps=2, text_steps=1)).cached(TWINS[0]) is None
    assert Evaluator(path, TINY, seed=1).cached(TWINS[0]) is None


def test_a_training_that_raises_fails_its_layout_and_no_other(trained: tuple[Path, Found]) -> None:
    failures = [quality for quality in trained[1] if isinstance(quality, EvaluationFailure)]
    assert [failure.spec.spec_id for failure in failures] == [BROKEN.spec_id]
    assert failures[0].reason.startswith("FileFormatError: layers")


def test_a_torn_line_costs_one_training(trained: tuple[Path, Found], tmp_path: Path) -> None:
    path, whole = tmp_path / "quality.jsonl", trained[0].read_bytes()
    path.write_bytes(whole[:-20])
    evaluator = Evaluator(path, TINY)
    assert len(evaluator.results.cache) == 3
    lost = next(key for key in Evaluator(trained[0], TINY).results.cache if key not in evaluator.results.cache)
    evaluator.results.keep(lost, Evaluator(trained[0], TINY).results.cache[lost])  # behind the torn line, not glued to it
    assert Evaluator(path, TINY).results.cache == Evaluator(trained[0], TINY).results.cache
    for garbage in (b"\xff\xfe\n", b"5\n", b'"x"\n', b"[]\n", b'{"key": "k"}\n', b"\n"):
        path.write_bytes(garbage + whole)
        assert len(Evaluator(path, TINY).results.cache) == 4


def test_a_place_that_cannot_be_written_is_one_line(trained: tuple[Path, Found], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    key, result = next(iter(Evaluator(trained[0], TINY).results.cache.items()))
    with pytest.raises(RunError, match=r"quality\.jsonl: cannot be written") as error:
        Evaluator(tmp_path / "file" / "quality.jsonl", TINY).results.keep(key, result)
    assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        Evaluator(tmp_path / "folder", TINY)


def test_a_worker_that_dies_fails_its_layout_and_no_other(tmp_path: Path) -> None:
    """A worker is killed in its training, as the kernel does when memory runs out."""
    slow = QualitySettings(recall_steps=100_000, text_steps=1)
    evaluator = Evaluator(tmp_path / "quality.jsonl", slow, workers=1)

    def kill_worker() -> None:
        pool = evaluator._pools[0]
        assert pool is not None
        for process in list(pool._processes.values()):
            os.kill(process.pid, signal.SIGKILL)

    with evaluator:
        results = evaluator.evaluate_all([spec_of("c")])
        import threading

        timer = threading.Timer(3.0, kill_worker)
        timer.start()
        failure = next(results)
        assert isinstance(failure, EvaluationFailure)
        assert "died" in failure.reason
        assert list(results) == []
        # The next layout gets a new worker.
        evaluator.settings = TINY
        assert all(isinstance(quality, LayoutQuality) for quality in evaluator.evaluate_all([spec_of("ca")]))


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from archsearch.quality import Evaluator, QualitySettings
from test_quality_evaluator import spec_of
if __name__ == "__main__":
    with Evaluator(Path({path!r}), QualitySettings(recall_steps=1, text_steps=100_000), workers=2) as evaluator:
        list(evaluator.evaluate_all([spec_of("c")]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_what_is_finished_survives_the_end_of_the_search(tmp_path: Path, sent: signal.Signals) -> None:
    path, program = tmp_path / "quality.jsonl", tmp_path / "program.py"
    program.write_text(PROGRAM.format(path=str(path), tests=str(Path(__file__).parent)))
    process = subprocess.Popen([sys.executable, str(program)], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(lambda: path.exists() and path.read_text().endswith("\n"))  # recall is done, text goes on for ever
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does: to the workers too
        else:
            process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
        wait_for(lambda: not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE], 30)
        if sent == signal.SIGINT:
            assert stderr.count("Traceback") == 1, stderr  # the program's own KeyboardInterrupt; nothing of the workers
    finally:
        process.kill()
        process.wait()
    assert [line["task"] for line in lines(path)] == ["recall"]
    assert len(Evaluator(path, QualitySettings(recall_steps=1, text_steps=100_000)).results.cache) == 1
