"""Phones through the user's running adb server, by its socket protocol (AOSP's SERVICES.TXT). It is never started or stopped."""

from __future__ import annotations

import contextlib
import os
import socket

from devices.adb.errors import LinkLostError, OfflineError, UnauthorizedError
from devices.adb.stream import Refused

CONNECT_LIMIT_S = 5.0
ANSWER_LIMIT_S = 30.0
"""A phone that sleeps takes a while to answer through its server."""


class AdbServerError(OSError):
    """The server refused a request; it says why."""


class AdbServer:
    """A client of a running adb server: four hex digits of length, then the request; OKAY or FAIL."""

    def __init__(self, *, timeout_s: float = 1.0) -> None:
        self.timeout_s = timeout_s

    @staticmethod
    def address() -> tuple[str, int]:
        """Where the server listens, by adb's own environment variables.

        Raises:
            ValueError: they name no port.
        """
        spec = os.environ.get("ADB_SERVER_SOCKET", "")
        if spec.startswith("tcp:"):
            host, _, port = spec[4:].rpartition(":")
            return host.strip("[]") or "127.0.0.1", int(port)
        return "127.0.0.1", int(os.environ.get("ANDROID_ADB_SERVER_PORT", "5037"))

    def devices(self) -> list[str]:
        """The lines of `adb devices -l`; none when no server answers, or what answers is none."""
        try:
            with self._connect() as connection:
                _request(connection, "host:devices-l")
                text = _exactly(connection, int(_exactly(connection, 4), 16)).decode(errors="replace")
        except (OSError, ValueError):
            return []
        return [line for line in text.splitlines() if line.strip()]

    def open(self, serial: str, service: str) -> socket.socket:
        """A connection to a service of a phone.

        Raises:
            AdbServerError: the server refused.
            OSError: it does not answer.
        """
        connection = self._connect()
        try:
            connection.settimeout(max(self.timeout_s, ANSWER_LIMIT_S))
            _request(connection, f"host:transport:{serial}")
            _request(connection, service)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self.address(), timeout=self.timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


class ServerLink:
    """A phone that the user's adb server owns."""

    def __init__(self, device_id: str, serial: str) -> None:
        self.device_id, self.serial = device_id, serial
        self._server = AdbServer(timeout_s=CONNECT_LIMIT_S)

    def open(self, service: str) -> SocketStream:
        """See `Link.open`."""
        try:
            return SocketStream(self.device_id, self._server.open(self.serial, service))
        except AdbServerError as error:
            said = str(error)
            if "unauthorized" in said:
                raise UnauthorizedError(self.device_id) from error
            if "offline" in said or "authorizing" in said or "connecting" in said:
                raise OfflineError(self.device_id, f"the adb server says {said!r}") from error
            if "not found" in said or "no devices" in said:
                raise LinkLostError(self.device_id, "the adb server does not know it any more") from error
            raise Refused(f"{self.device_id}: refused {service.split(':')[0]!r}: {said or 'no reason given'}") from error
        except OSError as error:
            raise LinkLostError(self.device_id, f"the adb server: {error}") from error

    def close(self) -> None:
        """Nothing to do: each stream is a connection of its own."""


class SocketStream:
    """A service, reached through the server; see `Stream`."""

    def __init__(self, device_id: str, connection: socket.socket) -> None:
        self._device_id, self._connection = device_id, connection

    def write(self, data: bytes) -> None:
        self._connection.settimeout(ANSWER_LIMIT_S)
        view = memoryview(data)
        try:
            while view:  # not sendall, whose time-out is for the whole of it: a slow cable may take minutes
                view = view[self._connection.send(view) :]
        except OSError as error:
            raise LinkLostError(self._device_id, str(error) or "the adb server does not take any more") from error

    def read(self, timeout_s: float) -> bytes:
        self._connection.settimeout(max(timeout_s, 0.001))
        try:
            return self._connection.recv(1 << 18)
        except TimeoutError:
            raise
        except OSError as error:
            raise LinkLostError(self._device_id, str(error)) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


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
