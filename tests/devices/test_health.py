"""Reading the machine, waiting for it, and telling the user what to mend."""

from __future__ import annotations

import os
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from devices import health
from devices.plan import Conditions, MachineState

CALM = MachineState(
    time_unix_s=0.0,
    busy_other_share=0.01,
    temperature_c=45.0,
    steal_ticks=100,
    preemptions=0,
    swapped_bytes=4096,
    on_battery=False,
    clock_mhz=(3000.0, 900.0),
)
CONDITIONS = Conditions(
    agent="python-1",
    runtime="onnxruntime",
    threads=1,
    cores=(0,),
    allow_spinning=False,
    memory_arena=False,
    huge_pages="madvise",
    governor="performance",
    extra={"glibc_tunables": "glibc.malloc.hugetlb=1"},
)


# -- waiting ---------------------------------------------------------------------------------------------------------------


class Machine:
    """Gives one state after the other; the last one for ever."""

    def __init__(self, *states: MachineState) -> None:
        self.states = list(states)
        self.pauses: list[float] = []
        self.told = 0

    def look(self) -> MachineState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def settle(self, max_wait_s: float) -> MachineState:
        return health.settle(self.look, max_wait_s, waiting=self.tell, sleep=self.pauses.append)

    def tell(self) -> None:
        self.told += 1


BUSY = replace(CALM, busy_other_share=0.6)
HOT = replace(CALM, temperature_c=95.0)


def test_a_calm_machine_is_not_waited_for() -> None:
    machine = Machine(CALM)
    assert machine.settle(10.0) == CALM
    assert machine.pauses == []


@pytest.mark.parametrize("disturbed", [BUSY, HOT], ids=["busy", "hot"])
def test_a_disturbed_machine_is_waited_for_until_it_is_calm(disturbed: MachineState) -> None:
    machine = Machine(disturbed, disturbed, CALM)
    assert machine.settle(10.0) == replace(CALM, waited_s=2 * health.LOOK_EVERY_S)
    assert machine.told == len(machine.pauses) == 2


def test_how_hot_is_too_hot_is_the_plans_to_say() -> None:
    machine = Machine(CALM, replace(CALM, temperature_c=44.0), replace(CALM, temperature_c=39.0))
    state = health.settle(machine.look, 10.0, 40.0, waiting=machine.tell, sleep=machine.pauses.append)
    assert (state.temperature_c, state.waited_s) == (39.0, 2 * health.LOOK_EVERY_S)
    assert health.flags([CALM], 40.0) == ("hot",)


def test_waiting_has_an_end() -> None:
    machine = Machine(BUSY)
    state = machine.settle(0.6)
    assert state == replace(BUSY, waited_s=pytest.approx(0.6))
    assert sum(machine.pauses) == pytest.approx(0.6)
    assert health.flags([state]) == ("busy",)
    assert Machine(BUSY).settle(0.0).waited_s == 0


def test_a_first_look_that_tells_nothing_of_others_is_repeated() -> None:
    machine = Machine(replace(CALM, busy_other_share=None), BUSY, CALM)
    assert machine.settle(10.0) == replace(CALM, waited_s=health.LOOK_EVERY_S)
    assert machine.pauses == [health.SHORTEST_SPAN_S, health.LOOK_EVERY_S]
    assert Machine(replace(CALM, busy_other_share=None)).settle(0.0).waited_s == 0


def test_what_waiting_cannot_mend_is_not_waited_for() -> None:
    assert Machine(replace(CALM, on_battery=True)).settle(10.0).waited_s == 0


def test_flags() -> None:
    assert health.flags([]) == ()
    assert health.flags([MachineState(time_unix_s=0.0)]) == ()
    assert health.flags([CALM, CALM]) == ()
    assert health.flags([CALM, HOT, BUSY]) == ("busy", "hot")
    assert health.flags([CALM, replace(CALM, swapped_bytes=8192)]) == ("swapping",)
    assert health.flags([replace(CALM, on_battery=True)]) == ("battery",)


