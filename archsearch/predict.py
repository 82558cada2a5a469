"""Latency and memory of any spec from the measured blocks, with intervals.

Latency adds up: `T(model) = T(embedding + head) + sum over layers of T(block)`. Memory does in part:
`M(model) = process + runtime + head + sum of (weights + caches)`. How well is checked against whole models
(`archsearch bench`), and shown beside each prediction.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from archsearch.budgets import LATENCY, Metric
from archsearch.cases import Subject, block_label, block_subject, head_subject
from archsearch.documents import document_head, predicted_fields, workload_fields
from archsearch.errors import MissingMeasurement
from archsearch.spec import ArchSpec, parse_ffn, parse_operator
from archsearch.store import Row, Store
from archsearch.workload import Workload
from operators.costs import block_costs, model_parameters
from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims, Precision

CONFIDENCE = 0.90
RESAMPLES = 1000
MB = 1e6


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 90 % interval; `extrapolated` when it lies outside what was measured."""

    value: float
    low: float
    high: float
    extrapolated: bool = False

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.extrapolated)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryParts:
    """Bytes of a model's peak resident set, by what they are for."""

    process: float
    """The agent before it loads anything."""
    runtime: float
    """What a loaded session takes whatever it holds, with the activations of a decode step."""
    embedding_head: float
    weights: float
    caches: float

    @property
    def total(self) -> float:
        return self.process + self.runtime + self.embedding_head + self.weights + self.caches


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockMemory:
    """What one block adds to the peak beside its caches (`weights`), and what a session of it takes whatever it holds."""

    weights: float
    runtime: float


def round_medians(row: Row) -> np.ndarray:
    """The median of each round, in nanoseconds for one copy.

    Why medians of rounds: within a round, preemption only ever adds time and the median ignores it; rounds are separated in
    time and spread over processes, so their spread is the uncertainty that matters.
    """
    return np.array([np.median(samples) for _, samples in sorted(row.rounds.items())]) / row.copies


def summary(rounds_ns: np.ndarray, *, seed: int = 0) -> Estimate:
    """Median over rounds in milliseconds, with a percentile bootstrap interval over rounds."""
    middle = float(np.median(rounds_ns)) / 1e6
    if len(rounds_ns) < 2:
        return Estimate(middle, middle, middle)
    from scipy.stats import bootstrap

    if np.ptp(rounds_ns) == 0:
        return Estimate(middle, middle, middle)
    result = bootstrap(
        (rounds_ns,), np.median, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed)
    )
    return Estimate(middle, float(result.confidence_interval.low) / 1e6, float(result.confidence_interval.high) / 1e6)


