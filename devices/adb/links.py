"""Which way to a phone: through the user's adb server where it owns the phone, else directly over TCP or USB."""

from __future__ import annotations

import re

from devices.adb.errors import NotAttachedError, OfflineError, UnauthorizedError, UsbBusyError, UsbRightsError
from devices.adb.server import AdbServer, ServerLink
from devices.adb.stream import Link
from devices.base import DeviceBusyError

LISTED = re.compile(
    r"(?P<serial>.+?)\s+(?P<state>no permissions|no device|device|offline|unauthorized|authorizing|connecting|host|bootloader|recovery"
    r"|rescue|sideload|detached|unknown)(?=[\s;(]|$)(?P<details>.*)"
)
"""A line of `adb devices -l`. A serial may have spaces: a phone found twice on the network is "adb-R58N (2)._adb-tls-connect._tcp"."""
NAMELESS = "adb:?"
"""A phone on USB whose serial cannot be read."""
ADDRESS = re.compile(r"([^:\s]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")
NOT_STARTED = "start one with `adb start-server` if the phone hangs on USB"


def connect(device_id: str, *, timeout_s: float = 10.0) -> Link:
    """A link to the phone of that name ("adb:SERIAL" or "adb:HOST:PORT").

    Raises:
        NotAttachedError: there is none.
        DeviceBusyError: there is one, and its user can mend what stands in the way.
    """
    name = device_id.removeprefix("adb:")
    states = listed()
    if name in states:
        if problem := problem_of(device_id, states[name]):
            raise problem
        return ServerLink(device_id, name)
    if match := ADDRESS.fullmatch(name):
        return _over_tcp(device_id, match[1].strip("[]"), int(match[2]), timeout_s)
    return _over_usb(device_id, name, timeout_s)


def listed() -> dict[str, str]:
    """Serial and state ("device", "offline", ...) of every phone that a running adb server knows."""
    return {serial: state for serial, state, _ in map(listing, AdbServer().devices())}


def listing(line: str) -> tuple[str, str, dict[str, str]]:
    """Serial, state and details ("model", "usb", ...) in a line of `adb devices -l`."""
    found = LISTED.fullmatch(line)
    serial, state, rest = found.groups() if found else (*line.split(None, 2), "", "")[:3]
    return serial, state, dict(part.split(":", 1) for part in rest.split() if ":" in part)


def on_usb() -> dict[str, DeviceBusyError | None]:
    """The phones on this machine's USB, and why one cannot be used; none where libusb is not installed."""
    try:
        import usb1

        from devices.adb import usb
    except (ImportError, OSError):
        return {}
    found: dict[str, DeviceBusyError | None] = {}
    try:
        for _, serial in usb.attached():
            match serial:
                case str():
                    found[f"adb:{serial}"] = None
                case usb1.USBErrorAccess():
                    found[NAMELESS] = UsbRightsError(NAMELESS)
                case other:
                    found[NAMELESS] = OfflineError(NAMELESS, f"its serial cannot be read ({other})")
    except usb1.USBError:  # no bus
        return {}
    return found


def problem_of(device_id: str, state: str) -> DeviceBusyError | None:
    """Why a phone in that state of the adb server cannot be used."""
    match state:
        case "device":
            return None
        case "unauthorized":
            return UnauthorizedError(device_id)
        case "no permissions":
            return UsbRightsError(device_id)
        case _:
            return OfflineError(device_id, f"the adb server lists it as {state!r}")


def attached() -> str:
    """What there is, for the error about what there is not."""
    known = listed()
    if known:
        return f"the adb server knows: {', '.join(known)}"
    return f"no adb server runs, or it knows no phone; {NOT_STARTED}"


def _over_tcp(device_id: str, host: str, port: int, timeout_s: float) -> Link:
    from devices.adb.direct import DirectLink
    from devices.adb.transports import NobodyListens, TcpLine

    try:
        return DirectLink(device_id, TcpLine(host, port), timeout_s=timeout_s)
    except NobodyListens as error:
        raise NotAttachedError(device_id, f"{host}:{port}: {error}") from error


def _over_usb(device_id: str, serial: str, timeout_s: float) -> Link:
    try:
        import usb1

        from devices.adb import usb
        from devices.adb.direct import DirectLink
    except (ImportError, OSError) as error:  # OSError: the Python package is there, and the system's libusb is not
        way = f"{attached()} (USB without a server needs `pip install 'archsearch[usb]'`)"
        raise NotAttachedError(device_id, way) from error
    try:
        line = usb.find(serial)
        if line is None:
            raise NotAttachedError(device_id, attached())
        return DirectLink(device_id, line, timeout_s=timeout_s)
    except usb1.USBErrorBusy as error:
        raise UsbBusyError(device_id) from error
    except usb1.USBErrorAccess as error:
        raise UsbRightsError(device_id) from error
    except usb1.USBError as error:
        raise OfflineError(device_id, str(error)) from error
