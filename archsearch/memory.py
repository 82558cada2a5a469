"""Peak memory of a whole model from measured chains: `M = process + runtime + embedding and head + sum of (weights + caches)`.

A peak belongs to a phase: "load" (until the first run), "prefill" and "decode" (after some runs, loading included).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from archsearch.cases import block_label, block_subject, head_subject
from archsearch.errors import MissingMeasurement
from archsearch.spec import ArchSpec, block_from_dict
from archsearch.store import Row
from archsearch.workload import Workload
from operators.costs import block_costs
from operators.specs import BlockSpec, ModelDims, Precision

MB = 1e6
MemoryPhase = Literal["load", "prefill", "decode"]
MEMORY_PHASES: tuple[MemoryPhase, ...] = ("load", "prefill", "decode")
Compose = Callable[[BlockSpec, Iterable[BlockSpec]], dict[BlockSpec, int] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryParts:
    """Bytes of a model's peak resident set, by what they are for."""

    process: float
    """The agent before it loads anything."""
    runtime: float
    """What a loaded session takes whatever it holds, with the activations of a step."""
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


class MemoryTable:
    """Peaks of chains, single copies, embedding and head on one device.

    Args:
        rows: finished memory measurements.
        device: how the user names it, for messages.
        compose: which measured blocks a block is put together from, among those given; None where it cannot be.
        block_of: the block that a row measured.
    """

    def __init__(self, rows: Iterable[Row], *, device: str, compose: Compose, block_of: Callable[[Row], BlockSpec]) -> None:
        self.device, self.compose = device, compose
        self.rows = [row for row in rows if row.memory]
        self._by_subject: dict[str, list[Row]] = {}
        self._blocks: dict[tuple[ModelDims, Precision], dict[BlockSpec, None]] = {}
        self._mixed: list[Row] = []
        for row in self.rows:
            if row.mixed:
                self._mixed.append(row)
                continue
            self._by_subject.setdefault(row.subject_id, []).append(row)
            if row.subject["kind"] == "block":
                key = ModelDims(**row.subject["dims"]), row.workload.precision
                self._blocks.setdefault(key, {}).setdefault(block_of(row))
        self._chains: dict[tuple[BlockSpec, ModelDims, Precision, MemoryPhase], BlockMemory] = {}

    def __bool__(self) -> bool:
        return bool(self.rows)

    def phases(self, precision: Precision) -> tuple[MemoryPhase, ...]:
        """What was measured at a precision."""
        return tuple(
            phase
            for phase in MEMORY_PHASES
            if any(row.workload.precision == precision and _peak(row, phase) is not None for row in self.rows)
        )

    def process_bytes(self) -> float:
        """Resident set of an agent that has loaded nothing: median over all memory measurements."""
        found = [entry["base_bytes"] for row in self.rows for entry in row.memory]
        if not found:
            raise MissingMeasurement(f"{self.device}: no memory was measured; run `archsearch profile` with a decode workload")
        return float(np.median(found))

    def block(self, block: BlockSpec, dims: ModelDims, precision: Precision, phase: MemoryPhase = "decode") -> BlockMemory:
        """What a block adds to the peak: as measured, or put together as its time is.

        Raises:
            MissingMeasurement: it was not measured, nor what it could be put together from.
        """
        parts = self.compose(block, self._blocks.get((dims, precision), {}))
        if parts is None:
            raise self._missing(block_label(block), precision)
        found = [(n, self._chain(part, dims, precision, phase)) for part, n in parts.items()]
        return BlockMemory(weights=sum(n * memory.weights for n, memory in found), runtime=sum(n * memory.runtime for n, memory in found))

    def _chain(self, block: BlockSpec, dims: ModelDims, precision: Precision, phase: MemoryPhase) -> BlockMemory:
        """From a chain and a single copy: the difference is what one more block costs, caches taken off by their exact size.

        Blocks so small that the difference drowns in the allocator's noise count with their stored weights, which are a lower bound.
        """
        key = (block, dims, precision, phase)
        if key in self._chains:
            return self._chains[key]
        peaks: dict[Workload, dict[int, tuple[float, float]]] = {}  # of one workload each: caches differ between contexts
        for copies in range(1, 65):
            for row in self._by_subject.get(block_subject(block, dims, copies).subject_id, []):
                if row.workload.precision == precision and (peak := _peak(row, phase)) is not None:
                    peaks.setdefault(row.workload, {})[copies] = peak, row.memory[-1]["base_bytes"]
        workload = max((w for w, found in peaks.items() if len(found) > 1), key=lambda w: w.cache, default=None)
        if workload is None:
            raise self._missing(block_label(block), precision)
        found = peaks[workload]
        few, many = min(found), max(found)
        each = (found[many][0] - found[few][0]) / (many - few)
        costs = block_costs(block, dims)
        caches = 0 if phase == "load" else costs.state_bytes(batch=workload.batch, cache=workload.cache)
        each = max(each, caches + costs.weight_bytes(precision))
        self._chains[key] = BlockMemory(weights=each - caches, runtime=found[few][0] - found[few][1] - few * each)
        return self._chains[key]

    def runtime_bytes(self, dims: ModelDims, precision: Precision, phase: MemoryPhase = "decode") -> float:
        """Median over the measured blocks: a decode step's activations are small beside it and do not tell blocks apart."""
        found = []
        for block in self._blocks.get((dims, precision), {}):
            with contextlib.suppress(MissingMeasurement):  # one block that failed does not keep the others from being predicted
                found.append(self._chain(block, dims, precision, phase).runtime)
        return float(np.median(found)) if found else 0.0

    def model(self, spec: ArchSpec, workload: Workload, phase: MemoryPhase = "decode") -> MemoryParts:
        """A whole model's peak, by part, in bytes.

        In prefill the activations count, and of all blocks the one that needs most sets the peak; where blocks differ, what a chain of one
        of each needs, since buffers of other sizes leave gaps.

        Raises:
            MissingMeasurement: a part was not measured in that precision and phase.
        """
        precision, counts = workload.precision, spec.block_counts()
        blocks = {block: self.block(block, spec.dims, precision, phase) for block in counts}
        session = self.runtime_bytes(spec.dims, precision, phase)
        runtime = max((memory.runtime for memory in blocks.values()), default=session) if phase == "prefill" else session
        if phase == "prefill" and len(counts) > 1:
            runtime = max(runtime, self._mixed_runtime(spec.dims, workload))
        head = self._head(spec, precision, phase)
        if phase != "load" and "load" in self.phases(precision):
            # What is loaded stays; of the activations, of blocks and of the head, only the largest counts.
            loaded, empty = self._head(spec, precision, "load"), self.runtime_bytes(spec.dims, precision, "load")
            runtime = max(runtime, empty + head - loaded)
            weights = loaded - empty
        else:
            weights = head - session
        cache = 0 if phase == "load" else workload.cache
        caches = sum(n * block_costs(block, spec.dims).state_bytes(batch=workload.batch, cache=cache) for block, n in counts.items())
        return MemoryParts(
            process=self.process_bytes(),
            runtime=runtime,
            embedding_head=max(0.0, weights),
            weights=sum(n * blocks[block].weights for block, n in counts.items()),
            caches=caches if phase != "load" else 0.0,
        )

    def _mixed_runtime(self, dims: ModelDims, workload: Workload) -> float:
        """What a prefill of one of each block needs beside weights and caches; 0 where it was not measured."""
        found = []
        for row in self._mixed:
            at = row.workload
            if (ModelDims(**row.subject["dims"]), at.precision, at.phase) != (dims, workload.precision, "prefill"):
                continue
            blocks = [block_from_dict(table, dims) for table in row.subject["blocks"]]
            try:
                weights = sum(self.block(block, dims, at.precision, "prefill").weights for block in blocks)
            except MissingMeasurement:  # of a block that the model may not have
                continue
            caches = sum(block_costs(block, dims).state_bytes(batch=at.batch, cache=at.cache) for block in blocks)
            found += [entry["peak_bytes"] - entry["base_bytes"] - weights - caches for entry in row.memory]
        return float(np.median(found)) if found else 0.0

    def _head(self, spec: ArchSpec, precision: Precision, phase: MemoryPhase) -> float:
        """Bytes that embedding and head add to a process that has loaded nothing."""
        for row in self._by_subject.get(head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings).subject_id, []):
            if row.workload.precision == precision and (peak := _peak(row, phase)) is not None:
                return peak - float(row.memory[-1]["base_bytes"])
        raise self._missing("embedding and head", precision)

    def _missing(self, what: str, precision: Precision) -> MissingMeasurement:
        return MissingMeasurement(f"{self.device}: memory of {what} in {precision} was not measured; run `archsearch profile`")


def _peak(row: Row, phase: MemoryPhase) -> float | None:
    """The peak of a phase in a row, None where the row does not tell: loads are told by every row of this version's agents."""
    entry: dict[str, Any] = row.memory[-1]
    if phase == "load":
        return entry.get("load_peak_bytes") if row.workload.phase == "decode" else None
    return float(entry["peak_bytes"]) if row.workload.phase == phase else None
