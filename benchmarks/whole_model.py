"""A whole model in int4 and int4g128, ours against other runtimes with the same random weights, interleaved in one run.

    python benchmarks/whole_model.py --llama-bench build/bin/llama-bench [--rounds 3 --threads 1,2 --json samples.json]

Every round runs each runtime at each thread count once, in a fresh process, in shuffled order, on the same cores, with the same huge
pages from the allocator; threads that wait spin, as all these runtimes have it by default. Printed: tokens a second, median over rounds
with quartiles, and each of ours over every other, round by round. Beside each stands its share of the machine's limits, the fastest of
all rounds: stored weights over read bandwidth for decode (a rival's are taken for int4's), int8 and float32 arithmetic for prefill.
Rivals that are not there are named with what would install them. Each line of a round says what share of all cores other programs took
meanwhile: above a few per cent, it measured them, too, and above `--others` (a tenth) the run is left out of the table. With `--json`,
rounds that the file holds already are kept and new ones added, so that a machine need not be quiet for long at a time; `--rounds 0`
prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from rivals import RIVALS, Samples, int8_limit, tokens_of

from archsearch.cases import make_case, model_subject, write_subject
from archsearch.spec import ArchSpec
from archsearch.workload import Workload
from devices import measure_limits, open_device
from devices.plan import Failed, RoundResult, RunPlan
from operators.costs import block_costs, head_weights, model_weights, weight_bytes
from operators.graph import read_info
from operators.specs import Precision

OURS: dict[str, Precision] = {"archsearch int4": "int4", "archsearch int4g128": "int4g128"}
Roofs = dict[tuple[int, str, str], float]
"""Tokens a second that a limit allows at most, by threads, workload and limit."""


def measure_ours(path: Path, precision: Precision, workloads: Sequence[str], threads: int, seed: int) -> Samples:
    """One fresh agent, all workloads; decode is the same step repeated for half a second.

    Raises:
        RuntimeError: the agent could not run a workload.
    """
    info, cases, tokens = read_info(path), [], {}
    for workload in workloads:
        phase, count = tokens_of(workload)
        prefill = phase == "prefill"
        shape = {"tokens": count if prefill else 1, "context": 0 if prefill else count}
        asked = Workload(phase=phase, precision=precision, threads=threads, **shape)
        cases.append(make_case(workload, path, info, asked))
        tokens[workload] = asked.tokens
    plan = RunPlan(cases=tuple(cases), threads=threads, rounds=1, warmup_runs=1, min_runs=2, min_time_ns=500_000_000, seed=seed)
    plan = replace(plan, allow_spinning=threads > 1)
    samples: Samples = {}
    for event in open_device("local").run(plan):
        match event:
            case RoundResult():
                samples[event.case_id] = [tokens[event.case_id] * 1e9 / ns for ns in event.wall_ns]
            case Failed():
                raise RuntimeError(f"{event.case_id}: {event.reason}: {event.detail}")
    return samples


def measured_limits(threads: Sequence[int]) -> list[dict]:
    """What reading memory and multiplying reach at most, for each number of threads: bytes or operations a second."""
    found = [
        {"threads": limit.threads, "limit": limit.limit, "per_second": limit.per_second}
        for limit in measure_limits(open_device("local"), threads=threads)
    ]
    return found + [{"threads": count, "limit": "int8_matmul", "per_second": int8_limit(count)} for count in threads]


def roofs(spec: ArchSpec, precision: Precision, workloads: Sequence[str], measured: Sequence[dict]) -> Roofs:
    """Of several measurements of a limit the fastest counts.

    Decode reads the stored weights once a token (and its caches, which are not counted); prefill multiplies.
    """
    weights = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    stored = sum(weight_bytes(weight, precision) for weight in weights)
    head = 2 * head_weights(spec.dims, spec.vocab_size, spec.tie_embeddings)[0].size
    found: Roofs = {}
    for row in measured:
        for workload in workloads:
            phase, tokens = tokens_of(workload)
            if (phase == "decode") != (row["limit"] == "read_bandwidth"):
                continue
            work = stored
            if phase == "prefill":
                work = (head + sum(block_costs(block, spec.dims).flops(tokens=tokens, context=0) for block in spec.layers)) / tokens
            key = row["threads"], workload, row["limit"]
            found[key] = max(found.get(key, 0.0), row["per_second"] / work)
    return found


class Others:
    """Share of all cores' time that programs beside ours used, or that a hypervisor took, since it was made."""

    def __init__(self) -> None:
        self.begun, self.busy, self.own = time.monotonic(), self._busy(), self._own()

    def share(self) -> float:
        cores = (time.monotonic() - self.begun) * (psutil.cpu_count() or 1)
        return max(0.0, self._busy() - self.busy - (self._own() - self.own)) / cores

    @staticmethod
    def _busy() -> float:
        times = psutil.cpu_times()._asdict()
        return float(sum(value for name, value in times.items() if name not in ("idle", "iowait", "guest", "guest_nice")))

    @staticmethod
    def _own() -> float:
        """Of this process and of those it has waited for."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)


def quartiles(values: Sequence[float], digits: int) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def medians(rounds: Sequence[dict]) -> dict[tuple[str, int, str], dict[int, float]]:
    """Tokens a second by (workload, threads, runtime), and of these by round."""
    found: dict[tuple[str, int, str], dict[int, float]] = {}
    for row in rounds:
        for workload, samples in row["tokens_per_s"].items():
            found.setdefault((workload, row["threads"], row["runtime"]), {})[row["round"]] = float(np.median(samples))
    return found


def undisturbed(rounds: Sequence[dict], others: float) -> list[dict]:
    """What was measured while other programs took at most that share of all cores."""
    return [row for row in rounds if row["others_share"] <= others]


def ratios(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours over theirs in every round that has both."""
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]


