"""What a profile costs: 12 operators, 4 FFN widths, 4 workloads, intervals of at most 2 %. Prints chains, seconds by stage, and widths.

    python benchmarks/profile_price.py --into DIR [--hidden 512] [--layers 8]

Nothing in DIR is measured again, so DIR should be new. `--count` only counts.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np

from archsearch.estimate import row_summary
from archsearch.profile import profile
from archsearch.space import Space
from archsearch.store import Store
from devices import open_device

SPACE = """
[model]
name = "price"
hidden_size = {hidden}
vocab_size = 8192
layers = {layers}
[[operators]]
kind = "short_conv"
kernel_size = [3, 4, 5, 7]
[[operators]]
kind = "gqa"
heads = {heads}
kv_heads = [1, 2, 4]
head_dim = 64
[[operators]]
kind = "swa"
heads = {heads}
kv_heads = 2
head_dim = 64
window = [128, 256, 512]
[[operators]]
kind = "gla"
heads = [4, {heads}]
[ffn]
intermediate_size = [{widths}]
[workloads]
prefill = [512]
decode = [512, 1024, 4096]
[measure]
precision = "int4"
threads = 1
interval = 0.02
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    file = options.into / "space.toml"
    widths = ", ".join(str(options.hidden * factor // 2) for factor in (4, 5, 6, 7))
    file.write_text(SPACE.format(hidden=options.hidden, heads=options.hidden // 64, layers=options.layers, widths=widths))
    space = Space.read(file)
    chains, pairs, workloads = len(space.measured_blocks), len(space.operators) * len(space.ffns), len(space.workloads())
    named = f"{len(space.operators)} operators, {len(space.ffns)} widths"
    print(f"{named}: {chains} chains of {pairs} pairs, at {workloads} workloads", flush=True)
    if options.count:
        return
    spent, last = Counter[str](), time.monotonic()
    for event in profile(space, options.into, open_device("local")):
        now = time.monotonic()
        spent[event.stage] += now - last
        last = now
        if event.failed:
            print(f"failed: {event.label}: {event.failed}", flush=True)
    print(f"{spent.total():.0f} s: " + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in spent.most_common() if seconds >= 1))
    report(options.into)


def report(folder: Path) -> None:
    with Store(folder / "measurements.db", create=False) as store:
        rows = [row for row in store.rows() if row.purpose == "latency" and row.rounds]
    halves = np.array([row_summary(row).relative for row in rows])
    passes = Counter(len(set(row.processes.values())) for row in rows)
    busy = Counter[str]()
    for row in rows:
        busy[row.workload.label] += sum(float(samples.sum()) for samples in row.rounds.values()) / 1e9
    print(f"{np.mean(halves <= 0.02):.0%} of {len(rows)} intervals within 2 %, median {np.median(halves):.1%}, widest {halves.max():.1%}")
    print("processes a chain: " + ", ".join(f"{count} x {number}" for number, count in sorted(passes.items())))
    print("seconds within timed runs: " + ", ".join(f"{label} {seconds:.0f}" for label, seconds in busy.most_common()))


if __name__ == "__main__":
    main()
