"""Files to a phone by adbd's sync service; AOSP's packages/modules/adb/SYNC.TXT."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from devices.adb.stream import Buffered, Link

CHUNK = 1 << 16
"""The protocol's largest."""
WORD = struct.Struct("<4sI")
ANSWER_LIMIT_S = 120.0
"""Flash that is slow to write back, after the last byte."""


class PushFailed(Exception):
    """The phone refused a file; it says why."""


def push(link: Link, source: Path, target: str, *, mode: int = 0o644, sent: Callable[[int], object] = lambda _: None) -> None:
    """Write a file on the phone.

    Args:
        sent: called with the number of bytes after each part.

    Raises:
        PushFailed: the phone could not write it: no space, no such folder.
        LinkLostError: the connection broke; part of the file may be there.
    """
    stream = link.open("sync:")
    try:
        path = f"{target},{mode | 0o100000}".encode()
        stream.write(WORD.pack(b"SEND", len(path)) + path)
        with source.open("rb") as file:
            batch = bytearray()
            while part := file.read(CHUNK):
                batch += WORD.pack(b"DATA", len(part)) + part
                if len(batch) >= 8 * CHUNK:  # fewer round trips
                    stream.write(bytes(batch))
                    batch.clear()
                sent(len(part))
            stream.write(bytes(batch) + WORD.pack(b"DONE", int(source.stat().st_mtime)))
        answers = Buffered(stream)
        try:
            kind, length = WORD.unpack(answers.exactly(WORD.size, ANSWER_LIMIT_S))
            if kind != b"OKAY":
                raise PushFailed(answers.exactly(length, ANSWER_LIMIT_S).decode(errors="replace"))
            stream.write(WORD.pack(b"QUIT", 0))
        except EOFError:
            raise PushFailed("the phone ended the transfer") from None
        except TimeoutError:
            raise PushFailed(f"no answer for {ANSWER_LIMIT_S:g} s after the last byte") from None
    finally:
        stream.close()
