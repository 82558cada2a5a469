"""Measure whole models on a device and hold them against the prediction.

What is benched: a spec (random weights), a checkpoint folder, or any ONNX file with caches named as published LFM2 models
have them. With a run's cost table the model's own blocks are measured again, interleaved with it, so that a machine that has
changed since it was profiled is told apart from an error of the prediction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.cases import (
    Subject,
    block_subject,
    digest,
    head_subject,
    make_case,
    measurement_key,
    model_subject,
    weights_digest,
    write_subject,
)
from archsearch.documents import document_head, predicted_fields, workload_fields
from archsearch.emulated import refuse
from archsearch.errors import InputError, MissingMeasurement, RunError
from archsearch.estimate import row_summary
from archsearch.memory import MB
from archsearch.predict import CostTable
from archsearch.series import stored
from archsearch.spec import ArchSpec
from archsearch.store import Row, Store
from archsearch.workload import Workload
from devices.base import Device
from devices.plan import Case, Failed, RoundResult, RunPlan
from operators.graph import GraphInfo, read_info
from operators.specs import Precision

DEFAULT_WORKLOADS = (
    Workload(phase="prefill", tokens=512, context=0),
    Workload(phase="decode", tokens=1, context=1024),
    Workload(phase="decode", tokens=1, context=4096),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is benched: ONNX files by precision, and the spec where it is known."""

    name: str
    subject_id: str
    files: Mapping[Precision, Path]
    spec: ArchSpec | None
    parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class BenchEvent:
    label: str
    done: int
    total: int
    failed: str | None = None


@dataclass(kw_only=True)
class BenchResult:
    """The document that `archsearch bench` prints."""

    document: dict[str, Any] = field(default_factory=dict)


def spec_target(
    spec: ArchSpec, precisions: Sequence[Precision], directory: Path, *, max_context: int, weights: Mapping[str, np.ndarray] | None = None
) -> Target:
    """A spec with random weights, or with those of a checkpoint; measurements of one do not stand for the other."""
    subject = model_subject(spec)
    identity = subject.subject_id if weights is None else digest({"model": subject.subject_id, "weights": weights_digest(weights)})
    files = {p: write_subject(subject, directory, precision=p, max_context=max_context, weights=weights) for p in precisions}
    return Target(name=spec.name, subject_id=identity, files=files, spec=spec)


def onnx_target(path: Path, *, spec: ArchSpec | None = None) -> Target:
    """An ONNX file as it is; its precision is what its metadata says, and int4 when it says nothing.

    Raises:
        GraphError: not a decoder with caches.
    """
    info = read_info(path)
    precision: Any = info.metadata.get("archsearch.precision", "int4")
    if spec is None:
        spec = spec_of(info, path.stem)
    content = hashlib.sha256()
    for file in (path, path.with_name(path.name + ".data")):  # large weights lie beside the graph
        if file.exists():
            with file.open("rb") as opened:
                content.update(hashlib.file_digest(opened, "sha256").digest())
    name = spec.name if spec is not None else path.stem
    return Target(name=name, subject_id=content.hexdigest()[:16], files={precision: path}, spec=spec)


def spec_of(info: GraphInfo, name: str) -> ArchSpec | None:
    """The spec that one of our ONNX files was written from; None for a foreign file."""
    import json

    if info.metadata.get("archsearch.subject") != "model":
        return None
    dims = json.loads(info.metadata["archsearch.dims"])
    data = {"name": name, "vocab_size": info.vocab_size, "layers": json.loads(info.metadata["archsearch.blocks"]), **dims}
    data["tie_embeddings"] = info.metadata.get("archsearch.tie_embeddings", "true") == "true"
    return ArchSpec.from_dict(data, path=info.path)


def bench(
    target: Target,
    device: Device,
    workloads: Sequence[Workload],
    *,
    run_dir: Path,
    table: CostTable | None = None,
    device_id: str = "local",
    passes: int = 2,
    rounds: int = 8,
    min_time_ms: float = 60.0,
    timeout_s: float = 300.0,
    result: BenchResult,
) -> Iterator[BenchEvent]:
    """Measure a model; `result.document` is filled at the end.

    Measurements are stored in `run_dir`, and what is there already is not measured again.

    Raises:
        InputError: a workload's precision is not that of the ONNX file.
        RunError: nothing could be measured.
        EmulatedTimesError: the device is emulated.
    """
    refuse(device_id, device.info.extra)
    for workload in workloads:
        if workload.precision not in target.files:
            raise InputError(f"{target.name} is {', '.join(target.files)}; it cannot be benched in {workload.precision}")
    with Store(run_dir / "measurements.db") as store:
        work = _Bench(target, device, store, run_dir, table, passes, rounds, min_time_ms, timeout_s)
        yield from work.run(workloads)
        result.document = work.document(workloads, device_id)
    if all(row["measured_ms"] is None for row in result.document["workloads"]):
        raise RunError(f"{target.name} could not be measured: {work.failures[0] if work.failures else 'no workload was given'}")


