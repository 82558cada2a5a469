"""Everything a report shows, as plain data. Whoever fills these rows needs neither torch nor a browser.

Times are milliseconds, memory is 10^6 bytes, shares are in [0, 1]. Empty sections are left out of the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reports.confirmed_rows import Confirmed
from reports.plan_rows import Plan

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorCost:
    """One block (operator and FFN) at one workload, in a whole model."""

    label: str
    """ "conv3/768": operator and FFN width."""
    operator: str
    """ "conv3": the operator's label alone."""
    family: str
    """Groups colours: "conv", "gla", "swa", "gqa", or a third party's own."""
    ffn: int
    hidden_size: int
    phase: Phase
    tokens: int
    context: int
    batch: int
    precision: str
    threads: int
    time_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    runs: int
    state_mb: float
    """Caches of one block at that context."""
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualCost:
    """One operator's block at one workload: with the widest FFN, and with the FFN that gives all operators' blocks equal parameters."""

    operator: str
    family: str
    workload: str
    parameters: float
    """Of the block with the widest FFN."""
    time_ms: float
    ffn: float | None
    """The width that makes parameters equal; None, as the times are, where a single width was measured."""
    equal_ms: float | None
    equal_low_ms: float | None
    equal_high_ms: float | None
    outside: bool
    """The width lies below the narrowest measured one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Raw samples of one case, per copy of the block (or of the whole model), for distributions."""

    label: str
    family: str
    workload: str
    """ "decode@4096"."""
    milliseconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RooflinePoint:
    label: str
    family: str
    phase: Phase
    intensity: float
    """FLOP per byte of weights and caches that are read."""
    gflops: float
    """Reached GFLOP/s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRow:
    """A hard limit, and where the chosen layout stands."""

    metric: str
    """ "decode_ms@4096"."""
    unit: str
    """ "ms", "MB" or ""."""
    limit: float
    predicted: float | None = None
    measured: float | None = None
    best_reachable: float | None = None
    """Smallest value any layout of the space has; given where the budgets are impossible."""
    at_least: bool = False
    """A lower limit, of a size that is held."""

    def keeps(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One layer of a layout strip."""

    label: str
    family: str
    ffn: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignRow:
    """One layout: trained, or refused for its costs, or only looked at by the cheap pass."""

    spec_id: str
    pattern: str
    cells: tuple[Cell, ...]
    hidden_size: int
    parameters: float
    latency_ms: float
    memory_mb: float
    feasible: bool
    why: str = ""
    """Which budget it misses, or what its trainings found."""
    label: str = ""
    """ "LFM2's pattern", "all gqa"; empty for most."""
    trained: bool = False
    recall_accuracy: float | None = None
    recall_solved: bool | None = None
    text_bits_per_byte: float | None = None
    on_front: bool = False
    chosen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedRow:
    """A whole model at one workload: predicted from blocks, and measured."""

    model: str
    """ "trained model", or a layout's name for models of random weights."""
    trained: bool
    workload: str
    unit: str
    """ "ms" or "MB"."""
    predicted: float | None
    low: float | None
    high: float | None
    measured: float | None
    p95: float | None = None
    drift: float | None = None
    """How much slower the same blocks ran beside the model than when they were profiled; 1.0 is unchanged."""
    extrapolated: bool = False
    """Predicted beyond the measured lengths, which the interval does not know of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """Peak memory by part at one context, and the measured peak of the whole model."""

    context: int
    parts_mb: dict[str, float]
    """Part to 10^6 bytes, in the order in which they are stacked."""
    measured_mb: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterRow:
    """Where a model's parameters go."""

    model: str
    own: bool
    """The chosen spec, in contrast to a published model."""
    parts: dict[str, int]
    """Part ("embedding", "short_conv", "gqa", "ffn", "norms", ...) to parameters."""
    embedding_share: float
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStep:
    step: int
    tokens: int
    loss_nats: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutPoint:
    step: int
    tokens: int
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSample:
    prompt: str
    text: str
    temperature: float
    reference: str | None = None
    """How the held-out document really goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the chosen spec was trained."""

    steps: tuple[TrainingStep, ...]
    held_out: tuple[HeldOutPoint, ...]
    samples: tuple[TextSample, ...]
    facts: dict[str, str]
    """Short facts in words: "tokens": "2.1M", "data": "Python standard library", "speed": "8,100 tokens/s"..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The exported model against the trained one."""

    precision: str
    relative_error: float
    tolerance: float
    facts: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesRow:
    """One process that measured, and the conditions it ran under."""

    started: str
    """ISO time, UTC."""
    device: str
    agent: str
    runtime: str
    threads: int
    cores: str
    clock_mhz: float | None
    temperature_c: float | None
    load_1m: float | None
    busy_other_share: float | None
    """Mean share of the machine that other processes used while it measured."""
    steal_ticks: int | None
    huge_pages: str | None
    governor: str | None
    measurements: int
    rounds: int
    spread: float | None
    """Median over its cases of half the interquartile range over the median."""
    flags: tuple[str, ...] = ()
    power: str | None = None
    """Where the current came from, and how full a phone's battery was."""
    screen: str | None = None
    clocks: str | None = None
    """Of a phone: whether fixed-performance mode held."""
    thermal_status: str | None = None
    """Android's, in its words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutRow:
    """One held-out whole model at one workload: the prediction, scaled by the machine's drift, beside the measurement."""

    layout: str
    workload: str
    setting: str
    """Precision and threads, "int4, 2 threads"."""
    unit: str
    predicted: float
    measured: float
    error: float
    """Signed, relative."""
    low: float
    high: float
    """The stated 90 % interval, scaled as the prediction is."""
    covered: bool
    """Whether the stated interval held the measured value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSummary:
    """Errors of held-out models at one workload, relative; None for what was not computed."""

    workload: str
    setting: str
    layouts: int
    median: float
    worst: float
    bias: float
    p95: float | None = None
    rank_correlation: float | None = None
    coverage: float | None = None
    coverage_widened: float | None = None
    drift: tuple[float, float] | None = None
    interpolated: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityCheck:
    """How well a cheap judgement of layouts agrees with longer trainings of them.

    Attributes:
        subject: what is judged and in which unit, "text, bits per byte".
        judge: the cheap judgement, or what it is to be compared with (another seed, parameters, chance).
        tau, low, high: Kendall's tau-b with its interval; None where it says no order.
        regret_1, regret_3: what it costs to trust its first choice, or the best of its first three, in the subject's unit.
        verdict: "validated" or "unvalidated"; empty for what is only compared with.
    """

    subject: str
    judge: str
    tau: float | None
    low: float | None
    high: float | None
    regret_1: float
    regret_3: float
    cpu_s: float | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRow:
    label: str
    workload: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRow:
    device_id: str
    name: str
    cpu: str
    cores: int
    memory_gb: float
    system: str
    runtime: str
    clusters: str = ""
    """Cores by kind, where there are several: "1 × 2.8 GHz + 3 × 2.4 GHz"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One headline number."""

    title: str
    value: str
    note: str = ""
    share: float | None = None
    """Of its budget: the bar is green up to 1 and red beyond; None for no bar."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole page. Any section may be empty: a run that has only been profiled has only those."""

    title: str
    subtitle: str
    cards: tuple[Card, ...] = ()
    devices: tuple[DeviceRow, ...] = ()
    operators: tuple[OperatorCost, ...] = ()
    equal: tuple[EqualCost, ...] = ()
    samples: tuple[Samples, ...] = ()
    roofline: tuple[RooflinePoint, ...] = ()
    roof_gbps: float | None = None
    """Read bandwidth, GB/s, measured on the device; None when it was not measured."""
    roof_gflops: float | None = None
    latency_metric: str = ""
    """What `DesignRow.latency_ms` is, "decode_ms@4096"."""
    memory_metric: str = ""
    designs: tuple[DesignRow, ...] = ()
    budgets: tuple[BudgetRow, ...] = ()
    chosen_pattern: str = ""
    choice_rule: str = ""
    """One sentence: by which rule the layout was chosen, and on what evidence."""
    shared: tuple[str, ...] = ()
    """For each of several devices, a sentence on what the layout that they share costs on it."""
    confirmed: Confirmed | None = None
    predicted: tuple[PredictedRow, ...] = ()
    held_out: tuple[HeldOutRow, ...] = ()
    calibration: tuple[CalibrationSummary, ...] = ()
    quality_checks: tuple[QualityCheck, ...] = ()
    quality_note: str = ""
    """One sentence: what the checks were made with."""
    memory: tuple[MemoryRow, ...] = ()
    memory_budget_mb: float | None = None
    parameters: tuple[ParameterRow, ...] = ()
    plan: Plan | None = None
    training: Training | None = None
    parity: Parity | None = None
    series: tuple[SeriesRow, ...] = ()
    failures: tuple[FailureRow, ...] = ()
    advice: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """How to come by these numbers again."""
    versions: dict[str, str] = field(default_factory=dict)
