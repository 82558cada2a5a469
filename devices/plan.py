"""What to run on a device, and what came of it. Plain data, no torch, no numpy: it crosses process and network borders as JSON.

A `RunPlan` is one *series*: one fresh agent process that loads every model of the plan in shuffled order, and then
runs all cases interleaved, in rounds whose order is shuffled anew. A case's result arrives round by round as `RoundResult`
events, so that whoever listens can store each as soon as it exists; a crash loses the round that was running, no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Fill = Literal["zeros", "normal", "constant", "integers"]
FailureReason = Literal["load_failed", "run_failed", "crashed", "timeout", "out_of_memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """One input tensor, made on the device: nothing but its description travels.

    `fill`: "normal" is N(0, scale) in good approximation, "integers" is uniform in [0, high), "constant" is `value` everywhere.
    The numbers follow from `RunPlan.seed`, the feed's name and the element's index alone, so that every agent, in whatever
    language, makes the same bits; docs/measuring.md gives the rule.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: Fill = "zeros"
    value: float = 0.0
    scale: float = 1.0
    high: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePair:
    """A state input and the output that replaces it.

    `shared`: one buffer for both, written in place. Otherwise there are two, swapped after every run; an output whose shape is
    not the input's (a cache that grows by concatenation) cannot go back in, and every run starts from the first content.
    """

    input: str
    output: str
    shared: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One model at one workload. Feeds cover all inputs, states included (their feed gives shape and first content)."""

    case_id: str
    model: Path
    feeds: tuple[Feed, ...]
    states: tuple[StatePair, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """One series of measurements in one fresh process.

    Every round runs each case at least `min_runs` times and at least `min_time_ns` long, after `warmup_runs` untimed ones.
    A decode step is repeated as it is: the cache lengths it is given do not advance. By purpose:

    - "latency": rounds as above.
    - "memory" takes exactly one case: it loads, runs `min_runs` times, and reports peak memory, not time.
    - "outputs" runs each case `min_runs` times, the first run included, and reports what it computed, so that agents can be compared.
    - "limits" takes no case: how fast the machine reads memory and multiplies, the roof that a case's time is held against.

    Raises:
        ValueError: cases that share an id, or more or fewer of them than the purpose takes; counts below one.
    """

    cases: tuple[Case, ...]
    purpose: Literal["latency", "memory", "outputs", "limits"] = "latency"
    threads: int = 1
    cores: tuple[int, ...] | None = None
    """Pin to these logical cores; None leaves the choice to the device (its fastest, one thread a physical core)."""
    rounds: int = 3
    done: tuple[tuple[str, int], ...] = ()
    """(case, round) pairs to leave out: those an earlier, interrupted series has already measured."""
    warmup_runs: int = 2
    min_runs: int = 5
    min_time_ns: int = 100_000_000
    allow_spinning: bool = False
    memory_arena: bool = False
    memory_limit_bytes: int | None = None
    """Address-space limit of the agent; None for no limit."""
    max_wait_s: float = 2.0
    """Before each round a busy or hot machine is given this long to calm down; then it is measured all the same, and flagged."""
    max_temperature_c: float = 90.0
    """From here the CPU counts as hot: laptops and phones lower their clocks."""
    timeout_s: float = 300.0
    """Longest silence of the agent (a load, or one case's round) before it is killed and the running case fails."""
    seed: int = 0

    def __post_init__(self) -> None:
        ids = [case.case_id for case in self.cases]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two cases of a plan share an id: {sorted(name for name in set(ids) if ids.count(name) > 1)}")
        wanted = {"memory": 1, "limits": 0}.get(self.purpose)
        if (wanted is None and not ids) or (wanted is not None and len(ids) != wanted):
            raise ValueError(f"a plan for {self.purpose} takes {wanted if wanted is not None else 'some'} cases, not {len(ids)}")
        for name in ("threads", "rounds", "min_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineState:
    """What the machine was like at one moment; None where the platform does not tell."""

    time_unix_s: float
    load_1m: float | None = None
    clock_mhz: tuple[float, ...] | None = None
    clock_limit_mhz: tuple[float, ...] | None = None
    """What the kernel lets each core run at now: it falls where a machine that is too hot, or its user, lowers it."""
    temperature_c: float | None = None
    """The CPU's hottest sensor."""
    throttled: bool | None = None
    """Whether the kernel is cooling by lowering the CPU's clocks."""
    steal_ticks: int | None = None
    """Ticks that a hypervisor gave to others, all cores, since boot: what matters is by how much it grows."""
    preemptions: int | None = None
    """How often the kernel took a core from the agent's threads before they gave it up (involuntary context switches), since it began."""
    busy_other_share: float | None = None
    """Share of all cores' time used by other processes, or stolen by a hypervisor, since the last look."""
    available_bytes: int | None = None
    swapped_bytes: int | None = None
    """Swapped in and out since boot: what matters is whether it grows."""
    on_battery: bool | None = None
    huge_page_share: float | None = None
    """Share of the agent's anonymous memory in huge pages when the round began."""
    waited_s: float = 0.0
    """How long the round was held back for the machine to calm down."""
    thermal_status: int | None = None
    """Android's: 0 none, 1 light, 2 moderate (clocks are lowered), up to 6. At the beginning of a series."""
    battery_percent: int | None = None
    screen_on: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What held for a whole series; results whose conditions differ must not be compared."""

    agent: str
    """Which agent and version: "python-1"."""
    runtime: str
    """ "onnxruntime 1.32.0 CPUExecutionProvider"."""
    threads: int
    cores: tuple[int, ...] | None
    """The affinity mask as read back; None where it cannot be set."""
    allow_spinning: bool
    memory_arena: bool
    huge_pages: str | None
    governor: str | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A process has begun. There is another one for every process that replaces an agent that died: samples of two are two series."""

    conditions: Conditions
    state: MachineState


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model was loaded. `first_run_ns` is its first run, which pays for lazy initialisation."""

    case_id: str
    load_ns: int
    first_run_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundResult:
    """One case's samples of one round: wall time of every timed run, and CPU time where `threads` is 1."""

    case_id: str
    round: int
    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...] | None
    before: MachineState
    after: MachineState


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The machine while a case is measured: once a second, between two of its runs, never within one."""

    case_id: str
    round: int
    state: MachineState


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryResult:
    """Memory of a fresh process, in bytes. `base`: runtime imported, nothing loaded; `peak`: highest resident set ever."""

    case_id: str
    base_bytes: int
    loaded_bytes: int
    peak_bytes: int
    pss_bytes: int | None
    anonymous_bytes: int | None
    load_peak_bytes: int | None = None
    """Highest resident set until the model was loaded, before inputs and caches were made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputsResult:
    """SHA-256 of every output's bytes after the last run, states included."""

    case_id: str
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitResult:
    """Samples of what the machine can do at most: `amount` bytes or floating-point operations in each of `wall_ns`."""

    limit: Literal["read_bandwidth", "fp32_matmul"]
    threads: int
    amount: int
    wall_ns: tuple[int, ...]
    method: str
    """How it was measured, for the reader of a report."""
    before: MachineState
    after: MachineState

    @property
    def per_second(self) -> float:
        """The fastest sample, in bytes/s or FLOP/s: a limit is what can be reached, not what is usual."""
        return self.amount / min(self.wall_ns) * 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A case that gave no result, and why. The series goes on with the others."""

    case_id: str
    reason: FailureReason
    detail: str


Event = Started | Loaded | RoundResult | Look | MemoryResult | OutputsResult | LimitResult | Failed
