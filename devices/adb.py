"""Phones: in this version they are found and named. Measuring on them needs the phone agent, which is not part of it yet."""

from __future__ import annotations

import os
import socket

from devices.base import DeviceInfo

NOT_YET = "measuring on phones is not part of this version; profile with --device local"
STATES = {
    "unauthorized": "accept the USB debugging question on the phone's screen",
    "offline": "reconnect the phone, or run `adb reconnect`",
    "no permissions": "the adb server may not open the USB device; see developer.android.com/tools/device",
}


def server_address() -> tuple[str, int]:
    """Where the adb server listens, by adb's own environment variables."""
    spec = os.environ.get("ADB_SERVER_SOCKET", "")
    if spec.startswith("tcp:"):
        host, _, port = spec[4:].rpartition(":")
        return host or "127.0.0.1", int(port)
    return "127.0.0.1", int(os.environ.get("ANDROID_ADB_SERVER_PORT", "5037"))


def list_phones(*, timeout_s: float = 1.0) -> list[DeviceInfo]:
    """What a running adb server lists; none when no server answers. A server is never started."""
    try:
        with socket.create_connection(server_address(), timeout=timeout_s) as connection:
            request = b"host:devices-l"
            connection.sendall(b"%04x" % len(request) + request)
            if _exactly(connection, 4) != b"OKAY":
                return []
            listing = _exactly(connection, int(_exactly(connection, 4), 16)).decode()
    except (OSError, ValueError):
        return []
    return [_phone(line) for line in listing.splitlines() if line.strip()]


def _phone(line: str) -> DeviceInfo:
    serial, _, rest = line.partition(" ")
    rest = rest.strip()
    state = "no permissions" if rest.startswith("no permissions") else rest.split(" ", 1)[0]
    details = dict(part.split(":", 1) for part in rest.split() if ":" in part)
    return DeviceInfo(
        device_id=f"adb:{serial}",
        name=details.get("model", serial).replace("_", " "),
        fingerprint=serial,
        system="Android",
        cpu="",
        cores=0,
        memory_bytes=0,
        runtime=None,
        available=False,
        problem=STATES.get(state, NOT_YET if state == "device" else f"the phone is in the state {state!r}"),
        extra={"state": state, **details},
    )


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise OSError("the adb server closed the connection")
        data += part
    return data
