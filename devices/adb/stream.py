"""A connection to one of adbd's services: bytes to it and from it. Shell and file transfer are written on this alone."""

from __future__ import annotations

from typing import Protocol

from devices.base import DeviceError


class Refused(DeviceError):
    """The phone does not offer the service."""


class Stream(Protocol):
    """One service, from its opening to its end."""

    def write(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            LinkLostError: the connection broke.
        """
        ...

    def read(self, timeout_s: float) -> bytes:
        """What has come, at least one byte; empty when the service has ended.

        Raises:
            TimeoutError: nothing came.
            LinkLostError: the connection broke.
        """
        ...

    def close(self) -> None:
        """End the service; adbd hangs up on what it had started for it. Never raises."""
        ...


class Link(Protocol):
    """A phone that can be talked to, directly or through a server."""

    device_id: str

    def open(self, service: str) -> Stream:
        """A service of adbd, such as "sync:" or "shell,v2,raw:ls".

        Raises:
            Refused: adbd does not offer it.
            DeviceBusyError, LinkLostError: the phone cannot be reached.
        """
        ...

    def close(self) -> None: ...


class Buffered:
    """Reads exact counts from a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._data = bytearray()

    def exactly(self, count: int, timeout_s: float) -> bytes:
        """The next `count` bytes.

        Raises:
            EOFError: the service ended before.
            TimeoutError, LinkLostError: as `Stream.read`; what had come is kept.
        """
        while len(self._data) < count:
            part = self.stream.read(timeout_s)
            if not part:
                raise EOFError
            self._data += part
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken
