"""Android phones over adb: found, described, and measured on.

`links` finds the way to a phone, `stream` is what all of them offer, `shell` and `sync` are written on it; `session`, `files` and
`state` are a phone's habits; `device` puts them together.
"""

from __future__ import annotations

from devices.adb import describe
from devices.adb.links import connect, problem_of, state_of
from devices.adb.server import AdbServer
from devices.adb.shell import run
from devices.base import DeviceError, DeviceInfo
from devices.build import find_bundle
from devices.bundle import BundleError

LISTING_LIMIT_S = 5.0
"""For a phone to describe itself when devices are listed."""

__all__ = ["list_phones"]


def list_phones(*, timeout_s: float = 1.0) -> list[DeviceInfo]:
    """The phones that a running adb server knows; none when no server answers within `timeout_s`."""
    return [_phone(line) for line in AdbServer(timeout_s=timeout_s).devices()]


def _with_agent(device_id: str, description: describe.Description) -> DeviceInfo:
    """A phone that answers, and whether there is an agent for it."""
    try:
        return describe.device_info(device_id, description, runtime=find_bundle(description.abis).runtime, problem=None)
    except BundleError as error:
        return describe.device_info(device_id, description, runtime=None, problem=f"no agent for it yet: {error}")


def _phone(line: str) -> DeviceInfo:
    """A phone as a line of `adb devices -l` tells it, and in its own words where it answers."""
    serial, _, rest = line.partition(" ")
    details = dict(part.split(":", 1) for part in rest.split() if ":" in part)
    device_id, state = f"adb:{serial}", state_of(line)
    problem: DeviceError | None = problem_of(device_id, state)
    if problem is None:
        try:
            link = connect(device_id)
            try:
                description = describe.parse(run(link, describe.QUESTION, timeout_s=LISTING_LIMIT_S).stdout)
            finally:
                link.close()
            return _with_agent(device_id, description)
        except DeviceError as error:
            problem = error
    return DeviceInfo(
        device_id=device_id,
        name=details.get("model", serial).replace("_", " "),
        fingerprint=serial,
        system="Android",
        cpu="",
        cores=0,
        memory_bytes=0,
        runtime=None,
        available=False,
        problem=str(problem).removeprefix(f"{device_id}: "),
        extra={"state": state, **details},
    )
