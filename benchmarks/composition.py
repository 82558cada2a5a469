"""Do blocks add up? A whole model, chains of its blocks, and lone blocks, interleaved in one process.

Prints, for each protocol, the sum of its parts over the whole model's time, round by round (so that a machine that drifts
touches both alike), and beside the model's decode time the least that reading its weights could take on this machine.

    python benchmarks/composition.py [SPEC] [--precision int4] [--threads 1] [--context 1024] [--rounds 8]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from archsearch.cases import Subject, block_label, block_subject, head_subject, make_case, model_subject, write_subject
from archsearch.spec import ArchSpec
from archsearch.workload import Workload
from devices import measure_limits, open_device
from devices.plan import Failed, RoundResult, RunPlan
from operators.costs import model_weights, weight_bytes
from operators.graph import read_info
from operators.specs import PRECISIONS


def protocols(spec: ArchSpec) -> dict[str, int]:
    """Copies in a chain: a lone block stays in the cache, one as deep as the model is as cold as the model is."""
    return {"lone block": 1, "as deep as the model": len(spec.layers), "twice as deep": 2 * len(spec.layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=Path("examples/lfm2-350m.toml"))
    parser.add_argument("--precision", default="int4", choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    spec = ArchSpec.read(arguments.spec)
    workload = Workload(phase="decode", tokens=1, context=arguments.context, precision=arguments.precision, threads=arguments.threads)
    device = open_device("local")
    with tempfile.TemporaryDirectory() as directory:
        rounds = measure(spec, workload, Path(directory), arguments.rounds)
    whole = rounds[model_subject(spec).subject_id]
    counts = spec.block_counts()
    head = rounds[head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings).subject_id]
    print(f"{spec.name}, {workload.label}, {workload.precision}, {workload.threads} thread(s): {report(whole, 1e6)} ms a token")
    for name, copies in protocols(spec).items():
        parts = head + sum(n * rounds[block_subject(block, spec.dims, copies).subject_id] / copies for block, n in counts.items())
        ratio = parts / whole
        low, high = np.percentile(ratio, [25, 75])
        print(f"  {name:<20} sum of parts / whole model: {np.median(ratio):.3f}  (quartiles {low:.3f}-{high:.3f})")
    names = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    stored = sum(weight_bytes(weight, workload.precision) for weight in names)
    bandwidth = max(limit.per_second for limit in measure_limits(device, threads=(workload.threads,)) if limit.limit == "read_bandwidth")
    least = stored / bandwidth * 1e3
    share = least / (np.median(whole) / 1e6)
    print(f"  limit: {stored / 1e6:.0f} MB of weights at {bandwidth / 1e9:.1f} GB/s take {least:.2f} ms, {share:.0%} of the model's time")


def measure(spec: ArchSpec, workload: Workload, directory: Path, rounds: int) -> dict[str, np.ndarray]:
    """Median of every round in nanoseconds, by subject."""
    subjects: list[Subject] = [model_subject(spec), head_subject(spec.dims, spec.vocab_size, spec.tie_embeddings)]
    for block in spec.block_counts():
        subjects += [block_subject(block, spec.dims, copies) for copies in protocols(spec).values()]
    cases = []
    for subject in subjects:
        path = write_subject(subject, directory, precision=workload.precision, max_context=workload.cache + 1)
        cases.append(make_case(subject.subject_id, path, read_info(path), workload))
    found: dict[str, list[float]] = {}
    for event in open_device("local").run(RunPlan(cases=tuple(cases), threads=workload.threads, rounds=rounds, min_time_ns=200_000_000)):
        match event:
            case RoundResult():
                found.setdefault(event.case_id, []).append(float(np.median(event.wall_ns)))
            case Failed():
                label = next(block_label(s.blocks[0]) if s.blocks else s.label for s in subjects if s.subject_id == event.case_id)
                raise SystemExit(f"{label} could not be measured: {event.reason}: {event.detail}")
    return {name: np.array(values) for name, values in found.items()}


def report(samples: np.ndarray, unit: float) -> str:
    return f"{np.median(samples) / unit:.3g} (quartiles {np.percentile(samples, 25) / unit:.3g}-{np.percentile(samples, 75) / unit:.3g})"


if __name__ == "__main__":
    main()
