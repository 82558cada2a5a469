"""A training that was closed, interrupted or killed resumes exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainings import SETTINGS, assert_same_training, until

from archsearch.checkpoint import COMPLETE, INCOMING, Checkpoint
from archsearch.spec import ArchSpec
from archsearch.train import (
    Evaluated,
    Finished,
    Sampled,
    Saved,
    Started,
    Step,
    TrainSettings,
    read_metrics,
    train,
)
from archsearch.train.interrupt import uninterrupted
from archsearch.train.position import read_position
from archsearch.train.trainer import Trainer


@pytest.mark.parametrize("stop", [1, 5, 6, 7, 12])
def test_a_closed_training_resumes_exactly(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path, stop: int
) -> None:
    out = tmp_path / "out"
    events = train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache)
    for event in events:
        if isinstance(event, Step) and event.step == stop:
            break
    events.close()  # type: ignore[attr-defined]
    assert Checkpoint.open(out).step == stop
    [*_, finished] = train(tiny_spec, (), out, resume=True, cache_dir=token_cache)
    assert isinstance(finished, Finished)
    assert_same_training(uninterrupted_run, out)


def test_a_training_closed_after_every_event_ends_the_same(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    list(until(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache), Saved))
    for _ in range(40):
        seen = list(until(train(tiny_spec, (), out, resume=True, cache_dir=token_cache), (Step, Evaluated, Sampled, Finished)))
        if isinstance(seen[-1], Finished):
            break
        if isinstance(seen[-1], Sampled):
            [*_, last] = train(tiny_spec, (), out, resume=True, cache_dir=token_cache)
            assert isinstance(last, Finished)
            break
    assert_same_training(uninterrupted_run, out)


def test_ctrl_c_saves(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives in the middle of an update, which is still finished."""
    out = tmp_path / "out"
    original = Trainer._backward

    def backward(self: Trainer, ids_BT: torch.Tensor) -> float:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, ids_BT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_backward", backward)
        with pytest.raises(KeyboardInterrupt):
            list(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache))
    assert Checkpoint.open(out).step == 5
    list(train(tiny_spec, (), out, resume=True, cache_dir=token_cache))
    assert_same_training(uninterrupted_run, out)


def test_signals_wait_for_the_end_of_a_block() -> None:
    order = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            order.append("block done")
        order.append("not reached")
    assert order == ["block done"]

    def elsewhere() -> None:
        with uninterrupted():
            order.append("thread done")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert order[-1] == "thread done"


KILLED = """
import sys
from pathlib import Path
from archsearch.spec import ArchSpec
from archsearch.train import TrainSettings, loop, train
loop.SAVE_SHARE = 1.0
texts, out, cache, resume = sys.argv[1:]
settings = TrainSettings(tokens=12 * 4 * 32, sequence=32, batch=4, micro_batch=2, evaluations=3, eval_tokens=128, sample_tokens=8,
                         threads=1, dtype="fp32", products="blas", save_every_seconds=0)
for event in train(ArchSpec.read(cache + "/tiny.toml"), [texts], out, settings=settings, cache_dir=Path(cache), resume=resume == "resume"):
    print(type(event).__name__, flush=True)
"""


