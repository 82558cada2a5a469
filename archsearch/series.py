"""Running a plan on a device so that nothing that came of it is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archsearch.store import Store
from devices.base import Device
from devices.health import flags
from devices.plan import Event, Failed, Loaded, Look, MachineState, MemoryResult, RoundResult, RunPlan, Started
from devices.protocol import decode_state


def heat(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What speaks against a series that began too hot, "hot" or "throttled"; empty when nothing does.

    Args:
        entry: a series as `Store.conditions` gives it.
    """
    found = {"hot"} if entry["conditions"].get("extra", {}).get("hot") else set()
    return tuple(sorted(found | {"hot", "throttled"} & set(flags([decode_state(entry["state"])]))))


def stored(store: Store, device: Device, plan: RunPlan, *, fingerprint: str, first: int = 0) -> Iterator[Event]:
    """Run a plan whose cases go by measurement keys; each event is in the store before it is handed on.

    Args:
        first: number of the plan's round 0 among all rounds of its measurements.

    Raises:
        StoreError: the database cannot be written.
        AgentError: the agent cannot be started.
    """
    series, during = "", list[MachineState]()
    for event in device.run(plan):
        match event:
            case Started():
                series = store.start_series(fingerprint, event)
            case Loaded():
                store.add_loaded(event.case_id, event)
            case Look():
                during.append(event.state)
            case RoundResult():
                store.add_round(event.case_id, series, first + event.round, event, during)
                during.clear()
            case MemoryResult():
                store.add_memory(event.case_id, series, event)
            case Failed():
                during.clear()
                store.add_failure(event.case_id, event)
        yield event