def table(rounds: Sequence[dict], workloads: Sequence[str], threads: Sequence[int], roof: dict[Precision, Roofs]) -> Table:
    over = [f"{precision} / this" for precision in OURS.values()]
    shown = Table("workload", "threads", "runtime", "tokens/s", "of the limit", *over, title="median over rounds (quartiles)")
    speeds = medians(rounds)
    for workload in workloads:
        for count in threads:
            for name in (*OURS, *RIVALS):
                this = speeds.get((workload, count, name))
                if not this:
                    continue
                values = list(this.values())
                shares = [
                    f"{np.median(values) / most:.0%} {limit.partition('_')[0]}"
                    for (t, w, limit), most in roof[OURS.get(name, "int4")].items()
                    if (t, w) == (count, workload)
                ]
                both = [ratios(speeds.get((workload, count, ours), {}), this) if ours != name else [] for ours in OURS]
                cells = [quartiles(each, 2) if each else "" for each in both]
                shown.add_row(workload, str(count), name, quartiles(values, 1), ", ".join(shares), *cells)
    return shown


def read_rounds(path: Path | None, spec: ArchSpec) -> tuple[list[dict], list[dict]]:
    """Limits and rounds of an earlier run of the same spec; nothing where there is no such file.

    Raises:
        SystemExit: the file is of another spec.
    """
    if path is None or not path.exists():
        return [], []
    data = json.loads(path.read_text())
    if data["spec"] != spec.name:
        raise SystemExit(f"{path} holds rounds of {data['spec']!r}, not of {spec.name!r}; give another --json")
    return data["limits"], data["rounds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=Path("examples/lfm2-350m.toml"))
    parser.add_argument("--threads", default="1,2", help="numbers, separated by commas")
    parser.add_argument("--workloads", default="prefill@512,decode@0,decode@1024,decode@4096")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="names, separated by commas; a name's first word is enough")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the order in which runtimes are run")
    parser.add_argument("--others", type=float, default=0.1, help="largest share of other programs that the table takes")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's own benchmark program")
    parser.add_argument(
        "--models", type=Path, default=Path("runs/whole-model"), help="where models are written and found again (about 4 GB)"
    )
    parser.add_argument("--json", type=Path, help="all samples, and what held for them")
    options = parser.parse_args()
    spec, workloads = ArchSpec.read(options.spec), options.workloads.split(",")
    threads = [int(count) for count in options.threads.split(",")]
    wanted = [name for name in RIVALS for asked in options.rivals.split(",") if name.startswith(asked)]
    context = max(tokens_of(workload)[1] for workload in workloads) + 64
    options.models.mkdir(parents=True, exist_ok=True)
    subject = model_subject(spec)
    paths = {name: write_subject(subject, options.models, precision=precision, max_context=context) for name, precision in OURS.items()}
    for name in dict.fromkeys(wanted):
        if reason := RIVALS[name].missing(options.llama_bench):
            print(f"{name} is left out; {reason}")
            continue
        paths[name] = RIVALS[name].prepare(spec, options.models.resolve(), context)
    limits, rounds = read_rounds(options.json, spec)
    first = 1 + max((row["round"] for row in rounds), default=-1)
    for number in range(first, first + options.rounds):
        order = random.Random(f"{options.seed}.{number}")
        limits += measured_limits(threads)
        for row in limits[-3 * len(threads) :]:
            print(f"limit, {row['threads']} thread(s): {row['limit']} {row['per_second'] / 1e9:.1f} G/s", flush=True)
        for name, count in order.sample(turns := [(name, count) for name in paths for count in threads], len(turns)):
            others = Others()
            try:
                if name in OURS:
                    samples = measure_ours(paths[name], OURS[name], workloads, count, options.seed + number)
                else:
                    samples = RIVALS[name].measure(paths[name], count, workloads, options.llama_bench)
            except RuntimeError as error:
                print(f"round {number}, {name}, {count} thread(s): {error}", flush=True)
                continue
            busy = others.share()
            rounds.append({"round": number, "runtime": name, "threads": count, "others_share": busy, "tokens_per_s": samples})
            speeds = ", ".join(f"{workload} {np.median(values):.1f}" for workload, values in samples.items())
            print(f"round {number}, {name}, {count} thread(s): {speeds} (other programs {busy:.0%})", flush=True)
            if options.json:
                record = {"spec": spec.name, "machine": platform.processor() or platform.machine(), "limits": limits, "rounds": rounds}
                options.json.write_text(json.dumps(record, indent=1) + "\n")
    kept = undisturbed(rounds, options.others)
    print(f"{len(rounds) - len(kept)} of {len(rounds)} runs left out: other programs took more than {options.others:.0%} meanwhile")
    roof = {precision: roofs(spec, precision, workloads, limits) for precision in OURS.values()}
    Console(width=140).print(table(kept, workloads, threads, roof))


if __name__ == "__main__":
    main()
