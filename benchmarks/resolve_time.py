"""How long `archsearch search` takes to answer other budgets from a run that is searched already: the process from its start to its end.

    python benchmarks/resolve_time.py space.toml runs/mine            # 10 times, each with budgets of its own

The latency budgets lie evenly between the fastest and the slowest layout of the run's front; each is a fresh process, as a user starts it,
with `--json`. Works on a copy, so that the run's own choice stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def front_latencies(run: Path) -> tuple[str, float, float]:
    """The decode latency that the search was about, and its least and largest value on the front."""
    document = json.loads((run / "search.json").read_text())
    costs = [point["costs"] for point in document["front"]]
    name = max((name for name in costs[0] if name.startswith("decode_ms@")), key=lambda name: int(name.partition("@")[2]))
    return name, min(cost[name] for cost in costs), max(cost[name] for cost in costs)


def answer(space: Path, run: Path, budget: str) -> tuple[float, dict[str, Any]]:
    """Seconds of wall time, and the document."""
    command = [sys.executable, "-m", "archsearch", "search", str(space), "--run", str(run), "--budget", budget, "--resolve", "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return seconds, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    name, low, high = front_latencies(options.run)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "run"
        shutil.copytree(options.run, copy)
        before = (copy / "quality.jsonl").read_bytes()
        times = []
        for i in range(options.runs):
            budget = f"{name}<={low + (high - low) * (i + 1) / options.runs:.4f}"
            seconds, document = answer(options.space, copy, budget)
            times.append(seconds)
            trained, expected = len(document["front"]), len(document["proposed"])
            print(f"{budget:<28} {seconds:5.2f} s   {trained} trained and {expected} expected on the front")
        assert (copy / "quality.jsonl").read_bytes() == before, "something was trained"
    print(f"median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f} s in {len(times)} runs")


if __name__ == "__main__":
    main()
