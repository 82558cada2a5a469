"""What stands between this device and steady numbers: a short real series, and what it and the machine's own state tell.

The series is a chain of convolution blocks in int4, decoding, in fresh processes of short rounds, as a profile measures. From it:
how far rounds and processes differ, how often the machine is in a slower state, what each of these costs in accuracy, and how far a
profile can be trusted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from archsearch.cases import block_subject, make_case, write_subject
from archsearch.emulated import refuse
from archsearch.errors import RunError
from archsearch.estimate import QUANTILE
from archsearch.space import MeasureSettings
from archsearch.workload import Workload
from devices import health
from devices.base import Device
from devices.plan import Case, Conditions, Failed, MachineState, RoundResult, RunPlan, Started
from operators.graph import read_info
from operators.specs import BlockSpec, FfnSpec, ModelDims, ShortConvSpec

Mark = Literal["ok", "mend", "note"]
PROCESSES = 3
COPIES = 16
SLOW = 1.2
"""A round this much longer than the lower quartile was taken in another state of the machine: clocks, or a neighbour on the core."""
STEADY = 0.02
"""Half width of an interval with which predictions to 3 % are possible."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. `mend` says what to do about it; `costs`, by how much less two profiles would differ without it."""

    mark: Mark
    what: str
    said: str
    mend: str | None = None
    costs: float | None = None


@dataclass(frozen=True, kw_only=True)
class DoctorEvent:
    label: str
    done: int
    total: int


