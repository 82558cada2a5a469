"""An adb server and a phone's adbd that speak the wire protocols, so that no test needs a phone.

Protocols: AOSP's packages/modules/adb, OVERVIEW.TXT, SERVICES.TXT and protocol.txt.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Handler = Callable[[socket.socket], None]


@contextmanager
def listening(handle: Handler) -> Iterator[int]:
    """A TCP server on a free port of this machine; `handle` gets each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):  # closed at the end of the test
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError, struct.error):
                        handle(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


def take(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


def shell_answer(text: str) -> bytes:
    """What the shell protocol makes of a command that prints `text` and succeeds."""
    return struct.pack("<BI", 1, len(text.encode())) + text.encode() + struct.pack("<BIB", 3, 1, 0)


class FakeServer:
    """An adb server with phones: `listing` is what `host:devices-l` answers, `shells` what each serial prints for a command."""

    def __init__(self, listing: str, shells: dict[str, str] | None = None) -> None:
        self.listing = listing
        self.shells = shells or {}
        self.commands: list[str] = []

    def handle(self, connection: socket.socket) -> None:
        serial = ""
        while True:
            request = take(connection, int(take(connection, 4), 16)).decode()
            kind, _, rest = request.partition(":")
            if request == "host:devices-l":
                connection.sendall(b"OKAY" + self.sized(self.listing))
                return
            if request.startswith("host:transport:") and (name := request.removeprefix("host:transport:")) in self.shells:
                serial = name
                connection.sendall(b"OKAY")
            elif kind == "shell,v2,raw" and serial:
                self.commands.append(rest)
                answer = shell_answer(self.shells[serial])
                # In pieces, as a slow phone sends it.
                for piece in (b"OKAY", *(answer[i : i + 7] for i in range(0, len(answer), 7))):
                    connection.sendall(piece)
                return
            else:
                connection.sendall(b"FAIL" + self.sized("device unauthorized"))
                return

    @staticmethod
    def sized(text: str) -> bytes:
        return b"%04x" % len(text.encode()) + text.encode()


class FakePhone:
    """An adbd that answers every shell command with `answer`; `greeting` is how it meets a host: CNXN, AUTH (knows nobody) or STLS."""

    def __init__(self, answer: str, greeting: bytes = b"CNXN") -> None:
        self.answer = answer
        self.greeting = greeting
        self.commands: list[str] = []

    def handle(self, connection: socket.socket) -> None:
        while True:
            command, arg0, _, length, *_ = struct.unpack("<4sIIIII", take(connection, 24))
            data = take(connection, length)
            match command:
                case b"CNXN" if self.greeting == b"CNXN":
                    self.send(connection, b"CNXN", 0x01000000, 4096, b"device::ro.product.model=X;\0")
                case b"CNXN":
                    self.send(connection, self.greeting, 1, 0, bytes(20))
                case b"AUTH" if arg0 == 2:  # a signature by a key that it does not know
                    self.send(connection, b"AUTH", 1, 0, bytes(20))
                case b"OPEN":
                    self.commands.append(data.rstrip(b"\0").decode())
                    self.send(connection, b"OKAY", 7, arg0)
                    self.send(connection, b"WRTE", 7, arg0, shell_answer(self.answer))
                    self.send(connection, b"CLSE", 7, arg0)
                case _:
                    pass

    @staticmethod
    def send(connection: socket.socket, command: bytes, arg0: int, arg1: int, data: bytes = b"") -> None:
        number = int.from_bytes(command, "little")
        connection.sendall(struct.pack("<IIIIII", number, arg0, arg1, len(data), sum(data), number ^ 0xFFFFFFFF) + data)
