"""What stands between this machine and a phone; each says what its user can do next.

DeviceError
├── DeviceBusyError
│   ├── UnauthorizedError     the phone has not accepted this machine's key
│   │   └── NoKeyError        this machine has none
│   ├── OfflineError          known, but it does not answer
│   ├── UsbBusyError          another program holds its USB interface
│   ├── UsbRightsError        this user may not open its USB interface
│   ├── WirelessTlsError      wireless debugging wants TLS, which only the adb server speaks
│   └── InUseError            another archsearch measures on it
├── UnknownDeviceError
│   └── NotAttachedError      no such phone, neither at the adb server nor on USB or TCP
├── PhoneFullError            no space left for agent and models
├── WrongAbiError             there is no agent for its processor
├── LinkLostError             the connection broke; what was measured is kept
└── ShellFailedError          a command on the phone failed that must not
"""

from __future__ import annotations

from devices.base import DeviceBusyError, DeviceError, UnknownDeviceError


class UnauthorizedError(DeviceBusyError):
    def __init__(self, device_id: str) -> None:
        super().__init__(
            f"{device_id}: it does not know this machine's key: unlock it and accept the USB debugging question on its screen, "
            f"then run the same command again (no question? run `adb reconnect`, or revoke authorisations in its developer options)"
        )


class NoKeyError(UnauthorizedError):
    """It asks for a key, and this machine has none."""

    def __init__(self, device_id: str) -> None:
        DeviceBusyError.__init__(
            self, f"{device_id}: it asks for a key and ~/.android/adbkey does not exist: `adb start-server` makes one; then run this again"
        )


class OfflineError(DeviceBusyError):
    def __init__(self, device_id: str, why: str = "it does not answer") -> None:
        super().__init__(f"{device_id}: {why}: unlock it, replug the cable or run `adb reconnect`, then run the same command again")


class UsbBusyError(DeviceBusyError):
    def __init__(self, device_id: str) -> None:
        super().__init__(
            f"{device_id}: another program holds its USB interface: close it, or run `adb start-server`, through which both can use it"
        )


class UsbRightsError(DeviceBusyError):
    def __init__(self, device_id: str) -> None:
        super().__init__(
            f"{device_id}: this user may not open its USB device: on Debian or Ubuntu `sudo apt install android-sdk-platform-tools-common` "
            "brings the udev rules; then replug it"
        )


class WirelessTlsError(DeviceBusyError):
    def __init__(self, device_id: str) -> None:
        address = device_id.removeprefix("adb:")
        super().__init__(
            f"{device_id}: wireless debugging wants an encrypted connection: pair it with `adb pair HOST:PORT CODE` (both on its screen), "
            f"run `adb connect {address}`, then run the same command again"
        )


class InUseError(DeviceBusyError):
    def __init__(self, device_id: str, owner: str) -> None:
        super().__init__(
            f"{device_id}: another archsearch measures on it ({owner}): two at once would spoil both; wait for it, or stop it there"
        )


class NotAttachedError(UnknownDeviceError):
    def __init__(self, device_id: str, attached: str) -> None:
        super().__init__(f"{device_id} is not attached: switch USB debugging on and replug it, or `adb connect HOST:PORT`; {attached}")


class PhoneFullError(DeviceError):
    def __init__(self, device_id: str, needed: int, free: int | None) -> None:
        there = f" and {free / 1e6:,.0f} MB are free" if free is not None else ""
        super().__init__(
            f"{device_id}: no space left in /data/local/tmp: {needed / 1e6:,.0f} MB are needed{there}; free some there, "
            "then run the same command again: what was measured is kept"
        )


class WrongAbiError(DeviceError):
    def __init__(self, device_id: str, abi: str, way_out: str) -> None:
        super().__init__(f"{device_id}: there is no agent for its processor ({abi or 'unknown'}): {way_out}")


class LinkLostError(DeviceError):
    def __init__(self, device_id: str, why: str) -> None:
        self.why = why
        super().__init__(
            f"{device_id}: the connection broke ({why}): replug it, see that `archsearch devices` lists it, "
            "and run the same command again: what was measured is kept"
        )


class ShellFailedError(DeviceError):
    """A command that must succeed did not.

    Attributes:
        status: its exit status.
        said: what it wrote to stderr, or else to stdout.
    """

    def __init__(self, device_id: str, what: str, status: int, said: str) -> None:
        self.status, self.said = status, said
        super().__init__(f"{device_id}: {what} failed on the phone (exit status {status}): {' '.join(said.split())[-200:]}")
