"""Phones: in this version they are found and described. Measuring on them needs the phone agent, which is not part of it yet."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import replace
from pathlib import Path

from devices.base import DeviceInfo

NOT_YET = "measuring on phones is not part of this version; measure with --device local"
STATES = {
    "unauthorized": "accept the USB debugging question on the phone's screen",
    "offline": "reconnect the phone, or run `adb reconnect`",
    "no permissions": "the adb server may not open the USB device; see https://developer.android.com/tools/device",
}
QUESTION = "getprop; nproc; head -n 1 /proc/meminfo"
"""What a phone tells of itself to anybody, in one round trip."""


class AdbServerError(OSError):
    """The server refused a request; it says why."""


class AdbServer:
    """A client of a running adb server's socket protocol: four hex digits of length, then the request; OKAY or FAIL."""

    def __init__(self, *, timeout_s: float = 1.0) -> None:
        self.timeout_s = timeout_s

    @staticmethod
    def address() -> tuple[str, int]:
        """Where the server listens, by adb's own environment variables."""
        spec = os.environ.get("ADB_SERVER_SOCKET", "")
        if spec.startswith("tcp:"):
            host, _, port = spec[4:].rpartition(":")
            return host.strip("[]") or "127.0.0.1", int(port)
        return "127.0.0.1", int(os.environ.get("ANDROID_ADB_SERVER_PORT", "5037"))

    def devices(self) -> str:
        """The lines of `adb devices -l`. A server that does not run is not started.

        Raises:
            OSError, ValueError: no server answers, or its address does not parse.
        """
        with self._connect() as connection:
            _request(connection, "host:devices-l")
            return _exactly(connection, int(_exactly(connection, 4), 16)).decode(errors="replace")

    def shell(self, serial: str, command: str) -> str:
        """What a command on a phone prints.

        Raises:
            OSError: the phone does not answer.
        """
        with self._connect() as connection:
            _request(connection, f"host:transport:{serial}")
            _request(connection, f"shell:{command}")
            parts = iter(lambda: connection.recv(65536), b"")
            return b"".join(parts).decode(errors="replace")

    def _connect(self) -> socket.socket:
        return socket.create_connection(self.address(), timeout=self.timeout_s)


def list_phones(*, timeout_s: float = 1.0) -> list[DeviceInfo]:
    """The phones that a running adb server knows; none when no server answers within `timeout_s`."""
    server = AdbServer(timeout_s=timeout_s)
    try:
        lines = [line for line in server.devices().splitlines() if line.strip()]
    except (OSError, ValueError):
        return []
    phones = [_phone(line) for line in lines]
    return [_asked(server, phone) if phone.extra["state"] == "device" else phone for phone in phones]


def look_directly(host: str, port: int, *, timeout_s: float = 3.0) -> DeviceInfo | None:
    """A phone that listens on TCP (`adb tcpip 5555`), asked without a server; None when nothing there speaks adb.

    The user's own keys in ~/.android are offered; none are made.
    """
    from adb_shell import exceptions
    from adb_shell.adb_device import AdbDeviceTcp

    phone = _described(_phone(f"{host}:{port} device"), "")
    silent = (
        OSError,
        exceptions.AdbTimeoutError,
        exceptions.AdbConnectionError,
        exceptions.InvalidChecksumError,
        exceptions.InvalidCommandError,
        exceptions.InvalidResponseError,
        exceptions.TcpTimeoutException,
    )
    connect = f"`adb connect {host}:{port}`"
    stranger = replace(phone, problem=f"it does not know this machine: run {connect} and accept the question on its screen")
    asks_user = False

    def note(_: object) -> None:
        nonlocal asks_user
        asks_user = True

    device = AdbDeviceTcp(host, port, default_transport_timeout_s=timeout_s)
    try:
        device.connect(
            rsa_keys=_keys(), transport_timeout_s=timeout_s, auth_timeout_s=timeout_s, read_timeout_s=timeout_s, auth_callback=note
        )
        answer = device.shell(QUESTION, transport_timeout_s=timeout_s, read_timeout_s=timeout_s, timeout_s=timeout_s)
        return _described(phone, answer)
    except exceptions.DeviceAuthError:
        return stranger
    except silent as error:
        if "STLS" in str(error):
            return replace(phone, problem=f"it wants an encrypted connection: pair it with `adb pair`, then run {connect}")
        return stranger if asks_user else None
    finally:
        device.close()


def _keys() -> list[object]:
    from adb_shell.auth.sign_pythonrsa import PythonRSASigner

    private = Path.home() / ".android" / "adbkey"
    public = private.with_suffix(".pub")
    if not (private.exists() and public.exists()):
        return []
    return [PythonRSASigner(public.read_text(), private.read_text())]


def _phone(line: str) -> DeviceInfo:
    """A phone as a line of `adb devices -l` tells it."""
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
        problem=STATES.get(state, NOT_YET if state == "device" else f"it is in the state {state!r}"),
        extra={"state": state, **details},
    )


def _asked(server: AdbServer, phone: DeviceInfo) -> DeviceInfo:
    try:
        return _described(phone, server.shell(phone.device_id.removeprefix("adb:"), QUESTION))
    except OSError:
        return phone


def _described(phone: DeviceInfo, answer: str) -> DeviceInfo:
    """The phone with what it says of itself; unknown properties stay as they were."""
    properties = dict(re.findall(r"^\[([\w.]+)\]: \[(.*)\]\r?$", answer, re.M))
    cores = re.search(r"^(\d+)\r?$", answer, re.M)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", answer, re.M)

    def first(*names: str) -> str:
        return next((properties[name] for name in names if properties.get(name)), "")

    maker, model = first("ro.product.manufacturer"), first("ro.product.model")
    chip = " ".join(filter(None, [first("ro.soc.manufacturer"), first("ro.soc.model", "ro.board.platform")]))
    return replace(
        phone,
        name=" ".join(filter(None, [maker, model])) or phone.name,
        system=" ".join(filter(None, ["Android", first("ro.build.version.release"), first("ro.product.cpu.abi")])),
        cpu=chip,
        cores=int(cores[1]) if cores else 0,
        memory_bytes=int(memory[1]) * 1024 if memory else 0,
        extra=phone.extra | {name: properties[name] for name in ("ro.build.fingerprint", "ro.build.version.sdk") if name in properties},
    )


def _request(connection: socket.socket, text: str) -> None:
    data = text.encode()
    connection.sendall(b"%04x" % len(data) + data)
    status = _exactly(connection, 4)
    if status == b"FAIL":
        raise AdbServerError(_exactly(connection, int(_exactly(connection, 4), 16)).decode(errors="replace"))
    if status != b"OKAY":
        raise OSError(f"the adb server answered {status!r}")


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise OSError("the adb server closed the connection")
        data += part
    return data
