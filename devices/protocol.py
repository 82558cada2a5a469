"""Plans and events as JSON lines: the language that every agent speaks.

The host writes one line, the plan, and leaves its end open: when it is closed, the agent ends. The agent answers with one line
an event, `{"event": NAME, ...fields}`, and besides with `{"event": "doing", "case_id": ...}` before everything that may crash or
hang, so that the host knows whose fault it was. Exit status 0 means that the whole plan was worked through.
"""

from __future__ import annotations

import json
import operator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devices.plan import (
    Case,
    Conditions,
    Event,
    Failed,
    Feed,
    LimitResult,
    Loaded,
    Look,
    MachineState,
    MemoryResult,
    OutputsResult,
    RoundResult,
    RunPlan,
    Started,
    StatePair,
)

EVENTS: dict[str, type[Any]] = {
    "started": Started,
    "loaded": Loaded,
    "round": RoundResult,
    "look": Look,
    "memory": MemoryResult,
    "outputs": OutputsResult,
    "limit": LimitResult,
    "failed": Failed,
}
NAMES = {cls: name for name, cls in EVENTS.items()}


def encode_plan(plan: RunPlan) -> str:
    return json.dumps(asdict(plan), default=_plain)


def _plain(value: Any) -> Any:
    """Paths become absolute, since an agent may work elsewhere; numpy's integers become integers."""
    if isinstance(value, Path):
        return str(value.absolute())
    if hasattr(value, "__index__"):
        return operator.index(value)
    raise TypeError(f"{value!r} has no place in a plan")


def decode_plan(line: str) -> RunPlan:
    data = json.loads(line)
    cases = tuple(
        Case(
            case_id=case["case_id"],
            model=Path(case["model"]),
            feeds=tuple(Feed(**(feed | {"shape": tuple(feed["shape"])})) for feed in case["feeds"]),
            states=tuple(StatePair(**state) for state in case["states"]),
        )
        for case in data["cases"]
    )
    cores = tuple(data["cores"]) if data["cores"] is not None else None
    done = tuple((case_id, int(number)) for case_id, number in data["done"])
    return RunPlan(**(data | {"cases": cases, "cores": cores, "done": done}))


def encode_event(event: Event) -> str:
    return json.dumps({"event": NAMES[type(event)], **asdict(event)})


def decode_event(data: dict[str, Any]) -> Event:
    """An event from its JSON object.

    Raises:
        KeyError, TypeError: it is none.
    """
    fields = dict(data)
    cls = EVENTS[fields.pop("event")]
    for key in ("state", "before", "after"):
        if key in fields:
            fields[key] = decode_state(fields[key])
    if "conditions" in fields:
        fields["conditions"] = decode_conditions(fields["conditions"])
    for key in ("wall_ns", "cpu_ns"):
        if fields.get(key) is not None:
            fields[key] = tuple(fields[key])
    event: Event = cls(**fields)
    return event


def decode_state(data: dict[str, Any]) -> MachineState:
    clocks = {key: tuple(data[key]) for key in ("clock_mhz", "clock_limit_mhz") if data.get(key) is not None}
    return MachineState(**(data | clocks))


def decode_conditions(data: dict[str, Any]) -> Conditions:
    cores = data.get("cores")
    return Conditions(**(data | {"cores": tuple(cores) if cores is not None else None}))
