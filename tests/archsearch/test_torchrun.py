"""`torchrun -m archsearch train` as a user types it: Ctrl-C, a resume, an export of what was left, and a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from command_line import Outcome

from archsearch.checkpoint import Checkpoint
from archsearch.spec import ArchSpec
from archsearch.train import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE = 400
STEPS = 400


@pytest.fixture
def command(tiny_spec: ArchSpec, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All of the line but torchrun's options."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "300")
    tiny_spec.write(tmp_path / "tiny.toml")
    where = ["train", str(tmp_path / "tiny.toml"), "--data", str(texts), "--out", str(tmp_path / "out")]
    return ["-m", "archsearch", *where, "--tokens", str(STEPS * 4 * 32), "--batch", "4", "--sequence", "32", "--dtype", "fp32"]


@contextmanager
def torchrun(arguments: list[str], *options: str) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options, *arguments]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # it ends its own
                process.wait()


def steps(out: Path) -> int:
    return sum(row["event"] == "step" for row in read_metrics(out)) if (out / "metrics.jsonl").exists() else 0


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error")]


def test_ctrl_c_saves_once_and_what_it_leaves_can_be_used(command: list[str], tmp_path: Path, call: Callable[..., Outcome]) -> None:
    out = tmp_path / "out"
    with torchrun([*command, "--parallel", "fsdp"]) as process:
        wait_for(lambda: steps(out) >= 3, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 1
    assert errors(output) == ["error: interrupted; the same command with --resume goes on where it stopped"]
    opened = Checkpoint.open(out)
    assert 3 <= opened.step == steps(out) < STEPS
    assert len(opened.parts) == 2
    exported = call("export", out, "--to", "onnx", "--out", tmp_path / "exported")
    assert exported.status == 0, exported.err
    with torchrun([*command, "--resume"]) as process:
        output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    assert errors(output) == []
    assert output.count("held-out bits per byte ") == 1, "the first process alone shows the result"
    assert f"goes on at step {opened.step}" in output
    assert Checkpoint.open(out).step == steps(out) == STEPS


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_process_ends_all_in_one_line_or_is_started_again(command: list[str], tmp_path: Path, restarts: int) -> None:
    out = tmp_path / "out"
    with torchrun(command, "--max-restarts", str(restarts)) as process:
        wait_for(lambda: steps(out) >= 3, process)
        workers = {int(worker.environ()["RANK"]): worker for worker in psutil.Process(process.pid).children() if "RANK" in worker.environ()}
        os.kill(workers[1].pid, signal.SIGKILL)
        output = process.communicate(timeout=PATIENCE)[0]
    [line] = errors(output)
    assert line.startswith("error: another process of this training has ended, or the network to it broke (")
    if restarts:
        assert process.returncode == 0, output
        assert "goes on at step 0" in output, "from the last checkpoint, without --resume in the line"
        assert Checkpoint.open(out).step == steps(out) == STEPS
    else:
        assert process.returncode == 1
        assert Checkpoint.open(out).step == 0


def test_what_is_wrong_for_all_is_said_once(command: list[str], tmp_path: Path) -> None:
    for arguments, message in (
        ([*command, "--batch", "1"], "error: batch: 1 sequences cannot be shared by 2 processes; start at most 1, or train with "),
        ([*command[:3], str(tmp_path / "no.toml"), *command[4:]], "error: "),
        (["-m", "archsearch", "devices"], "Error: Invalid value: only `archsearch train` can be started by torchrun, not `devices`"),
    ):
        with torchrun(arguments) as process:
            output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 1
        said = [line for line in output.splitlines() if line.lower().startswith("error")]
        assert len(said) == 1, output
        assert said[0].startswith(message)
    assert not (tmp_path / "out").exists()
