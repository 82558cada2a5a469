"""Carries connections to an adbd, and does to them what happens to cables: slow, frozen, cut; and asks for the user's key first."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from typing import Any

CHUNK = 1 << 14
HEADER = struct.Struct("<6I")
CNXN, AUTH, STLS = (int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"STLS"))
TOKEN, SIGNATURE, PUBLIC_KEY = 1, 2, 3


class Relay:
    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self.listener, self.target = listener, target
        self.plugged = True
        self.frozen = False
        self.bytes_per_s: float | None = None
        self.cut_after: int | None = None
        """Bytes from the client after which the cable is pulled, once."""
        self.public_key: str | None = None
        """PEM of the one key that is let in; None: everybody is."""
        self.wants_tls = False
        self.reach = 0
        """Changed, the connections there are carry nothing any more and are closed on neither side: out of the wireless network's reach."""
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def set(self, **settings: Any) -> None:
        """Change any of the attributes above; `plugged=False` cuts what is connected."""
        for name, value in settings.items():
            if not hasattr(self, name) or name.startswith("_"):
                raise ValueError(f"a relay has no {name}")
            setattr(self, name, value)
        if not self.plugged:
            self._cut()

    def serve(self) -> None:
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            if not self.plugged:
                client.close()
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            said = self._admit(client)
            server = socket.create_connection(self.target)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.sendall(said)
            self._pairs.append((client, server))
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()
            self._pump(client, server, True)

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        reach = self.reach
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                while self.frozen:
                    time.sleep(0.02)
                if self.bytes_per_s is not None:
                    time.sleep(len(data) / self.bytes_per_s)
                if reach != self.reach:
                    return
                if counted and self.cut_after is not None:
                    self.cut_after -= len(data)
                    if self.cut_after <= 0:
                        self.cut_after, self.plugged = None, False
                        self._cut()
                        return
                target.sendall(data)
        if reach != self.reach:
            return
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> None:
        while self._pairs:
            for end in self._pairs.pop():
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    # -- what a phone asks before it lets anybody in ---------------------------------------------------------------------

    def _admit(self, client: socket.socket) -> bytes:
        """Returns what the client has said that adbd must hear, too."""
        if self.public_key is None and not self.wants_tls:
            return b""
        hello, _, _ = _packet(client)
        if self.wants_tls:
            client.sendall(_message(STLS, 0x01000000, 0, b""))
            client.recv(1)
            raise EOFError
        while True:
            token = os.urandom(20)
            client.sendall(_message(AUTH, TOKEN, 0, token))
            _, kind, payload = _packet(client)
            if kind == SIGNATURE and self._signed(token, payload):
                return hello
            if kind == PUBLIC_KEY:  # a phone asks its user now; nobody answers
                while client.recv(CHUNK):
                    pass
                raise EOFError

    def _signed(self, token: bytes, signature: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

        assert self.public_key is not None
        key = serialization.load_pem_public_key(self.public_key.encode())
        assert isinstance(key, rsa.RSAPublicKey)
        try:
            key.verify(signature, token, padding.PKCS1v15(), utils.Prehashed(hashes.SHA1()))
        except InvalidSignature:
            return False
        return True


def _packet(connection: socket.socket) -> tuple[bytes, int, bytes]:
    """One packet of the adb protocol: its bytes, its first argument, its payload."""
    header = _exactly(connection, HEADER.size)
    _, first, _, length, _, _ = HEADER.unpack(header)
    payload = _exactly(connection, length)
    return header + payload, first, payload


def _message(command: int, first: int, second: int, payload: bytes) -> bytes:
    return HEADER.pack(command, first, second, len(payload), sum(payload) & 0xFFFFFFFF, command ^ 0xFFFFFFFF) + payload


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
