"""Measure the blocks of a space on a device: interleaved, in fresh processes, resumable at any moment.

The protocol (docs/prediction.md says why):
- decode: a long chain of distinct copies of the block and a chain of two (`archsearch.chains`), so that what a block costs in a large and
  in a small walk through memory is known (`archsearch.walk`); of one block, chains of several lengths between them, which tell how that
  changes.
- prefill: a chain of two; there the arithmetic, not the weights, takes the time.
- embedding and head by themselves.
- chains of layers drawn like a model's, which tell what mixing costs (`archsearch.mixing`).
- every operator with the widest FFN, every FFN with the first operator: the two add up (`CostTable.parts`).
- `passes` fresh processes for each precision and thread count; in each, all cases interleaved in `rounds` shuffled rounds.
  What is still uncertain then gets further passes.
- memory in processes of its own: a chain and a single copy, whose difference is what one more block costs; and every block once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from archsearch.cases import Subject, block_subject, head_subject, make_case, measurement_key, write_subject
from archsearch.chains import PREFILL_COPIES, decode_chains, long_copies, mixed_chains, one_of_each, subjects
from archsearch.estimate import row_summary
from archsearch.series import stored
from archsearch.space import MeasureSettings, Space
from archsearch.store import Store
from archsearch.workload import Workload
from devices.base import Device, DeviceInfo
from devices.plan import Case, Failed, RoundResult, RunPlan
from operators.graph import GraphInfo, check_blocks, random_weights, read_info
from operators.graph.check import DECODE, probe_length
from operators.specs import BlockSpec, GraphError, ModelDims, Precision

MEMORY_SHARE = 0.4
"""Share of the available memory that the models of one process may fill; more are measured in several groups."""
MODEL_FACTOR = 2.5
"""Memory of a loaded model over its file: prepacking copies the weights."""


@dataclass(frozen=True, kw_only=True)
class ProfileEvent:
    """Progress: `done` of `total` steps, what just happened, and how long the rest will take."""

    stage: Literal["export", "memory", "latency", "finished"]
    label: str
    done: int
    total: int
    seconds_left: float | None
    failed: str | None = None


@dataclass(kw_only=True)
class Item:
    """One measurement to be made."""

    key: str
    subject: Subject
    workload: Workload
    path: Path
    case: Case
    purpose: Literal["latency", "memory"]
    planned: int


@dataclass
class Estimator:
    """Seconds left, from the steps of this run alone: what a resumed run finds done costs nothing."""

    total: int
    done: int = 0
    worked: int = 0
    begun: float = field(default_factory=time.monotonic)

    def step(self, *, worked: bool) -> None:
        self.done += 1
        self.worked += worked

    @property
    def seconds_left(self) -> float | None:
        if not self.worked:
            return None
        return (self.total - self.done) * (time.monotonic() - self.begun) / self.worked


def profile(space: Space, run_dir: Path, device: Device, *, retry_failed: bool = False) -> Iterator[ProfileEvent]:
    """Measure what is not measured yet; closing the iterator, or killing the process, loses the round that is running at most.

    Raises:
        StoreError: the database cannot be used.
        AgentError: the device's agent cannot be started.
        GraphError: a graph cannot be written.
    """
    info = device.info
    with Store(run_dir / "measurements.db") as store:
        store.add_device(info)
        yield from _Profile(space, run_dir, device, info, store, retry_failed).run()


class _Profile:
    def __init__(self, space: Space, run_dir: Path, device: Device, info: DeviceInfo, store: Store, retry_failed: bool) -> None:
        self.space, self.run_dir, self.device, self.info, self.store = space, run_dir, device, info, store
        self.settings: MeasureSettings = space.measure
        self.retry_failed = retry_failed
        self.models: dict[tuple[str, Precision], tuple[Path, GraphInfo]] = {}

    def run(self) -> Iterator[ProfileEvent]:
        yield from self.export()
        memory, latency = self.memory_items(), self.latency_items()
        failed = {row.key for row in self.store.rows(fingerprint=self.info.fingerprint) if row.status == "failed"} - self._plan(
            memory + latency
        )
        if self.retry_failed:
            failed = set()
        estimator = Estimator(total=len(memory) + sum(item.planned for item in latency))
        yield from self.measure_memory([item for item in memory if item.key not in failed], estimator)
        yield from self.measure_latency([item for item in latency if item.key not in failed], estimator)
        yield ProfileEvent(stage="finished", label="", done=estimator.total, total=estimator.total, seconds_left=0.0)

    # -- graphs ----------------------------------------------------------------------------------------------------------

    def export(self) -> Iterator[ProfileEvent]:
        """Write every graph and check a block's outputs against the reference before anything is timed."""
        wanted = [(subject, precision) for precision in self.settings.precision for subject in subjects(self.space, precision)]
        estimator = Estimator(total=len(wanted))
        for subject, precision in wanted:
            fresh = self._write(subject, precision)
            estimator.step(worked=fresh)
            yield ProfileEvent(
                stage="export",
                label=f"{subject.label} {precision}",
                done=estimator.done,
                total=estimator.total,
                seconds_left=estimator.seconds_left,
            )

    def _write(self, subject: Subject, precision: Precision) -> bool:
        directory, max_context = self.run_dir / "models", self.space.positions
        known = set(directory.glob("*/model.onnx")) if directory.exists() else set()
        path = write_subject(subject, directory, precision=precision, max_context=max_context)
        self.models[subject.subject_id, precision] = path, read_info(path)
        checked = path.with_name("checked")
        if subject.blocks and subject.copies == 1 and not checked.exists():
            self._check(subject.blocks[0], subject.dims, path, precision)
            checked.touch()  # a run that is stopped between writing and checking leaves none
            return True
        return path not in known

    def _check(self, block: BlockSpec, dims: ModelDims, path: Path, precision: Precision) -> None:
        from operators.costs import block_weights
        from operators.specs import WeightSpec

        names = [WeightSpec(name=f"layers.0.{w.name}", shape=w.shape, linear=w.linear) for w in block_weights(block, dims)]
        try:
            prefill = min(probe_length((block,)), self.space.positions - DECODE)
            check_blocks(path, (block,), dims, random_weights(names, 0), precision=precision, prefill=prefill)
        except GraphError:
            # What does not compute its operator must not be timed, also not by the next run that finds the file.
            shutil.rmtree(path.parent, ignore_errors=True)
            raise

    # -- what to measure -------------------------------------------------------------------------------------------------

    def latency_items(self) -> list[Item]:
        items = []
        blocks = self.space.measured_blocks
        for workload in self.space.workloads():
            for dims in self.space.all_dims:
                if workload.phase == "decode":
                    chains = decode_chains(self.space, dims, workload)
                else:
                    chains = tuple(block_subject(block, dims, PREFILL_COPIES) for block in blocks)
                head = head_subject(dims, self.space.vocab_size, self.space.tie_embeddings)
                mixed = mixed_chains(self.space, dims, workload)
                items += [self._item(subject, workload, "latency") for subject in [*chains, *mixed, head]]
        return items

    def memory_items(self) -> list[Item]:
        """Chain, single copy and head at the longest context and the longest prompt, one thread count: threads add a stack each."""
        items = []
        for workload in (w for precision in self.settings.precision for w in memory_workloads(self.space, precision)):
            for dims in self.space.all_dims:
                for block in self.space.measured_blocks:
                    copies = (1, long_copies(self.space, block, dims, workload.precision))
                    items += [self._item(block_subject(block, dims, n), workload, "memory") for n in copies]
                items.append(self._item(head_subject(dims, self.space.vocab_size, self.space.tie_embeddings), workload, "memory"))
                if workload.phase == "prefill" and (mixed := one_of_each(self.space, dims)) is not None:
                    items.append(self._item(mixed, workload, "memory"))
        return items

    def _item(self, subject: Subject, workload: Workload, purpose: Literal["latency", "memory"]) -> Item:
        path, info = self.models[subject.subject_id, workload.precision]
        key = measurement_key(
            subject.subject_id, workload, fingerprint=self.info.fingerprint, runtime=self.info.runtime or "", purpose=purpose
        )
        planned = self.settings.passes * self.settings.rounds if purpose == "latency" else 1
        return Item(
            key=key,
            subject=subject,
            workload=workload,
            path=path,
            case=make_case(key, path, info, workload),
            purpose=purpose,
            planned=planned,
        )

    def _plan(self, items: Sequence[Item]) -> set[str]:
        """Note all items; returns the keys that were not known before."""
        known = {row.key for row in self.store.rows(fingerprint=self.info.fingerprint)}
        for item in items:
            self.store.plan(
                item.key,
                fingerprint=self.info.fingerprint,
                subject_id=item.subject.subject_id,
                subject=item.subject.to_dict() | {"label": item.subject.label},
                copies=item.subject.copies,
                purpose=item.purpose,
                workload=item.workload,
                runtime=self.info.runtime or "",
                planned=item.planned,
            )
        return {item.key for item in items} - known

    # -- measuring -------------------------------------------------------------------------------------------------------

    def measure_memory(self, items: Sequence[Item], estimator: Estimator) -> Iterator[ProfileEvent]:
        for item in items:
            failure = None
            worked = self.store.status(item.key) != "done"
            if worked:
                plan = RunPlan(
                    cases=(item.case,), purpose="memory", threads=item.workload.threads, min_runs=3, timeout_s=self.settings.timeout_s
                )
                for event in stored(self.store, self.device, plan, fingerprint=self.info.fingerprint):
                    if isinstance(event, Failed):
                        failure = f"{event.reason}: {event.detail}"
            estimator.step(worked=worked)
            yield self._event("memory", item, estimator, failure)

    def measure_latency(self, items: Sequence[Item], estimator: Estimator) -> Iterator[ProfileEvent]:
        done = {item.key: self.store.done_rounds(item.key) for item in items}
        for number in range(max(self.settings.passes, self.settings.max_passes)):
            wanted = items if number < self.settings.passes else self._uncertain(items, number, estimator)
            first = number * self.settings.rounds
            for precision in self.settings.precision:
                for threads in self.settings.threads:
                    series = [item for item in wanted if (item.workload.precision, item.workload.threads) == (precision, threads)]
                    for item in series:
                        for _ in done[item.key] & set(range(first, first + self.settings.rounds)):
                            estimator.step(worked=False)
                    for group in self._groups(series):
                        yield from self._series(group, first, threads, done, estimator)

    def _uncertain(self, items: Sequence[Item], number: int, estimator: Estimator) -> list[Item]:
        """What pass `number` is spent on: what was still too uncertain after all passes before it, however far this one has come."""
        rows = {row.key: row for row in self.store.rows(fingerprint=self.info.fingerprint)}
        rounds = self.settings.rounds
        found = []
        for item in items:
            row = rows[item.key]
            before = {n: samples for n, samples in row.rounds.items() if n < number * rounds}
            if row.status == "failed" or len(before) < number * rounds:
                continue  # an earlier pass had enough of it
            if row_summary(replace(row, rounds=before)).relative > self.settings.interval:
                found.append(item)
        estimator.total += rounds * len(found)
        for item in found:
            item.planned = (number + 1) * rounds
        self._plan(found)
        return found

    def _groups(self, items: Sequence[Item]) -> list[list[Item]]:
        """Split a series so that its models fit in the device's memory together; a model is never split."""
        limit = MEMORY_SHARE * self._memory()
        groups: list[list[Item]] = []
        filled = 0.0
        seen: set[Path] = set()
        for item in sorted(items, key=lambda item: str(item.path)):
            size = MODEL_FACTOR * sum(file.stat().st_size for file in item.path.parent.iterdir()) if item.path not in seen else 0.0
            if not groups or (filled + size > limit and item.path not in seen):
                groups.append([])
                filled = 0.0
            filled += size
            seen.add(item.path)
            groups[-1].append(item)
        return groups

    def _memory(self) -> float:
        """Bytes that models may share: what is available here, half of what a phone has, where much is in use and little is told."""
        if self.info.device_id.startswith("adb:"):
            return 0.5 * self.info.memory_bytes
        import psutil

        return psutil.virtual_memory().available

    def _series(
        self, items: Sequence[Item], first: int, threads: int, done: dict[str, set[int]], estimator: Estimator
    ) -> Iterator[ProfileEvent]:
        rounds = range(self.settings.rounds)
        left = [item for item in items if not done[item.key] >= {first + r for r in rounds}]
        if not left:
            return
        by_key = {item.key: item for item in left}
        plan = RunPlan(
            cases=tuple(item.case for item in left),
            threads=threads,
            rounds=self.settings.rounds,
            done=tuple((item.key, r) for item in left for r in rounds if first + r in done[item.key]),
            min_runs=self.settings.min_runs,
            min_time_ns=int(self.settings.min_time_ms * 1e6),
            timeout_s=self.settings.timeout_s,
            seed=first,
        )
        for event in stored(self.store, self.device, plan, fingerprint=self.info.fingerprint, first=first):
            match event:
                case RoundResult():
                    done[event.case_id].add(first + event.round)
                    estimator.step(worked=True)
                    yield self._event("latency", by_key[event.case_id], estimator, None)
                case Failed():
                    item = by_key[event.case_id]
                    for _ in {first + r for r in rounds} - done[event.case_id]:  # later passes count their own
                        estimator.step(worked=False)
                    done[event.case_id].update(range(item.planned))
                    yield self._event("latency", item, estimator, f"{event.reason}: {event.detail}")

    def _event(self, stage: Literal["memory", "latency"], item: Item, estimator: Estimator, failed: str | None) -> ProfileEvent:
        label = f"{item.subject.label} {item.workload.label} {item.workload.precision}"
        return ProfileEvent(
            stage=stage, label=label, done=estimator.done, total=estimator.total, seconds_left=estimator.seconds_left, failed=failed
        )


def memory_workloads(space: Space, precision: Precision) -> tuple[Workload, ...]:
    """The workloads at which memory is measured: decoding at the longest context (which tells of loading, too), and the longest prompt."""
    found = []
    if space.decode:
        found.append(
            Workload(phase="decode", tokens=1, context=max(space.decode), batch=space.batch, precision=precision, threads=space.threads)
        )
        if space.prefill:
            found.append(
                Workload(
                    phase="prefill", tokens=max(space.prefill), context=0, batch=space.batch, precision=precision, threads=space.threads
                )
            )
    return tuple(found)
