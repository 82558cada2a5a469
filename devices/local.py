"""This machine as a device: the Python agent in a fresh process, watched from here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import psutil

from devices.base import AgentError, DeviceInfo
from devices.plan import Event, Failed, FailureReason, RoundResult, RunPlan, Started
from devices.protocol import decode_event, encode_plan

HUGE_PAGE_TUNABLE = "glibc.malloc.hugetlb=1"
"""Lets malloc ask for huge pages: int4 decode becomes 2-15 % faster and processes agree to about 1 % in place of 3-6 %."""


class LocalDevice:
    """Runs plans in fresh processes of the Python agent.

    A case that crashes the agent, hangs, or runs out of memory becomes a `Failed` event, and a new agent goes on with the rest.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "devices.agent")) -> None:
        self._command = command

    @property
    def info(self) -> DeviceInfo:
        return local_info()

    def run(self, plan: RunPlan) -> Iterator[Event]:
        """Run a plan; see `devices.base.Device.run`."""
        started = False
        while True:
            culprit: Failed | None = None
            done, failed = list(plan.done), set()
            for event in self._one_process(plan):
                match event:
                    case Started():
                        if started:
                            continue
                        started = True
                    case RoundResult():
                        done.append((event.case_id, event.round))
                    case Failed():
                        failed.add(event.case_id)
                        culprit = event if event.reason in ("crashed", "timeout") or event.detail.startswith(KILLED) else culprit
                yield event
            if culprit is None:
                return
            # The agent died with the culprit: the others go on in a new one, without what is already measured.
            left = tuple(case for case in plan.cases if case.case_id not in failed and not _complete(case.case_id, plan, done))
            if not left:
                return
            plan = replace(plan, cases=left, done=tuple(done))

    def _one_process(self, plan: RunPlan) -> Iterator[Event]:
        with tempfile.TemporaryFile() as errors, self._agent(errors) as process:
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
            try:
                assert process.stdin is not None
                process.stdin.write(encode_plan(plan) + "\n")
                process.stdin.flush()
            except BrokenPipeError as error:
                raise AgentError(f"the agent ended at once: {_tail(errors)}") from error
            current, spoke = plan.cases[0].case_id, False
            while True:
                try:
                    line = lines.get(timeout=plan.timeout_s)
                except queue.Empty:
                    detail = f"no sign of life for {plan.timeout_s:g} s; give it longer with a larger timeout, or measure a smaller model"
                    yield Failed(case_id=current, reason="timeout", detail=detail)
                    return
                if line is None:
                    break
                try:
                    data = json.loads(line)
                    if data["event"] == "doing":
                        current = data["case_id"]
                        continue
                    event = decode_event(data)
                except (ValueError, KeyError, TypeError) as error:
                    raise AgentError(f"the agent wrote a line that is no event: {line[:200]!r}") from error
                spoke = True
                yield event
            status = process.wait()
            if status == 0:
                return
            if not spoke:
                raise AgentError(f"the agent did not start (exit status {status}): {_tail(errors)}")
            yield Failed(case_id=current, reason=_reason(status, errors), detail=_death(status, errors))

    @contextlib.contextmanager
    def _agent(self, errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
        environment = os.environ | {"GLIBC_TUNABLES": HUGE_PAGE_TUNABLE, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
            )
        except OSError as error:
            raise AgentError(f"the agent cannot be started: {error}") from error
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()


KILLED = "killed by SIGKILL"


def local_info() -> DeviceInfo:
    """What this machine is."""
    cpu = _cpu_name()
    cores, memory = os.cpu_count() or 1, psutil.virtual_memory().total
    identity = f"{platform.system()}|{platform.machine()}|{cpu}|{cores}|{round(memory / 2**30)}"
    try:
        runtime = f"onnxruntime {version('onnxruntime')}"
        problem = None
    except PackageNotFoundError:
        runtime, problem = None, "onnxruntime is not installed: pip install onnxruntime"
    return DeviceInfo(
        device_id="local",
        name=platform.node() or "this machine",
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:12],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cores=cores,
        memory_bytes=memory,
        runtime=runtime,
        available=problem is None,
        problem=problem,
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _complete(case_id: str, plan: RunPlan, done: list[tuple[str, int]]) -> bool:
    return plan.purpose == "latency" and all((case_id, number) in done for number in range(plan.rounds))


def _read_lines(stream: IO[str] | None, lines: queue.Queue[Any]) -> None:
    assert stream is not None
    with contextlib.suppress(ValueError, OSError):  # closed under our hands when the run is abandoned
        for line in stream:
            lines.put(line)
    lines.put(None)


def _reason(status: int, errors: IO[bytes]) -> FailureReason:
    out_of_memory = status == -signal.SIGKILL or any(word in _tail(errors) for word in ("bad_alloc", "MemoryError"))
    return "out_of_memory" if out_of_memory else "crashed"


def _death(status: int, errors: IO[bytes]) -> str:
    said = _tail(errors)
    if status == -signal.SIGKILL:
        return f"{KILLED}, most likely because memory ran out"
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {said}" if said else how


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return " ".join(" ".join(lines[-3:]).split())[-300:]
