"""This machine as a device: the Python agent in a fresh process, watched from here."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from devices.base import AgentError, DeviceInfo
from devices.machine import local_info
from devices.plan import Case, Event, Failed, FailureReason, MemoryResult, OutputsResult, RoundResult, RunPlan
from devices.protocol import decode_event, encode_plan

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Lets malloc ask for huge pages: int4 decode becomes 2-15 % faster, and processes agree to about 1 % in place of 3-6 %.
Libraries other than glibc ignore it."""
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}
"""From 1.29 on the runtime's own builds report models to their maker from a thread of their own, which would be measured, too."""
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
)
"""All that an agent sees of the user's environment: what else is set there cannot change a measurement."""
START_LIMIT_S = 120.0
"""Importing the runtime takes this long at most, on a busy machine with cold disks."""
UNBLAMED_DEATHS = 3
"""An agent that dies this often while no case is running is broken."""


class LocalDevice:
    """Runs plans in fresh processes of the Python agent, or of another program that speaks `devices.protocol`.

    A case that crashes the agent, hangs, or runs out of memory becomes a `Failed` event, and a new agent goes on with the rest.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-P", "-m", "devices.agent")) -> None:
        self._command = command

    @property
    def info(self) -> DeviceInfo:
        return local_info()

    def run(self, plan: RunPlan) -> Iterator[Event]:
        """Run a plan; see `devices.base.Device.run`."""
        progress = _Progress(plan)
        if plan.cases and not progress.left:
            return
        deaths = 0
        while True:
            death = yield from self._process(replace(plan, cases=progress.left, done=tuple(sorted(progress.done))), progress)
            if death is None:
                return
            if progress.is_over(death.case_id):
                deaths += 1
                if deaths == UNBLAMED_DEATHS:
                    raise AgentError(f"the agent keeps dying between two cases: {death.detail}")
            else:
                progress.note(death)
                yield death
            if not progress.left:
                return

    def _process(self, plan: RunPlan, progress: _Progress) -> Generator[Event, None, Failed | None]:
        """One agent from start to end; returns how it died and on which case, None when it has worked through the plan."""
        with tempfile.TemporaryFile() as errors, self._agent(plan, errors) as process:
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already; its exit status says more
                process.stdin.write(encode_plan(plan) + "\n")
                process.stdin.flush()
            current: str | None = None
            while True:
                limit_s = plan.timeout_s if current is not None else max(plan.timeout_s, START_LIMIT_S)
                try:
                    line = lines.get(timeout=limit_s)
                except queue.Empty:
                    if current is None:
                        raise AgentError(f"the agent did not start within {limit_s:g} s: {_tail(errors)}") from None
                    detail = f"no sign of life for {limit_s:g} s; give it longer with a larger timeout, or measure a smaller model"
                    return Failed(case_id=current, reason="timeout", detail=detail)
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
                progress.note(event)
                yield event
            status = process.wait()
            if status == 0:
                if progress.left:
                    raise AgentError(f"the agent ended without a word on {progress.left[0].case_id}: {_tail(errors)}")
                return None
            if current is None:
                raise AgentError(f"the agent did not start ({_death(status, errors)})")
            return Failed(case_id=current, reason=_reason(status, errors), detail=_death(status, errors))

    @contextlib.contextmanager
    def _agent(self, plan: RunPlan, errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=_environment(plan),
                start_new_session=True,  # Ctrl-C reaches the host alone, which ends the agent when it is ready to
            )
        except OSError as error:
            raise AgentError(f"the agent cannot be started: {error}") from error
        try:
            yield process
        finally:
            _kill(process)
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()


class _Progress:
    """Which cases of a plan are over, and which rounds of the others are done."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self.done = set(plan.done) if plan.purpose == "latency" else set()
        self._ended: set[str] = set()

    def note(self, event: Event) -> None:
        match event:
            case RoundResult():
                self.done.add((event.case_id, event.round))
            case MemoryResult() | OutputsResult() | Failed():
                self._ended.add(event.case_id)

    def is_over(self, case_id: str) -> bool:
        return case_id in self._ended or all((case_id, number) in self.done for number in range(self._plan.rounds))

    @property
    def left(self) -> tuple[Case, ...]:
        return tuple(case for case in self._plan.cases if not self.is_over(case.case_id))


def _environment(plan: RunPlan) -> dict[str, str]:
    """What the agent sees. BLAS is for the machine's limits only; whatever else would start threads is kept to one."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    root = str(Path(__file__).resolve().parent.parent)
    if root not in site.getsitepackages():  # a checkout that is not installed; site-packages must not come before the standard library
        kept["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])
    blas = str(plan.threads if plan.purpose == "limits" else 1)
    threads = {"OMP_NUM_THREADS": blas, "OPENBLAS_NUM_THREADS": blas, "MKL_NUM_THREADS": blas, "VECLIB_MAXIMUM_THREADS": blas}
    return kept | HUGE_PAGES | QUIET | threads


def _kill(process: subprocess.Popen[str]) -> None:
    """End the agent and all that it started, at once, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read_lines(stream: IO[str] | None, lines: queue.Queue[Any]) -> None:
    assert stream is not None
    with contextlib.suppress(ValueError, OSError):  # closed under our hands when the run is abandoned
        for line in stream:
            lines.put(line)
    lines.put(None)


def _reason(status: int, errors: IO[bytes]) -> FailureReason:
    killed = hasattr(signal, "SIGKILL") and status == -signal.SIGKILL
    return "out_of_memory" if killed or any(word in _tail(errors) for word in ("bad_alloc", "MemoryError")) else "crashed"


def _death(status: int, errors: IO[bytes]) -> str:
    """How a process ended, in one line, with the last that it said."""
    said = _tail(errors)
    if hasattr(signal, "SIGKILL") and status == -signal.SIGKILL:
        return "killed by SIGKILL, most likely because memory ran out"
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {said}" if said else how


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return " ".join(" ".join(lines[-3:]).split())[-300:]