class CostTable:
    """Everything one device was measured at, ready to predict.

    Args:
        rows: finished measurements of one device.
        device: how the user names it, for messages and documents.
    """

    def __init__(self, rows: Iterable[Row], *, device: str) -> None:
        self.device = device
        own = [row for row in rows if row.purpose in ("latency", "memory") and row.subject["kind"] != "model"]
        self.failed = [row for row in own if row.status == "failed"]
        usable = [row for row in own if row.status != "failed" and (row.rounds or row.memory)]
        self._latency: dict[str, list[Row]] = {}
        self._memory: dict[str, list[Row]] = {}
        for row in usable:
            (self._latency if row.purpose == "latency" else self._memory).setdefault(row.subject_id, []).append(row)
        self.rows = usable
        self._runtime: dict[tuple[ModelDims, Precision], float] = {}
        self._estimates: dict[tuple[str, Workload], Estimate] = {}
        self._points: dict[tuple[BlockSpec, ModelDims, Metric], float] = {}

    @classmethod
    def load(cls, store: Store, *, device: str = "local") -> CostTable:
        """The table of a device, by the name the user gave it or by its fingerprint.

        Raises:
            MissingMeasurement: nothing was measured on that device, or several devices go by that name.
        """
        infos = [info for info in store.devices() if device in (info["device_id"], info["fingerprint"])]
        if not infos:
            known = ", ".join(f"{info['device_id']} ({info['fingerprint']})" for info in store.devices()) or "none"
            raise MissingMeasurement(f"{store.path}: nothing was measured on {device}; measured: {known}; run `archsearch profile` first")
        if len(infos) > 1:
            names = ", ".join(f"{info['fingerprint']} ({info['cpu']})" for info in infos)
            raise MissingMeasurement(f"{store.path}: several machines are called {device}; name one by its fingerprint: {names}")
        rows = store.rows(fingerprint=infos[0]["fingerprint"])
        # Of the blocks that were planned last: with another version of the runtime, the machine is another machine.
        profiled = [row.runtime for row in rows if row.purpose == "latency" and row.subject["kind"] != "model"]
        return cls([row for row in rows if row.runtime in profiled[-1:]], device=device)

    @cached_property
    def settings(self) -> tuple[tuple[Precision, int, int], ...]:
        """Measured (precision, threads, batch), in order."""
        return tuple(
            dict.fromkeys(
                (row.workload.precision, row.workload.threads, row.workload.batch) for row in self.rows if row.purpose == "latency"
            )
        )

    @cached_property
    def primary(self) -> tuple[Precision, int, int]:
        """What metrics without a precision mean: the first that was planned."""
        if not self.settings:
            raise MissingMeasurement(f"{self.device}: no latency was measured; run `archsearch profile` first")
        return self.settings[0]

    def workloads(self) -> tuple[Workload, ...]:
        """All measured workloads, in order."""
        return tuple(dict.fromkeys(row.workload for row in self.rows if row.purpose == "latency"))

    # -- latency ---------------------------------------------------------------------------------------------------------

    def block(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Estimate:
        """One block in a whole model, milliseconds.

        Raises:
            MissingMeasurement: the block was not measured at that precision and those threads.
        """
        rows = self._chains(block, dims, workload)
        grows = any("cache" in state.shape for state in operator_for(block.operator).states(block.operator, dims))
        flops = block_costs(block, dims).flops
        estimate = self._at(rows, workload, grows=grows, flops=lambda w: flops(tokens=w.tokens, context=w.context))
        longest = max(row.workload.context for row in rows)
        if workload.phase == "decode" and workload.context > longest and longest + 1 < getattr(block.operator, "window", 0):
            return replace(estimate, extrapolated=True)  # the window was never full
        return estimate

    def chain_copies(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> int:
        """How long the chain is that predictions of the block rest on."""
        return self._chains(block, dims, workload)[0].copies

    def head(self, spec: ArchSpec, workload: Workload) -> Estimate:
        """Embedding, final norm and head, milliseconds."""
        subject = head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings)
        return self._at(self._matching(subject, workload, self._latency), workload, grows=False, flops=lambda w: 1.0)

    def _chains(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> list[Row]:
        """Measurements of the block's chains in the workload's phase: of the longest chain there is."""
        for copies in range(64, 0, -1):
            subject = block_subject(block, dims, copies)
            if subject.subject_id in self._latency and (rows := self._matching(subject, workload, self._latency, required=False)):
                return rows
        raise self._missing(block_label(block), workload)

    def _matching(self, subject: Subject, workload: Workload, table: dict[str, list[Row]], *, required: bool = True) -> list[Row]:
        wanted = (workload.phase, workload.precision, workload.threads, workload.batch)
        rows = [
            row
            for row in table.get(subject.subject_id, [])
            if (row.workload.phase, row.workload.precision, row.workload.threads, row.workload.batch) == wanted
        ]
        if not rows and required:
            raise self._missing(subject.label, workload)
        return rows

    def _missing(self, label: str, workload: Workload) -> MissingMeasurement:
        failed = [row for row in self.failed if row.subject.get("label") == label]
        why = f" (it failed: {failed[0].reason}: {failed[0].detail})" if failed else ""
        threads = f"{workload.threads} thread{'s' if workload.threads > 1 else ''}"
        setting = f"{workload.phase}, {workload.precision}, {threads}, batch {workload.batch}"
        return MissingMeasurement(f"{self.device}: {label} was not measured for {setting}{why}; `archsearch profile` a space that holds it")

    def _at(self, rows: list[Row], workload: Workload, *, grows: bool, flops: Callable[[Workload], float]) -> Estimate:
        """The estimate at a workload: measured, or between measurements.

        Decode of a growing cache is linear in the context (it reads every key and value once); of a fixed state it does not
        depend on it. Prefill between measured lengths is linear too, and beyond them scaled by FLOPs.
        """
        exact = [row for row in rows if row.workload == workload]
        if exact:
            return self._summary(exact[0])

        def position(w: Workload) -> int:
            return w.context if w.phase == "decode" else w.tokens

        ordered = sorted(rows, key=lambda row: position(row.workload))
        at = position(workload)
        below = [row for row in ordered if position(row.workload) <= at]
        above = [row for row in ordered if position(row.workload) > at]
        if below and above:
            left, right = self._summary(below[-1]), self._summary(above[0])
            share = (at - position(below[-1].workload)) / (position(above[0].workload) - position(below[-1].workload))

            def between(a: float, b: float) -> float:
                return (1 - share) * a + share * b

            return Estimate(between(left.value, right.value), between(left.low, right.low), between(left.high, right.high))
        nearest = below[-1] if below else above[0]
        estimate = self._summary(nearest)
        if workload.phase == "decode" and not grows:
            return replace(estimate, extrapolated=False)
        if workload.phase == "decode" and len(ordered) > 1:
            a, b = (ordered[-2], ordered[-1]) if below else (ordered[0], ordered[1])
            slope = (self._summary(b).value - self._summary(a).value) / (position(b.workload) - position(a.workload))
            moved = estimate.value + max(0.0, slope) * (at - position(nearest.workload))
            factor = max(moved, 1e-9) / estimate.value
        else:
            factor = flops(workload) / flops(nearest.workload)
        return replace(estimate.scaled(factor), extrapolated=True)

    def _summary(self, row: Row) -> Estimate:
        key = (row.subject_id, row.workload)
        if key not in self._estimates:
            self._estimates[key] = summary(round_medians(row))
        return self._estimates[key]

    def latency(self, spec: ArchSpec, workload: Workload) -> Estimate:
        """A whole model, milliseconds a step.

        The interval adds errors of different blocks in quadrature; copies of one block share their error.
        """
        parts = [(1, self.head(spec, workload)), *((n, self.block(block, spec.dims, workload)) for block, n in spec.block_counts().items())]
        value = sum(n * part.value for n, part in parts)
        low = value - math.sqrt(sum((n * (part.value - part.low)) ** 2 for n, part in parts))
        high = value + math.sqrt(sum((n * (part.high - part.value)) ** 2 for n, part in parts))
        return Estimate(value, low, high, any(part.extrapolated for _, part in parts))

    # -- memory ----------------------------------------------------------------------------------------------------------

    def _peak(self, subject: Subject, precision: Precision) -> tuple[Row, dict[str, Any]] | None:
        for row in self._memory.get(subject.subject_id, []):
            if row.workload.precision == precision and row.memory:
                return row, row.memory[-1]
        return None

    def process_bytes(self) -> float:
        """Resident set of an agent that has loaded nothing: median over all memory measurements."""
        found = [entry["base_bytes"] for rows in self._memory.values() for row in rows for entry in row.memory]
        if not found:
            raise MissingMeasurement(f"{self.device}: no memory was measured; run `archsearch profile` with a decode workload")
        return float(np.median(found))

    def block_memory(self, block: BlockSpec, dims: ModelDims, precision: Precision) -> BlockMemory:
        """From a chain and a single copy: the difference is what one more block costs, caches taken off by their exact size.

        Blocks so small that the difference drowns in the allocator's noise count with their stored weights, which are a lower bound.

        Raises:
            MissingMeasurement: one of the two is missing.
        """
        peaks: dict[Workload, dict[int, dict[str, Any]]] = {}  # of one workload each: caches differ between contexts
        for copies in range(1, 65):
            for row in self._memory.get(block_subject(block, dims, copies).subject_id, []):
                if row.workload.precision == precision and row.memory:
                    peaks.setdefault(row.workload, {})[copies] = row.memory[-1]
        workload = max((w for w, found in peaks.items() if len(found) > 1), key=lambda w: w.context, default=None)
        if workload is None:
            raise MissingMeasurement(
                f"{self.device}: memory of {block_label(block)} in {precision} was not measured; run `archsearch profile`"
            )
        found = peaks[workload]
        few, many = min(found), max(found)
        low, high = found[few], found[many]
        each = (high["peak_bytes"] - low["peak_bytes"]) / (many - few)
        costs = block_costs(block, dims)
        caches = costs.state_bytes(batch=workload.batch, cache=workload.cache)
        each = max(each, caches + costs.weight_bytes(precision))
        runtime = low["peak_bytes"] - low["base_bytes"] - few * each
        return BlockMemory(weights=each - caches, runtime=runtime)

    def runtime_bytes(self, dims: ModelDims, precision: Precision) -> float:
        """Median over the measured blocks: a step's activations are small beside it and do not tell blocks apart."""
        key = (dims, precision)
        if key not in self._runtime:
            found = []
            for block in self._memory_blocks(dims, precision):
                with contextlib.suppress(MissingMeasurement):  # one block that failed does not keep the others from being predicted
                    found.append(self.block_memory(block, dims, precision).runtime)
            self._runtime[key] = float(np.median(found)) if found else 0.0
        return self._runtime[key]

    def _memory_blocks(self, dims: ModelDims, precision: Precision) -> list[BlockSpec]:
        tables = {
            json.dumps(row.subject["block"], sort_keys=True): row.subject["block"]
            for rows in self._memory.values()
            for row in rows
            if row.subject["kind"] == "block"
            and row.subject["dims"] == asdict(dims)
            and row.workload.precision == precision
            and row.copies > 1
        }
        return [
            BlockSpec(operator=parse_operator(table["operator"], dims, None, "operator"), ffn=parse_ffn(table["ffn"], None, "ffn"))
            for table in tables.values()
        ]

    def memory(self, spec: ArchSpec, context: int, precision: Precision | None = None) -> MemoryParts:
        """Peak memory while decoding at a context, by part, in bytes."""
        precision, _, batch = (precision or self.primary[0], *self.primary[1:])
        peak = self._peak(head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings), precision)
        if peak is None:
            raise MissingMeasurement(
                f"{self.device}: memory of embedding and head in {precision} was not measured; run `archsearch profile`"
            )
        blocks = {block: self.block_memory(block, spec.dims, precision) for block in spec.block_counts()}
        runtime = self.runtime_bytes(spec.dims, precision)
        caches = sum(
            n * block_costs(block, spec.dims).state_bytes(batch=batch, cache=context + 1) for block, n in spec.block_counts().items()
        )
        return MemoryParts(
            process=self.process_bytes(),
            runtime=runtime,
            embedding_head=max(0.0, peak[1]["peak_bytes"] - peak[1]["base_bytes"] - runtime),
            weights=sum(n * blocks[block].weights for block, n in spec.block_counts().items()),
            caches=caches,
        )

    # -- metrics ---------------------------------------------------------------------------------------------------------

    def workload(self, metric: Metric) -> Workload:
        """The workload a latency metric means: at the first precision, thread count and batch that were measured."""
        precision, threads, batch = self.primary
        assert metric.at is not None
        if LATENCY[metric.kind] == "prefill":
            return Workload(phase="prefill", tokens=metric.at, context=0, batch=batch, precision=precision, threads=threads)
        return Workload(phase="decode", tokens=1, context=metric.at, batch=batch, precision=precision, threads=threads)

    def metrics(self) -> tuple[Metric, ...]:
        """What can be predicted without interpolation, in the order of the measurements."""
        setting = self.primary
        found = [
            Metric("prefill_ms", w.tokens) if w.phase == "prefill" else Metric("decode_ms", w.context)
            for w in self.workloads()
            if (w.precision, w.threads, w.batch) == setting
        ]
        contexts = sorted({w.context for w in self.workloads() if w.phase == "decode"})
        return (*found, *(Metric("memory_mb", context) for context in contexts if self._memory), Metric("parameters"))

    def cost(self, spec: ArchSpec, metric: Metric) -> Estimate:
        """One metric of a spec, in its unit."""
        if metric.kind == "parameters":
            value = float(model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings))
            return Estimate(value, value, value)
        if metric.kind == "memory_mb":
            assert metric.at is not None
            value = self.memory(spec, metric.at).total / MB
            return Estimate(value, value, value)
        return self.latency(spec, self.workload(metric))

    def costs(self, spec: ArchSpec, metrics: Sequence[Metric] | None = None) -> dict[str, Estimate]:
        """Metrics by name, all that can be predicted without interpolation unless they are given."""
        return {str(metric): self.cost(spec, metric) for metric in (metrics if metrics is not None else self.metrics())}

    def additive(self, block: BlockSpec, dims: ModelDims, metric: Metric) -> float:
        """What one more such block adds to a metric. Cached: a search asks this for thousands of layouts."""
        key = (block, dims, metric)
        if key not in self._points:
            match metric.kind:
                case "parameters":
                    value = float(block_costs(block, dims).parameters)
                case "memory_mb":
                    cache = (metric.at or 0) + 1
                    caches = block_costs(block, dims).state_bytes(batch=self.primary[2], cache=cache)
                    value = (self.block_memory(block, dims, self.primary[0]).weights + caches) / MB
                case _:
                    value = self.block(block, dims, self.workload(metric)).value
            self._points[key] = value
        return self._points[key]

    def constant(self, spec: ArchSpec, metric: Metric) -> float:
        """What a model of that shape costs without layers."""
        return self.cost(replace(spec, layers=()), metric).value

    def point(self, spec: ArchSpec, counts: Counter[BlockSpec], metric: Metric) -> float:
        """A metric's point value from block counts: `constant + sum of additive`."""
        return self.constant(spec, metric) + sum(n * self.additive(block, spec.dims, metric) for block, n in counts.items())

    # -- documents -------------------------------------------------------------------------------------------------------

    def document(
        self, spec: ArchSpec, workloads: Sequence[Workload] | None = None, contexts: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """The document that `archsearch predict` prints; measured fields are null."""
        rows = []
        for workload in self.workloads() if workloads is None else workloads:
            estimate = self.latency(spec, workload)
            rows.append(workload_fields(workload) | predicted_fields(estimate) | {"measured_ms": None, "measured_p95_ms": None})
        if contexts is None:
            contexts = sorted({w.context for w in self.workloads() if w.phase == "decode"}) if self._memory else []
        memory = [{"context": c, "predicted_mb": self.memory(spec, c).total / MB, "measured_mb": None} for c in contexts]
        return document_head(spec, self.device) | {"workloads": rows, "memory": memory}
