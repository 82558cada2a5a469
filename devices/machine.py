"""What this machine is."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from devices.base import DeviceInfo

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Packages that bring the module `onnxruntime`."""


def local_info() -> DeviceInfo:
    """This machine. Its fingerprint is that of the hardware: two machines of one make count as one device."""
    cpu = cpu_name()
    cores, memory = os.cpu_count() or 1, psutil.virtual_memory().total
    identity = f"{platform.system()}|{platform.machine()}|{cpu}|{cores}|{round(memory / 2**30)}"
    runtime = runtime_name()
    return DeviceInfo(
        device_id="local",
        name=platform.node() or "this machine",
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:12],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cores=cores,
        memory_bytes=memory,
        runtime=runtime,
        available=runtime is not None,
        problem=None if runtime else "onnxruntime is not installed: pip install onnxruntime",
    )


def runtime_name() -> str | None:
    """ "onnxruntime 1.32.0", without importing it; None when it is not installed."""
    for package in RUNTIMES:
        try:
            return f"onnxruntime {version(package)}"
        except PackageNotFoundError:
            continue
    return None


def cpu_name() -> str:
    """The CPU as its maker calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
