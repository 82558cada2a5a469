"""Workers in processes of their own, on a real PostgreSQL and on SQLite: whatever is killed, every training is done once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from command_line import ENVIRONMENT, command, run_command
from optuna.trial import FrozenTrial, TrialState
from postgres import cluster, postgres
from test_quality_evaluator import spec_of, wait_for

from archsearch.errors import StoreError
from archsearch.quality import LayoutQuality, QualitySettings, ResultFile
from archsearch.search.book import open_study
from archsearch.search.queue import TrainingQueue
from archsearch.search.shared import SharedEvaluator
from archsearch.search.storage import RETRIES, require_search

SHORT = QualitySettings(recall_steps=2, text_steps=1)
LONG = QualitySettings(recall_steps=80, text_steps=1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


def start_worker(url: str, *arguments: str) -> subprocess.Popen[str]:
    """The documented line, once for each worker."""
    return subprocess.Popen(
        command("worker", url, "--wait", "--workers", "1", "--idle", "8", "--json", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


@pytest.mark.slow
def test_four_workers_on_postgresql_one_killed_lose_and_double_nothing(server: str, tmp_path: Path) -> None:
    path, wanted = tmp_path / "quality.jsonl", [spec_of(pattern) for pattern in ("c", "a", "ca", "ac", "cc", "aa")]
    evaluator = SharedEvaluator(path, LONG, url=server, workers=0, heartbeat_s=1)
    queue = evaluator.queue
    workers = [start_worker(server) for _ in range(4)]
    try:
        results = evaluator.evaluate_all(wanted)
        killed: list[FrozenTrial] = []

        def kill_one() -> None:
            """kill -9 of a worker (its parent first, which would replace it) in the middle of a training."""
            wait_for(lambda: [trial for trial in queue.trials() if trial.state == TrialState.RUNNING])
            wait_for(lambda: len(psutil.Process(workers[0].pid).children(recursive=True)) > 0)
            pids = {child.pid for child in psutil.Process(workers[0].pid).children(recursive=True)}

            def its_own() -> list[FrozenTrial]:
                # Each worker writes who it is when it signs on; what it trains is known from the queue's own record.
                return [t for t in queue.trials() if t.state == TrialState.RUNNING and t.user_attrs.get("pid") in pids]

            wait_for(its_own)
            killed.extend(its_own())
            os.killpg(workers[0].pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        found = list(results)
        killer.join()
        assert len(killed) == 1
        assert all(isinstance(quality, LayoutQuality) for quality in found), found
        assert sorted(quality.spec.spec_id for quality in found) == sorted(spec.spec_id for spec in wanted)
        keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
        assert len(keys) == len(set(keys)) == 12
        trials = queue.trials()
        complete = Counter(trial.user_attrs["key"] for trial in trials if trial.state == TrialState.COMPLETE)
        assert complete == dict.fromkeys(keys, 1)
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        assert [trial.number for trial in failed] == [trial.number for trial in killed]
        retries = [trial for trial in trials if trial.system_attrs.get("retry_history")]
        assert [trial.system_attrs["retry_history"] for trial in retries] == [[killed[0].number]]
        assert retries[0].state == TrialState.COMPLETE
        ended = [worker.communicate(timeout=120)[0] for worker in workers[1:]]
        shares = [json.loads(text)["trained"] for text in ended]
        by = [json.loads(trial.user_attrs["worker"])["pid"] for trial in trials if trial.state == TrialState.COMPLETE]
        assert sum(shares) + by.count(killed[0].user_attrs["pid"]) == 12
        assert all(shares)
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate()
        evaluator.close()


@pytest.mark.slow
def test_a_worker_that_stood_still_and_a_server_that_was_away_lose_and_double_nothing(tmp_path: Path) -> None:
    """SIGSTOP for longer than three signs of life, then SIGCONT; and PostgreSQL ended at once in the middle of trainings."""
    path, wanted = tmp_path / "quality.jsonl", [spec_of(pattern) for pattern in ("c", "a", "ca", "ac")]
    with cluster() as server:
        evaluator = SharedEvaluator(path, LONG, url=server.url, workers=0, heartbeat_s=1)
        queue = evaluator.queue
        workers = [start_worker(server.url, "--heartbeat", "1") for _ in range(2)]
        found: list[Any] = []
        search = threading.Thread(target=lambda: found.extend(evaluator.evaluate_all(wanted)))
        search.start()
        try:

            def running() -> list[FrozenTrial]:
                pids = {child.pid for child in psutil.Process(workers[0].pid).children(recursive=True)}
                return [t for t in queue.trials() if t.state == TrialState.RUNNING and t.user_attrs.get("pid") in pids]

            wait_for(running)
            (stalled,) = running()
            os.killpg(workers[0].pid, signal.SIGSTOP)
            wait_for(lambda: queue.trials()[stalled.number].state == TrialState.FAIL)
            os.killpg(workers[0].pid, signal.SIGCONT)
            wait_for(lambda: any(trial.state == TrialState.RUNNING for trial in queue.trials()))
            server.stop()
            time.sleep(3)
            server.start()
            search.join(timeout=240)
            assert not search.is_alive()
            assert sorted(quality.spec.spec_id for quality in found) == sorted(spec.spec_id for spec in wanted)
            keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
            failed = Counter(trial.user_attrs["key"] for trial in queue.trials() if trial.state == TrialState.FAIL)
            given_up = {key for key, times in failed.items() if times > RETRIES}  # what had stood still may run again when the server goes
            assert len(given_up) <= len(workers)
            assert set(keys).isdisjoint(given_up)
            assert len(keys) == len(set(keys)) == 8 - len(given_up)
            complete = Counter(trial.user_attrs["key"] for trial in queue.trials() if trial.state == TrialState.COMPLETE)
            assert complete == dict.fromkeys(keys, 1)
            ended = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
            assert sum(document["trained"] for document in ended) == 8
            assert sum(document["failed"] for document in ended) == 0
            assert ended[0]["late"] >= 1  # it came to a result, which does not count
        finally:
            for worker in workers:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.communicate()
            evaluator.close()


@pytest.mark.slow
def test_processes_of_one_machine_share_sqlite(tmp_path: Path) -> None:
    """A search's own two workers and one more process, on one file."""
    url, path = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "quality.jsonl"
    other = start_worker(url, "--heartbeat", "1")
    try:
        wanted = [spec_of(pattern) for pattern in ("c", "a", "ca", "ac", "cc")]
        with SharedEvaluator(path, SHORT, url=url, workers=2, heartbeat_s=1) as evaluator:
            found = list(evaluator.evaluate_all(wanted))
            assert evaluator.workers >= 2
        assert sorted(quality.spec.spec_id for quality in found) == sorted(spec.spec_id for spec in wanted)
        complete = Counter(t.user_attrs["key"] for t in evaluator.queue.trials() if t.state == TrialState.COMPLETE)
        assert sorted(complete.values()) == [1] * 10
        assert set(ResultFile(path).cache) == set(complete)
        # What others have trained comes from the queue, without a file and without training.
        with SharedEvaluator(tmp_path / "elsewhere.jsonl", SHORT, url=url, workers=0) as again:
            assert len(list(again.evaluate_all(wanted))) == 5
    finally:
        other.send_signal(signal.SIGINT)
        text, _ = other.communicate(timeout=60)
    assert other.returncode == 0
    assert json.loads(text)["failed"] == 0


