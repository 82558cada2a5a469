"""How far predictions can be trusted: whole models that nobody tuned for, measured beside the table's own chains.

`calibrate` builds held-out layouts of the run's space, measures each in fresh processes interleaved with reference chains of the
table, and writes the composition-error card (`archsearch.calibration`). The references tell a machine that has changed since
it was profiled apart from parts that do not add up: in each process they tell how much longer computing and walking through memory take
(`archsearch.drift`), and predictions are scaled by that. Processes that drifted by more than `LARGEST_DRIFT` do not count.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from archsearch.calibration import CalibrationCard, MeasuredCase, MeasuredMemory, keep_card, read_card
from archsearch.cases import (
    GRAPH_VERSION,
    Subject,
    block_subject,
    digest,
    head_subject,
    make_case,
    measurement_key,
    model_subject,
    write_subject,
)
from archsearch.drift import Drift, Reference, drift_of
from archsearch.errors import InputError, MissingMeasurement, RunError
from archsearch.estimate import by_process, in_one_state, row_summary
from archsearch.held_out import held_out, held_out_contexts
from archsearch.memory import MB, MemoryPhase
from archsearch.predict import CostTable
from archsearch.profile import Estimator, memory_workloads
from archsearch.series import stored
from archsearch.space import Space
from archsearch.spec import ArchSpec
from archsearch.store import Row, Store
from archsearch.workload import Phase, Workload
from devices.base import Device
from devices.plan import Case, Failed, RoundResult, RunPlan
from operators.graph import read_info
from operators.specs import Precision

GROUP = 3
"""Whole models in one process: with many sessions each model would find less memory in huge pages than it does alone."""
LARGEST_DRIFT = 1.25
"""A process that is this much slower, or faster, than the table says ran on another machine, so to speak."""


@dataclass(frozen=True, kw_only=True)
class CalibrateEvent:
    label: str
    done: int
    total: int
    seconds_left: float | None = None
    failed: str | None = None


@dataclass(kw_only=True)
class CalibrateResult:
    """`card` is there when the iterator has ended."""

    card: CalibrationCard | None = None
    failures: list[str] = field(default_factory=list)


def calibrate(
    space: Space,
    run_dir: Path,
    device: Device,
    table: CostTable,
    *,
    layouts: int = 12,
    memory_layouts: int = 4,
    passes: int = 2,
    rounds: int = 6,
    seed: int = 0,
    again: bool = False,
    result: CalibrateResult,
) -> Iterator[CalibrateEvent]:
    """Measure held-out models and write the card; what is measured already is not measured again, unless `again`.

    With a card of other layouts (another `seed`) there already, its widened intervals are put to the test by the new layouts.

    Raises:
        InputError: the table is of another machine, or another version of the runtime or of our graphs.
        RunError: the machine has changed too much since it was profiled, or nothing could be measured; an earlier card is damaged.
        MissingMeasurement: the table lacks what the layouts need.
    """
    info = device.info
    if (table.fingerprint, table.runtime) != (info.fingerprint, info.runtime or ""):
        was, now = f"{table.fingerprint} with {table.runtime}", f"{info.fingerprint} with {info.runtime}"
        raise InputError(f"{run_dir} was profiled on {was}, and this device is {now}: profile it first, or calibrate where it was profiled")
    if table.graph != GRAPH_VERSION:
        raise InputError(f"{run_dir} was profiled by an earlier version of archsearch, which measured otherwise: profile it again")
    with Store(run_dir / "measurements.db") as store:
        earlier = read_card(run_dir, info.fingerprint, table.runtime)
        work = _Calibration(space, run_dir, device, table, store, passes, rounds, seed, again, result)
        yield from work.run(held_out(space, layouts, seed=seed), memory_layouts)
        result.card = work.card({layout["spec_id"] for layout in earlier["layouts"]} if earlier else set())
    keep_card(run_dir, result.card)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One measurement of a calibration: a whole model, or a reference beside some."""

    key: str
    subject: Subject
    workload: Workload
    spec: ArchSpec | None
    case: Case


@dataclass(frozen=True, kw_only=True)
class _Group:
    """What is measured in the same processes."""

    group_id: str
    precision: Precision
    threads: int
    parts: tuple[_Part, ...]