@pytest.mark.parametrize("precision", [{"dtype": "bf16"}, {"products": "onednn"}], ids=["bf16", "onednn"])
def test_every_precision_resumes_exactly(
    precision: dict[str, Any], tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, **precision)
    list(train(tiny_spec, [texts], tmp_path / "whole", settings=settings, cache_dir=token_cache))
    events = train(tiny_spec, [texts], tmp_path / "cut", settings=settings, cache_dir=token_cache)
    next(event for event in events if isinstance(event, Step) and event.step == 7)
    events.close()
    list(train(tiny_spec, [texts], tmp_path / "cut", resume=True, cache_dir=token_cache))
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_killed_training_resumes_exactly(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    """kill -9 twice, at moments that nobody chose: between and in the middle of updates, saves and evaluations."""
    tiny_spec.write(token_cache / "tiny.toml")
    out = tmp_path / "out"
    rng = np.random.default_rng()
    for resume, lines in (("", 8), ("resume", 6)):
        command = [sys.executable, "-c", KILLED, str(texts), str(out), str(token_cache), resume]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert process.stdout.readline(), "ended before it was killed"
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert 0 < Checkpoint.open(out).step < 12
    list(train(tiny_spec, (), out, resume=True, cache_dir=token_cache))
    assert_same_training(uninterrupted_run, out)


KILLED_IN_SAVE = """
import os, shutil, signal
from pathlib import Path
from archsearch import checkpoint

calls, save = 0, checkpoint.save_checkpoint

def count(owner, name):
    original = getattr(owner, name)
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == last_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(owner, name, counted)

def save_and_die(path, spec, step, write):
    if step >= 5:
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "write_text"), (Path, "mkdir"), (Path, "rmdir")):
            count(owner, name)
    save(path, spec, step, write)

*_, texts, out, token_cache, resume, last_call = __import__("sys").argv
last_call = int(last_call)
__import__("sys").argv = ["", texts, out, token_cache, resume]
import archsearch.train.loop
archsearch.train.loop.save_checkpoint = save_and_die
"""


@pytest.mark.slow
def test_a_training_killed_in_a_save_resumes_exactly(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, uninterrupted_run: Path, tmp_path: Path
) -> None:
    """A real kill -9 in the save of step 5: while files are written, while they are flushed, and while they move to their place."""
    tiny_spec.write(token_cache / "tiny.toml")
    left_behind = set()
    for last_call in (3, 8, 13, 16):
        out = tmp_path / str(last_call)
        script = KILLED_IN_SAVE + KILLED.replace("SAVE_SHARE = 1.0", "SAVE_SHARE = 1e9")  # a save after every step
        command = [sys.executable, "-c", script, str(texts), str(out), str(token_cache), "", str(last_call)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        left_behind |= {name for name in (INCOMING, COMPLETE) if (out / name).exists()}
        assert Checkpoint.open(out).step in (4, 5)
        list(train(tiny_spec, (), out, resume=True, cache_dir=token_cache))
        assert_same_training(uninterrupted_run, out)
    assert left_behind == {INCOMING, COMPLETE}, "it died before and after the new checkpoint stood"


def test_muon_resumes_exactly(tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, optimizer="muon", isolate_documents=True)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(train(tiny_spec, [texts], whole, settings=settings, cache_dir=token_cache))
    list(until(train(tiny_spec, [texts], cut, settings=settings, cache_dir=token_cache), Step))
    list(train(tiny_spec, (), cut, resume=True, cache_dir=token_cache))
    assert_same_training(whole, cut)


def test_a_resume_may_have_other_threads(
    tiny_spec: ArchSpec, texts: Path, token_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on another machine, which is told; the plan keeps the new number, and all else."""
    out = tmp_path / "out"
    [begun, *_] = until(train(tiny_spec, [texts], out, settings=SETTINGS, cache_dir=token_cache), Saved)
    assert isinstance(begun, Started)
    events = train(tiny_spec, (), out, settings=TrainSettings(threads=2), resume=True, cache_dir=token_cache)
    [resumed, *_] = until(events, Step)
    assert isinstance(resumed, Started)
    assert resumed.plan == replace(begun.plan, threads=2)
    assert "was begun with 1 thread(s) and goes on with 2" in caplog.text
    assert read_position(Checkpoint.open(out))[0].threads == 2


def test_a_finished_training_has_nothing_to_resume(tiny_spec: ArchSpec, token_cache: Path, uninterrupted_run: Path) -> None:
    before = (uninterrupted_run / "checkpoint.json").stat().st_mtime_ns
    started, finished = train(tiny_spec, (), uninterrupted_run, resume=True, cache_dir=token_cache)
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert finished.step == 12
    assert finished.after.bits_per_byte == read_metrics(uninterrupted_run)[-1]["after"]["bits_per_byte"]
    assert (uninterrupted_run / "checkpoint.json").stat().st_mtime_ns == before
