"""Latency of a whole model from measured chains: `T = sum of warm + (sum of cold) * missed(W)` for decoding, a sum for prefill.

What a block takes in a model depends on how much that model walks (`archsearch.walk`). Chains of two lengths tell a block's warm and cold
times; where only one was measured, or longer chains take no longer, a block takes what it took in its longest chain. Among other blocks
it takes more, which chains of drawn layers tell (`archsearch.mixing`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from archsearch.cases import Subject, block_label, head_subject
from archsearch.chains import walk_bytes
from archsearch.errors import MissingMeasurement
from archsearch.estimate import Estimate, row_summary
from archsearch.interpolation import interpolated, position
from archsearch.mixing import FEWEST, MixedChain, Mixing, between, fit_mixing
from archsearch.spec import ArchSpec, block_from_dict
from archsearch.store import Row
from archsearch.walk import Chain, WalkLaw, fit_walk
from archsearch.workload import Phase, Workload
from operators.costs import block_costs, head_weights, weight_bytes
from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims, OperatorSpec, Precision

Setting = tuple[Phase, Precision, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a part adds to a model: `warm` milliseconds, `cold_ms` times the share of the walk that is missed, `walk_bytes` to the walk."""

    warm: Estimate
    cold_ms: float = 0.0
    walk_bytes: float = 0.0

    def scaled(self, factor: float) -> Terms:
        """The same walk at another price."""
        return Terms(warm=self.warm.scaled(factor), cold_ms=self.cold_ms * factor, walk_bytes=self.walk_bytes)


def total(parts: Iterable[tuple[int, Terms]], law: WalkLaw | None) -> Estimate:
    """The sum of n times each part; intervals of different parts add in quadrature, copies of one share their error."""
    found = list(parts)
    value = sum(n * part.warm.value for n, part in found)
    if law is not None:
        value += sum(n * part.cold_ms for n, part in found) * float(law.missed(sum(n * part.walk_bytes for n, part in found)))
    sides = [(n, part.warm.value - part.warm.low, part.warm.high - part.warm.value) for n, part in found]
    below = math.hypot(*(n * down if n > 0 else n * up for n, down, up in sides))
    above = math.hypot(*(n * up if n > 0 else n * down for n, down, up in sides))
    return Estimate(value, max(0.0, value - below), value + above, any(part.warm.extrapolated for _, part in found))


def composed(block: BlockSpec, known: Iterable[BlockSpec]) -> dict[BlockSpec, int] | None:
    """See `LatencyTable.parts`."""
    measured = dict.fromkeys(known)
    if block in measured:
        return {block: 1}
    for own, other in itertools.product([b for b in measured if b.operator == block.operator], [b for b in measured if b.ffn == block.ffn]):
        corner = BlockSpec(operator=other.operator, ffn=own.ffn)
        if corner in measured:
            return {own: 1, other: 1, corner: -1}
    return None


def block_of(row: Row) -> tuple[BlockSpec, ModelDims]:
    """The block, and the model dimensions, that a row measured."""
    dims = ModelDims(**row.subject["dims"])
    return block_from_dict(row.subject["block"], dims), dims


