"""Commands on a phone by its shell protocol, version 2 (Android 7 and later): exit status, stdout and stderr apart, stdin.

A packet is one byte of kind, four of length, data; kinds as in AOSP's packages/modules/adb/shell_protocol.h.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from devices.adb.errors import LinkLostError, ShellFailedError
from devices.adb.stream import Buffered, Link

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
HEADER = struct.Struct("<BI")
COMMAND_LIMIT_S = 30.0
KEPT_ERRORS = 1 << 16
"""Bytes of stderr that are kept: the last ones tell why a program died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """How a command ended. `status` is 128 + N for one that signal N killed."""

    status: int
    stdout: str
    stderr: str


class ShellProcess:
    """A running command on the phone.

    Raises:
        Refused: Android 6 or older.
        LinkLostError, DeviceBusyError: the phone cannot be reached.
    """

    def __init__(self, link: Link, command: str) -> None:
        self._device_id = link.device_id
        self._stream = link.open(f"shell,v2,raw:{command}")
        self._packets = Buffered(self._stream)
        self._kind: tuple[int, int] | None = None
        self._lines: deque[str] = deque()
        self._rest = b""
        self.errors = b""
        self.status: int | None = None

    def write(self, data: bytes) -> None:
        """Bytes for its stdin."""
        self._stream.write(HEADER.pack(STDIN, len(data)) + data)

    def close_stdin(self) -> None:
        self._stream.write(HEADER.pack(CLOSE_STDIN, 0))

    def read(self, timeout_s: float) -> bytes | None:
        """What comes next on stdout; None when the command has ended, whose `status` is known then.

        Raises:
            TimeoutError: nothing came on stdout for so long.
            LinkLostError: the connection broke, or the phone gave up on the command.
        """
        deadline = time.monotonic() + timeout_s
        while self.status is None:
            left = max(0.0, deadline - time.monotonic())
            try:
                if self._kind is None:
                    kind, length = HEADER.unpack(self._packets.exactly(HEADER.size, left))
                    self._kind = kind, length
                kind, length = self._kind
                data = self._packets.exactly(length, left)
            except EOFError:
                raise LinkLostError(self._device_id, "the phone ended the command without its exit status") from None
            self._kind = None
            match kind:
                case 1:
                    return data
                case 2:
                    self.errors = (self.errors + data)[-KEPT_ERRORS:]
                case 3:
                    self.status = data[0] if data else 255
        return None

    def read_line(self, timeout_s: float) -> str | None:
        """The next line of stdout without its end; None after the last.

        Raises:
            TimeoutError, LinkLostError: as `read`.
        """
        while not self._lines:
            data = self.read(timeout_s)
            if data is None:
                rest, self._rest = self._rest, b""
                return rest.decode(errors="replace") if rest else None
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(line.decode(errors="replace").rstrip("\r") for line in whole)
        return self._lines.popleft()

    def close(self) -> None:
        self._stream.close()


@contextmanager
def running(link: Link, command: str) -> Iterator[ShellProcess]:
    """A command that is hung up on when the block ends."""
    process = ShellProcess(link, command)
    try:
        yield process
    finally:
        process.close()


def run(link: Link, command: str, *, timeout_s: float = COMMAND_LIMIT_S) -> Completed:
    """Run a command to its end.

    Args:
        timeout_s: its longest silence.

    Raises:
        LinkLostError: the connection broke, or the command was silent for too long; it is hung up on.
    """
    with running(link, command) as process:
        parts = []
        try:
            while (data := process.read(timeout_s)) is not None:
                parts.append(data)
        except TimeoutError:
            raise LinkLostError(link.device_id, f"no answer to a command for {timeout_s:g} s") from None
        assert process.status is not None
        return Completed(
            status=process.status, stdout=b"".join(parts).decode(errors="replace"), stderr=process.errors.decode(errors="replace")
        )


def check(link: Link, command: str, what: str, *, timeout_s: float = COMMAND_LIMIT_S) -> str:
    """The stdout of a command that must succeed; `what` it does, for the error.

    Raises:
        ShellFailedError: it did not.
        LinkLostError: as `run`.
    """
    done = run(link, command, timeout_s=timeout_s)
    if done.status != 0:
        raise ShellFailedError(link.device_id, what, done.status, done.stderr or done.stdout)
    return done.stdout
