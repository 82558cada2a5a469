"""How the machine is: clocks, temperature, load, other processes; and what a user can mend.

Everything is read where the platform offers it without rights, and None elsewhere.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from devices.plan import Conditions, MachineState

CPU_DIR = Path("/sys/devices/system/cpu")
THERMAL_DIR = Path("/sys/class/thermal")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
BUSY_SHARE = 0.1
"""Share of the machine used by others from which samples are flagged: two cores lose a tenth of their time, and caches more."""
HOT_C = 90.0
"""From here laptops and phones lower their clocks."""
LOOK_EVERY_S = 0.25
"""Between two looks while waiting; the kernel counts in ticks of 10 ms, so shorter spans say little."""
SHORTEST_SPAN_S = 0.1
STOLEN_CORES = 0.02
"""Cores stolen by a hypervisor from which it is worth saying."""
PREEMPTIONS_PER_S = 20.0
"""A tick's own work takes the core a few times a second; a program that wants the same core does so at every slice, hundreds of times."""
CLOCK_DROP = 0.05
"""A clock this much lower in one look than in another makes times that cannot be compared to 3 %."""
HUGE_PAGE_SHARE = 0.9
"""Below it, int4 decode differs by 6-10 % from process to process."""


class Watch:
    """Reads the machine's state; between two looks it knows how much of the machine other processes used."""

    def __init__(self) -> None:
        self.huge_page_share: float | None = None
        """Set by the agent when it has looked: that walk over its pages is too slow for every look."""
        self._process = psutil.Process()
        self._last = self._times()
        self._share: float | None = None

    def _times(self) -> tuple[float, float, float]:
        total = psutil.cpu_times()
        busy = sum(total) - total.idle - getattr(total, "iowait", 0.0) - getattr(total, "guest", 0.0) - getattr(total, "guest_nice", 0.0)
        own = self._process.cpu_times()
        return time.monotonic(), busy, own.user + own.system

    def look(self) -> MachineState:
        now = self._times()
        elapsed, busy, own = (new - old for new, old in zip(now, self._last, strict=True))
        capacity = elapsed * (os.cpu_count() or 1)
        if elapsed >= SHORTEST_SPAN_S:
            self._share = min(1.0, max(0.0, (busy - own) / capacity))
            self._last = now
        return MachineState(
            time_unix_s=time.time(),
            load_1m=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            clock_mhz=clocks(),
            clock_limit_mhz=clock_limits(),
            temperature_c=temperature(),
            throttled=throttled(),
            steal_ticks=steal_ticks(),
            preemptions=preemptions(),
            busy_other_share=self._share,  # of the last span that was long enough, when this one is not
            available_bytes=psutil.virtual_memory().available,
            swapped_bytes=swapped(),
            on_battery=on_battery(),
            huge_page_share=self.huge_page_share,
        )


def settle(
    look: Callable[[], MachineState],
    max_wait_s: float,
    max_temperature_c: float = HOT_C,
    *,
    waiting: Callable[[], object] = lambda: None,
    sleep: Callable[[float], object] = time.sleep,
) -> MachineState:
    """Look until the machine is neither busy nor hot, or `max_wait_s` is over; `waiting` is called before every pause.

    Returns:
        The last look, with how long it took to get there. What still speaks against it is in `flags([state], max_temperature_c)`.
    """
    state, waited = look(), 0.0
    if state.busy_other_share is None and max_wait_s > 0:
        sleep(SHORTEST_SPAN_S)
        state = look()
    while {"busy", "hot"} & set(flags([state], max_temperature_c)) and waited < max_wait_s:
        waiting()
        pause = min(LOOK_EVERY_S, max_wait_s - waited)
        sleep(pause)
        waited += pause
        state = look()
    return replace(state, waited_s=waited)


@dataclass(frozen=True, kw_only=True, slots=True)
class Disturbance:
    """What the kernel tells of the time between the first and the last of several looks; None where it does not tell."""

    preemptions_per_s: float | None
    """How often the agent's threads lost their core."""
    stolen_cores: float | None
    """Cores, on average, that a hypervisor gave to others."""
    clock_drop: float | None
    """1 - lowest over highest clock of all looks: the middle one of all cores that are on, since idle cores sleep."""


def disturbance(states: Sequence[MachineState]) -> Disturbance:
    """What disturbed a series, from its looks; a single look tells nothing."""
    states = sorted(states, key=lambda state: state.time_unix_s)
    span_s = states[-1].time_unix_s - states[0].time_unix_s if states else 0.0
    switches = [state.preemptions for state in states if state.preemptions is not None]
    lost = sum(max(0, later - earlier) for earlier, later in itertools.pairwise(switches))  # a new process begins at 0
    steals = [state.steal_ticks for state in states if state.steal_ticks is not None]
    clocks_mhz = [statistics.median(on) for state in states if (on := [mhz for mhz in state.clock_mhz or () if mhz > 0])]
    known = span_s >= SHORTEST_SPAN_S
    return Disturbance(
        preemptions_per_s=lost / span_s if known and len(switches) > 1 else None,
        stolen_cores=(steals[-1] - steals[0]) / os_ticks() / span_s if known and len(steals) > 1 else None,
        clock_drop=1 - min(clocks_mhz) / max(clocks_mhz) if len(clocks_mhz) > 1 else None,
    )


