"""The timed loop; the clocks come from outside, so that tests can be exact."""

from __future__ import annotations

import time
from collections.abc import Callable

from devices.plan import RunPlan

Clock = Callable[[], int]
LOOK_EVERY_NS = 1_000_000_000


def timed_runs(
    run: Callable[[], object],
    plan: RunPlan,
    *,
    wall: Clock = time.perf_counter_ns,
    cpu: Clock | None = time.thread_time_ns,
    look: Callable[[], object] = lambda: None,
) -> tuple[list[int], list[int] | None]:
    """Untimed warm-up, then runs until both `min_runs` and `min_time_ns` are reached; once a second, between two runs, `look`.

    Returns:
        Wall and CPU nanoseconds of every timed run; CPU is None when there is no clock for it.
    """
    for _ in range(plan.warmup_runs):
        run()
    wall_ns: list[int] = []
    cpu_ns: list[int] | None = [] if cpu is not None else None
    begun = wall()
    next_look = begun + LOOK_EVERY_NS
    while True:
        now = wall()
        if len(wall_ns) >= plan.min_runs and now - begun >= plan.min_time_ns:
            return wall_ns, cpu_ns
        if now >= next_look:
            look()
            next_look = wall() + LOOK_EVERY_NS
        if cpu is not None and cpu_ns is not None:
            cpu_before, before = cpu(), wall()
            run()
            after, cpu_after = wall(), cpu()
            cpu_ns.append(cpu_after - cpu_before)
        else:
            before = wall()
            run()
            after = wall()
        wall_ns.append(after - before)
