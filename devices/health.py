"""How the machine is: clocks, temperature, load, other processes; and what a user can mend.

Everything is read where the platform offers it without rights, and None elsewhere.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from devices.plan import Conditions, MachineState

CPU_DIR = Path("/sys/devices/system/cpu")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
BUSY_SHARE = 0.1
"""Share of the machine used by others from which samples are flagged: two cores lose a tenth of their time, and caches more."""


class Watch:
    """Reads the machine's state; between two looks it knows how much of the machine other processes used."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last = self._times()

    def _times(self) -> tuple[float, float, float]:
        total = psutil.cpu_times()
        busy = sum(total) - total.idle - getattr(total, "iowait", 0.0) - getattr(total, "guest", 0.0) - getattr(total, "guest_nice", 0.0)
        own = self._process.cpu_times()
        return time.monotonic(), busy, own.user + own.system

    def look(self) -> MachineState:
        now = self._times()
        elapsed, busy, own = (new - old for new, old in zip(now, self._last, strict=True))
        capacity = elapsed * (os.cpu_count() or 1)
        # The kernel counts in ticks of 10 ms: shorter spans say nothing.
        share = min(1.0, max(0.0, (busy - own) / capacity)) if elapsed >= 0.1 else None
        if share is not None:
            self._last = now
        return MachineState(
            time_unix_s=time.time(),
            load_1m=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            clock_mhz=clocks(),
            temperature_c=temperature(),
            steal_ticks=steal_ticks(),
            busy_other_share=share,
            available_bytes=psutil.virtual_memory().available,
        )


def clocks() -> tuple[float, ...] | None:
    """Current clock of every core in MHz."""
    try:
        found = psutil.cpu_freq(percpu=True)
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return tuple(round(core.current, 1) for core in found) or None


def temperature() -> float | None:
    """The hottest sensor that looks like a CPU's, in degrees Celsius."""
    read = getattr(psutil, "sensors_temperatures", None)
    try:
        sensors = read() if read else {}
    except (OSError, RuntimeError):
        return None
    wanted = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")
    values = [entry.current for name, entries in sensors.items() if name in wanted for entry in entries]
    return max(values) if values else None


def steal_ticks() -> int | None:
    """Ticks that a hypervisor gave to others, all cores, since boot."""
    steal = getattr(psutil.cpu_times(), "steal", None)
    return round(steal * os.sysconf("SC_CLK_TCK")) if steal is not None else None


def governor() -> str | None:
    """The frequency governors in use, such as "performance" or "powersave"."""
    found = {text for path in sorted(CPU_DIR.glob("cpu[0-9]*/cpufreq/scaling_governor")) if (text := _read(path))}
    return "+".join(sorted(found)) or None


def huge_pages() -> str | None:
    """The setting of transparent huge pages: "always", "madvise" or "never"."""
    text = _read(HUGE_PAGES)
    return text.split("[")[1].split("]")[0] if text and "[" in text else None


def fastest_cores(threads: int) -> tuple[int, ...] | None:
    """Which logical cores to pin `threads` threads to: the most capable first, one for each physical core while they last."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    seen: dict[str, int] = {}

    def rank(core: int) -> tuple[int, float, int]:
        base = CPU_DIR / f"cpu{core}"
        siblings = _read(base / "topology" / "thread_siblings_list") or str(core)
        seen[siblings] = seen.get(siblings, -1) + 1
        speed = float(_read(base / "cpu_capacity") or _read(base / "cpufreq" / "cpuinfo_max_freq") or 0)
        return seen[siblings], -speed, core

    ranked = sorted((rank(core) for core in allowed))
    return tuple(sorted(core for _, _, core in ranked[:threads]))


def spread(samples_ns: Sequence[int]) -> float:
    """Half the distance of the quartiles over the median: 0.01 means that half of the samples lie within 1 %."""
    if len(samples_ns) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(samples_ns, n=4)
    return (high - low) / 2 / middle if middle else 0.0


def advice(conditions: Conditions, states: Sequence[MachineState]) -> list[str]:
    """What a user can do for steadier numbers, in plain words; empty where nothing is wrong."""
    lines = []
    shares = [state.busy_other_share for state in states if state.busy_other_share is not None]
    if shares and statistics.mean(shares) > BUSY_SHARE:
        lines.append(f"Other processes used {statistics.mean(shares):.0%} of the machine while it was measured: close them and profile again.")
    steals = [state.steal_ticks for state in states if state.steal_ticks is not None]
    if steals and max(steals) - min(steals) > 100:
        lines.append("The hypervisor took time away (steal): this virtual machine shares its cores; expect a larger spread.")
    if conditions.governor and "performance" not in conditions.governor:
        lines.append(f"The frequency governor is {conditions.governor}: `sudo cpupower frequency-set -g performance` gives steadier clocks.")
    if conditions.huge_pages == "never":
        lines.append("Transparent huge pages are off: `echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled` makes int4 decode steadier.")
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None and not battery.power_plugged:
        lines.append("The machine runs on battery: plug it in.")
    hottest = max((state.temperature_c for state in states if state.temperature_c is not None), default=0.0)
    if hottest > 90:
        lines.append(f"The CPU reached {hottest:.0f} °C and may have throttled: let it cool, or measure with longer pauses.")
    return lines


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
