"""Where a whole model's time goes, by runtime operator, and for products by the weights they read.

    python benchmarks/op_times.py [SPEC] [--threads 1,2 --workloads prefill@512,decode@1024 --runs 10]

The runtime's own profile of each node (`enable_profiling`); recording it costs a few microseconds a node, so shares are what to read.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import onnx
import onnxruntime
from rivals import tokens_of

from archsearch.cases import make_case, model_subject, write_subject
from archsearch.spec import ArchSpec
from archsearch.workload import Workload
from devices.agent.session import BoundCase, load
from devices.plan import Case, RunPlan
from operators.graph import read_info
from operators.specs import PRECISIONS


def labels(path: Path) -> dict[str, str]:
    """What a node is listed as."""
    found = {}
    for node in onnx.load(str(path), load_external_data=False).graph.node:
        weights = re.sub(r"layers\.\d+\.|\.weight|\.q$|operator\.", "", node.input[1]) if node.op_type in ("MatMulNBits", "MatMul") else ""
        found[node.name] = f"{node.op_type} {weights}".strip()
    return found


def profile(case: Case, plan: RunPlan, runs: int, folder: Path) -> Counter[str]:
    """Nanoseconds a run by node."""
    made = onnxruntime.SessionOptions()
    made.enable_profiling, made.profile_file_prefix = True, str(folder / "profile")
    with patch.object(onnxruntime, "SessionOptions", lambda: made):
        session = load(str(case.model), plan)
    bound = BoundCase(session, case, plan.seed)  # its first run is in the profile, too
    for _ in range(runs):
        bound.run()
    events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] * 1000)
    return Counter({name: sorted(values)[len(values) // 2] for name, values in times.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=Path("examples/lfm2-350m.toml"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--workloads", default="prefill@512,decode@0,decode@1024,decode@4096")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--precision", default="int4", choices=PRECISIONS)
    options = parser.parse_args()
    spec, parsed = ArchSpec.read(options.spec), [tokens_of(workload) for workload in options.workloads.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        folder, context = Path(directory), max(tokens for _, tokens in parsed) + 64
        path = write_subject(model_subject(spec), folder, precision=options.precision, max_context=context)
        named, info = labels(path), read_info(path)
        for phase, tokens in parsed:
            for threads in map(int, options.threads.split(",")):
                prefill = phase == "prefill"
                shape = {"tokens": tokens if prefill else 1, "context": 0 if prefill else tokens}
                workload = Workload(phase=phase, precision=options.precision, threads=threads, **shape)
                case = make_case("model", path, info, workload)
                runs = min(options.runs, 3) if prefill else options.runs
                report(
                    f"{workload.label}, {threads} thread(s)", profile(case, RunPlan(cases=(case,), threads=threads), runs, folder), named
                )


def report(title: str, nodes: Counter[str], named: dict[str, str]) -> None:
    total, kinds, counts = nodes.total(), Counter[str](), Counter[str]()
    for name, spent in nodes.items():
        label = named.get(name, re.sub(r"_?\d.*$", "", name))
        kinds[label] += spent
        counts[label] += 1
    print(f"{title}: {total / 1e6:.2f} ms in nodes")
    for label, spent in kinds.most_common(10):
        print(f"  {spent / total:6.1%} {spent / 1e6:8.2f} ms  {counts[label]:3} x {label}")


if __name__ == "__main__":
    main()
