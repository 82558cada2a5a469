"""Phones without a server: adb-shell's handshake and packets, several services over one connection, for one thread."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from adb_shell import constants, exceptions
from adb_shell.adb_device import AdbDevice
from adb_shell.adb_message import AdbMessage
from adb_shell.hidden_helpers import _AdbTransactionInfo

from devices.adb.errors import LinkLostError, NoKeyError, OfflineError, UnauthorizedError, WirelessTlsError
from devices.adb.stream import Refused

PACKET_LIMIT_S = 20.0
"""For each step forward within a packet, and for the phone's acknowledgement of one."""
AUTH_LIMIT_S = 10.0
BROKEN = (
    OSError,
    exceptions.TcpTimeoutException,
    exceptions.AdbTimeoutError,
    exceptions.UsbReadFailedError,
    exceptions.UsbWriteFailedError,
    exceptions.InvalidCommandError,
    exceptions.InvalidChecksumError,
    exceptions.InvalidResponseError,
)
"""All that adb-shell raises when a connection is of no use any more."""


class DirectLink:
    """A phone that this program alone talks to, over one transport.

    Args:
        transport: from `devices.adb.transports`.

    Raises:
        UnauthorizedError, WirelessTlsError, OfflineError: it does not let us in.
    """

    def __init__(self, device_id: str, transport: Any, *, timeout_s: float = AUTH_LIMIT_S) -> None:
        self.device_id = device_id
        self.transport = transport
        self._device = AdbDevice(transport, default_transport_timeout_s=PACKET_LIMIT_S)
        self._io = self._device._io_manager
        self._info = _AdbTransactionInfo(None, None, PACKET_LIMIT_S, PACKET_LIMIT_S)
        self._incoming: dict[int, deque[tuple[bytes, int, bytes]]] = {}
        self._last_id = 0
        self._lost: str | None = None
        self._connect(timeout_s)

    def _connect(self, timeout_s: float) -> None:
        keys = signers()
        asked: list[object] = []
        try:
            self._device.connect(
                rsa_keys=keys, transport_timeout_s=timeout_s, auth_timeout_s=timeout_s, read_timeout_s=timeout_s, auth_callback=asked.append
            )
        except exceptions.DeviceAuthError as error:
            self.close()
            raise NoKeyError(self.device_id) from error
        except BROKEN as error:
            self.close()
            if "STLS" in str(error):
                raise WirelessTlsError(self.device_id) from error
            if asked:  # it knows none of our keys, and has asked its user
                raise UnauthorizedError(self.device_id) from error
            raise OfflineError(self.device_id, f"nothing there speaks adb ({reason(error)})") from error

    def open(self, service: str) -> DirectStream:
        """See `Link.open`."""
        self._last_id += 1
        local = self._last_id
        self._incoming[local] = deque()
        self._send(constants.OPEN, local, 0, service.encode() + b"\0")
        try:
            command, remote, _ = self._next(local, PACKET_LIMIT_S)
        except TimeoutError as error:
            raise self.lost(f"no answer for {PACKET_LIMIT_S:g} s") from error
        if command != constants.OKAY:
            del self._incoming[local]
            raise Refused(f"{self.device_id}: refused {service.split(':')[0]!r}")
        return DirectStream(self, local, remote)

    def close(self) -> None:
        """Hang up: adbd ends all services of this connection."""
        with contextlib.suppress(*BROKEN):
            self._device.close()

    def lost(self, why: str) -> LinkLostError:
        """The error for a connection that is of no use any more; who asks again is told at once."""
        self._lost = self._lost or why
        return LinkLostError(self.device_id, self._lost)

    def _send(self, command: bytes, local: int, remote: int, data: bytes = b"") -> None:
        if self._lost:
            raise self.lost("")
        try:
            self._io._send(AdbMessage(command, local, remote, data), self._info)
        except (*BROKEN, AttributeError) as error:  # AttributeError: closed before
            raise self.lost(reason(error)) from error

    def _next(self, local: int, timeout_s: float) -> tuple[bytes, int, bytes]:
        """The next packet for a stream: command, the phone's id of it, data. Others' packets are kept for them.

        Raises:
            TimeoutError: none came.
            LinkLostError: the connection broke.
        """
        deadline = time.monotonic() + timeout_s
        queue = self._incoming[local]
        while not queue:
            if self._lost:
                raise self.lost("")
            try:
                if not self.transport.wait(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                command, remote, receiver, data = self._io._read_packet_from_device(self._info)
            except TimeoutError:
                raise
            except (*BROKEN, AttributeError, ValueError, TypeError) as error:  # the last three: closed before
                raise self.lost(reason(error)) from error
            if command == constants.WRTE:
                self._send(constants.OKAY, receiver, remote)
            if receiver in self._incoming:
                self._incoming[receiver].append((command, remote, data))
        return queue.popleft()


class DirectStream:
    """A service over the shared connection; see `Stream`."""

    def __init__(self, link: DirectLink, local: int, remote: int) -> None:
        self._link, self._local, self._remote = link, local, remote
        self._arrived: deque[bytes] = deque()
        self._ended = False

    def write(self, data: bytes) -> None:
        size = self._link._device._maxdata or constants.MAX_PUSH_DATA
        for first in range(0, len(data), size):
            if self._ended:
                raise LinkLostError(self._link.device_id, "the phone ended the service")
            self._link._send(constants.WRTE, self._local, self._remote, data[first : first + size])
            self._acknowledged()

    def _acknowledged(self) -> None:
        while not self._ended:
            try:
                command, _, data = self._link._next(self._local, PACKET_LIMIT_S)
            except TimeoutError as error:
                raise self._link.lost(f"no acknowledgement for {PACKET_LIMIT_S:g} s") from error
            if command == constants.OKAY:
                return
            self._take(command, data)

    def read(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while not self._arrived and not self._ended:
            command, _, data = self._link._next(self._local, max(0.0, deadline - time.monotonic()))
            self._take(command, data)
        return self._arrived.popleft() if self._arrived else b""

    def _take(self, command: bytes, data: bytes) -> None:
        if command == constants.WRTE and data:
            self._arrived.append(data)
        elif command == constants.CLSE:
            self._ended = True
            with contextlib.suppress(LinkLostError):
                self._link._send(constants.CLSE, self._local, self._remote)

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            with contextlib.suppress(LinkLostError):
                self._link._send(constants.CLSE, self._local, self._remote)
        self._link._incoming.pop(self._local, None)


def reason(error: BaseException) -> str:
    """The last words of an error, in one line, without adb-shell's inner numbers."""
    if isinstance(error, AttributeError | ValueError | TypeError):
        return "it is closed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split("(transport_timeout_s")[0].split())[:120] or type(error).__name__


def signers() -> list[Any]:
    """The user's own keys, as adb keeps them; none are made."""
    from adb_shell.auth.sign_pythonrsa import PythonRSASigner

    paths = [Path.home() / ".android" / "adbkey"]
    for name in filter(None, os.environ.get("ADB_VENDOR_KEYS", "").split(os.pathsep)):
        paths += sorted(Path(name).glob("*.adb_key")) if Path(name).is_dir() else [Path(name)]
    found = []
    for private in paths:
        public = private.with_name(f"{private.name}.pub")
        if private.is_file() and public.is_file():
            found.append(PythonRSASigner(public.read_text(), private.read_text()))
    return found
