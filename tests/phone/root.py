"""What a phone's file system tells: properties, services, and a /sys with two clusters of cores and thermal zones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

STUBS = Path(__file__).with_name("stubs")
LITTLE, BIG = {"capacity": 325, "max_khz": 1_800_000}, {"capacity": 1024, "max_khz": 3_000_000}
GIB = 2**30
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  status: 2
  level: 87
  scale: 100
  temperature: 291
"""
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
Thermal Status: 0
Cached temperatures:
Current temperatures from HAL:
\tTemperature{mValue=41.2, mType=0, mName=CPU, mStatus=0}
\tTemperature{mValue=33.5, mType=3, mName=skin, mStatus=0}
"""
POWER = "Power Manager State:\n  mWakefulness=Awake\n  mIsPowered=true\n"


def properties(abi: str, serial: str) -> dict[str, str]:
    """Properties as a phone has them; `ro.boot.qemu` says that nothing timed here is a phone's time."""
    return {
        "ro.product.manufacturer": "archsearch",
        "ro.product.model": "Test Phone",
        "ro.product.device": "testphone",
        "ro.product.cpu.abi": abi,
        "ro.product.cpu.abilist": abi,
        "ro.soc.manufacturer": "Test",
        "ro.soc.model": "TP1",
        "ro.build.version.release": "14",
        "ro.build.version.sdk": "34",
        "ro.build.fingerprint": f"archsearch/testphone/testphone:14/{abi}/1:user/release-keys",
        "ro.serialno": serial,
    } | ({"ro.boot.qemu": "1"} if abi == "arm64-v8a" else {})


def lay_system(folder: Path, props: dict[str, str]) -> None:
    """`/system`: commands and what they print."""
    (folder / "bin").mkdir(parents=True)
    for stub in STUBS.iterdir():
        shutil.copy(stub, folder / "bin" / stub.name)
    lay_services(folder, props)


def lay_services(folder: Path, props: dict[str, str]) -> None:
    """What the commands print."""
    (folder / "build.prop").write_text("".join(f"{name}={value}\n" for name, value in props.items()))
    (folder / "dumpsys").mkdir()
    for service, text in {"battery": BATTERY, "thermalservice": THERMAL, "power": POWER}.items():
        (folder / "dumpsys" / service).write_text(text)


def lay_sys(folder: Path, *, cores: int) -> None:
    """`/sys`: the first half of the cores little, the rest big, one thermal zone of the CPU and one of the battery."""
    (folder / "kernel" / "mm").mkdir(parents=True, exist_ok=True)  # the machine's own is mounted there
    cpus = folder / "devices" / "system" / "cpu"
    for core in range(cores):
        kind: dict[str, Any] = LITTLE if core < cores // 2 else BIG
        files = {
            "cpu_capacity": kind["capacity"],
            "cpufreq/cpuinfo_max_freq": kind["max_khz"],
            "cpufreq/cpuinfo_min_freq": 300_000,
            "cpufreq/scaling_max_freq": kind["max_khz"],
            "cpufreq/scaling_min_freq": 300_000,
            "cpufreq/scaling_cur_freq": kind["max_khz"] // 2,
            "cpufreq/scaling_governor": "schedutil",
            "topology/core_id": core,
            "topology/thread_siblings_list": core,
        }
        _write(cpus / f"cpu{core}", files)
    _write(cpus, dict.fromkeys(("online", "possible", "present"), f"0-{cores - 1}" if cores > 1 else "0"))
    for number, (kind_, milli) in enumerate({"cpu-thermal": 41_200, "battery": 29_100}.items()):
        _write(folder / "class" / "thermal" / f"thermal_zone{number}", {"type": kind_, "temp": milli})
    _write(
        folder / "class" / "power_supply" / "battery", {"type": "Battery", "capacity": 87, "status": "Charging", "online": 1, "temp": 291}
    )


def cores_here() -> int:
    return len(os.sched_getaffinity(0))


def _write(folder: Path, files: dict[str, Any]) -> None:
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
