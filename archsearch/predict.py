"""Latency and memory of any spec from the measured blocks, with intervals.

Latency adds up: `T(model) = T(embedding + head) + sum over layers of T(block)`. Memory does in part:
`M(model) = process + runtime + head + sum of (weights + caches)`. How well is checked against whole models
(`archsearch bench`), and shown beside each prediction.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from archsearch.budgets import LATENCY, Metric
from archsearch.calibration import read_widenings
from archsearch.cases import Subject, block_label, block_subject, head_subject
from archsearch.documents import document_head, predicted_fields, workload_fields
from archsearch.emulated import refuse
from archsearch.errors import MissingMeasurement
from archsearch.estimate import Estimate, Widening, row_summary
from archsearch.memory import MB, BlockMemory, MemoryParts, MemoryPhase, MemoryTable
from archsearch.spec import ArchSpec, parse_ffn, parse_operator
from archsearch.store import Row, Store
from archsearch.workload import Workload
from operators.costs import block_costs, model_parameters
from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims, Precision


def _total(parts: Sequence[tuple[int, Estimate]]) -> Estimate:
    """The sum of n times each part; intervals of different parts add in quadrature."""
    value = sum(n * part.value for n, part in parts)
    below = [n * (part.value - part.low) if n > 0 else n * (part.high - part.value) for n, part in parts]
    above = [n * (part.high - part.value) if n > 0 else n * (part.value - part.low) for n, part in parts]
    return Estimate(value, value - math.hypot(*below), value + math.hypot(*above), any(part.extrapolated for _, part in parts))


def _composed(block: BlockSpec, known: Iterable[BlockSpec]) -> dict[BlockSpec, int] | None:
    """See `CostTable.parts`."""
    measured = dict.fromkeys(known)
    if block in measured:
        return {block: 1}
    for own, other in itertools.product([b for b in measured if b.operator == block.operator], [b for b in measured if b.ffn == block.ffn]):
        corner = BlockSpec(operator=other.operator, ffn=own.ffn)
        if corner in measured:
            return {own: 1, other: 1, corner: -1}
    return None


def _block_of(row: Row) -> BlockSpec:
    table, dims = row.subject["block"], ModelDims(**row.subject["dims"])
    return BlockSpec(operator=parse_operator(table["operator"], dims, None, "operator"), ffn=parse_ffn(table["ffn"], None, "ffn"))


class CostTable:
    """Everything one device was measured at, ready to predict.

    Args:
        rows: finished measurements of one device.
        device: how the user names it, for messages and documents.
        widenings: what a calibration found, by workload; empty when there was none.
    """

    def __init__(self, rows: Iterable[Row], *, device: str, widenings: Mapping[Workload, Widening] | None = None) -> None:
        self.device = device
        self.widenings = dict(widenings or {})
        own = [row for row in rows if row.purpose in ("latency", "memory") and row.subject["kind"] != "model"]
        self.failed = [row for row in own if row.status == "failed"]
        usable = [row for row in own if row.status != "failed" and (row.rounds or row.memory)]
        self._latency: dict[str, list[Row]] = {}
        for row in usable:
            if row.purpose == "latency":
                self._latency.setdefault(row.subject_id, []).append(row)
        self.rows = usable
        self.runtime, self.fingerprint = (own[-1].runtime, own[-1].fingerprint) if own else ("", "")
        memory = [row for row in usable if row.purpose == "memory"]
        self.peaks = MemoryTable(memory, device=device, compose=_composed, block_of=_block_of)
        self._estimates: dict[tuple[str, Workload], Estimate] = {}
        self._points: dict[tuple[BlockSpec, ModelDims, Metric], float] = {}
        self._blocks: dict[tuple[Any, ...], dict[BlockSpec, None]] = {}
        for row in usable:
            if row.purpose == "latency" and row.subject["kind"] == "block":
                self._blocks.setdefault(self._setting(row), {}).setdefault(_block_of(row))

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
        # Of the blocks that were planned last: with another version of the runtime, the machine is another machine.
        profiled = [row.runtime for row in rows if row.purpose == "latency" and row.subject["kind"] != "model"]
        runtime = profiled[-1] if profiled else ""
        widenings = read_widenings(store.path.parent, infos[0]["fingerprint"], runtime)
        return cls([row for row in rows if row.runtime == runtime], device=device, widenings=widenings)

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

    @staticmethod
    def _setting(row: Row) -> tuple[Any, ...]:
        w = row.workload
        return ModelDims(**row.subject["dims"]), w.phase, w.precision, w.threads, w.batch

    # -- latency ---------------------------------------------------------------------------------------------------------

    def block(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Estimate:
        """One block in a whole model, milliseconds.

        Raises:
            MissingMeasurement: the block was not measured at that precision and those threads, nor what it could be put together from.
        """
        return _total([(n, self._chain(part, dims, workload)) for part, n in self.parts(block, dims, workload).items()])

    def parts(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> dict[BlockSpec, int]:
        """The measured blocks that make up a block: itself; or, since operator and FFN add up, three others.

        `(o, f) = (o, f') + (o', f) - (o', f')`: the same operator with another FFN, the same FFN with another operator, and both others.

        Raises:
            MissingMeasurement: neither was measured.
        """
        known = self._blocks.get((dims, workload.phase, workload.precision, workload.threads, workload.batch), {})
        found = _composed(block, known)
        if found is None:
            raise self._missing(block_label(block), workload)
        return found

    def part_counts(self, spec: ArchSpec, workload: Workload) -> dict[BlockSpec, int]:
        """How often each measured block stands in a model, all layers put together; negative for what has to be taken off."""
        counts: Counter[BlockSpec] = Counter()
        for block, n in spec.block_counts().items():
            for part, sign in self.parts(block, spec.dims, workload).items():
                counts[part] += n * sign
        return {part: n for part, n in counts.items() if n}

    def _chain(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Estimate:
        """One block from its own chains, milliseconds."""
        rows = self._chains(block, dims, workload)
        grows = any("cache" in state.shape for state in operator_for(block.operator).states(block.operator, dims))
        flops = block_costs(block, dims).flops
        estimate = self._at(rows, workload, grows=grows, flops=lambda w: flops(tokens=w.tokens, context=w.context))
        longest = max(row.workload.context for row in rows)
        if workload.phase == "decode" and workload.context > longest and longest + 1 < getattr(block.operator, "window", 0):
            return replace(estimate, extrapolated=True)  # the window was never full
        return estimate

    def measured(self, subject: Subject, workload: Workload) -> Estimate | None:
        """What a chain, or embedding and head, took for one copy exactly as measured; None where it was not."""
        rows = [row for row in self._latency.get(subject.subject_id, []) if row.workload == workload]
        return self._summary(rows[0]) if rows else None

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
        parts = [row for row in self.failed if row.workload.phase == workload.phase]  # a block's time is made up of others'
        why, way_out = "", "`archsearch profile` a space that holds it"
        if failed or parts:
            first = (failed or parts)[0]
            what = "it" if failed else first.subject.get("label")
            why = f" ({what} failed: {first.reason}: {first.detail})"
            way_out = "`archsearch profile ... --retry-failed` measures again what failed"
        threads = f"{workload.threads} thread{'s' if workload.threads > 1 else ''}"
        setting = f"{workload.phase}, {workload.precision}, {threads}, batch {workload.batch}"
        return MissingMeasurement(f"{self.device}: {label} was not measured for {setting}{why}; {way_out}")

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
            self._estimates[key] = row_summary(row)
        return self._estimates[key]

    def latency(self, spec: ArchSpec, workload: Workload, *, widen: bool = True) -> Estimate:
        """A whole model, milliseconds a step.

        The interval adds errors of different chains in quadrature; copies of one share their error. With a calibration it is
        widened by what whole models taught (`archsearch.estimate.Widening`), unless `widen` is off.
        """
        chains = [(n, self._chain(part, spec.dims, workload)) for part, n in self.part_counts(spec, workload).items()]
        estimate = _total([(1, self.head(spec, workload)), *chains])
        widening = self.widening(workload) if widen else None
        return widening.apply(estimate) if widening is not None else estimate

    def widening(self, workload: Workload) -> Widening | None:
        """Of that workload; else the widest of its phase, precision, threads and batch; None where nothing was calibrated."""
        if workload in self.widenings:
            return self.widenings[workload]
        near = [
            widening
            for known, widening in self.widenings.items()
            if (known.phase, known.precision, known.threads, known.batch)
            == (workload.phase, workload.precision, workload.threads, workload.batch)
        ]
        return max(near, key=lambda widening: widening.factor * widening.error, default=None)

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
            contexts = sorted({w.context for w in self.workloads() if w.phase == "decode"}) if self.peaks else []
        memory = [{"context": c, "predicted_mb": self.memory(spec, c).total / MB, "measured_mb": None} for c in contexts]
        return document_head(spec, self.device) | {"workloads": rows, "memory": memory}
