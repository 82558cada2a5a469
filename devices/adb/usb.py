"""Phones on this machine's USB, without an adb server: adb-shell's transport, with what it lacks mended.

adb-shell 0.4.4 never marks the end of a transfer that fills its last packet: adb's own hosts send an empty packet then, by which the
phone knows where a message ends (AOSP's packages/modules/adb, docs/dev on zero-length packets); it loses the rest of a partial transfer;
one phone that may not be opened hides all others; and an end of the connection is told in libusb's words.

Importing this needs `archsearch[usb]` and the system's libusb.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import usb1
from adb_shell.exceptions import UsbReadFailedError, UsbWriteFailedError
from adb_shell.transport.usb_transport import UsbTransport

HEADER_BYTES = 24
"""Every message of adb begins with a transfer of so many."""
SLICE_S = 0.5
"""Longest wait within libusb, which no Ctrl-C ends."""


class UsbLine(UsbTransport):  # type: ignore[misc]
    """A phone on USB."""

    _early = b""
    """What `wait` has read, and `bulk_read` has not handed over yet."""

    def connect(self, transport_timeout_s: float | None = None) -> None:
        """Open and claim it.

        Raises:
            usb1.USBErrorBusy: another program holds it.
            usb1.USBErrorAccess: this user may not open it.
            usb1.USBError: anything else that libusb refuses.
        """
        self._early = b""
        try:
            super().connect(transport_timeout_s)
        except usb1.USBError:
            self.close()
            raise
        outs = (endpoint for endpoint in self._setting.iterEndpoints() if not endpoint.getAddress() & usb1.ENDPOINT_DIR_MASK)
        self._packet_bytes = next(outs).getMaxPacketSize()

    def bulk_read(self, numbytes: int, transport_timeout_s: float | None = None) -> bytes:
        """At most so many bytes, of one transfer.

        Raises:
            ConnectionError: it was unplugged, or nothing came for so long.
        """
        if self._early:
            data, self._early = self._early[:numbytes], self._early[numbytes:]
            return data
        try:
            return cast(bytes, super().bulk_read(numbytes, transport_timeout_s))
        except UsbReadFailedError as error:
            raise _lost(error) from error

    def bulk_write(self, data: bytes, transport_timeout_s: float | None = None) -> int:
        """All of it, and the empty packet that tells a full last one from the middle of a message.

        Raises:
            ConnectionError: it was unplugged, or takes nothing any more.
        """
        view = memoryview(data)
        while view:
            view = view[self._sent(view, transport_timeout_s) :]
        if data and len(data) % self._packet_bytes == 0:
            self._sent(memoryview(b""), transport_timeout_s)
        return len(data)

    def _sent(self, view: memoryview, transport_timeout_s: float | None) -> int:
        """How much of it was taken."""
        try:
            return cast(int, super().bulk_write(bytes(view), transport_timeout_s))
        except UsbWriteFailedError as error:
            taken = getattr(_cause(error), "transferred", 0)
            if not taken:  # no step forward
                raise _lost(error) from error
            return cast(int, taken)

    def wait(self, timeout_s: float) -> bool:
        """Whether something can be read within the time. USB has no `select`: the header that begins every message is read, and kept."""
        deadline = time.monotonic() + timeout_s
        while not self._early:
            left = deadline - time.monotonic()
            try:
                self._early = super().bulk_read(HEADER_BYTES, max(0.001, min(SLICE_S, left)))  # 0 would be for ever
            except UsbReadFailedError as error:
                if not isinstance(_cause(error), usb1.USBErrorTimeout):
                    raise _lost(error) from error
                self._early = bytes(getattr(_cause(error), "received", b""))
            if not self._early and left <= 0:
                return False
        return True


def _cause(error: UsbReadFailedError | UsbWriteFailedError) -> usb1.USBError | None:
    """libusb's error; adb-shell's own have it as an attribute for reads alone."""
    return cast("usb1.USBError | None", error.args[1])


def _lost(error: UsbReadFailedError | UsbWriteFailedError) -> ConnectionError:
    """The end of a connection in words."""
    match _cause(error):
        case None:
            return ConnectionResetError("it is closed")
        case usb1.USBErrorNoDevice():
            return ConnectionResetError("it was unplugged")
        case usb1.USBErrorTimeout():
            return ConnectionAbortedError("nothing went over its cable any more")
        case other:
            return ConnectionResetError(f"its USB failed: {other}")


def attached() -> Iterator[tuple[UsbLine, str | usb1.USBError]]:
    """Every phone on USB with debugging on: its serial, or why it cannot be read."""
    for line in UsbLine.find_all_adb_devices():
        try:
            yield line, line.serial_number
        except usb1.USBError as error:
            yield line, error


def find(serial: str) -> UsbLine | None:
    """The phone of that serial, not opened yet; None when there is none.

    Raises:
        usb1.USBErrorAccess: not found, and a phone whose serial this user may not read hangs there.
    """
    refused: usb1.USBErrorAccess | None = None
    for line, found in attached():
        if found == serial:
            return line
        if isinstance(found, usb1.USBErrorAccess):
            refused = found
    if refused is not None:
        raise refused
    return None
