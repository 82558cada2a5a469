"""Two files of measurements beside each other: two machines, two versions of the runtime, before and after a change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from archsearch.documents import workload_fields
from archsearch.emulated import refuse
from archsearch.errors import InputError, StoreError
from archsearch.estimate import CONFIDENCE, QUANTILE, RESAMPLES, round_times, row_summary
from archsearch.snapshot import snapshot
from archsearch.store import Row, Store
from archsearch.workload import Workload

FEWEST = 4
"""Rounds on each side from which a test says anything: the smallest p of 3 against 3 is 0.1."""
LEVEL = 0.05
CONDITIONS = ("agent", "threads", "cores", "allow_spinning", "memory_arena", "huge_pages", "governor", "glibc_tunables")
ACROSS = ("device", "runtime", *CONDITIONS)
Verdict = Literal["faster", "slower", "no difference shown", "too few rounds"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One device's latency measurements in one file."""

    path: Path
    device: Mapping[str, Any]
    runtime: str
    rows: Mapping[tuple[str, Workload], Row]
    conditions: Mapping[str, Mapping[str, Any]]
    """By series."""
    memory: Mapping[tuple[str, Workload], Row] = field(default_factory=dict)
    other_runtimes: int = 0
    """Measurements of earlier versions of the runtime, which are left out."""

    def found(self, name: str, keys: Sequence[tuple[str, Workload]]) -> set[str]:
        """All values of a condition among the series that measured `keys`."""
        if name == "device":
            return {str(self.device["fingerprint"])}
        if name == "runtime":
            return {self.runtime}
        series = {series for key in keys for series in self.rows[key].series}
        return {_condition(self.conditions[one], name) for one in series if one in self.conditions}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One subject at one workload on both sides, milliseconds for one copy."""

    label: str
    copies: int
    """How long the chain is: a block is measured in chains of several lengths."""
    workload: Workload
    a_ms: float
    b_ms: float
    ratio: float
    """B over A."""
    low: float
    high: float
    p: float | None
    """Of Mann-Whitney's test over round times, corrected for the number of comparisons; None with too few rounds."""

    @property
    def verdict(self) -> Verdict:
        """What B is beside A."""
        if self.p is None:
            return "too few rounds"
        if self.p > LEVEL or self.low <= 1 <= self.high:
            return "no difference shown"
        return "faster" if self.ratio < 1 else "slower"

    def to_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("a_ms", "b_ms", "ratio", "low", "high", "p", "verdict")}
        return {"label": self.label, "copies": self.copies, **workload_fields(self.workload), **fields}