def flags(states: Sequence[MachineState], max_temperature_c: float = HOT_C) -> tuple[str, ...]:
    """What speaks against samples that were taken among these looks; empty when nothing does.

    "busy", "hot", "throttled", "swapping", "battery"; of several looks also "preempted", "stolen", "clock".
    """
    found = []
    if any(state.busy_other_share is not None and state.busy_other_share > BUSY_SHARE for state in states):
        found.append("busy")
    if any(state.temperature_c is not None and state.temperature_c >= max_temperature_c for state in states):
        found.append("hot")
    if any(state.throttled for state in states):
        found.append("throttled")
    swaps = [state.swapped_bytes for state in states if state.swapped_bytes is not None]
    if swaps and max(swaps) > min(swaps):
        found.append("swapping")
    if any(state.on_battery for state in states):
        found.append("battery")
    seen = disturbance(states)
    limits = (seen.preemptions_per_s, PREEMPTIONS_PER_S), (seen.stolen_cores, STOLEN_CORES), (seen.clock_drop, CLOCK_DROP)
    found += [name for name, (value, limit) in zip(("preempted", "stolen", "clock"), limits, strict=True) if value and value > limit]
    return tuple(found)


def clocks() -> tuple[float, ...] | None:
    """Current clock of every core in MHz."""
    try:
        found = psutil.cpu_freq(percpu=True)
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return tuple(round(core.current, 1) for core in found) or None


def clock_limits() -> tuple[float, ...] | None:
    """What the kernel lets every core run at now, in MHz; 0 for a core that is off."""
    found = [_read(CPU_DIR / f"cpu{core}" / "cpufreq" / "scaling_max_freq") for core in range(os.cpu_count() or 1)]
    return tuple(round(int(khz or 0) / 1000, 1) for khz in found) if any(found) else None


def throttled() -> bool | None:
    """Whether one of the kernel's cooling devices lowers the CPU's clocks; None where there is none."""
    states = [
        _read(device / "cur_state")
        for device in THERMAL_DIR.glob("cooling_device*")
        if (kind := _read(device / "type")) and ("cpufreq" in kind or kind == "Processor")
    ]
    known = [int(state) for state in states if state and state.isdigit()]
    return max(known) > 0 if known else None


def temperature() -> float | None:
    """The hottest sensor that looks like a CPU's, in degrees Celsius."""
    read = getattr(psutil, "sensors_temperatures", None)
    try:
        sensors = read() if read else {}
    except (OSError, RuntimeError):
        return None
    wanted = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")
    values = [entry.current for name, entries in sensors.items() if name in wanted for entry in entries]
    return max(values or _zones(), default=None)


def _zones() -> list[float]:
    """The CPU's thermal zones, by the names that kernels and phones' makers give them; some tell thousandths, some whole degrees."""
    wanted = ("big", "mid", "little", "x86_pkg_temp", "acpitz")
    found = []
    for zone in THERMAL_DIR.glob("thermal_zone*"):
        kind, value = (_read(zone / "type") or "").lower(), _read(zone / "temp") or ""
        if ("cpu" in kind or "soc" in kind or kind in wanted) and value.lstrip("-").isdigit():
            found.append(int(value) / 1000 if int(value) >= 1000 else float(value))
    return [value for value in found if 0 < value < 150]


def steal_ticks() -> int | None:
    """Ticks that a hypervisor gave to others, all cores, since boot."""
    steal = getattr(psutil.cpu_times(), "steal", None)
    return round(steal * os_ticks()) if steal is not None else None


def preemptions() -> int | None:
    """Involuntary context switches of this process's threads since it began; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def swapped() -> int | None:
    """Bytes swapped in and out since boot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # psutil warns where the kernel keeps no count
            swap = psutil.swap_memory()
    except (OSError, RuntimeError):
        return None
    return int(swap.sin + swap.sout)


def on_battery() -> bool | None:
    """Whether the machine draws on its battery; None where it has none."""
    read = getattr(psutil, "sensors_battery", None)
    try:
        battery = read() if read else None
    except (OSError, RuntimeError):
        return None
    return not battery.power_plugged if battery is not None and battery.power_plugged is not None else None


def governor() -> str | None:
    """The frequency governors in use, such as "performance" or "powersave"."""
    found = {text for path in sorted(CPU_DIR.glob("cpu[0-9]*/cpufreq/scaling_governor")) if (text := _read(path))}
    return "+".join(sorted(found)) or None


def huge_pages() -> str | None:
    """The setting of transparent huge pages: "always", "madvise" or "never"."""
    text = _read(HUGE_PAGES)
    return text.split("[")[1].split("]")[0] if text and "[" in text else None


