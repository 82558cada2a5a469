"""A phone's habits from what it says: clusters of cores, heat, battery, screen, emulation; and the gate that waits for it to cool."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices import health, open_device
from devices.adb import device as phone_device
from devices.adb import state
from devices.adb.describe import biggest, clusters, parse, parse_list
from devices.adb.state import PhoneState, cooled
from devices.plan import RunPlan, Started
from tests.contracts import agent_models as models
from tests.contracts.agent_suite import SHORT, events
from tests.phone.phone import FakePhone

OCTA = "\n".join(
    f"{core} {capacity} {khz}"
    for core, capacity, khz in [(c, 325, 1804800) for c in range(4)] + [(c, 760, 2419200) for c in (4, 5, 6)] + [(7, 1024, 2841600)]
)


@pytest.mark.parametrize(
    ("threads", "allowed", "cores"),
    [
        (1, range(8), (7,)),
        (2, range(8), (6, 7)),
        (4, range(8), (4, 5, 6, 7)),
        (5, range(8), (3, 4, 5, 6, 7)),
        (2, range(4), (2, 3)),
        (1, (), (7,)),
    ],
)
def test_threads_go_to_the_biggest_cores_that_are_allowed(threads: int, allowed: range, cores: tuple[int, ...]) -> None:
    assert biggest(clusters(OCTA), threads, tuple(allowed)) == cores


def test_clusters_where_a_phone_tells_less() -> None:
    assert [c.cores for c in clusters("0 - 1800000\n1 - 1800000\n2 - 2400000")] == [(2,), (0, 1)]
    assert [c.cores for c in clusters("0 - -\n1 - -")] == [(0, 1)]
    assert clusters("") == ()
    assert biggest((), 2, ()) is None


@pytest.mark.parametrize(("text", "cores"), [("0-3,7", (0, 1, 2, 3, 7)), ("5", (5,)), ("", ()), ("0-1\n", (0, 1)), ("none", ())])
def test_lists_as_the_kernel_writes_them(text: str, cores: tuple[int, ...]) -> None:
    assert parse_list(text) == cores


@pytest.mark.parametrize(
    ("kernel", "properties", "emulated"),
    [
        ("aarch64\naarch64", "", False),
        ("aarch64", "", False),  # kernels before 6.1 do not tell
        ("x86_64\naarch64", "", True),  # qemu
        ("aarch64\narmv8l", "", False),  # 32-bit Android on a 64-bit kernel
        ("x86_64\nx86_64", "[ro.boot.qemu]: [1]\n", True),  # Android's emulator
        ("x86_64\nx86_64", "[ro.kernel.qemu]: [0]\n", False),
    ],
)
def test_emulation_gives_itself_away(kernel: str, properties: str, emulated: bool) -> None:
    assert parse(f"{properties}====cpus\n====kernel\n{kernel}\n====end\n").emulated is emulated


ANSWER = """Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=99.0, mType=0, mName=CPU0, mStatus=0}}
Current temperatures from HAL:
\tTemperature{{mValue=41.5, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=77.0, mType=1, mName=GPU0, mStatus=0}}
====zones
{zones}
====battery
  AC powered: false
  USB powered: {plugged}
  level: 64
  temperature: 305
====power
  mWakefulness=Asleep
"""


def test_a_state_in_the_phones_own_words() -> None:
    seen = state.parse(ANSWER.format(status=0, zones="52300 cpu-1-0\n61000 cpu-1-1\n90000 battery\n-40 modem", plugged="true"))
    assert seen == PhoneState(thermal_status=0, cpu_c=61.0, battery_c=30.5, battery_percent=64, plugged=True, screen_on=False)
    assert not seen.hot
    hidden = state.parse(ANSWER.format(status=2, zones="", plugged="false"))
    assert (hidden.cpu_c, hidden.plugged, hidden.hot) == (41.5, False, True), "without zones, the service's CPU tells; not its cache"
    assert state.parse("====zones\n====battery\n====power\n") == PhoneState()


@pytest.mark.parametrize(("raw", "celsius"), [("45000", 45.0), ("450", 45.0), ("45", 45.0)])
def test_vendors_count_in_different_units(raw: str, celsius: float) -> None:
    assert state.parse(f"====zones\n{raw} cpu-thermal\n====battery\n====power\n").cpu_c == celsius


def test_the_gate_waits_until_it_is_cool() -> None:
    looks = iter([PhoneState(cpu_c=90.0), PhoneState(cpu_c=80.0), PhoneState(cpu_c=60.0)])
    slept: list[float] = []
    assert cooled(lambda: next(looks), 60.0, sleep=slept.append) == (PhoneState(cpu_c=60.0), 10.0)
    assert slept == [5.0, 5.0]


def test_the_gate_gives_up_after_its_limit() -> None:
    slept: list[float] = []
    found, waited = cooled(lambda: PhoneState(thermal_status=3), 12.0, sleep=slept.append)
    assert (found.hot, waited, slept) == (True, 12.0, [5.0, 5.0, 2.0])


# -- through a real adbd -----------------------------------------------------------------------------------------------------


def test_a_hot_phone_is_waited_for(phone: FakePhone, agent_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = phone.sys / "class/thermal/thermal_zone0/temp"
    zone.write_text("88000\n")
    looks: list[PhoneState] = []
    real = state.parse

    def look(answer: str) -> PhoneState:
        looks.append(real(answer))
        if len(looks) == 3:
            zone.write_text("50000\n")
        return looks[-1]

    monkeypatch.setattr(state, "parse", look)
    monkeypatch.setattr(state, "LOOK_EVERY_S", 0.05)
    (started,) = (event for event in events(open_device(f"adb:{phone.address}"), _plan(tmp_path)) if isinstance(event, Started))
    assert [seen.cpu_c for seen in looks] == [88.0, 88.0, 88.0, 50.0]
    assert started.state.waited_s == pytest.approx(0.15)
    assert "hot" not in started.conditions.extra


def test_a_phone_that_stays_hot_is_measured_and_flagged(
    phone: FakePhone, agent_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = phone.system / "dumpsys/thermalservice"
    service.write_text(service.read_text().replace("Thermal Status: 0", "Thermal Status: 3"))
    monkeypatch.setattr(phone_device, "COOLING_LIMIT_S", 0.2)
    (started,) = (event for event in events(open_device(f"adb:{phone.address}"), _plan(tmp_path)) if isinstance(event, Started))
    assert started.state.waited_s == pytest.approx(0.2)
    assert "throttled" in health.flags([started.state])
    assert started.conditions.extra["hot"] is True


def test_a_phone_without_fixed_performance_mode(phone: FakePhone, agent_bundle: Path, tmp_path: Path) -> None:
    (phone.system / "no-fixed-performance").touch()
    (started,) = (event for event in events(open_device(f"adb:{phone.address}"), _plan(tmp_path)) if isinstance(event, Started))
    assert started.conditions.extra["fixed_performance"] is False
    assert not (phone.system / "fixed-performance").exists(), "what could not be switched on was switched off"


def _plan(path: Path) -> RunPlan:
    return RunPlan(cases=(models.plain_case(models.plain(path)),), rounds=1, **SHORT)
