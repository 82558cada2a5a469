"""The Python agent: reads one plan from stdin, works through it, writes one JSON line an event. Ends when stdin is closed.

    python -m devices.agent

Needs the standard library, numpy, onnxruntime and psutil.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

import onnxruntime

from devices import health
from devices.agent import limits, memory
from devices.agent.session import BoundCase, is_out_of_memory, load
from devices.agent.timing import timed_runs
from devices.plan import (
    Case,
    Conditions,
    Event,
    Failed,
    FailureReason,
    Loaded,
    Look,
    MachineState,
    MemoryResult,
    OutputsResult,
    RoundResult,
    RunPlan,
    Started,
)
from devices.protocol import decode_plan, encode_event

VERSION = "python-1"
"""Raised when the way of measuring changes. 1: first."""


class Agent:
    def __init__(self, plan: RunPlan, write: Callable[[str], object]) -> None:
        self.plan = plan
        self.write = write
        self.watch = health.Watch()
        self.random = random.Random(plan.seed)
        self.bound: dict[str, BoundCase] = {}
        self.loaded_bytes: dict[str, int] = {}
        self.load_peak_bytes: dict[str, int] = {}

    def run(self) -> None:
        self.emit(Started(conditions=self.conditions(pin(self.plan)), state=self.watch.look()))
        if self.plan.purpose == "limits":
            self.doing("limits")
            for result in limits.measure(self.plan, self.watch):
                self.emit(result)
            return
        base = memory.resident()
        self.load_all()
        match self.plan.purpose:
            case "latency":
                self.measure_rounds()
            case "memory":
                self.measure_memory(base)
            case "outputs":
                self.report_outputs()

    def conditions(self, cores: tuple[int, ...] | None) -> Conditions:
        return Conditions(
            agent=VERSION,
            runtime=f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider",
            threads=self.plan.threads,
            cores=cores,
            allow_spinning=self.plan.allow_spinning,
            memory_arena=self.plan.memory_arena,
            huge_pages=health.huge_pages(),
            governor=health.governor(),
            extra={"glibc_tunables": os.environ.get("GLIBC_TUNABLES", "")},
        )

    def load_all(self) -> None:
        """Load every model in shuffled order, so that no layout of memory favours one; cases of one model share its session."""
        models: dict[Path, list[Case]] = {}
        for case in self.plan.cases:
            models.setdefault(case.model, []).append(case)
        for path, cases in self.random.sample(list(models.items()), len(models)):
            self.doing(cases[0].case_id)
            try:
                if not path.is_file():
                    raise FileNotFoundError(f"{path}: no such file")
                memory.refuse_unfit(path)
                before = time.perf_counter_ns()
                session = load(str(path), self.plan)
                load_ns = time.perf_counter_ns() - before
            except Exception as error:
                for case in cases:
                    self.fail(case.case_id, "load_failed", error)
                continue
            for case in cases:
                self.doing(case.case_id)
                self.loaded_bytes[case.case_id], self.load_peak_bytes[case.case_id] = memory.resident(), memory.peak()
                try:
                    bound = BoundCase(session, case, self.plan.seed)
                except Exception as error:
                    self.fail(case.case_id, "run_failed", error)
                    continue
                self.bound[case.case_id] = bound
                self.emit(Loaded(case_id=case.case_id, load_ns=load_ns, first_run_ns=bound.first_run_ns))

    def measure_rounds(self) -> None:
        done = set(self.plan.done)
        cpu_clock = time.thread_time_ns if self.plan.threads == 1 else None
        gc.disable()
        for number in range(self.plan.rounds):
            left = [case for case in self.plan.cases if case.case_id in self.bound and (case.case_id, number) not in done]
            if not left:
                continue
            self.watch.huge_page_share = memory.huge_page_share()
            before = self.settle(left[0].case_id)
            for case in self.random.sample(left, len(left)):
                self.doing(case.case_id)
                try:
                    look = partial(self.look, case.case_id, number)
                    wall_ns, cpu_ns = timed_runs(self.bound[case.case_id].run, self.plan, cpu=cpu_clock, look=look)
                except Exception as error:
                    del self.bound[case.case_id]
                    self.fail(case.case_id, "run_failed", error)
                    continue
                cpu = tuple(cpu_ns) if cpu_ns is not None else None
                after = self.watch.look()
                self.emit(RoundResult(case_id=case.case_id, round=number, wall_ns=tuple(wall_ns), cpu_ns=cpu, before=before, after=after))
                before = after

    def look(self, case_id: str, number: int) -> None:
        self.emit(Look(case_id=case_id, round=number, state=self.watch.look()))

    def settle(self, case_id: str) -> MachineState:
        """Give the machine time to calm down; the host hears from us meanwhile."""
        plan = self.plan
        return health.settle(self.watch.look, plan.max_wait_s, plan.max_temperature_c, waiting=lambda: self.doing(case_id))

    def measure_memory(self, base: int) -> None:
        for case_id, bound in self.bound.items():
            self.doing(case_id)
            try:
                for _ in range(self.plan.min_runs):
                    bound.run()
            except Exception as error:
                self.fail(case_id, "run_failed", error)
                continue
            now = memory.rollup()
            self.emit(
                MemoryResult(
                    case_id=case_id,
                    base_bytes=base,
                    loaded_bytes=self.loaded_bytes[case_id],
                    peak_bytes=memory.peak(),
                    pss_bytes=now.get("Pss"),
                    anonymous_bytes=now.get("Anonymous"),
                    load_peak_bytes=self.load_peak_bytes.get(case_id),
                )
            )

    def report_outputs(self) -> None:
        for case_id, bound in self.bound.items():
            self.doing(case_id)
            try:
                for _ in range(self.plan.min_runs - 1):
                    bound.run()
            except Exception as error:
                self.fail(case_id, "run_failed", error)
                continue
            self.emit(OutputsResult(case_id=case_id, sha256=bound.digests()))

    # -- talking to the host ---------------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        self.write(encode_event(event))

    def doing(self, case_id: str) -> None:
        self.write(json.dumps({"event": "doing", "case_id": case_id}))

    def fail(self, case_id: str, reason: FailureReason, error: BaseException) -> None:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        self.emit(Failed(case_id=case_id, reason="out_of_memory" if is_out_of_memory(error) else reason, detail=detail[:500]))


def pin(plan: RunPlan) -> tuple[int, ...] | None:
    """Pin the process before the runtime starts its threads; the mask as the kernel reports it, None where there is none.

    Raises:
        SystemExit: the plan names a core that this process may not use.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = plan.cores if plan.cores is not None else health.fastest_cores(plan.threads)
    if cores:
        allowed = sorted(os.sched_getaffinity(0))
        if not set(cores) <= set(allowed):
            raise SystemExit(f"cannot pin to the cores {', '.join(map(str, cores))}: this machine offers {', '.join(map(str, allowed))}")
        os.sched_setaffinity(0, cores)
    return tuple(sorted(os.sched_getaffinity(0)))


def end_with_host() -> None:
    """Leave when the host closes stdin or dies: no agent outlives the one who asked. The runtime lets this thread run at all times."""
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    os._exit(3)


def private_stdout() -> TextIO:
    """The host's ear. What libraries print to stdout goes to stderr from here on, so that it breaks no line of ours."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return ours


def main() -> None:
    line = sys.stdin.readline()
    if not line:
        raise SystemExit("no plan on stdin; this program is started by archsearch")
    plan = decode_plan(line)
    threading.Thread(target=end_with_host, daemon=True).start()
    if plan.memory_limit_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (plan.memory_limit_bytes, plan.memory_limit_bytes))
    with private_stdout() as out:
        Agent(plan, lambda text: out.write(text + "\n")).run()
    os._exit(0)  # tearing the runtime down takes time and tells nothing


if __name__ == "__main__":
    main()
