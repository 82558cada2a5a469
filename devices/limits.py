"""How fast a machine can be at most: the roof that measured times are held against."""

from __future__ import annotations

from collections.abc import Sequence

from devices.base import AgentError, Device
from devices.plan import Failed, LimitResult, RunPlan


def measure_limits(device: Device, *, threads: Sequence[int] = (1,), min_time_ns: int = 1_000_000_000) -> list[LimitResult]:
    """Read bandwidth and float32 arithmetic, each thread count in a fresh process; about three seconds each.

    Raises:
        AgentError: the agent cannot be started, or dies over it.
    """
    results = []
    for count in threads:
        for event in device.run(RunPlan(cases=(), purpose="limits", threads=count, min_time_ns=min_time_ns)):
            match event:
                case LimitResult():
                    results.append(event)
                case Failed():
                    raise AgentError(f"the limits of {device.info.device_id} cannot be measured: {event.detail}")
    return results
