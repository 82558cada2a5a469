"""Places where ONNX models are run and measured. Knows nothing of language models.

A device is named `local`, `adb:SERIAL`, `adb:HOST:PORT` or `cuda:0`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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

PHONE = re.compile(r"adb:\S(?:.*\S)?")


def list_devices(also: Sequence[str] = ()) -> list[DeviceInfo]:
    """This machine, and the phones that a running adb server knows, or that hang on USB where none runs.

    Args:
        also: phones to ask besides, "adb:HOST:PORT".

    Raises:
        UnknownDeviceError: one of these is no name of a phone.
    """
    from devices.adb import list_phones
    from devices.machine import local_info

    for device_id in also:
        if not PHONE.fullmatch(device_id):
            raise UnknownDeviceError(f"{device_id!r} is no phone; one is named adb:SERIAL or adb:HOST:PORT")
    return [local_info(), *list_phones(also)]


def open_device(device_id: str) -> Device:
    """The device of that name. A phone is asked who it is, and nothing else is done to it.

    Raises:
        UnknownDeviceError: no such device.
        DeviceBusyError: the device is there but cannot measure; says what to do.
        DeviceError: there is no agent for it.
    """
    if device_id == "local":
        from devices.local import LocalDevice
        from devices.machine import local_info

        if problem := local_info().problem:
            raise DeviceBusyError(f"local: {problem}")
        return LocalDevice()
    if PHONE.fullmatch(device_id):
        from devices.adb.device import PhoneDevice
        from devices.build import find_bundle

        return PhoneDevice(device_id, find_bundle)
    known = ", ".join(info.device_id for info in list_devices())
    if re.fullmatch(r"cuda:\d+", device_id):
        raise UnknownDeviceError(f"{device_id}: measuring on GPUs is not part of this version; there are: {known}")
    raise UnknownDeviceError(f"{device_id!r} is no device; one is named local, adb:SERIAL, adb:HOST:PORT or cuda:0; there are: {known}")
