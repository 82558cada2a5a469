"""Latency and memory of any spec from the measured blocks, with intervals.

Latency adds up but for two things, how much of a model's walk through memory its caches hold, and what layers take among others
(`archsearch.latency`, `archsearch.walk`, `archsearch.mixing`).
Memory does in part: `M(model) = process + runtime + head + sum of (weights + caches)` (`archsearch.memory`). How well is checked against
whole models (`archsearch bench`, `archsearch calibrate`), and shown beside each prediction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from archsearch.budgets import LATENCY, Metric
from archsearch.calibration import read_widenings
from archsearch.cases import Subject
from archsearch.documents import document_head, predicted_fields, workload_fields
from archsearch.emulated import refuse
from archsearch.errors import MissingMeasurement
from archsearch.estimate import Estimate, Widening
from archsearch.latency import LatencyTable, block_of, composed
from archsearch.memory import MB, BlockMemory, MemoryParts, MemoryPhase, MemoryTable
from archsearch.spec import ArchSpec
from archsearch.store import Row, Store
from archsearch.walk import WalkLaw
from archsearch.workload import Workload
from operators.costs import block_costs, model_parameters
from operators.specs import BlockSpec, ModelDims, Precision


class CostTable:
    """Everything one device was measured at, ready to predict.

    Args:
        rows: finished measurements of one device.
        device: how the user names it, for messages and documents.
        widenings: what a calibration found, by workload; empty when there was none.
        at_rest: the table whose drawn chains tell what mixing costs, for rows that are a view of another table's.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        *,
        device: str,
        widenings: Mapping[Workload, Widening] | None = None,
        at_rest: CostTable | None = None,
    ) -> None:
        self.device = device
        self.widenings = dict(widenings or {})
        rows = list(rows)
        own = [row for row in rows if row.purpose in ("latency", "memory") and (row.subject["kind"] != "model" or row.mixed)]
        self.failed = [row for row in own if row.status == "failed" and not row.mixed]
        usable = [row for row in own if row.status != "failed" and (row.rounds or row.memory)]
        self.rows = usable
        self.runtime, self.fingerprint = (own[-1].runtime, own[-1].fingerprint) if own else ("", "")
        self.graph = own[-1].subject.get("graph") if own else None
        memory = [row for row in usable if row.purpose == "memory"]
        self.peaks = MemoryTable(memory, device=device, compose=composed, block_of=lambda row: block_of(row)[0])
        latency = [row for row in usable if row.purpose == "latency"]
        self.chains: LatencyTable = LatencyTable(latency, failed=self.failed, device=device, at_rest=at_rest.chains if at_rest else None)
        self._points: dict[tuple[BlockSpec, ModelDims, Metric], float] = {}

    @classmethod
    def load(cls, store: Store, *, device: str = "local") -> CostTable:
        """The table of a device, by the name the user gave it or by its fingerprint.

        Raises:
            MissingMeasurement: nothing was measured on that device, or several devices go by that name.
            EmulatedTimesError: the device is emulated.
        """
        infos = [info for info in store.devices() if device in (info["device_id"], info["fingerprint"])]
        if not infos:
            known = ", ".join(f"{info['device_id']} ({info['fingerprint']})" for info in store.devices()) or "none"
            raise MissingMeasurement(f"{store.path}: nothing was measured on {device}; measured: {known}; run `archsearch profile` first")
        if len(infos) > 1:
            names = ", ".join(f"{info['fingerprint']} ({info['cpu']})" for info in infos)
            raise MissingMeasurement(f"{store.path}: several machines are called {device}; name one by its fingerprint: {names}")
        refuse(device, infos[0].get("extra", {}))
        rows = store.rows(fingerprint=infos[0]["fingerprint"])
        # Of the blocks that were planned last: with another version of the runtime, or graphs, the machine is another machine.
        profiled = [(row.runtime, row.subject.get("graph")) for row in rows if row.purpose == "latency" and row.subject["kind"] != "model"]
        runtime, graph = profiled[-1] if profiled else ("", None)
        widenings = read_widenings(store.path.parent, infos[0]["fingerprint"], runtime)
        own = [row for row in rows if (row.runtime, row.subject.get("graph")) == (runtime, graph)]
        return cls(own, device=device, widenings=widenings)

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
        """One block among copies of itself, milliseconds; see `archsearch.latency.LatencyTable.block`.

        Raises:
            MissingMeasurement: the block was not measured at that precision and those threads, nor what it could be put together from.
        """
        return self.chains.block(block, dims, workload)

    def parts(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> dict[BlockSpec, int]:
        """The measured blocks that make up a block; see `archsearch.latency.LatencyTable.parts`."""
        return self.chains.parts(block, dims, workload)

    def part_counts(self, spec: ArchSpec, workload: Workload) -> dict[BlockSpec, int]:
        """How often each measured block stands in a model, all layers put together; negative for what has to be taken off."""
        return self.chains.part_counts(spec, workload)

    def measured(self, subject: Subject, workload: Workload) -> Estimate | None:
        """What a chain, or embedding and head, took for one copy exactly as measured; None where it was not."""
        return self.chains.measured(subject, workload)

    def chain_copies(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> int:
        """How long the chain is that predictions of the block rest on."""
        return self.chains.chain_copies(block, dims, workload)

    def head(self, spec: ArchSpec, workload: Workload) -> Estimate:
        """Embedding, final norm and head alone, milliseconds."""
        return self.chains.head(spec, workload)

    def latency(self, spec: ArchSpec, workload: Workload, *, widen: bool = True) -> Estimate:
        """A whole model, milliseconds a step.

        The interval adds errors of different chains in quadrature; copies of one share their error. With a calibration it is
        widened by what whole models taught, unless `widen` is off (`widening`).
        """
        estimate = self.chains.model(spec, workload)
        return (self.widening(workload) if widen else self._reach(workload)).apply(estimate)

    def _reach(self, workload: Workload) -> Widening:
        """How far models are from their parts, by the profile's own chains of drawn layers."""
        return Widening(error=self.chains.mixing(workload).reach, factor=1.0)

    def widening(self, workload: Workload) -> Widening:
        """How far predictions are off beyond the noise of their parts: by the profile's chains of drawn layers, and by a calibration.

        What was calibrated for another workload alone counts for all of its phase, precision, threads and batch, the widest of them.
        """
        reach = self._reach(workload)
        near = [
            widening
            for known, widening in self.widenings.items()
            if (known.phase, known.precision, known.threads, known.batch)
            == (workload.phase, workload.precision, workload.threads, workload.batch)
        ]
        widest = max(near, key=lambda widening: widening.factor * widening.error, default=None)
        taught = self.widenings.get(workload, widest)
        return reach if taught is None else Widening(error=math.hypot(reach.error, taught.error), factor=taught.factor)

    # -- memory ----------------------------------------------------------------------------------------------------------

    def block_memory(self, block: BlockSpec, dims: ModelDims, precision: Precision) -> BlockMemory:
        """What a block adds to the peak of decoding; see `archsearch.memory.MemoryTable.block`."""
        return self.peaks.block(block, dims, precision)

    def memory(self, spec: ArchSpec, context: int, precision: Precision | None = None, *, phase: MemoryPhase = "decode") -> MemoryParts:
        """Peak memory by part, in bytes: while decoding at a context, while prefilling that many tokens, or while loading."""
        precision, threads, batch = (precision or self.primary[0], *self.primary[1:])
        if phase == "prefill":
            workload = Workload(phase="prefill", tokens=context, context=0, batch=batch, precision=precision, threads=threads)
        else:
            workload = Workload(phase="decode", tokens=1, context=context, batch=batch, precision=precision, threads=threads)
        return self.peaks.model(spec, workload, phase)

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
        return (*found, *(Metric("memory_mb", context) for context in contexts if self.peaks), Metric("parameters"))

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

    def law(self, metric: Metric) -> WalkLaw | None:
        """How a metric depends on the model's walk through memory; None where it just adds up."""
        return self.chains.law(self.workload(metric)) if metric.kind in LATENCY else None

    def additive(self, block: BlockSpec, dims: ModelDims, metric: Metric) -> float:
        """What one more such block adds to a metric; of a latency with a law, warm. Cached: a search asks this for thousands of layouts."""
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
                    value = self.chains.terms(block, dims, self.workload(metric)).warm.value
            self._points[key] = value
        return self._points[key]

    def constant(self, spec: ArchSpec, metric: Metric) -> float:
        """What a model of that shape costs without layers; of a latency with a law, warm."""
        if metric.kind in LATENCY:
            return self.chains.head_terms(spec, self.workload(metric)).warm.value
        return self.cost(replace(spec, layers=()), metric).value

    def cold(self, block: BlockSpec, dims: ModelDims, metric: Metric) -> tuple[float, float]:
        """Of a latency with a law: milliseconds that one more block adds where its walk is missed, and bytes that it adds to the walk."""
        terms = self.chains.terms(block, dims, self.workload(metric))
        return terms.cold_ms, terms.walk_bytes

    def constant_cold(self, spec: ArchSpec, metric: Metric) -> tuple[float, float]:
        """The same of embedding and head."""
        terms = self.chains.head_terms(spec, self.workload(metric))
        return terms.cold_ms, terms.walk_bytes

    def point(self, spec: ArchSpec, counts: Counter[BlockSpec], metric: Metric) -> float:
        """A metric's point value from block counts: `constant + sum of additive`, and what the walk costs."""
        value = self.constant(spec, metric) + sum(n * self.additive(block, spec.dims, metric) for block, n in counts.items())
        law = self.law(metric)
        if law is None:
            return value
        parts = [(1, self.constant_cold(spec, metric)), *((n, self.cold(block, spec.dims, metric)) for block, n in counts.items())]
        walk = sum(n * size for n, (_, size) in parts)
        return value + sum(n * cold for n, (cold, _) in parts) * float(law.missed(walk))

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
            contexts = sorted({w.context for w in self.workloads() if w.phase == "decode"}) if self.peaks else []
        memory = [{"context": c, "predicted_mb": self.memory(spec, c).total / MB, "measured_mb": None} for c in contexts]
        return document_head(spec, self.device) | {"workloads": rows, "memory": memory}
