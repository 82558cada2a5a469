"""Places where ONNX models are run and measured. Knows nothing of language models.

A device is named `local`, `adb:SERIAL`, `adb:HOST:PORT` or `cuda:0`.
"""

from __future__ import annotations

from devices.base import Device, DeviceBusyError, DeviceError, DeviceInfo, UnknownDeviceError

__all__ = ["Device", "DeviceBusyError", "DeviceError", "DeviceInfo", "UnknownDeviceError", "list_devices", "open_device"]


def list_devices() -> list[DeviceInfo]:
    """This machine, and the phones that a running adb server knows."""
    from devices.adb import list_phones
    from devices.local import local_info

    return [local_info(), *list_phones()]


def open_device(device_id: str) -> Device:
    """The device of that name.

    Raises:
        UnknownDeviceError: no such device; lists those there are.
        DeviceBusyError: the device is attached but cannot be used.
    """
    from devices.local import LocalDevice

    if device_id == "local":
        return LocalDevice()
    known = {info.device_id: info for info in list_devices()}
    if device_id in known:
        raise DeviceBusyError(f"{device_id}: {known[device_id].problem}")
    if device_id.partition(":")[0] not in ("adb", "cuda"):
        raise UnknownDeviceError(f"{device_id!r} is no device; devices are named local, adb:SERIAL or adb:HOST:PORT; attached: {', '.join(known)}")
    raise UnknownDeviceError(f"{device_id} is not attached; attached: {', '.join(known)}; see `archsearch devices`")
