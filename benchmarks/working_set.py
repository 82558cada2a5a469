"""How much colder is a block in a larger model? Chains of several lengths, mixed models, and a law that joins them.

A decode step walks through all weights and caches of a model, so what the processor's caches still hold from the step before depends on
the bytes W of the whole walk, not on the block's. The law: a byte costs `p(W)` more than in a walk that fits, the same for all blocks,

    T(model) = sum of warm blocks + W * p(W)
    p(W)     = (time a copy in a chain that walks W - least time a copy) / bytes of a copy

with p read off one kind of block (`--curve`) in chains of growing length, and every other block and the head measured once. Prints the
errors of mixed models beside those of the plain sum of chains as deep as the model.

    python benchmarks/working_set.py [--hidden 512] [--precision int4] [--threads 1] [--context 1024] [--layers 12] [--rounds 5]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from archsearch.cases import Subject, block_label, block_subject, head_subject, make_case, write_subject
from archsearch.estimate import QUANTILE
from archsearch.workload import Workload
from devices import open_device
from devices.agent.limits import last_level_cache
from devices.plan import Failed, RoundResult, RunPlan
from operators.costs import block_costs, head_weights, weight_bytes
from operators.graph import read_info
from operators.specs import BlockSpec, FfnSpec, GqaSpec, ModelDims, ShortConvSpec

VOCABULARY = 8192
LENGTHS = (1, 2, 3, 4, 6, 9, 12, 18, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--precision", default="int4", choices=("fp32", "int8", "int4"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--curve", default="gqa", choices=("conv", "gqa"))
    arguments = parser.parse_args()
    workload = Workload(phase="decode", tokens=1, context=arguments.context, precision=arguments.precision, threads=arguments.threads)
    dims = ModelDims(hidden_size=arguments.hidden)
    ffn = FfnSpec(intermediate_size=arguments.hidden * 5 // 2)
    heads = arguments.hidden // 64
    conv = BlockSpec(operator=ShortConvSpec(kernel_size=3), ffn=ffn)
    gqa = BlockSpec(operator=GqaSpec(heads=heads, kv_heads=max(1, heads // 2), head_dim=64), ffn=ffn)
    depth = arguments.layers
    mixes = {n: mixed(conv, gqa, n, depth, dims) for n in sorted({0, depth // 6, depth // 3, depth // 2, 3 * depth // 4, depth})}
    head = head_subject(dims, VOCABULARY, tie_embeddings=True)
    curve = gqa if arguments.curve == "gqa" else conv
    lengths = sorted({*LENGTHS, depth})
    chains = [block_subject(curve, dims, n) for n in lengths] + [block_subject(b, dims, depth) for b in (conv, gqa) if b != curve]
    with tempfile.TemporaryDirectory() as directory:
        times = measure([*mixes.values(), head, *chains], workload, Path(directory), arguments.rounds)

    size = {block: touched(block, dims, workload) for block in (conv, gqa)}
    head_size = sum(weight_bytes(w, workload.precision) for w in head_weights(dims, VOCABULARY, tie_embeddings=True))
    walked = np.array([n * size[curve] for n in lengths])
    each = np.array([times[block_subject(curve, dims, n).subject_id] for n in lengths])
    # A lone copy bears the whole price of a call; what falls before the cheapest chain is that, not the caches.
    rising = np.where(np.arange(len(each)) < each.argmin(), 0.0, each - each.min())
    penalty = np.maximum.accumulate(rising / size[curve])

    def p(walk: float) -> float:
        return float(np.interp(walk, walked, penalty))

    print(f"{workload.label}, {workload.precision}, {workload.threads} thread(s); last-level cache {last_level_cache() / 1e6:.0f} MB")
    print(f"  {block_label(curve)}, {size[curve] / 1e6:.2f} MB a copy:")
    for n, walk, time, extra in zip(lengths, walked, each, penalty, strict=True):
        print(f"    {n:3} copies walk {walk / 1e6:6.1f} MB: {time:8.1f} µs each, {extra * 1e6:5.1f} µs more a MB")
    deep = {block: times[block_subject(block, dims, depth).subject_id] for block in (conv, gqa)}
    warm = {block: deep[block] - size[block] * p(depth * size[block]) for block in (conv, gqa)}
    head_warm = times[head.subject_id] - head_size * p(head_size)
    print("  attention layers   walks MB   measured µs   sum of chains   with the law")
    for n, model in mixes.items():
        walk = n * size[gqa] + (depth - n) * size[conv] + head_size
        found = times[model.subject_id]
        plain = times[head.subject_id] + n * deep[gqa] + (depth - n) * deep[conv]
        law = head_warm + n * warm[gqa] + (depth - n) * warm[conv] + walk * p(walk)
        print(f"  {n:16} {walk / 1e6:10.1f} {found:13.1f} {plain / found - 1:15.1%} {law / found - 1:14.1%}")


def mixed(conv: BlockSpec, gqa: BlockSpec, attention: int, depth: int, dims: ModelDims) -> Subject:
    """A whole model with that many attention layers."""
    return Subject(
        blocks=(gqa,) * attention + (conv,) * (depth - attention), dims=dims, vocab_size=VOCABULARY, label=f"{attention} attention"
    )


def touched(block: BlockSpec, dims: ModelDims, workload: Workload) -> int:
    """Bytes of weights and caches that a decode step reads."""
    costs = block_costs(block, dims)
    return costs.weight_bytes(workload.precision) + costs.state_bytes(batch=workload.batch, cache=workload.cache)


def measure(subjects: list[Subject], workload: Workload, directory: Path, rounds: int) -> dict[str, float]:
    """Microseconds a copy by subject: the lower quartile of each round, and of the rounds; all interleaved in one process."""
    cases = []
    for subject in subjects:
        path = write_subject(subject, directory, precision=workload.precision, max_context=workload.cache + 1)
        cases.append(make_case(subject.subject_id, path, read_info(path), workload))
    found: dict[str, list[float]] = {}
    for event in open_device("local").run(RunPlan(cases=tuple(cases), threads=workload.threads, rounds=rounds, min_time_ns=60_000_000)):
        match event:
            case RoundResult():
                found.setdefault(event.case_id, []).append(float(np.quantile(event.wall_ns, QUANTILE)))
            case Failed():
                raise SystemExit(f"could not be measured: {event.reason}: {event.detail}")
    copies = {subject.subject_id: subject.copies for subject in subjects}
    return {key: float(np.quantile(values, QUANTILE)) / copies[key] / 1e3 for key, values in found.items()}


if __name__ == "__main__":
    main()