class _Bench:
    def __init__(
        self,
        target: Target,
        device: Device,
        store: Store,
        run_dir: Path,
        table: CostTable | None,
        passes: int,
        rounds: int,
        min_time_ms: float,
        timeout_s: float,
    ) -> None:
        self.target, self.device, self.store, self.run_dir, self.table = target, device, store, run_dir, table
        self.passes, self.rounds, self.min_time_ms, self.timeout_s = passes, rounds, min_time_ms, timeout_s
        self.info = device.info
        self.failures: list[str] = []
        self.infos = {precision: read_info(path) for precision, path in target.files.items()}
        self.references: dict[tuple[Workload, str], tuple[str, int]] = {}

    def run(self, workloads: Sequence[Workload]) -> Iterator[BenchEvent]:
        self.store.add_device(self.info)
        memory = self.memory_workloads(workloads)
        settings = dict.fromkeys((w.precision, w.threads) for w in workloads)
        total = len(memory) + self.passes * self.rounds * len(workloads)
        done = 0
        for workload in memory:
            yield from self.measure_memory(workload)
            done += 1
            yield BenchEvent(label=f"memory {workload.label}", done=done, total=total)
        for precision, threads in settings:
            own = [w for w in workloads if (w.precision, w.threads) == (precision, threads)]
            cases = self.cases(own)
            for number in range(self.passes):
                for event in self.measure(cases, number, threads):
                    done += 1
                    yield replace(event, done=min(done, total), total=total)

    def memory_workloads(self, workloads: Sequence[Workload]) -> list[Workload]:
        """Each decode context once, at the first setting."""
        found: dict[int, Workload] = {}
        for workload in workloads:
            if workload.phase == "decode":
                found.setdefault(workload.context, workload)
        return list(found.values())

    def key(self, subject_id: str, workload: Workload, purpose: str) -> str:
        return measurement_key(subject_id, workload, fingerprint=self.info.fingerprint, runtime=self.info.runtime or "", purpose=purpose)

    def plan(self, key: str, subject_id: str, subject: dict[str, Any], copies: int, workload: Workload, purpose: str, planned: int) -> None:
        self.store.plan(
            key,
            fingerprint=self.info.fingerprint,
            subject_id=subject_id,
            subject=subject,
            copies=copies,
            purpose=purpose,
            workload=workload,
            runtime=self.info.runtime or "",
            planned=planned,
        )

    def model_data(self) -> dict[str, Any]:
        return {"kind": "model", "label": self.target.name, "spec_id": self.target.spec.spec_id if self.target.spec else None}

    def measure_memory(self, workload: Workload) -> Iterator[BenchEvent]:
        key = self.key(self.target.subject_id, workload, "memory")
        self.plan(key, self.target.subject_id, self.model_data(), 1, workload, "memory", 1)
        if self.store.status(key) == "done":
            return
        case = make_case(key, self.target.files[workload.precision], self.infos[workload.precision], workload)
        plan = RunPlan(cases=(case,), purpose="memory", threads=workload.threads, min_runs=3, timeout_s=self.timeout_s)
        for event in stored(self.store, self.device, plan, fingerprint=self.info.fingerprint):
            if isinstance(event, Failed):
                self.failures.append(f"{event.reason}: {event.detail}")
                yield BenchEvent(label=f"memory {workload.label}", done=0, total=0, failed=self.failures[-1])

    def cases(self, workloads: Sequence[Workload]) -> dict[str, Case]:
        """The model at every workload and, where a table predicts it, its blocks and head beside it."""
        cases: dict[str, Case] = {}
        for workload in workloads:
            key = self.key(self.target.subject_id, workload, "latency")
            self.plan(key, self.target.subject_id, self.model_data(), 1, workload, "latency", self.passes * self.rounds)
            cases[key] = make_case(key, self.target.files[workload.precision], self.infos[workload.precision], workload)
            for subject in self.parts(workload):
                path = write_subject(
                    subject, self.run_dir / "models", precision=workload.precision, max_context=self.max_context(workloads)
                )
                part = self.key(subject.subject_id, workload, f"reference beside {key}")
                data = subject.to_dict() | {"label": subject.label, "beside": key}
                self.plan(part, subject.subject_id, data, subject.copies, workload, "reference", self.passes * self.rounds)
                cases[part] = make_case(part, path, read_info(path), workload)
                self.references[workload, subject.subject_id] = part, subject.copies
        return cases

    def max_context(self, workloads: Sequence[Workload]) -> int:
        return max(workload.cache for workload in workloads) + 1

    def parts(self, workload: Workload) -> list[Subject]:
        spec = self.target.spec
        if self.table is None or spec is None or self._predicted(workload) is None:
            return []
        counts = self.table.part_counts(spec, workload)
        chains = [block_subject(block, spec.dims, self.table.chain_copies(block, spec.dims, workload)) for block in counts]
        return [*chains, head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings)]

    def _predicted(self, workload: Workload) -> Any:
        try:
            return self.table.latency(self.target.spec, workload) if self.table is not None and self.target.spec is not None else None
        except MissingMeasurement:
            return None

    def measure(self, cases: Mapping[str, Case], number: int, threads: int) -> Iterator[BenchEvent]:
        first = number * self.rounds
        done = {key: self.store.done_rounds(key) for key in cases}
        left = {key: case for key, case in cases.items() if not done[key] >= set(range(first, first + self.rounds))}
        models = {self.key(self.target.subject_id, row, "latency") for row in self._workloads_of(cases)}
        skipped = sum(len(done[key] & set(range(first, first + self.rounds))) for key in models)
        for _ in range(skipped):
            yield BenchEvent(label="", done=0, total=0)
        if not left:
            return
        plan = RunPlan(
            cases=tuple(left.values()),
            threads=threads,
            rounds=self.rounds,
            done=tuple((key, r) for key in left for r in range(self.rounds) if first + r in done[key]),
            min_time_ns=int(self.min_time_ms * 1e6),
            timeout_s=self.timeout_s,
            seed=first,
        )
        for event in stored(self.store, self.device, plan, fingerprint=self.info.fingerprint, first=first):
            match event:
                case RoundResult():
                    if event.case_id in models:
                        yield BenchEvent(label=self.target.name, done=0, total=0)
                case Failed():
                    self.failures.append(f"{event.reason}: {event.detail}")
                    yield BenchEvent(label=self.target.name, done=0, total=0, failed=self.failures[-1])

    def _workloads_of(self, cases: Mapping[str, Case]) -> list[Workload]:
        rows = {row.key: row for row in self.store.rows(fingerprint=self.info.fingerprint)}
        return [rows[key].workload for key in cases if rows[key].purpose == "latency"]

    # -- results ---------------------------------------------------------------------------------------------------------

    def document(self, workloads: Sequence[Workload], device_id: str) -> dict[str, Any]:
        rows = {row.key: row for row in self.store.rows(fingerprint=self.info.fingerprint)}
        spec = self.target.spec
        head = (
            document_head(spec, device_id) if spec else {"name": self.target.name, "spec_id": None, "device": device_id, "parameters": None}
        )
        lines = []
        for workload in workloads:
            row = rows[self.key(self.target.subject_id, workload, "latency")]
            predicted = self._predicted(workload)
            lines.append(
                workload_fields(workload) | predicted_fields(predicted) | measured_fields(row) | {"drift": self.drift(rows, workload)}
            )
        memory = []
        for workload in self.memory_workloads(workloads):
            row = rows[self.key(self.target.subject_id, workload, "memory")]
            measured = row.memory[-1]["peak_bytes"] / MB if row.memory else None
            memory.append({"context": workload.context, "predicted_mb": self.predicted_mb(workload), "measured_mb": measured})
        return head | {"workloads": lines, "memory": memory}

    def predicted_mb(self, workload: Workload) -> float | None:
        if self.table is None or self.target.spec is None:
            return None
        try:
            return self.table.memory(self.target.spec, workload.context, workload.precision).total / MB
        except MissingMeasurement:
            return None

    def drift(self, rows: Mapping[str, Row], workload: Workload) -> float | None:
        """How much slower the model's parts ran beside it than when they were profiled; None without a table."""
        spec, table = self.target.spec, self.table
        predicted = self._predicted(workload)
        if spec is None or table is None or predicted is None:
            return None
        parts = {subject.subject_id: subject for subject in self.parts(workload)}
        counts, now, then = table.part_counts(spec, workload), 0.0, 0.0
        for subject_id, subject in parts.items():
            key, _ = self.references[workload, subject_id]
            if not rows[key].rounds:
                return None
            count = counts[subject.blocks[0]] if subject.blocks else 1
            now += count * row_summary(rows[key]).value
            then += (
                count * (table.chains.chain(subject.blocks[0], spec.dims, workload) if subject.blocks else table.head(spec, workload)).value
            )
        return now / then


def measured_fields(row: Row) -> dict[str, Any]:
    """The lower quartile, as predictions are, and p95 of all samples, in milliseconds; null where nothing was measured."""
    if not row.rounds:
        return {"measured_ms": None, "measured_p95_ms": None}
    samples = np.concatenate(list(row.rounds.values())) / row.copies
    return {"measured_ms": row_summary(row).value, "measured_p95_ms": float(np.percentile(samples, 95)) / 1e6}