class _Calibration:
    def __init__(
        self,
        space: Space,
        run_dir: Path,
        device: Device,
        table: CostTable,
        store: Store,
        passes: int,
        rounds: int,
        seed: int,
        again: bool,
        result: CalibrateResult,
    ) -> None:
        self.space, self.run_dir, self.device, self.table, self.store = space, run_dir, device, table, store
        self.passes, self.rounds, self.seed, self.result = passes, rounds, seed, result
        self.info = device.info
        attempts = [row.subject.get("attempt", 0) for row in store.rows(fingerprint=self.info.fingerprint) if row.purpose == "calibration"]
        self.attempt = max(attempts, default=0) + (1 if again and attempts else 0)
        self.groups: list[_Group] = []
        self.kinds: dict[str, str] = {}
        self.memory: list[tuple[ArchSpec, Workload, str, Case]] = []
        self.strayed: list[tuple[float, Workload]] = []

    # -- what is measured ------------------------------------------------------------------------------------------------

    def plan(self, layouts: Sequence[tuple[str, ArchSpec]], memory_layouts: int) -> None:
        self.kinds = {spec.name: kind for kind, spec in layouts}
        for precision in self.space.measure.precision:
            for workload in memory_workloads(self.space, precision):
                for _, spec in layouts[:memory_layouts]:
                    subject = model_subject(spec)
                    key = self._key(subject, workload, "calibration memory", str(self.attempt or ""))
                    self.memory.append((spec, workload, key, self._case(key, subject, workload)))
                    self._note(key, subject, workload, "calibration memory", {"label": spec.name}, 1)
            for threads in self.space.measure.threads:
                for first in range(0, len(layouts), GROUP):
                    self.groups.append(self._group([spec for _, spec in layouts[first : first + GROUP]], precision, threads))

    def _group(self, specs: Sequence[ArchSpec], precision: Precision, threads: int) -> _Group:
        subjects = [(model_subject(spec), spec) for spec in specs]
        group_id = digest([self.attempt, precision, threads, self.seed, *(subject.subject_id for subject, _ in subjects)])
        parts = []
        for workload in self._workloads(precision, threads):
            references = self._references(specs, workload) if workload in self.table.workloads() else []
            for subject, spec in [*subjects, *((subject, None) for subject in references)]:
                key = self._key(subject, workload, "calibration", group_id)
                what = {"label": subject.label, "group": group_id, "attempt": self.attempt}
                self._note(key, subject, workload, "calibration", what, self.passes * self.rounds)
                parts.append(_Part(key=key, subject=subject, workload=workload, spec=spec, case=self._case(key, subject, workload)))
        return _Group(group_id=group_id, precision=precision, threads=threads, parts=tuple(parts))

    def _workloads(self, precision: Precision, threads: int) -> list[Workload]:
        known = self.space.workloads(precision, threads)
        between = [
            Workload(phase="decode", tokens=1, context=context, batch=self.space.batch, precision=precision, threads=threads)
            for context in held_out_contexts(self.space)
        ]
        return [*known, *between]

    def _references(self, specs: Sequence[ArchSpec], workload: Workload) -> list[Subject]:
        """For each operator of the layouts its long chain, for one of them its shortest as well, and embedding with head."""
        found: dict[Any, Subject] = {}
        for spec in specs:
            for block in spec.layers:
                for measured in self.table.parts(block, spec.dims, workload):
                    lengths = self.table.chains.lengths(measured, spec.dims, workload)
                    if not lengths:
                        continue  # that workload of it failed
                    found.setdefault((spec.dims, measured.operator), block_subject(measured, spec.dims, lengths[-1]))
                    found.setdefault((spec.dims, "short"), block_subject(measured, spec.dims, lengths[0]))
            found.setdefault(spec.dims, head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings))
        return list(dict.fromkeys(found.values()))

    def _key(self, subject: Subject, workload: Workload, purpose: str, group_id: str) -> str:
        return measurement_key(
            subject.subject_id,
            workload,
            fingerprint=self.info.fingerprint,
            runtime=self.info.runtime or "",
            purpose=f"{purpose} {group_id}".strip(),
        )

    def _case(self, key: str, subject: Subject, workload: Workload) -> Case:
        path = write_subject(subject, self.run_dir / "models", precision=workload.precision, max_context=self.space.positions)
        return make_case(key, path, read_info(path), workload)

    def _note(self, key: str, subject: Subject, workload: Workload, purpose: str, more: dict[str, Any], planned: int) -> None:
        self.store.plan(
            key,
            fingerprint=self.info.fingerprint,
            subject_id=subject.subject_id,
            subject=subject.to_dict() | more,
            copies=subject.copies,
            purpose=purpose,
            workload=workload,
            runtime=self.info.runtime or "",
            planned=planned,
        )

    # -- measuring -------------------------------------------------------------------------------------------------------

    def run(self, layouts: Sequence[tuple[str, ArchSpec]], memory_layouts: int) -> Iterator[CalibrateEvent]:
        self.store.add_device(self.info)
        self.plan(layouts, memory_layouts)
        total = len(self.memory) + sum(len(group.parts) * self.passes * self.rounds for group in self.groups)
        estimator = Estimator(total=total)

        def event(label: str, *, worked: bool, failed: str | None = None) -> CalibrateEvent:
            estimator.step(worked=worked)
            if failed:
                self.result.failures.append(f"{label}: {failed}")
            return CalibrateEvent(label=label, done=estimator.done, total=total, seconds_left=estimator.seconds_left, failed=failed)

        for spec, workload, key, case in self.memory:
            worked = self.store.status(key) != "done"
            failed = self._measure_memory(workload, case) if worked else None
            yield event(f"memory {spec.name}", worked=worked, failed=failed)
        for number, group in itertools.product(range(self.passes), self.groups):
            for label, worked, failed in self._measure(group, number):
                yield event(label, worked=worked, failed=failed)

    def _measure_memory(self, workload: Workload, case: Case) -> str | None:
        failed = None
        plan = RunPlan(cases=(case,), purpose="memory", threads=workload.threads, min_runs=3, timeout_s=self.space.measure.timeout_s)
        for event in stored(self.store, self.device, plan, fingerprint=self.info.fingerprint):
            if isinstance(event, Failed):
                failed = f"{event.reason}: {event.detail}"
        return failed

    def _measure(self, group: _Group, number: int) -> Iterator[tuple[str, bool, str | None]]:
        first = number * self.rounds
        parts = {part.key: part for part in group.parts}
        done = {key: self.store.done_rounds(key) for key in parts}
        skipped = [(key, r) for key in parts for r in range(self.rounds) if first + r in done[key]]
        for key, _ in skipped:
            yield parts[key].subject.label, False, None
        left = [part for part in group.parts if not done[part.key] >= set(range(first, first + self.rounds))]
        if not left:
            return
        plan = RunPlan(
            cases=tuple(part.case for part in left),
            threads=group.threads,
            rounds=self.rounds,
            done=tuple(skipped),
            min_runs=self.space.measure.min_runs,
            min_time_ns=int(self.space.measure.min_time_ms * 1e6),
            timeout_s=self.space.measure.timeout_s,
            seed=first,
        )
        for event in stored(self.store, self.device, plan, fingerprint=self.info.fingerprint, first=first):
            match event:
                case RoundResult():
                    part = parts[event.case_id]
                    yield f"{part.subject.label} {part.workload.label} {part.workload.precision}", True, None
                case Failed():
                    yield parts[event.case_id].subject.label, True, f"{event.reason}: {event.detail}"
                    for _ in set(range(1, self.rounds)) - done[event.case_id]:  # the bar moves on by what will not come
                        yield parts[event.case_id].subject.label, False, None

    # -- the card --------------------------------------------------------------------------------------------------------

    def card(self, known: set[str]) -> CalibrationCard:
        """`known`: the layouts that the table's widenings were fitted to; only others can test these."""
        rows = {row.key: row for row in self.store.rows(fingerprint=self.info.fingerprint)}
        cases = [case for group in self.groups for case in self._cases(group, rows, known)]
        if not cases and self.strayed:
            drift, workload = max(self.strayed, key=lambda found: abs(math.log(found[0])))
            raise RunError(
                f"the table's own chains take {drift:.2f} times what they took when they were profiled "
                f"({workload.label}, {workload.precision}): the machine has changed; close other programs and run "
                "`archsearch calibrate --again`, or profile into a new run"
            )
        if not cases:
            why = f": {self.result.failures[0]}" if self.result.failures else ""
            raise RunError(f"no held-out model could be measured{why}")
        memory = [entry for spec, workload, key, _ in self.memory for entry in self._peaks(spec, workload, rows[key])]
        specs = {part.spec.name: part.spec for group in self.groups for part in group.parts if part.spec is not None}
        return CalibrationCard(
            device=self.table.device,
            fingerprint=self.info.fingerprint,
            created_unix_s=time.time(),
            runtime=self.info.runtime or "",
            layouts=tuple((self.kinds[name], spec) for name, spec in specs.items()),
            cases=tuple(cases),
            memory=tuple(memory),
        )

    def _peaks(self, spec: ArchSpec, workload: Workload, row: Row) -> Iterator[MeasuredMemory]:
        """Each phase that a row tells of, beside its prediction; nothing where the table does not know the phase."""
        if not row.memory:
            return
        phases: tuple[MemoryPhase, ...] = ("load", "decode") if workload.phase == "decode" else ("prefill",)
        for phase in phases:
            measured = row.memory[-1]["load_peak_bytes" if phase == "load" else "peak_bytes"]
            if measured is None or phase not in self.table.peaks.phases(workload.precision):
                continue
            predicted = self.table.peaks.model(spec, workload, phase).total
            yield MeasuredMemory(
                layout=spec.name,
                precision=workload.precision,
                context=workload.context or workload.tokens,
                phase=phase,
                predicted_mb=predicted / MB,
                measured_mb=measured / MB,
                pss_mb=pss / MB if (pss := row.memory[-1]["pss_bytes"]) is not None and phase != "load" else None,
            )

    def _cases(self, group: _Group, rows: dict[str, Row], known: set[str]) -> Iterator[MeasuredCase]:
        drifts = self._drifts(group, rows)
        for part in group.parts:
            if part.spec is None or not rows[part.key].rounds:
                continue
            try:
                predicted = self.table.latency(part.spec, part.workload, widen=False)
                warm = self.table.chains.warm_share(part.spec, part.workload)
            except MissingMeasurement as error:
                self.result.failures.append(f"{part.spec.name}: {error}")
                continue
            found = {}
            for process, time_ms in by_process(rows[part.key]).items():
                drift = drifts.get((process, part.workload.phase))
                if drift is None:
                    continue
                factor = drift.factor(warm)
                if 1 / LARGEST_DRIFT <= factor <= LARGEST_DRIFT:
                    found[process] = time_ms, factor
                else:
                    self.strayed.append((factor, part.workload))
            if not found:
                why = "no process tells of it, its references had drifted too far"
                self.result.failures.append(f"{part.spec.name}, {part.workload.label}: {why}")
                continue
            alike = in_one_state({process: time_ms / factor for process, (time_ms, factor) in found.items()})
            times, factors = zip(*(found[process] for process in alike), strict=True)
            summary = row_summary(rows[part.key])
            yield MeasuredCase(
                layout=part.spec.name,
                workload=part.workload,
                measured=summary.scaled(geometric_mean(times) / summary.value),
                predicted=predicted,
                drift=geometric_mean(factors),
                interpolated=part.workload not in self.table.workloads(),
                left_out=len(by_process(rows[part.key])) - len(alike),
                widening=None if part.spec.spec_id in known else self.table.widenings.get(part.workload),
            )

    def _drifts(self, group: _Group, rows: dict[str, Row]) -> dict[tuple[str, Phase], Drift]:
        """What each process's references tell, by phase: those of all contexts together, since they saw the same machine."""
        found: dict[tuple[str, Phase], list[Reference]] = {}
        for part in group.parts:
            known = None if part.spec else self.table.measured(part.subject, part.workload)
            if known is None or not rows[part.key].rounds:
                continue
            warm = self.table.chains.warm_share(part.subject, part.workload)
            for process, time_ms in by_process(rows[part.key]).items():
                reference = Reference(ratio=time_ms / known.value, warm=warm)
                found.setdefault((process, part.workload.phase), []).append(reference)
        return {key: drift for key, references in found.items() if (drift := drift_of(references)) is not None}