@pytest.mark.slow
def test_workers_of_one_machine_go_on_with_what_was_stopped(tmp_path: Path) -> None:
    """Successive halving: whichever of them began it, to the same result as in one go; nothing is left lying about."""
    settings = QualitySettings(recall_steps=50, text_steps=4)
    wanted = [spec_of(pattern) for pattern in ("c", "a", "ca")]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with SharedEvaluator(tmp_path / "quality.jsonl", settings, url=url, workers=2, heartbeat_s=1) as evaluator:
        assert len(list(evaluator.begin_all(wanted))) == 3
        states = evaluator._local._states if evaluator._local is not None else Path()
        assert len(list(states.glob("*.pt"))) == 6
        found = list(evaluator.evaluate_all(wanted))
        assert list(states.iterdir()) == []
        trials = evaluator.queue.trials()
        whole = [training for spec in wanted for training in evaluator.trainings(spec)]
    assert not states.exists()
    assert all(isinstance(quality, LayoutQuality) for quality in found)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    assert [trial.user_attrs["continued"] for trial in trials] == ["until" not in trial.user_attrs for trial in trials]
    for training in whole:
        kept = evaluator.results.get(training.key)
        assert kept is not None
        assert replace(kept, seconds=0) == replace(training.run(), seconds=0)


@pytest.mark.slow
def test_mistakes_of_the_worker_command_are_one_line(tmp_path: Path) -> None:
    refused = run_command("worker", "postgresql://nobody:secret@127.0.0.1:1/none")
    assert refused.status == 1
    assert "cannot be used as the study's storage" in refused.error
    assert "see that the server runs" in refused.error
    assert "secret" not in refused.err
    for url in ("redis://127.0.0.1:1/0", "nonsense"):
        assert "workers share a database; give postgresql://" in run_command("worker", url).error
    mistyped = run_command("worker", f"sqlite:///{tmp_path / 'stduy.db'}")
    assert mistyped.status == 1
    assert "no such database" in mistyped.error
    assert "--wait" in mistyped.error
    assert not list(tmp_path.iterdir())


def test_a_worker_serves_only_a_database_that_holds_a_search(tmp_path: Path) -> None:
    """And asking leaves a foreign database as it was."""
    path = tmp_path / "other.db"
    url = f"sqlite:///{path}"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"holds no search of archsearch; .*--wait"):
        require_search(url)
    assert path.read_bytes() == before
    foreign = f"sqlite:///{tmp_path / 'foreign.db'}"
    optuna.create_study(study_name="somebody's", storage=foreign)
    with pytest.raises(StoreError, match="holds no search of archsearch"):
        require_search(foreign)
    TrainingQueue(foreign).close()
    require_search(foreign)
    study = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(study, "small-1", 0, {"space_id": "1"})
    require_search(study)
