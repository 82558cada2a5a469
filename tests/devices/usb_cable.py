"""A USB cable to a phone for tests: libusb's objects as adb-shell uses them, over a connection to the real adbd.

What a phone's side of USB does is modelled after AOSP's packages/modules/adb (daemon/usb.cpp, and docs/dev on zero-length packets): a
transfer ends with a packet that is not full, and each is a header or a payload; the phone itself never ends one with an empty packet.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import usb1

PACKET_BYTES = 512
OUT, IN = 0x01, 0x81
HEADER = struct.Struct("<6I")


class Cable:
    """A phone on USB, `usb1.USBDevice` and its open handle in one.

    Attributes:
        refuses: what opening it raises; claims: what claiming it raises.
        takes: bytes after which a transfer out is cut short by its time-out, once.
    """

    def __init__(self, serial: str, address: tuple[str, int] | None = None) -> None:
        self.serial, self.address = serial, address
        self.refuses: usb1.USBError | None = None
        self.claims: usb1.USBError | None = None
        self.takes: int | None = None
        self.plugged = True
        self.empty_packets = 0
        self._socket: socket.socket | None = None
        self._out = self._in = b""
        self._expected = HEADER.size
        self._payload = 0

    # -- the device ----------------------------------------------------------------------------------------------------------

    def getSerialNumber(self) -> str:
        if self.refuses is not None:
            raise self.refuses
        return self.serial

    def getBusNumber(self) -> int:
        return 1

    def getPortNumberList(self) -> list[int]:
        return [4]

    def iterSettings(self) -> Iterator[Any]:
        yield self

    def getClass(self) -> int:
        return int(usb1.CLASS_VENDOR_SPEC)

    def getSubClass(self) -> int:
        return 0x42

    def getProtocol(self) -> int:
        return 1

    def getNumber(self) -> int:
        return 0

    def iterEndpoints(self) -> Iterator[Any]:
        for address in (OUT, IN):
            yield SimpleNamespace(getAddress=lambda address=address: address, getMaxPacketSize=lambda: PACKET_BYTES)

    def open(self) -> Cable:
        if self.refuses is not None:
            raise self.refuses
        if not self.plugged:
            raise usb1.USBErrorNoDevice
        return self

    # -- its handle ----------------------------------------------------------------------------------------------------------

    def kernelDriverActive(self, interface: int) -> bool:
        return False

    def claimInterface(self, interface: int) -> None:
        if self.claims is not None:
            raise self.claims
        assert self.address is not None
        self.close()
        self._socket = socket.create_connection(self.address)

    def releaseInterface(self, interface: int) -> None:
        pass

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._out, self._in, self._expected, self._payload = None, b"", b"", HEADER.size, 0

    def unplug(self) -> None:
        self.plugged = False
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)

    def bulkWrite(self, endpoint: int, data: bytes, timeout: int = 0) -> int:
        assert endpoint == OUT
        assert self._socket is not None
        if not self.plugged:
            raise usb1.USBErrorNoDevice
        short: usb1.USBErrorTimeout | None = None
        if self.takes is not None and len(data) > self.takes:
            short = usb1.USBErrorTimeout()
            data, short.transferred, self.takes = data[: self.takes], self.takes, None
        self._out += data
        self.empty_packets += not data
        if short is not None:
            raise short
        if len(data) % PACKET_BYTES or not data:  # the last packet was not full: a message's part is over
            self._arrived()
        return len(data)

    def _arrived(self) -> None:
        """What a phone makes of a transfer: header and payload by turns, anything else ends the connection."""
        assert self._socket is not None
        if len(self._out) != self._expected:
            self.unplug()
            return
        if self._payload or self._expected != HEADER.size:
            self._expected, self._payload = HEADER.size, 0
        elif length := HEADER.unpack(self._out)[3]:
            self._expected, self._payload = length, length
        self._socket.sendall(self._out)
        self._out = b""

    def bulkRead(self, endpoint: int, length: int, timeout: int = 0) -> bytes:
        assert endpoint == IN
        assert self._socket is not None
        assert timeout > 0, "libusb takes 0 for no limit"
        deadline = time.monotonic() + timeout / 1000
        while not self._in:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = self._socket.recv(length)
            except TimeoutError:
                late = usb1.USBErrorTimeout()
                late.received, late.transferred = b"", 0
                raise late from None
            except OSError:
                part = b""
            if not part:
                raise usb1.USBErrorNoDevice
            self._in += part
        data, self._in = self._in[:length], self._in[length:]
        return data
