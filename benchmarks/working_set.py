"""How much colder is a block in a larger model? Chains of several lengths, mixed models, and the law that joins them.

Measures, interleaved in fresh processes, chains of each operator as `archsearch profile` does (two lengths, of one operator more),
embedding with head, and whole models of operators drawn at random. Fits the law (`archsearch.walk`) to the chains, and prints the
models' errors beside those of the plain sum of long chains. Nothing here is told what a model takes.

    python benchmarks/working_set.py [--hidden 512] [--precision int4] [--threads 1] [--context 1024] [--layers 12] [--models 8] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from archsearch.cases import Subject, block_label, block_subject, head_subject, make_case, write_subject
from archsearch.chains import CURVE_LENGTHS, FEWEST_COPIES, LONG_WALK_BYTES, MOST_COPIES, SHORT_COPIES, walk_bytes
from archsearch.estimate import QUANTILE
from archsearch.walk import Chain, WalkLaw, fit_walk
from archsearch.workload import Workload
from devices import open_device
from devices.agent.limits import last_level_cache
from devices.plan import Failed, RoundResult, RunPlan
from operators.costs import head_weights, weight_bytes
from operators.graph import read_info
from operators.specs import PRECISIONS, BlockSpec, FfnSpec, GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SwaSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--precision", default="int4", choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    workload = Workload(phase="decode", tokens=1, context=given.context, precision=given.precision, threads=given.threads)
    dims, heads = ModelDims(hidden_size=given.hidden), given.hidden // 64
    shared = {"heads": heads, "kv_heads": max(1, heads // 2), "head_dim": 64}
    operators = (ShortConvSpec(kernel_size=3), GqaSpec(**shared), SwaSpec(**shared, window=256), GlaSpec(heads=4))
    blocks = [BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=given.hidden * 5 // 2)) for operator in operators]
    copies = {block: lengths(walk_bytes(block, dims, workload), 2 if block != blocks[0] else CURVE_LENGTHS + 2) for block in blocks}
    head = head_subject(dims, given.vocabulary, tie_embeddings=True)
    models = drawn(blocks, dims, given.vocabulary, given.layers, given.models, given.seed)
    chains = {(block, n): block_subject(block, dims, n) for block in blocks for n in copies[block]}
    with tempfile.TemporaryDirectory() as directory:
        times = measure([*models, head, *chains.values()], workload, Path(directory), given.processes, given.rounds)

    known = {
        (block, n): Chain(block=block, copies=n, size_bytes=walk_bytes(block, dims, workload), each_ms=times[subject.subject_id])
        for (block, n), subject in chains.items()
    }
    law = fit_walk(known.values())
    print(f"{workload.label}, {workload.precision}, {workload.threads} thread(s); last-level cache {last_level_cache() / 1e6:.0f} MB")
    for block in blocks:
        shown = ", ".join(f"{n}: {known[block, n].each_ms * 1e3:.1f}" for n in copies[block])
        print(f"  {block_label(block):12} {walk_bytes(block, dims, workload) / 1e6:5.2f} MB a copy; µs a copy in chains of {shown}")
    if law is None:
        print("longer chains take no longer: blocks just add up")
        return
    print(f"law: half missed at {law.capacity_bytes / 1e6:.1f} MB, steepness {law.steepness:g}, {law.ms_per_byte * 1e9:.1f} µs a MB missed")
    head_bytes = sum(weight_bytes(w, workload.precision) for w in head_weights(dims, given.vocabulary, tie_embeddings=True))
    print("  model           walks MB    measured ms   plain sum   with the law")
    errors = []
    for model in models:
        found = times[model.subject_id]
        plain = times[head.subject_id] + sum(known[block, copies[block][-1]].each_ms for block in model.blocks)
        predicted = with_law(law, known, copies, model.blocks, times[head.subject_id], head_bytes)
        walk = head_bytes + sum(walk_bytes(block, dims, workload) for block in model.blocks)
        errors.append((plain / found - 1, predicted / found - 1))
        print(f"  {model.label:14} {walk / 1e6:9.1f} {found:14.3f} {errors[-1][0]:11.1%} {errors[-1][1]:14.1%}")
    sizes = np.abs(np.array(errors))
    for name, column in (("plain sum", sizes[:, 0]), ("sum with the law", sizes[:, 1])):
        print(f"|error| of the {name}: median {np.median(column):.1%}, worst {column.max():.1%}")


def drawn(blocks: Sequence[BlockSpec], dims: ModelDims, vocabulary: int, layers: int, count: int, seed: int) -> list[Subject]:
    """Whole models whose layers are drawn with odds of their own, so that some are nearly all of one kind."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        layout = tuple(draw.choices(blocks, weights=[draw.random() ** 2 for _ in blocks], k=layers))
        label = "".join({"short_conv": "c", "gqa": "G", "swa": "s", "gla": "l"}[block.operator.kind] for block in layout)
        found.append(Subject(blocks=layout, dims=dims, vocab_size=vocabulary, label=label))
    return found


def with_law(
    law: WalkLaw,
    known: dict[tuple[BlockSpec, int], Chain],
    copies: dict[BlockSpec, tuple[int, ...]],
    layout: Sequence[BlockSpec],
    head_ms: float,
    head_bytes: int,
) -> float:
    """As `archsearch.latency` puts a model together, milliseconds."""
    walk = head_bytes + sum(known[block, SHORT_COPIES].size_bytes for block in layout)
    found = head_ms + law.ms_per_byte * head_bytes * float(law.missed(walk) - law.missed(head_bytes))
    for block in layout:
        short, long = (known[block, n] for n in (SHORT_COPIES, copies[block][-1]))
        found += long.each_ms + law.cold_ms(short, long) * float(law.missed(walk) - law.missed(long.walk_bytes))
    return found


def lengths(size_bytes: float, count: int) -> tuple[int, ...]:
    """So many lengths of a chain, from two copies to a walk that no cache holds, as a profile measures them."""
    longest = min(MOST_COPIES, max(FEWEST_COPIES, math.ceil(LONG_WALK_BYTES / size_bytes)))
    return tuple(dict.fromkeys(round(length) for length in np.geomspace(SHORT_COPIES, longest, count)))


def measure(subjects: Sequence[Subject], workload: Workload, directory: Path, processes: int, rounds: int) -> dict[str, float]:
    """Milliseconds a copy by subject: the lower quartile of each round, and of the rounds; all interleaved in each process."""
    cases = []
    for subject in subjects:
        path = write_subject(subject, directory, precision=workload.precision, max_context=workload.cache + 1)
        cases.append(make_case(subject.subject_id, path, read_info(path), workload))
    found: dict[str, list[float]] = {}
    for seed in range(processes):
        plan = RunPlan(cases=tuple(cases), threads=workload.threads, rounds=rounds, min_time_ns=50_000_000, seed=seed)
        for event in open_device("local").run(plan):
            match event:
                case RoundResult():
                    found.setdefault(event.case_id, []).append(float(np.quantile(event.wall_ns, QUANTILE)))
                case Failed():
                    raise SystemExit(f"could not be measured: {event.reason}: {event.detail}")
    copies = {subject.subject_id: subject.copies for subject in subjects}
    return {key: float(np.quantile(values, QUANTILE)) / copies[key] / 1e6 for key, values in found.items()}


if __name__ == "__main__":
    main()
