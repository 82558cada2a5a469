"""A device that measures nothing: it answers every plan with made-up samples, in the agent's own words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from devices.base import DeviceInfo
from devices.plan import Case, Conditions, Event, Failed, Loaded, MachineState, MemoryResult, RoundResult, RunPlan, Started

INFO = DeviceInfo(
    device_id="local",
    name="made up",
    fingerprint="f" * 12,
    system="none",
    cpu="none",
    cores=2,
    memory_bytes=8 << 30,
    runtime="onnxruntime 0.0",
)
CONDITIONS = Conditions(
    agent="fake-1", runtime="none", threads=1, cores=(0,), allow_spinning=False, memory_arena=False, huge_pages=None, governor=None
)
NOW = MachineState(time_unix_s=0.0)


class FakeDevice:
    """`nanoseconds(case)` decides every sample; cases whose id is in `broken` fail."""

    def __init__(self, nanoseconds: Callable[[Case], int] = lambda case: 1000, broken: frozenset[str] = frozenset()) -> None:
        self.nanoseconds, self.broken = nanoseconds, broken
        self.measured: list[tuple[str, int]] = []
        self.memory: list[str] = []

    @property
    def info(self) -> DeviceInfo:
        return INFO

    def run(self, plan: RunPlan) -> Iterator[Event]:
        yield Started(conditions=CONDITIONS, state=NOW)
        for case in plan.cases:
            if case.case_id in self.broken:
                yield Failed(case_id=case.case_id, reason="crashed", detail="killed by SIGSEGV")
                continue
            if plan.purpose == "memory":
                self.memory.append(case.case_id)
                size = sum(file.stat().st_size for file in case.model.parent.iterdir())
                yield MemoryResult(
                    case_id=case.case_id,
                    base_bytes=50_000_000,
                    loaded_bytes=60_000_000 + size,
                    peak_bytes=60_000_000 + size,
                    pss_bytes=None,
                    anonymous_bytes=None,
                    load_peak_bytes=65_000_000 + size,
                )
                continue
            yield Loaded(case_id=case.case_id, load_ns=5, first_run_ns=6)
        if plan.purpose == "memory":
            return
        for number in range(plan.rounds):
            for case in plan.cases:
                if case.case_id in self.broken or (case.case_id, number) in plan.done:
                    continue
                self.measured.append((case.case_id, number))
                yield RoundResult(
                    case_id=case.case_id, round=number, wall_ns=(self.nanoseconds(case),) * 3, cpu_ns=None, before=NOW, after=NOW
                )
