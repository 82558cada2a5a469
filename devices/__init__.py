"""Places where ONNX models are run and measured. Knows nothing of language models.

A device is named `local`, `adb:SERIAL`, `adb:HOST:PORT` or `cuda:0`.
"""

from __future__ import annotations

import re

from devices.base import AgentError, Device, DeviceBusyError, DeviceError, DeviceInfo, UnknownDeviceError
from devices.limits import measure_limits

__all__ = [
    "AgentError",
    "Device",
    "DeviceBusyError",
    "DeviceError",
    "DeviceInfo",
    "UnknownDeviceError",
    "list_devices",
    "measure_limits",
    "open_device",
]


def list_devices() -> list[DeviceInfo]:
    """This machine, and the phones that a running adb server knows."""
    from devices.adb import list_phones
    from devices.machine import local_info

    return [local_info(), *list_phones()]


def open_device(device_id: str) -> Device:
    """The device of that name.

    Raises:
        UnknownDeviceError: no such device; lists those there are.
        DeviceBusyError: the device is there but cannot measure; says what to do.
    """
    from devices.adb import look_directly
    from devices.local import LocalDevice

    known = {info.device_id: info for info in list_devices()}
    if device_id in known:
        if problem := known[device_id].problem:
            raise DeviceBusyError(f"{device_id}: {problem}")
        return LocalDevice()
    attached = f"there are: {', '.join(known)}"
    if re.fullmatch(r"cuda:\d+", device_id):
        raise UnknownDeviceError(f"{device_id}: measuring on GPUs is not part of this version; {attached}")
    if match := re.fullmatch(r"adb:([^:\s]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})", device_id):
        info = look_directly(match[1].strip("[]"), int(match[2]))
        if info is not None:
            raise DeviceBusyError(f"{device_id}: {info.problem}")
    if re.fullmatch(r"adb:\S+", device_id):
        raise UnknownDeviceError(f"{device_id} is not attached; {attached}")
    raise UnknownDeviceError(f"{device_id!r} is no device; one is named local, adb:SERIAL, adb:HOST:PORT or cuda:0; {attached}")