def test_what_the_kernel_took_flags_several_looks() -> None:
    later = replace(CALM, time_unix_s=10.0)
    assert health.flags([CALM, replace(later, preemptions=150)]) == ()
    assert health.flags([CALM, replace(later, preemptions=250)]) == ("preempted",)
    assert health.flags([CALM, replace(later, steal_ticks=100 + health.os_ticks())]) == ("stolen",)
    assert health.flags([replace(later, clock_mhz=(2600.0, 900.0)), CALM]) == ("clock",)
    assert health.flags([replace(CALM, clock_mhz=(3000.0, 0.0)), CALM]) == ("clock",), "a core that is off has no clock"


def test_a_new_process_counts_its_preemptions_anew() -> None:
    counts = [(0.0, 0), (5.0, 30), (5.5, 2), (10.0, 32)]
    states = [replace(CALM, time_unix_s=at, preemptions=count) for at, count in counts]
    assert health.disturbance(states).preemptions_per_s == pytest.approx(6.0)
    assert health.disturbance(states[:1]) == health.Disturbance(preemptions_per_s=None, stolen_cores=None, clock_drop=None)


def test_stability_is_the_weakest_of_rounds_steal_and_clock() -> None:
    rounds, later = [[100], [110]], replace(CALM, time_unix_s=10.0)
    assert health.stability(rounds, [CALM, later]) == pytest.approx(100 / 110)
    assert health.stability(rounds, [CALM, replace(later, clock_mhz=(1200.0, 2100.0))]) == pytest.approx(1650 / 1950)
    assert health.stability(rounds, [CALM, replace(later, steal_ticks=100 + 2 * health.os_ticks())]) == pytest.approx(0.8)


# -- advice ----------------------------------------------------------------------------------------------------------------


def test_a_quiet_machine_needs_no_advice() -> None:
    assert health.advice(CONDITIONS, [CALM, replace(CALM, time_unix_s=10.0)]) == []
    assert health.advice(replace(CONDITIONS, governor=None, huge_pages=None), [MachineState(time_unix_s=0.0)]) == []
    assert health.advice(CONDITIONS, []) == []