@dataclass(frozen=True, kw_only=True)
class MemoryPair:
    """Peak memory of one subject in a phase on both sides, bytes: one fresh process each, so no interval."""

    label: str
    copies: int
    workload: Workload
    a_bytes: int
    b_bytes: int

    @property
    def ratio(self) -> float:
        """B over A."""
        return self.b_bytes / self.a_bytes

    def to_dict(self) -> dict[str, Any]:
        fields = {"a_bytes": self.a_bytes, "b_bytes": self.b_bytes, "ratio": self.ratio}
        return {"label": self.label, "copies": self.copies, **workload_fields(self.workload), **fields}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All pairs, their geometric mean, and what only one side has."""

    pairs: tuple[Pair, ...]
    memory: tuple[MemoryPair, ...]
    mean: float
    mean_low: float
    mean_high: float
    only_a: int
    only_b: int
    other_runtimes: tuple[int, int]
    """Left out on each side, since a file's newest runtime counts."""
    differs: Mapping[str, tuple[str, str]]
    """Conditions that differ and were allowed to."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "pairs": [pair.to_dict() for pair in self.pairs],
            "memory": [pair.to_dict() for pair in self.memory],
            "geometric_mean": {"ratio": self.mean, "low": self.mean_low, "high": self.mean_high},
            "only_a": self.only_a,
            "only_b": self.only_b,
            "other_runtimes": list(self.other_runtimes),
            "differs": {name: list(values) for name, values in self.differs.items()},
        }


def load_side(path: Path, device: str | None = None) -> Side:
    """A run folder or a measurements file; it is copied before it is opened, so that nothing is written beside it.

    Raises:
        StoreError: no measurements there, or damaged ones.
        InputError: several devices, and none is named; or that one is not there.
    """
    file = path / "measurements.db" if path.is_dir() else path
    if not file.exists():
        raise StoreError(f"{file}: no measurements here; give a run folder or a measurements.db")
    with snapshot(file) as copy, Store(copy, create=False) as store:
        return _side(file, store, device)


def _side(file: Path, store: Store, wanted: str | None) -> Side:
    devices = [d for d in store.devices() if wanted is None or wanted in (d["device_id"], d["fingerprint"])]
    names = ", ".join(f"{d['device_id']} ({d['fingerprint']})" for d in store.devices()) or "none"
    if not devices:
        raise InputError(f"{file}: {wanted or 'no device'} was not measured here; measured: {names}")
    if len(devices) > 1:
        raise InputError(f"{file}: holds several devices, {names}; choose one with --device-a or --device-b")
    refuse(devices[0]["device_id"], devices[0].get("extra", {}))
    every = store.rows(fingerprint=devices[0]["fingerprint"])
    rows = [row for row in every if row.purpose == "latency" and row.rounds]
    runtime = rows[-1].runtime if rows else ""
    return Side(
        path=file,
        device=devices[0],
        runtime=runtime,
        rows={(row.subject_id, row.workload): row for row in rows if row.runtime == runtime},
        memory={(row.subject_id, row.workload): row for row in every if row.purpose == "memory" and row.memory and row.runtime == runtime},
        conditions=store.conditions(),
        other_runtimes=sum(row.runtime != runtime for row in rows),
    )


def compare(a: Side, b: Side, *, across: Sequence[str] = (), seed: int = 0) -> Comparison:
    """Pair what both sides measured.

    A ratio's interval is the wider one of two: processes drawn anew and then their rounds; and both sides' own intervals
    (`archsearch.estimate.summary`) in quadrature, which do not become too narrow with two to four processes a side.

    Args:
        across: conditions that are meant to differ ("device", "runtime", "huge_pages", ...).

    Raises:
        InputError: nothing in common, an unknown name in `across`, or a condition that differs and is not named there.
    """
    if unknown := [name for name in across if name not in ACROSS]:
        raise InputError(f"--across {unknown[0]}: not one of {', '.join(ACROSS)}")
    keys = [key for key in a.rows if key in b.rows]
    if not keys:
        way_out = "profile the same space into both, with one version of archsearch"
        raise InputError(f"{a.path} and {b.path} have no measurement in common; {way_out}")
    differs, refused = {}, []
    for name in ACROSS:
        for key in keys:  # one by one: two runs may each hold both values, at different subjects
            mine, other = a.found(name, [key]), b.found(name, [key])
            if mine == other:
                continue
            values = " and ".join(sorted(mine)), " and ".join(sorted(other))
            if name not in across:
                refused.append((name, values))
            differs[name] = values
            break
    if refused:
        said = ", and ".join(f"{name} is {one} in {a.path} and {two} in {b.path}" for name, (one, two) in refused)
        how = " ".join(f"--across {name}" for name, _ in refused)
        raise InputError(f"the runs are not alike: {said}; say {how} if that is what you compare")
    generator = np.random.default_rng(seed)
    drawn = {key: np.log(_resampled(b.rows[key], generator) / _resampled(a.rows[key], generator)) for key in keys}
    ps = _corrected([_p(a.rows[key], b.rows[key]) for key in keys])
    pairs = []
    for key, p in zip(keys, ps, strict=True):
        one, two = (row_summary(side.rows[key]).value for side in (a, b))
        low, high = _interval(drawn[key])
        half = math.hypot(*(row_summary(side.rows[key]).relative for side in (a, b)))
        pairs.append(
            Pair(
                label=str(a.rows[key].subject.get("label", key[0])),
                copies=a.rows[key].copies,
                workload=key[1],
                a_ms=one,
                b_ms=two,
                ratio=two / one,
                low=min(low, two / one * math.exp(-half)),
                high=max(high, two / one * math.exp(half)),
                p=p,
            )
        )
    mean = float(np.exp(np.mean([np.log(pair.ratio) for pair in pairs])))
    low, high = _interval(np.mean(list(drawn.values()), axis=0))
    return Comparison(
        pairs=tuple(pairs),
        memory=tuple(_memory(a, b)),
        mean=mean,
        mean_low=min(low, mean),
        mean_high=max(high, mean),
        only_a=len(a.rows) - len(keys),
        only_b=len(b.rows) - len(keys),
        other_runtimes=(a.other_runtimes, b.other_runtimes),
        differs=differs,
    )


def _memory(a: Side, b: Side) -> Iterator[MemoryPair]:
    for key, row in a.memory.items():
        if key in b.memory:
            peaks = [side.memory[key].memory[-1]["peak_bytes"] for side in (a, b)]
            label = str(row.subject.get("label", key[0]))
            yield MemoryPair(label=label, copies=row.copies, workload=key[1], a_bytes=peaks[0], b_bytes=peaks[1])


def _condition(series: Mapping[str, Any], name: str) -> str:
    conditions = series["conditions"]
    if name == "cores":  # how many: which ones they are is the machine's business
        return str(len(conditions["cores"])) if conditions["cores"] is not None else "not pinned"
    if name == "glibc_tunables":
        return str(conditions["extra"].get(name, "")) or "none"
    return str(conditions[name])


def _resampled(row: Row, generator: np.random.Generator) -> np.ndarray:
    """(RESAMPLES,): the value with processes drawn anew first, then the rounds within each."""
    times = round_times(row)
    groups: dict[str, list[float]] = {}
    for number, time in zip(sorted(row.rounds), times, strict=True):
        groups.setdefault(row.processes[number], []).append(float(time))
    processes = [np.array(values) for values in groups.values()]
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        chosen = generator.integers(len(processes), size=len(processes))
        found[i] = np.quantile(np.concatenate([generator.choice(processes[n], len(processes[n])) for n in chosen]), QUANTILE)
    return found


def _interval(logs: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.exp(np.quantile(logs, [tail, 1 - tail]))
    return float(low), float(high)


def _p(a: Row, b: Row) -> float | None:
    from scipy.stats import mannwhitneyu

    if min(len(a.rounds), len(b.rounds)) < FEWEST:
        return None
    return float(mannwhitneyu(round_times(a), round_times(b)).pvalue)


def _corrected(ps: Sequence[float | None]) -> list[float | None]:
    """Benjamini and Hochberg's correction over all tests that were made."""
    from scipy.stats import false_discovery_control

    known = [p for p in ps if p is not None]
    corrected = iter(false_discovery_control(known) if known else ())
    return [None if p is None else float(next(corrected)) for p in ps]
