"""Android phones over adb: found, described, and measured on.

`links` finds the way to a phone, `stream` is what all of them offer, `shell` and `sync` are written on it; `session`, `files` and
`state` are a phone's habits; `device` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from devices.adb import describe
from devices.adb.links import connect, listing, on_usb, problem_of
from devices.adb.server import AdbServer
from devices.adb.shell import run
from devices.base import DeviceError, DeviceInfo
from devices.build import find_bundle
from devices.bundle import BundleError

LISTING_LIMIT_S = 5.0
"""For a phone to describe itself when devices are listed."""

__all__ = ["list_phones"]


def list_phones(also: Sequence[str] = (), *, timeout_s: float = 1.0) -> list[DeviceInfo]:
    """The phones that a running adb server knows; where none answers within `timeout_s`, those on USB. They are asked at once.

    Args:
        also: more, by their names: on the network, and known to no server.
    """
    known = {}
    for line in AdbServer(timeout_s=timeout_s).devices():
        serial, state, details = listing(line)
        device_id = f"adb:{serial}"
        known[device_id] = problem_of(device_id, state), {"state": state, **details}
    if not known:
        known = {device_id: (problem, {}) for device_id, problem in on_usb().items()}
    known |= {device_id: (None, {}) for device_id in also if device_id not in known}
    with ThreadPoolExecutor(max(1, len(known))) as pool:
        return list(pool.map(lambda item: _phone(item[0], *item[1]), known.items()))


def _phone(device_id: str, problem: DeviceError | None, details: Mapping[str, str]) -> DeviceInfo:
    """A phone in its own words where it answers, else in those of the adb server."""
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
    serial = device_id.removeprefix("adb:")
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
        extra=dict(details),
    )


def _with_agent(device_id: str, description: describe.Description) -> DeviceInfo:
    """A phone that answers, and whether there is an agent for it."""
    try:
        return describe.device_info(device_id, description, runtime=find_bundle(description.abis).runtime, problem=None)
    except BundleError as error:
        return describe.device_info(device_id, description, runtime=None, problem=f"no agent for it yet: {error}")
