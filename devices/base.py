"""What a device is, how one is named, and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from devices.plan import Event, RunPlan


class DeviceError(Exception):
    """Anything a device refuses or fails to do. Failures of single cases are `plan.Failed` events, not exceptions.

    DeviceError
    ├── UnknownDeviceError     no such device; the message lists those there are
    ├── DeviceBusyError        the device is there but cannot be used now (unauthorised, offline, claimed)
    └── AgentError             the agent cannot be started at all, or breaks the protocol
    """


class UnknownDeviceError(DeviceError):
    """A device name that does not parse, or names nothing that is attached."""


class DeviceBusyError(DeviceError):
    """The device exists, and something stands in the way that the user can mend."""


class AgentError(DeviceError):
    """The agent could not be started, or spoke nonsense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceInfo:
    """What a device says of itself. `device_id` is how the user names it: "local", "adb:SERIAL", "cuda:0".

    `fingerprint` tells two machines apart that share a name ("local" on two laptops): measurements carry it.
    """

    device_id: str
    name: str
    fingerprint: str
    system: str
    cpu: str
    cores: int
    memory_bytes: int
    runtime: str | None
    available: bool = True
    problem: str | None = None
    """Why it is not available and what to do next."""
    extra: dict[str, Any] = field(default_factory=dict)


class Device(Protocol):
    """One place where models can be run."""

    @property
    def info(self) -> DeviceInfo: ...

    def run(self, plan: RunPlan) -> Iterator[Event]:
        """Run a plan, yielding each event as it arrives. Closing the iterator stops the agent and waits for its end.

        Raises:
            AgentError: the agent cannot be started.
        """
        ...
