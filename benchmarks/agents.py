"""The two agents beside each other: the same models, the same plan, one process each in every round, in shuffled order.

    python benchmarks/agents.py [--rounds 12] [--threads 1] [--json samples.json]

Printed for each case: the median time of both (over rounds, of each process's median), and the Python agent's over the C agent's, round
by round: median with a 90 % interval (rounds drawn anew), and the quartiles of the rounds. The agents differ by what a call from Python
costs, a few microseconds, which only cases of some microseconds show. Outputs are compared bit by bit before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from archsearch.cases import block_subject, make_case, model_subject, write_subject
from archsearch.spec import ArchSpec
from archsearch.workload import Workload
from devices.build import build
from devices.local import LocalDevice
from devices.plan import Case, Failed, OutputsResult, RoundResult, RunPlan
from devices.recipes import host_recipe
from operators.graph import read_info
from operators.specs import BlockSpec, FfnSpec, GqaSpec, ModelDims, ShortConvSpec

Times = dict[str, dict[str, list[float]]]
"""Microseconds by case and agent, one a round."""


def make_cases(folder: Path, threads: int) -> tuple[Case, ...]:
    """From a few microseconds to some milliseconds."""
    conv = BlockSpec(operator=ShortConvSpec(), ffn=FfnSpec(intermediate_size=64))
    gqa = BlockSpec(operator=GqaSpec(heads=8, kv_heads=4, head_dim=32), ffn=FfnSpec(intermediate_size=512))
    wide = BlockSpec(operator=ShortConvSpec(), ffn=FfnSpec(intermediate_size=2048))
    small = ArchSpec(name="small", hidden_size=256, vocab_size=4096, layers=(conv, gqa) * 3)
    subjects = {
        "1 conv block, width 32": block_subject(conv, ModelDims(hidden_size=32), 1),
        "1 attention block": block_subject(gqa, ModelDims(hidden_size=256), 1),
        "8 conv blocks, width 768": block_subject(wide, ModelDims(hidden_size=768), 8),
        "model of 6 layers": model_subject(small),
    }
    workloads = {
        "decode@512": Workload(phase="decode", tokens=1, context=512, threads=threads),
        "prefill@128": Workload(phase="prefill", tokens=128, context=0, threads=threads),
    }
    cases = []
    for name, subject in subjects.items():
        path = write_subject(subject, folder, precision="int4", max_context=513)
        cases += [make_case(f"{name}, {label}", path, read_info(path), workload) for label, workload in workloads.items()]
    return tuple(cases)


def check_outputs(agents: dict[str, LocalDevice], cases: tuple[Case, ...], threads: int) -> None:
    """Refuse to time what does not compute the same."""
    found = []
    for device in agents.values():
        plan = RunPlan(cases=cases, purpose="outputs", min_runs=3, threads=threads, seed=1)
        found.append({event.case_id: event.sha256 for event in device.run(plan) if isinstance(event, OutputsResult)})
    if found[0] != found[1] or len(found[0]) != len(cases):
        raise SystemExit("the agents do not compute the same outputs; no time says anything")
    print(f"outputs and states of {len(cases)} cases agree bit by bit after 3 runs")


def measure(agents: dict[str, LocalDevice], cases: tuple[Case, ...], rounds: int, threads: int, min_time_ms: float) -> Times:
    times: Times = {case.case_id: {name: [] for name in agents} for case in cases}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(agents), len(agents)):
            plan = RunPlan(cases=cases, threads=threads, rounds=1, min_runs=9, min_time_ns=int(min_time_ms * 1e6), seed=number)
            for event in agents[name].run(plan):
                match event:
                    case RoundResult():
                        times[event.case_id][name].append(statistics.median(event.wall_ns) / 1e3)
                    case Failed():
                        raise SystemExit(f"{name}: {event.case_id}: {event.reason}: {event.detail}")
        print(f"round {number + 1} of {rounds}", flush=True)
    return times


def interval(ratios: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """90 % interval of the median, rounds drawn anew."""
    drawn = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.05, 0.95])
    return float(low), float(high)


def show(times: Times) -> None:
    table = Table("case", "Python µs", "C µs", "Python / C", "90 %", "quartiles")
    for case_id, found in times.items():
        ratios = [python / c for python, c in zip(found["python"], found["c"], strict=True)]
        low, high = interval(ratios)
        first, _, third = statistics.quantiles(ratios, n=4)
        both = (f"{statistics.median(found[name]):,.1f}" for name in ("python", "c"))
        table.add_row(case_id, *both, f"{statistics.median(ratios):.3f}", f"{low:.3f}-{high:.3f}", f"{first:.3f}-{third:.3f}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-time-ms", type=float, default=150.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the medians of all rounds")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("--rounds must be at least 3")
    agents = {"python": LocalDevice(), "c": LocalDevice((str(build(host_recipe()).entry),))}
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder), options.threads)
        check_outputs(agents, cases, options.threads)
        times = measure(agents, cases, options.rounds, options.threads, options.min_time_ms)
    show(times)
    if options.json:
        options.json.write_text(json.dumps(times, indent=1))


if __name__ == "__main__":
    main()