@pytest.mark.parametrize(
    ("conditions", "later", "words"),
    [
        (CONDITIONS, {"busy_other_share": 0.61}, ["31%", "close what you can"]),
        (CONDITIONS, {"steal_ticks": 100 + 10 * health.os_ticks() // 2}, ["50%", "hypervisor"]),
        (CONDITIONS, {"preemptions": 2500}, ["250 times a second", "close it"]),
        (CONDITIONS, {"clock_mhz": (2700.0, 800.0)}, ["10%", "clock"]),
        (CONDITIONS, {"swapped_bytes": 10**6}, ["swapped", "fewer models"]),
        (CONDITIONS, {"on_battery": True}, ["plug it in"]),
        (CONDITIONS, {"temperature_c": 97.4}, ["97 °C", "cool"]),
        (CONDITIONS, {"huge_page_share": 0.4}, ["40%", "huge pages"]),
        (replace(CONDITIONS, governor="powersave"), {}, ["powersave", "cpupower frequency-set -g performance"]),
        (replace(CONDITIONS, governor="performance+powersave"), {}, ["performance+powersave"]),
        (replace(CONDITIONS, huge_pages="never"), {}, ["echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"]),
    ],
)
def test_each_disturbance_has_its_advice(conditions: Conditions, later: dict[str, float], words: list[str]) -> None:
    (line,) = health.advice(conditions, [CALM, replace(CALM, time_unix_s=10.0, **later)])  # type: ignore[arg-type]
    for word in words:
        assert word in line
    assert "\n" not in line


def test_huge_pages_that_were_not_asked_for_are_not_missed() -> None:
    other = replace(CONDITIONS, extra={})
    assert health.advice(other, [replace(CALM, huge_page_share=0.1)]) == []


# -- reading ---------------------------------------------------------------------------------------------------------------


def test_a_look_at_this_machine() -> None:
    watch = health.Watch()
    first = watch.look()
    assert first.busy_other_share is None, "no time has passed yet"
    assert first.available_bytes is not None
    assert 0 < first.available_bytes <= psutil.virtual_memory().total
    watch.huge_page_share = 0.25
    assert watch.look().huge_page_share == 0.25


Times = namedtuple("Times", "user system idle iowait steal guest")
Own = namedtuple("Own", "user system")


def test_the_share_of_others_is_what_neither_we_nor_idleness_used(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, total, own = [100.0], [Times(10, 5, 100, 3, 1, 2)], [Own(4, 1)]
    monkeypatch.setattr(health.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(health.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(health.psutil, "cpu_times", lambda: total[0])
    watch = health.Watch()
    monkeypatch.setattr(watch, "_process", type("Process", (), {"cpu_times": staticmethod(lambda: own[0])}))
    watch._last = watch._times()
    # In 10 s on two cores: 12 s busy (steal included; guests are counted in user already), of which 7 s are ours.
    clock[0], total[0], own[0] = 110.0, Times(18, 8, 107, 4, 2, 2), Own(9, 3)
    assert watch.look().busy_other_share == pytest.approx((12 - 7) / 20)
    clock[0] = 110.05
    assert watch.look().busy_other_share == pytest.approx((12 - 7) / 20), "a shorter span than the kernel's ticks can tell: the last one"
    clock[0], total[0] = 120.0, Times(18, 8, 127, 4, 2, 2)
    assert watch.look().busy_other_share == 0.0


def test_platforms_that_tell_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.psutil, "sensors_temperatures", None)
    monkeypatch.setattr(health.psutil, "sensors_battery", lambda: None)
    monkeypatch.setattr(health.psutil, "cpu_freq", _refuse)
    monkeypatch.setattr(health.psutil, "swap_memory", _refuse)
    monkeypatch.setattr(health.psutil, "cpu_times", lambda: namedtuple("Times", "user system idle")(1, 1, 1))
    monkeypatch.setattr(health, "CPU_DIR", Path("/nowhere"))
    monkeypatch.setattr(health, "HUGE_PAGES", Path("/nowhere"))
    monkeypatch.delattr(health.os, "getloadavg")
    monkeypatch.delattr(health.os, "sched_getaffinity", raising=False)
    state = health.Watch().look()
    assert (state.load_1m, state.clock_mhz, state.temperature_c, state.steal_ticks, state.swapped_bytes, state.on_battery) == (None,) * 6
    assert (health.governor(), health.huge_pages(), health.fastest_cores(2)) == (None, None, None)


def _refuse(*_: object, **__: object) -> object:
    raise OSError("not here")


def test_sensors(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = namedtuple("Entry", "current")
    sensors = {"nvme": [entry(99.0)], "coretemp": [entry(50.0), entry(61.5)], "acpitz": [entry(30.0)]}
    monkeypatch.setattr(health.psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert health.temperature() == 61.5
    battery = namedtuple("Battery", "power_plugged")
    for plugged, expected in ((True, False), (False, True), (None, None)):
        monkeypatch.setattr(health.psutil, "sensors_battery", lambda plugged=plugged: battery(plugged), raising=False)
        assert health.on_battery() is expected


def cpus(directory: Path, monkeypatch: pytest.MonkeyPatch, *cores: dict[str, str]) -> None:
    """A /sys/devices/system/cpu with these files for each core; all of them may be used."""
    for number, files in enumerate(cores):
        for name, text in files.items():
            path = directory / f"cpu{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
    monkeypatch.setattr(health, "CPU_DIR", directory)
    monkeypatch.setattr(health.os, "sched_getaffinity", lambda _: set(range(len(cores))), raising=False)


SIBLINGS, CAPACITY, CLOCK = "topology/thread_siblings_list", "cpu_capacity", "cpufreq/cpuinfo_max_freq"


def test_cores_of_a_phone_are_chosen_by_capacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(tmp_path, monkeypatch, *({CAPACITY: c, SIBLINGS: str(i)} for i, c in enumerate(["250", "250", "770", "770", "1024"])))
    assert health.fastest_cores(1) == (4,)
    assert health.fastest_cores(3) == (2, 3, 4)
    assert health.fastest_cores(9) == (0, 1, 2, 3, 4)


def test_threads_of_one_core_are_not_taken_for_two_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(tmp_path, monkeypatch, *({CLOCK: "4000000", SIBLINGS: s} for s in ["0,2", "1,3", "0,2", "1,3"]))
    assert health.fastest_cores(2) == (0, 1)
    assert health.fastest_cores(3) == (0, 1, 3)


def test_among_equals_core_0_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(tmp_path, monkeypatch, *({} for _ in range(4)))
    assert health.fastest_cores(1) == (3,)
    assert health.fastest_cores(3) == (1, 2, 3)


def test_governors_and_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(tmp_path, monkeypatch, *({"cpufreq/scaling_governor": g} for g in ["schedutil", "performance", "schedutil"]))
    assert health.governor() == "performance+schedutil"
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(health, "HUGE_PAGES", enabled)
    assert health.huge_pages() == "madvise"


# -- samples ---------------------------------------------------------------------------------------------------------------


def test_spread_is_half_the_quartiles_distance_over_the_median() -> None:
    assert health.spread([100] * 10) == 0
    assert health.spread([90, 95, 100, 105, 110, 95, 105]) == pytest.approx(0.05)
    assert health.spread([1, 2, 3]) == 0


def test_stability_compares_rounds_not_runs() -> None:
    assert health.stability([[100, 100, 900], [100, 100, 100]]) == 1.0
    assert health.stability([[100, 101], [125, 126], [110]]) == pytest.approx(100.5 / 125.5)
    assert health.stability([[5]]) == health.stability([]) == 1.0


def test_ticks_are_the_kernels() -> None:
    assert health.os_ticks() == os.sysconf("SC_CLK_TCK")


# -- the kernel's files ------------------------------------------------------------------------------------------------------


def sysfs(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_thermal_zones_and_coolers_of_the_cpu_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health, "THERMAL_DIR", tmp_path)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    assert health.temperature() is None
    assert health.throttled() is None
    zones = {"battery": "61000", "cpu-1-0-usr": "48500", "BIG": "51000", "gpuss-0": "70000", "soc_thermal": "47", "cpu-broken": "-40000"}
    for number, (kind, value) in enumerate(zones.items()):
        sysfs(tmp_path / f"thermal_zone{number}", {"type": kind, "temp": value})
    assert health.temperature() == 51.0
    for number, (kind, value) in enumerate({"thermal-cpufreq-0": "0", "panel0-backlight": "7", "thermal-cpufreq-4": "0"}.items()):
        sysfs(tmp_path / f"cooling_device{number}", {"type": kind, "cur_state": value})
    assert health.throttled() is False
    sysfs(tmp_path / "cooling_device2", {"cur_state": "3"})
    assert health.throttled() is True
    assert "throttled" in health.flags([replace(CALM, throttled=True)])
    assert any("cool" in line for line in health.advice(CONDITIONS, [replace(CALM, throttled=True)]))


def test_the_clocks_that_the_kernel_allows_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health, "CPU_DIR", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert health.clock_limits() is None
    sysfs(tmp_path, {"cpu0/cpufreq/scaling_max_freq": "1804800", "cpu2/cpufreq/scaling_max_freq": "2841600"})
    assert health.clock_limits() == (1804.8, 0.0, 2841.6)