class LatencyTable:
    """Chains, and embedding with head, that one device was measured at.

    Args:
        rows: finished latency measurements.
        failed: those that failed, for messages.
        device: how the user names it, for messages.
        at_rest: the table that tells what mixing costs, where these rows are a view of its own.
    """

    def __init__(self, rows: Iterable[Row], *, failed: Sequence[Row], device: str, at_rest: LatencyTable | None = None) -> None:
        self.device, self.failed, self.at_rest = device, failed, at_rest
        self.rows = list(rows)
        self._by_subject: dict[tuple[str, Workload], Row] = {}
        self._heads: dict[str, list[Row]] = {}
        self._chains: dict[tuple[BlockSpec, ModelDims, Setting], dict[int, dict[Workload, Row]]] = {}
        self._mixed: dict[Workload, list[Row]] = {}
        for row in self.rows:
            self._by_subject.setdefault((row.subject_id, row.workload), row)
            if row.subject["kind"] == "block":
                own = self._chains.setdefault((*block_of(row), setting(row.workload)), {})
                own.setdefault(row.copies, {}).setdefault(row.workload, row)
            elif row.mixed:
                self._mixed.setdefault(row.workload, []).append(row)
            else:
                self._heads.setdefault(row.subject_id, []).append(row)
        self._laws: dict[Setting, WalkLaw | None] = {}
        self._mixings: dict[Workload, Mixing] = {}
        self._estimates: dict[str, Estimate] = {}
        self._terms: dict[tuple[BlockSpec, ModelDims, Workload], Terms] = {}

    # -- whole models ----------------------------------------------------------------------------------------------------

    def model(self, spec: ArchSpec, workload: Workload) -> Estimate:
        """A whole model, milliseconds a step.

        Raises:
            MissingMeasurement: a block was not measured in that setting, nor what it could be put together from.
        """
        counts = self.part_counts(spec, workload)
        blocks = [(n, self.part_terms(part, spec.dims, workload)) for part, n in counts.items()]
        return total([(1, self.head_terms(spec, workload)), *blocks], self.law(workload))

    def terms(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Terms:
        """What one more such block adds, put together from the measured ones where it was not."""
        found = [(n, self.part_terms(part, dims, workload)) for part, n in self.parts(block, dims, workload).items()]
        return Terms(
            warm=total(found, None),
            cold_ms=sum(n * part.cold_ms for n, part in found),
            walk_bytes=sum(n * part.walk_bytes for n, part in found),
        )

    def block(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Estimate:
        """One block as its longest chain gives it, milliseconds: among copies of itself alone."""
        found = [(n, self.chain(part, dims, workload)) for part, n in self.parts(block, dims, workload).items()]
        return total([(n, Terms(warm=estimate)) for n, estimate in found], None)

    def parts(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> dict[BlockSpec, int]:
        """The measured blocks that make up a block: itself; or, since operator and FFN add up, three others.

        `(o, f) = (o, f') + (o', f) - (o', f')`: the same operator with another FFN, the same FFN with another operator, and both others.

        Raises:
            MissingMeasurement: neither was measured.
        """
        wanted = setting(workload)
        found = composed(block, [known for known, of, measured in self._chains if (of, measured) == (dims, wanted)])
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

    # -- the walk --------------------------------------------------------------------------------------------------------

    def law(self, workload: Workload) -> WalkLaw | None:
        """How much of a model's walk is paid for at a workload; None where blocks just add up, as in prefill."""
        law = self._chains_law(setting(workload))
        if law is None:
            return None
        mixing = self.mixing(workload)
        return replace(law, growth_per_byte=mixing.growth_per_byte, grown_bytes=mixing.grown_bytes)

    def _chains_law(self, key: Setting) -> WalkLaw | None:
        """Of chains of one block, in a precision, thread count and batch.

        Fitted to every chain at the least context that was measured: there the walks are shortest and tell most.
        """
        if key not in self._laws:
            self._laws[key] = fit_walk(self._observed(key)) if key[0] == "decode" else None
        return self._laws[key]

    def _observed(self, key: Setting) -> list[Chain]:
        own = {name: lengths for name, lengths in self._chains.items() if name[2] == key}
        least = min((w for lengths in own.values() for rows in lengths.values() for w in rows), key=lambda w: w.context, default=None)
        return [
            self._as_chain(block, dims, rows[least])
            for (block, dims, _), lengths in own.items()
            for rows in lengths.values()
            if least in rows
        ]

    def _as_chain(self, block: BlockSpec, dims: ModelDims, row: Row) -> Chain:
        size = walk_bytes(block, dims, row.workload)
        return Chain(block=(block, dims), copies=row.copies, size_bytes=size, each_ms=self.summary(row).value)

    def part_terms(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Terms:
        """Of a measured block, in a model of different layers."""
        key = block, dims, workload
        if key not in self._terms:
            self._terms[key] = self._among_its_like(block, dims, workload).scaled(self.mixing(workload).scale(block.operator))
        return self._terms[key]

    def _among_its_like(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Terms:
        law = self._chains_law(setting(workload))
        warm = self._at_workload(block, dims, workload, lambda row: self._warm(block, dims, row, law))
        cold = self._at_workload(block, dims, workload, lambda row: self._cold(block, dims, row, law)).value if law else 0.0
        return Terms(warm=warm, cold_ms=cold, walk_bytes=walk_bytes(block, dims, workload) if law else 0.0)

    def _cold(self, block: BlockSpec, dims: ModelDims, row: Row, law: WalkLaw | None) -> Estimate:
        """What a copy of a measured chain takes more where all of it is missed; 0 where no shorter chain was measured beside it."""
        lengths = self._chains[block, dims, setting(row.workload)]
        shorter = [rows[row.workload] for copies, rows in lengths.items() if copies < row.copies and row.workload in rows]
        cold = 0.0
        if law is not None and shorter:
            short = min(shorter, key=lambda other: other.copies)
            cold = law.cold_ms(self._as_chain(block, dims, short), self._as_chain(block, dims, row))
        return Estimate(cold, cold, cold)

    def _warm(self, block: BlockSpec, dims: ModelDims, row: Row, law: WalkLaw | None) -> Estimate:
        """A copy of a measured chain, less what its own walk costs."""
        estimate = self.summary(row)
        if law is None:
            return estimate
        missed = float(law.missed(row.copies * walk_bytes(block, dims, row.workload)))
        less = min(estimate.value, self._cold(block, dims, row, law).value * missed)
        return Estimate(estimate.value - less, estimate.low - less, estimate.high - less, estimate.extrapolated)

    # -- mixing ----------------------------------------------------------------------------------------------------------

    def mixing(self, workload: Workload) -> Mixing:
        """What chains of drawn layers teach about models at a workload; between two measured ones, what lies between."""
        if workload not in self._mixings:
            self._mixings[workload] = self._mixing(workload)
        return self._mixings[workload]

    def _mixing(self, workload: Workload) -> Mixing:
        if self.at_rest is not None:
            return self.at_rest.mixing(workload)
        if len(own := self._mixed_chains(workload)) >= FEWEST:
            return fit_mixing(own)
        known = sorted((w for w in self._mixed if setting(w) == setting(workload) and len(self._mixed_chains(w)) >= FEWEST), key=position)
        below = [w for w in known if position(w) <= position(workload)]
        above = [w for w in known if position(w) > position(workload)]
        if below and above:
            low, at, high = (math.log1p(position(w)) for w in (below[-1], workload, above[0]))
            return between(self.mixing(below[-1]), self.mixing(above[0]), (at - low) / (high - low))
        return self.mixing((below or above[:1])[-1]) if known else Mixing()

    def _mixed_chains(self, workload: Workload) -> list[MixedChain]:
        return [chain for row in self._mixed.get(workload, ()) if (chain := self._mixed_chain(row)) is not None]

    def _mixed_chain(self, row: Row) -> MixedChain | None:
        """A measured chain of drawn layers beside the sum of its parts; None where a part is missing."""
        dims, workload = ModelDims(**row.subject["dims"]), row.workload
        counts: Counter[BlockSpec] = Counter()
        try:
            for data in row.subject["blocks"]:
                counts.update(self.parts(block_from_dict(data, dims), dims, workload))
            parts = [(n, part.operator, self._among_its_like(part, dims, workload)) for part, n in counts.items()]
        except MissingMeasurement:
            return None
        law = self._chains_law(setting(workload))
        walk = sum(n * own.walk_bytes for n, _, own in parts)
        missed = float(law.missed(walk)) if law is not None else 0.0
        whole = total([(n, own) for n, _, own in parts], law).value
        if whole <= 0:  # composed of parts that are taken off each other
            return None
        shares: dict[OperatorSpec, float] = {}
        for n, operator, own in parts:
            shares[operator] = shares.get(operator, 0.0) + n * (own.warm.value + own.cold_ms * missed) / whole
        return MixedChain(
            ratio=self.summary(row).value * row.copies / whole,
            shares=shares,
            cold=sum(n * own.cold_ms for n, _, own in parts) * missed / whole,
            walk_bytes=walk,
        )

    # -- single measurements ---------------------------------------------------------------------------------------------

    def summary(self, row: Row) -> Estimate:
        """Milliseconds for one copy."""
        if row.key not in self._estimates:
            self._estimates[row.key] = row_summary(row)
        return self._estimates[row.key]

    def measured(self, subject: Subject, workload: Workload) -> Estimate | None:
        """What a chain, or embedding and head, took for one copy exactly as measured; None where it was not."""
        row = self._by_subject.get((subject.subject_id, workload))
        return self.summary(row) if row is not None else None

    def chain_copies(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> int:
        """How long the chain is that predictions of the block rest on."""
        return self._longest(block, dims, workload)[0].copies

    def lengths(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> tuple[int, ...]:
        """Copies in the chains of a block that were measured at exactly that workload, the shortest first."""
        lengths = self._chains.get((block, dims, setting(workload)), {})
        return tuple(sorted(copies for copies, rows in lengths.items() if workload in rows))

    def warm_share(self, subject: ArchSpec | Subject, workload: Workload) -> float:
        """Share of a predicted time that is warm: of a whole model, of a measured chain, or of embedding and head. 1 without a law."""
        law = self._chains_law(setting(workload)) if isinstance(subject, Subject) and subject.vocab_size is None else self.law(workload)
        if law is None:
            return 1.0
        if isinstance(subject, ArchSpec):
            counts = self.part_counts(subject, workload)
            parts = [(1, self.head_terms(subject, workload)), *((n, self.part_terms(b, subject.dims, workload)) for b, n in counts.items())]
        elif subject.vocab_size is None:
            parts = [(len(subject.blocks), self._among_its_like(subject.blocks[0], subject.dims, workload))]
        else:
            parts = [(1, self.head_terms(subject, workload))]
        return total(parts, None).value / total(parts, law).value

    def chain(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> Estimate:
        """One block from its longest chain, milliseconds."""
        return self._at_workload(block, dims, workload, self.summary)

    def head_terms(self, spec: ArchSpec | Subject, workload: Workload) -> Terms:
        """Embedding, final norm and head; measured alone, so that what the caches held then is theirs alone."""
        estimate, law = self.head(spec, workload), self._chains_law(setting(workload))
        if law is None:
            return Terms(warm=estimate)
        weights = head_weights(spec.dims, spec.vocab_size or 0, tie_embeddings=spec.tie_embeddings)
        if not spec.tie_embeddings:
            weights = weights[1:]  # of an embedding of its own a step reads one row
        size = float(sum(weight_bytes(weight, workload.precision) for weight in weights))
        cold = law.ms_per_byte * size
        less = min(estimate.low, cold * float(law.missed(size)))
        warm = Estimate(estimate.value - less, estimate.low - less, estimate.high - less, estimate.extrapolated)
        return Terms(warm=warm, cold_ms=cold, walk_bytes=size)

    def head(self, spec: ArchSpec | Subject, workload: Workload) -> Estimate:
        """Embedding, final norm and head alone, milliseconds."""
        subject = head_subject(spec.dims, spec.vocab_size or 0, spec.tie_embeddings)
        rows = [row for row in self._heads.get(subject.subject_id, []) if setting(row.workload) == setting(workload)]
        if not rows:
            raise self._missing(subject.label, workload)
        return interpolated(rows, workload, self.summary, grows=False, flops=lambda w: 1.0)

    def _longest(self, block: BlockSpec, dims: ModelDims, workload: Workload) -> list[Row]:
        """Measurements of the block's longest chain in the workload's setting."""
        lengths = self._chains.get((block, dims, setting(workload)))
        if not lengths:
            raise self._missing(block_label(block), workload)
        return list(lengths[max(lengths)].values())

    def _at_workload(self, block: BlockSpec, dims: ModelDims, workload: Workload, value: Callable[[Row], Estimate]) -> Estimate:
        rows = self._longest(block, dims, workload)
        grows = any("cache" in state.shape for state in operator_for(block.operator).states(block.operator, dims))
        flops = block_costs(block, dims).flops
        estimate = interpolated(rows, workload, value, grows=grows, flops=lambda w: flops(tokens=w.tokens, context=w.context))
        longest = max(row.workload.context for row in rows)
        if workload.phase == "decode" and workload.context > longest and longest + 1 < getattr(block.operator, "window", 0):
            return replace(estimate, extrapolated=True)  # the window was never full
        return estimate

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
        where = f"{workload.phase}, {workload.precision}, {threads}, batch {workload.batch}"
        return MissingMeasurement(f"{self.device}: {label} was not measured for {where}{why}; {way_out}")


def setting(workload: Workload) -> Setting:
    """What has to be alike for one measurement to tell of another."""
    return workload.phase, workload.precision, workload.threads, workload.batch