def fastest_cores(threads: int) -> tuple[int, ...] | None:
    """Which logical cores to pin `threads` threads to; None where a process cannot be pinned.

    Each on a physical core of its own while they last, the fastest first, among equals the highest number: core 0 serves most interrupts.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    siblings_seen: dict[str, int] = {}

    def rank(core: int) -> tuple[int, float, int]:
        base = CPU_DIR / f"cpu{core}"
        siblings = _read(base / "topology" / "thread_siblings_list") or str(core)
        siblings_seen[siblings] = nth = siblings_seen.get(siblings, -1) + 1
        speed = float(_read(base / "cpu_capacity") or _read(base / "cpufreq" / "cpuinfo_max_freq") or 0)
        return nth, -speed, -core

    ranked = sorted((rank(core), core) for core in sorted(os.sched_getaffinity(0)))
    return tuple(sorted(core for _, core in ranked[:threads]))


def spread(samples_ns: Sequence[int]) -> float:
    """Half the distance of the quartiles over the median: 0.01 means that half of the samples lie within 1 % of it. 0 for fewer than 4."""
    if len(samples_ns) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(samples_ns, n=4)
    return (high - low) / 2 / middle if middle else 0.0


def stability(rounds_ns: Sequence[Sequence[int]], states: Sequence[MachineState] = ()) -> float:
    """How well a case repeats, from 0 to 1: the smallest over the largest of the rounds' medians. 1 for a single round.

    Rounds are separated in time and by other cases; the spread within a round says nothing of drift. With the looks of the process that
    measured, what the kernel says was lost counts, too, be it to a hypervisor or to a lower clock: the weakest of the three is the score.
    """
    seen = disturbance(states)
    machine = 1 - max(min(1.0, seen.stolen_cores or 0.0), seen.clock_drop or 0.0)
    return min(_repeats(rounds_ns), machine)


def _repeats(rounds_ns: Sequence[Sequence[int]]) -> float:
    medians = [statistics.median(samples) for samples in rounds_ns if samples]
    return min(medians) / max(medians) if medians and max(medians) > 0 else 1.0


def advice(conditions: Conditions, states: Sequence[MachineState]) -> list[str]:
    """What a user can do for steadier numbers, in plain words; empty where nothing is wrong.

    `states`: every look of the series, in order of time.
    """
    lines = []
    shares = [state.busy_other_share for state in states if state.busy_other_share is not None]
    if shares and statistics.mean(shares) > BUSY_SHARE:
        used = f"{statistics.mean(shares):.0%} of the machine"
        lines.append(f"Other programs, or other tenants of its host, used {used}: close what you can and measure again.")
    stolen = disturbance(states).stolen_cores
    if stolen is not None and stolen > STOLEN_CORES:
        lines.append(f"The hypervisor took {stolen:.0%} of a core (steal): this virtual machine shares its cores; expect more spread.")
    found = flags(states)
    if "preempted" in found:
        times = f"{disturbance(states).preemptions_per_s:.0f} times a second"
        lines.append(f"The kernel took the core from the measuring threads {times}: another program wants the same core; close it.")
    if "clock" in found and "throttled" not in found:
        lines.append(f"The clock fell by {disturbance(states).clock_drop:.0%} between looks: fix it, or let the machine cool.")
    if "swapping" in found:
        lines.append("The machine swapped while it was measured: close other programs, or measure fewer models at once.")
    if "battery" in found:
        lines.append("The machine runs on battery, where clocks are lower: plug it in.")
    if "throttled" in found:
        lines.append("The kernel lowered the CPU's clocks to cool it: let it cool, and wait longer before each round.")
    elif "hot" in found:
        hottest = max(state.temperature_c for state in states if state.temperature_c is not None)
        lines.append(f"The CPU reached {hottest:.0f} °C and may have throttled: let it cool, or wait longer before each round.")
    if "fixed_performance" in conditions.extra:  # a phone, whose clocks nobody sets without root
        if not conditions.extra["fixed_performance"]:
            lines.append("The phone offers no fixed-performance mode: its clocks go as they like; measure more rounds.")
    elif conditions.governor and set(conditions.governor.split("+")) != {"performance"}:
        lines.append(f"The frequency governor is {conditions.governor}: steadier with `sudo cpupower frequency-set -g performance`.")
    pages = [state.huge_page_share for state in states if state.huge_page_share is not None]
    if conditions.huge_pages == "never":
        lines.append(f"Transparent huge pages are off: int4 decode is steadier with `echo madvise | sudo tee {HUGE_PAGES}`.")
    elif pages and min(pages) < HUGE_PAGE_SHARE and "hugetlb=1" in conditions.extra.get("glibc_tunables", ""):
        lines.append(f"Only {min(pages):.0%} of the memory lay in huge pages, so it is fragmented: close other programs, or restart.")
    return lines


def os_ticks() -> int:
    """Ticks a second in which the kernel counts CPU time."""
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
