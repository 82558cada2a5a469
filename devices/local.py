"""This machine as a device: the Python agent in a fresh process, watched from here."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from devices.base import AgentError, DeviceInfo
from devices.host import Progress, supervise, tail
from devices.machine import local_info
from devices.plan import Event, RunPlan
from devices.protocol import encode_plan

KEEPING = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824"
"""Of an agent that is timed: malloc asks for huge pages, and takes large buffers from its heap, too. By default it maps them one by one,
each then half in small pages, until one has been freed: which models of a process were in huge pages depended on the order of loading,
and cost fp32 decode 3 to 5 %. Libraries other than glibc ignore it."""
GIVING_BACK = "glibc.malloc.mmap_threshold=131072"
"""Of an agent whose memory is measured: every large buffer is mapped on its own and given back when it is freed, so that the peak is what
is in use, alike in every process. By default it is that and what the heap's gaps hold: 184 to 217 MB for a prefill that uses 174."""
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}
"""From 1.29 on the runtime's own builds report models to their maker from a thread of their own, which would be measured, too."""
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
)
"""All that an agent sees of the user's environment: what else is set there cannot change a measurement."""


class LocalDevice:
    """Runs plans in fresh processes of the Python agent, or of another program that speaks `devices.protocol`."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-P", "-m", "devices.agent")) -> None:
        self._command = command

    @property
    def info(self) -> DeviceInfo:
        return local_info()

    def run(self, plan: RunPlan) -> Iterator[Event]:
        """Run a plan; see `devices.base.Device.run`."""
        return supervise(Progress(plan), self._launch)

    @contextlib.contextmanager
    def _launch(self, plan: RunPlan) -> Iterator[_LocalProcess]:
        with tempfile.TemporaryFile() as errors:
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
                yield _LocalProcess(process, errors)
            finally:
                _kill(process)
                for stream in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        if stream is not None:
                            stream.close()


class _LocalProcess:
    """See `devices.host.AgentProcess`."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process.stdout, self._lines), daemon=True).start()

    def send(self, plan: RunPlan) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(encode_plan(plan) + "\n")
            self._process.stdin.flush()

    def read_line(self, timeout_s: float) -> str | None:
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None

    def wait(self) -> int:
        return self._process.wait()

    def said(self) -> str:
        self._errors.seek(0)
        return tail(self._errors.read().decode(errors="replace"))


def _environment(plan: RunPlan) -> dict[str, str]:
    """What the agent sees. BLAS is for the machine's limits only; whatever else would start threads is kept to one."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    root = str(Path(__file__).resolve().parent.parent)
    if root not in site.getsitepackages():  # a checkout that is not installed; site-packages must not come before the standard library
        kept["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])
    blas = str(plan.threads if plan.purpose == "limits" else 1)
    threads = {"OMP_NUM_THREADS": blas, "OPENBLAS_NUM_THREADS": blas, "MKL_NUM_THREADS": blas, "VECLIB_MAXIMUM_THREADS": blas}
    return kept | allocator(plan) | QUIET | threads


def allocator(plan: RunPlan) -> dict[str, str]:
    """How the agent's malloc is set."""
    return {"GLIBC_TUNABLES": GIVING_BACK if plan.purpose == "memory" else KEEPING}


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
