"""The Python agent: reads one plan from stdin, runs it, writes one JSON line an event. Ends when stdin is closed.

    python -m devices.agent < plan.json
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

import onnxruntime
import psutil

from devices import health
from devices.agent.session import BoundCase, is_out_of_memory, load
from devices.agent.timing import timed_runs
from devices.plan import Case, Conditions, Event, Failed, FailureReason, Loaded, MemoryResult, OutputsResult, RoundResult, RunPlan, Started
from devices.protocol import decode_plan, encode_event

VERSION = "python-1"


class Agent:
    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.watch = health.Watch()
        self.random = random.Random(plan.seed)
        self.bound: dict[str, BoundCase] = {}
        self.loaded_bytes: dict[str, int] = {}

    def run(self) -> None:
        cores = pin(self.plan)
        conditions = Conditions(
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
        emit(Started(conditions=conditions, state=self.watch.look()))
        base = memory_now()
        self.load_all()
        match self.plan.purpose:
            case "latency":
                self.measure_rounds()
            case "memory":
                self.measure_memory(base)
            case "outputs":
                self.report_outputs()

    def load_all(self) -> None:
        """Load every model in shuffled order, so that no layout of memory favours one; cases of one model share its session."""
        models: dict[Path, list[Case]] = {}
        for case in self.plan.cases:
            models.setdefault(case.model, []).append(case)
        for path, cases in self.random.sample(list(models.items()), len(models)):
            doing(cases[0].case_id)
            try:
                before = time.perf_counter_ns()
                session = load(str(path), self.plan)
                load_ns = time.perf_counter_ns() - before
            except Exception as error:
                for case in cases:
                    fail(case, "load_failed", error)
                continue
            for case in cases:
                doing(case.case_id)
                self.loaded_bytes[case.case_id] = memory_now()
                try:
                    before = time.perf_counter_ns()
                    self.bound[case.case_id] = BoundCase(session, case, self.plan.seed)
                    emit(Loaded(case_id=case.case_id, load_ns=load_ns, first_run_ns=time.perf_counter_ns() - before))
                except Exception as error:
                    fail(case, "run_failed", error)

    def measure_rounds(self) -> None:
        done = set(self.plan.done)
        cpu_clock = time.thread_time_ns if self.plan.threads == 1 else None
        for number in range(self.plan.rounds):
            left = [case for case in self.plan.cases if case.case_id in self.bound and (case.case_id, number) not in done]
            for case in self.random.sample(left, len(left)):
                doing(case.case_id)
                before = self.watch.look()
                try:
                    wall_ns, cpu_ns = timed_runs(self.bound[case.case_id].run, self.plan, cpu=cpu_clock)
                except Exception as error:
                    del self.bound[case.case_id]
                    fail(case, "run_failed", error)
                    continue
                cpu = tuple(cpu_ns) if cpu_ns is not None else None
                after = self.watch.look()
                emit(RoundResult(case_id=case.case_id, round=number, wall_ns=tuple(wall_ns), cpu_ns=cpu, before=before, after=after))

    def measure_memory(self, base: int) -> None:
        for case_id, bound in self.bound.items():
            doing(case_id)
            for _ in range(self.plan.min_runs):
                bound.run()
            now = rollup()
            emit(
                MemoryResult(
                    case_id=case_id,
                    base_bytes=base,
                    loaded_bytes=self.loaded_bytes[case_id],
                    peak_bytes=peak_memory(),
                    pss_bytes=now.get("Pss"),
                    anonymous_bytes=now.get("Anonymous"),
                )
            )

    def report_outputs(self) -> None:
        for case_id, bound in self.bound.items():
            doing(case_id)
            for _ in range(self.plan.min_runs - 1):
                bound.run()
            emit(OutputsResult(case_id=case_id, sha256=bound.digests()))


def pin(plan: RunPlan) -> tuple[int, ...] | None:
    """Pin the process before the runtime starts its threads; the mask as the kernel reports it, None where there is none."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = plan.cores if plan.cores is not None else health.fastest_cores(plan.threads)
    if cores:
        os.sched_setaffinity(0, cores)
    return tuple(sorted(os.sched_getaffinity(0)))


def memory_now() -> int:
    return int(psutil.Process().memory_info().rss)


def rollup() -> dict[str, int]:
    """Linux's summary of this process's mappings, in bytes; empty elsewhere."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in (line.split() for line in lines)}


def peak_memory() -> int:
    """Highest resident set of this process's life, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def emit(event: Event) -> None:
    write(encode_event(event))


def doing(case_id: str) -> None:
    import json

    write(json.dumps({"event": "doing", "case_id": case_id}))


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def fail(case: Case, reason: FailureReason, error: BaseException) -> None:
    detail = " ".join(f"{type(error).__name__}: {error}".split())
    emit(Failed(case_id=case.case_id, reason="out_of_memory" if is_out_of_memory(error) else reason, detail=detail[:500]))


def end_with_host() -> None:
    """Leave when the host closes stdin or dies: no agent outlives the one who asked."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(3)


def main() -> None:
    plan = decode_plan(sys.stdin.readline())
    threading.Thread(target=end_with_host, daemon=True).start()
    if plan.memory_limit_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (plan.memory_limit_bytes, plan.memory_limit_bytes))
    Agent(plan).run()
    sys.stdout.flush()
    os._exit(0)  # tearing the runtime down takes time and tells nothing


if __name__ == "__main__":
    main()
