"""How long a search takes with many workers and devices, and what it asks of the database: a plan to reckon with, not a measurement.

    python benchmarks/scaling_plan.py                              # 10,000 trainings, 1,000 devices
    python benchmarks/scaling_plan.py --queue sqlite:////tmp/q.db  # what one training costs the queue, measured here
    python benchmarks/scaling_plan.py --quality runs/demo/quality.jsonl   # with your own trainings' durations

Trainings are simulated one by one: durations drawn from given ones, workers that die at random moments, are noticed after three
missing signs of life and replaced, proposals in rounds of one layout (two trainings) a worker or without rounds.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from archsearch.quality import QualityResult, QualitySettings, Training
from archsearch.search.queue import HEARTBEAT_S, MISSED, TrainingQueue
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec, FfnSpec, ShortConvSpec

TYPICAL_S = (26, 27, 58, 24, 60, 28, 70, 30, 15, 21, 60, 35)
"""CPU seconds of the demo's trainings (docs/search.md)."""
MERGE_S = 2.3 / 12
"""Seconds to merge one device's file: twelve of 100,000 rows in all took 2.3 s."""
SLOWER = 1.5
"""Machines differ: each worker is slower than the fastest by up to this factor."""


def simulate(durations: np.ndarray, speeds: np.ndarray, *, deaths_per_hour: float, rounds: bool) -> tuple[float, int]:
    """Hours until all trainings are done by workers that are slower by `speeds`, and how many were done again for a death."""
    workers, generator = len(speeds), np.random.default_rng(1)
    todo = list(durations)
    now, again = 0.0, 0
    while todo:
        batch = [todo.pop() for _ in range(min(len(todo), 2 * workers if rounds else len(todo)))]
        free = [(now, worker) for worker in range(workers)]
        heapq.heapify(free)
        ends = []
        late: list[tuple[float, float]] = []  # (when it is noticed, its duration)
        while batch or late:
            at, worker = heapq.heappop(free)
            if late and (not batch or late[0][0] <= at):
                noticed, seconds = heapq.heappop(late)
                at = max(at, noticed)
            else:
                seconds = batch.pop()
            takes = seconds * speeds[worker]
            dies = generator.exponential(3600 / deaths_per_hour) if deaths_per_hour else np.inf
            if dies < takes:
                again += 1
                heapq.heappush(late, (at + dies + MISSED * HEARTBEAT_S, seconds))
                heapq.heappush(free, (at + dies + MISSED * HEARTBEAT_S, worker))  # somebody starts it again
            else:
                ends.append(at + takes)
                heapq.heappush(free, (at + takes, worker))
        now = max(ends)
    return now / 3600, again


def queue_cost(url: str, count: int = 200) -> float:
    """CPU milliseconds of this process to put, take and finish one training."""
    layers = [BlockSpec(operator=ShortConvSpec(kernel_size=3), ffn=FfnSpec(intermediate_size=96))]
    spec = ArchSpec(name="x", hidden_size=64, vocab_size=256, layers=tuple(layers))
    curve = tuple((step, 0.5) for step in range(25, 425, 25))
    queue = TrainingQueue(url)
    began = time.process_time()
    queue.put(Training(spec=spec, task="text", settings=QualitySettings(), seed=seed) for seed in range(count))
    while (taken := queue.take()) is not None:
        seed = taken.training.seed
        queue.done(taken, QualityResult(task="text", value=2.5, status="resolved", steps=400, tokens=1, seconds=1, seed=seed, curve=curve))
    queue.close()
    return 1000 * (time.process_time() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--deaths-per-hour", type=float, default=0.2, help="of one worker")
    parser.add_argument("--quality", type=Path, help="a quality.jsonl whose durations are drawn from")
    parser.add_argument("--queue", metavar="URL", nargs="?", const="", help="measure the queue's cost there; empty: a new SQLite file")
    arguments = parser.parse_args()
    known = TYPICAL_S
    if arguments.quality:
        known = tuple(json.loads(line)["seconds"] for line in arguments.quality.read_text().splitlines())
    generator = np.random.default_rng(0)
    durations = generator.choice(known, arguments.trainings) * generator.uniform(0.8, 1.2, arguments.trainings)
    total = durations.sum() / 3600
    print(f"{arguments.trainings:,} trainings of {statistics.mean(known):.0f} s on average: {total:.0f} core hours")
    print(f"{'workers':>8} {'in rounds, h':>13} {'busy':>6} {'without, h':>11} {'busy':>6} {'done again':>11}")
    for workers in (1, 4, 16, 64, 256, 1000):
        line = f"{workers:>8}"
        speeds = generator.uniform(1, SLOWER, workers)
        ideal = total / (1 / speeds).sum()
        for rounds in (True, False):
            hours, again = simulate(durations, speeds, deaths_per_hour=arguments.deaths_per_hour, rounds=rounds)
            line += f" {hours:>{13 if rounds else 11}.2f} {ideal / hours:>6.0%}"
        print(f"{line} {again:>11}")
    for workers in (256, 1000):
        beats = 2 * workers / HEARTBEAT_S
        ends = workers / (statistics.mean(known) * (1 + SLOWER) / 2)
        print(f"{workers:,} workers ask the database for {beats:.0f} signs of life and {ends:.0f} starts and ends of trainings a second")
    print(f"{arguments.devices:,} devices merge in {arguments.devices * MERGE_S / 60:.0f} minutes, however long they measure side by side")
    if arguments.queue is not None:
        with tempfile.TemporaryDirectory() as folder:
            cost = queue_cost(arguments.queue or f"sqlite:///{folder}/queue.db")
        print(f"one training costs the queue's clients {cost:.0f} ms of CPU: {cost * arguments.trainings / 1000:.0f} s for all of them")


if __name__ == "__main__":
    main()