@dataclass(kw_only=True)
class Diagnosis:
    """Filled when the iterator of `examine` has ended. Times are milliseconds of the whole chain, by process."""

    device: str = ""
    threads: int = 1
    rounds_ms: list[list[float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    expected: float = 0.0
    """By how much two profiles with default settings would differ here: half of the 90 % range, relative."""

    @property
    def verdict(self) -> str:
        share = f"a profile with default settings finds times to about ±{self.expected:.1%} here"
        if self.expected <= STEADY:
            return f"{share}: predictions to 3 % are possible today"
        return f"{share}: more than ±{STEADY:.0%}; mend what is marked, or raise measure.rounds and measure.max_passes"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def examine(device: Device, *, threads: int = 1, settings: MeasureSettings | None = None, diagnosis: Diagnosis) -> Iterator[DoctorEvent]:
    """Measure for some seconds, with the rounds of a profile with these settings, or default ones, and judge.

    Raises:
        RunError: nothing could be measured.
        EmulatedTimesError: the device is emulated.
        AgentError: the device's agent cannot be started.
    """
    refuse(device.info.device_id, device.info.extra)
    states: list[MachineState] = []
    conditions: Conditions | None = None
    measure = settings or MeasureSettings()
    total = PROCESSES * measure.rounds
    with tempfile.TemporaryDirectory(prefix="archsearch-") as directory:
        case = _case(Path(directory), threads)
        for number in range(PROCESSES):
            rounds: list[float] = []
            plan = RunPlan(
                cases=(case,),
                threads=threads,
                rounds=measure.rounds,
                min_runs=measure.min_runs,
                min_time_ns=int(measure.min_time_ms * 1e6),
                seed=number,
            )
            for event in device.run(plan):
                match event:
                    case Started():
                        conditions = event.conditions
                        states.append(event.state)
                    case RoundResult():
                        states += [event.before, event.after]
                        rounds.append(float(np.quantile(event.wall_ns, QUANTILE)) / 1e6)
                        yield DoctorEvent(label=f"process {number + 1}", done=number * measure.rounds + len(rounds), total=total)
                    case Failed():
                        raise RunError(f"{device.info.device_id} cannot measure: {event.reason}: {event.detail}")
            diagnosis.rounds_ms.append(rounds)
    diagnosis.device, diagnosis.threads = device.info.device_id, threads
    assert conditions is not None
    diagnosis.findings, diagnosis.expected = judge(diagnosis.rounds_ms, conditions, states)
    if threads > device.info.cores:
        said = f"{threads} of them share {device.info.cores} cores and wait for each other"
        mend = "measure with as many threads as fast cores at most"
        diagnosis.findings.insert(0, Finding(mark="mend", what="threads", said=said, mend=mend))


def judge(rounds_ms: Sequence[Sequence[float]], conditions: Conditions, states: Sequence[MachineState]) -> tuple[list[Finding], float]:
    """Findings from samples and states alone, and the half width that a profile can expect.

    Args:
        rounds_ms: the lower quartile of each round, by process.
        states: every look at the machine, in order of time.
    """
    flat = np.array([time_ms for rounds in rounds_ms for time_ms in rounds])
    value = float(np.quantile(flat, QUANTILE))
    expected = _expected(rounds_ms)
    found = []

    slow = float(np.mean(flat > SLOW * value))
    if slow:
        how = f"{slow:.0%} of the rounds took more than {SLOW:g} times as long as the others"
        mend = "close other programs; on a shared virtual machine, measure more rounds: the lower quartile leaves them out"
        calm = [[time_ms for time_ms in rounds if time_ms <= SLOW * value] for rounds in rounds_ms]
        found.append(Finding(mark="mend", what="rounds", said=how, mend=mend, costs=max(0.0, expected - _expected(calm))))
    else:
        wide = (float(flat.max()) - value) / value
        found.append(Finding(mark="ok", what="rounds", said=f"the slowest of {len(flat)} took {wide:.1%} longer than the lower quartile"))
    middles = [statistics.median(rounds) for rounds in rounds_ms if rounds]
    apart = max(middles) / min(middles) - 1
    said = f"medians of {len(middles)} fresh processes differ by {apart:.1%}"
    if apart <= 2 * STEADY:
        found.append(Finding(mark="ok", what="processes", said=said))
    else:
        alike = [[time_ms / statistics.median(rounds) for time_ms in rounds] for rounds in rounds_ms if rounds]
        mend = "measure in more processes (measure.passes)"
        found.append(Finding(mark="mend", what="processes", said=said, mend=mend, costs=max(0.0, expected - _expected(alike))))
    found += _machine(conditions, states)
    return found, expected


def _expected(rounds_ms: Sequence[Sequence[float]], draws: int = 1000) -> float:
    """Half of the 90 % range, over the median, of what profiles with default settings would find: processes drawn first, then rounds."""
    settings, generator = MeasureSettings(), np.random.default_rng(0)
    processes = [np.asarray(rounds) for rounds in rounds_ms if rounds]
    values = np.empty(draws)
    for i in range(draws):
        chosen = generator.integers(len(processes), size=settings.passes)
        values[i] = np.quantile(np.concatenate([generator.choice(processes[n], settings.rounds) for n in chosen]), QUANTILE)
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return float((high - low) / 2 / middle)


def _machine(conditions: Conditions, states: Sequence[MachineState]) -> list[Finding]:
    """What the machine says of itself; what it does not tell is left out, or noted."""
    found = [Finding(mark="mend", what="machine", said=line) for line in health.advice(conditions, states)]
    shares = [state.busy_other_share for state in states if state.busy_other_share is not None]
    if shares and statistics.mean(shares) <= health.BUSY_SHARE:
        found.append(Finding(mark="ok", what="other programs", said=f"used {statistics.mean(shares):.0%} of the machine meanwhile"))
    asked = conditions.huge_pages == "always" or "hugetlb=1" in conditions.extra.get("glibc_tunables", "")
    reached = [state.huge_page_share for state in states if state.huge_page_share is not None]
    if conditions.huge_pages in ("madvise", "always") and asked and (not reached or min(reached) >= health.HUGE_PAGE_SHARE):
        share = f", and {min(reached):.0%} of the memory lay in them" if reached else ", and asked for"
        found.append(Finding(mark="ok", what="huge pages", said=conditions.huge_pages + share))
    elif conditions.huge_pages is None:
        found.append(Finding(mark="note", what="huge pages", said="this system does not tell"))
    if conditions.governor is None:
        found.append(
            Finding(mark="note", what="clock", said="no governor to be seen (a virtual machine, or no Linux): clocks cannot be checked")
        )
    elif conditions.governor == "performance":
        found.append(Finding(mark="ok", what="clock", said="the governor is performance"))
    memory = [state.available_bytes for state in states if state.available_bytes is not None]
    if memory:
        found.append(Finding(mark="ok" if min(memory) > 2**31 else "note", what="memory", said=f"{min(memory) / 1e9:.1f} GB available"))
    return found


def _case(directory: Path, threads: int) -> Case:
    dims = ModelDims(hidden_size=512)
    block = BlockSpec(operator=ShortConvSpec(), ffn=FfnSpec(intermediate_size=1536))
    workload = Workload(phase="decode", tokens=1, context=512, threads=threads)
    path = write_subject(block_subject(block, dims, COPIES), directory, precision=workload.precision, max_context=workload.cache + 1)
    return make_case(f"doctor-{time.time_ns()}", path, read_info(path), workload)
