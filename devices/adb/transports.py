"""adb-shell's transport over TCP, with what it lacks mended; `devices.adb.usb` has the one over USB.

adb-shell 0.4.4's loses the rest of a partial send, spins at the end of the connection, and leaves Nagle's algorithm on (its issue #205
and docs/LOG.md). Both transports have `wait`, so that a reader can be patient without losing a half-read packet.
"""

from __future__ import annotations

import select
import socket
from typing import Protocol

from adb_shell.exceptions import TcpTimeoutException
from adb_shell.transport.tcp_transport import TcpTransport

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 4}
"""Seconds until a peer that has vanished without a word counts as gone: 17."""


class NobodyListens(Exception):
    """Nothing answers at a phone's address."""


class Transport(Protocol):
    def wait(self, timeout_s: float) -> bool:
        """Whether something can be read within the time."""
        ...


class TcpLine(TcpTransport):  # type: ignore[misc]
    """A phone that listens on TCP."""

    _connection: socket.socket
    _host: str
    _port: int

    def connect(self, transport_timeout_s: float | None) -> None:
        """Open the connection.

        Raises:
            NobodyListens: there is nothing to connect to.
        """
        try:
            super().connect(transport_timeout_s)
        except (OSError, OverflowError) as error:  # OverflowError: no such port
            raise NobodyListens(getattr(error, "strerror", None) or str(error)) from error
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # not on every platform
                self._connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def bulk_read(self, numbytes: int, transport_timeout_s: float | None) -> bytes:
        """At least one byte.

        Raises:
            ConnectionError: the phone has hung up.
            TcpTimeoutException: nothing came.
        """
        data: bytes = super().bulk_read(numbytes, transport_timeout_s)
        if not data:
            raise ConnectionResetError("the phone hung up")
        return data

    def bulk_write(self, data: bytes, transport_timeout_s: float | None) -> int:
        """All of it, however slow the line; the time-out is for each step forward.

        Raises:
            ConnectionError: the phone has hung up.
            TcpTimeoutException: nothing could be sent for so long.
        """
        view = memoryview(data)
        while view:
            _, writable, _ = select.select([], [self._connection], [], transport_timeout_s)
            if not writable:
                raise TcpTimeoutException(f"nothing could be sent to {self._host}:{self._port} for {transport_timeout_s} s")
            view = view[self._connection.send(view) :]
        return len(data)

    def wait(self, timeout_s: float) -> bool:
        """Whether something can be read within the time."""
        return bool(select.select([self._connection], [], [], max(0.0, timeout_s))[0])
