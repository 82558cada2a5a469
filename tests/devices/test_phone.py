"""Plans run on a phone behind a real adbd: the agents' contract, what a phone is, and what is kept on it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devices import open_device
from devices.adb import files
from devices.adb.device import PhoneDevice
from devices.adb.errors import InUseError, WrongAbiError
from devices.adb.links import connect
from devices.adb.session import HOME, Owner, taken
from devices.adb.shell import run
from devices.base import Device
from devices.plan import RoundResult, RunPlan, Started
from tests.contracts import agent_models as models
from tests.contracts.agent_suite import SHORT, AgentSuite, events, failures, rounds
from tests.devices.c_agent import glibc_bundle
from tests.phone.bundles import python_bundle
from tests.phone.helpers import adb
from tests.phone.phone import FakePhone


class TestAgentBehindAdb(AgentSuite):
    """All that holds for an agent here holds for one on a phone."""

    program = "devices.agent"
    """In its command line."""

    @pytest.fixture(autouse=True)
    def _device(self, phone: FakePhone, agent_bundle: Path) -> Iterator[None]:
        self.phone = phone
        self.host = f"from devices import open_device; device = open_device('adb:{phone.address}')"
        yield
        assert not self.agents(), "an agent is left on the phone"

    def agents(self) -> list[psutil.Process]:
        found = []
        for pid in self.phone.processes(self.program):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def agents_of(self, host: psutil.Process) -> list[psutil.Process]:
        return self.agents()


class TestCAgentBehindAdb(TestAgentBehindAdb):
    """And for the one that phones really get."""

    program = "agent-program"

    @pytest.fixture
    def agent_bundle(self, monkeypatch: pytest.MonkeyPatch) -> Path:
        bundle = glibc_bundle("x86_64").folder
        monkeypatch.setenv("ARCHSEARCH_AGENT", str(bundle))
        return bundle


@pytest.fixture
def device(phone: FakePhone, agent_bundle: Path) -> Device:
    return open_device(f"adb:{phone.address}")


def short(path: Path, *names: str, rounds: int = 1) -> RunPlan:
    return RunPlan(cases=tuple(models.plain_case(models.plain(path), name) for name in names or ("good",)), rounds=rounds, **SHORT)


def test_through_the_adb_server(phone: FakePhone, adb_server: Path, agent_bundle: Path, tmp_path: Path) -> None:
    adb("connect", phone.address)
    found = events(open_device(f"adb:{phone.address}"), short(tmp_path, "a", "b", rounds=2))
    assert rounds(found) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert "device" in adb("devices").split("\n")[1], "the user's server still runs and still has the phone"
    assert not phone.processes("devices.agent")


def test_the_phone_says_what_it_is(device: Device, phone: FakePhone) -> None:
    info = device.info
    assert (info.device_id, info.name, info.system) == (f"adb:{phone.address}", "archsearch Test Phone", "Android 14 x86_64")
    assert (info.cpu, info.cores) == ("Test TP1", len(os.sched_getaffinity(0)))
    assert info.memory_bytes == psutil.virtual_memory().total
    assert info.runtime is not None
    assert info.runtime.startswith("onnxruntime ")
    assert (info.extra["serial"], info.extra["sdk"], info.extra["abis"]) == ("TEST0001", "34", ["x86_64"])
    fastest, slowest = info.extra["clusters"]
    assert (fastest["capacity"], slowest["capacity"]) == (1024, 325)


def test_one_phone_is_one_device_however_it_is_attached(phone: FakePhone, adb_server: Path, agent_bundle: Path) -> None:
    direct = open_device(f"adb:{phone.address}").info
    adb("connect", phone.address)
    assert open_device(f"adb:{phone.address}").info.fingerprint == direct.fingerprint


def test_threads_are_pinned_to_the_big_cores(device: Device, tmp_path: Path) -> None:
    (started,) = (event for event in device.run(short(tmp_path)) if isinstance(event, Started))
    cores = len(os.sched_getaffinity(0))
    assert started.conditions.cores == (cores - 1,)
    assert started.conditions.extra["fixed_performance"] is True
    assert (started.state.thermal_status, started.state.battery_percent, started.state.screen_on) == (0, 87, True)
    assert started.state.on_battery is False


def test_an_agent_for_another_processor(phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = python_bundle(tmp_path / "arm", abi="arm64-v8a")
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(bundle))
    with pytest.raises(WrongAbiError, match=r"there is no agent for its processor \(x86_64\): .*is for arm64-v8a: build one"):
        open_device(f"adb:{phone.address}")


# -- what is kept on a phone -------------------------------------------------------------------------------------------------


def test_agent_and_models_are_pushed_once(device: Device, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    real = files.push
    monkeypatch.setattr(
        files, "push", lambda link, source, target, **more: (pushed.append(source.name), real(link, source, target, **more))
    )
    events(device, short(tmp_path))
    assert sorted(pushed) == ["agent", "manifest.json", "plain.onnx"]
    events(device, short(tmp_path))
    assert len(pushed) == 3, "nothing is pushed twice"
    models.plain(tmp_path, width=16)  # another content under the same name
    wide = RunPlan(cases=(models.plain_case(tmp_path / "plain.onnx", width=16),), rounds=1, **SHORT)
    assert not failures(events(device, wide))
    assert pushed[3:] == ["plain.onnx"]
    assert not list((phone.root / "data/local/tmp/archsearch").glob("incoming-*"))


def test_what_arrives_damaged_is_not_used(device: Device, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"other")
    real = files.push
    monkeypatch.setattr(files, "push", lambda link, source, target, **more: real(link, other, target, **more))
    assert isinstance(device, PhoneDevice)
    device.patience_s = 0.0
    with pytest.raises(Exception, match="arrived damaged"):
        events(device, short(tmp_path / "a"))
    kept = phone.root / "data/local/tmp/archsearch"
    assert not list(kept.glob("*/*")), "what is damaged was moved into place"


def test_old_models_make_room_for_new_ones(agent_bundle: Path, lonely: None, tmp_path: Path) -> None:
    from tests.phone.helpers import phone_for_test

    with phone_for_test(data_bytes=48_000_000) as small:
        device = open_device(f"adb:{small.address}")
        kept = small.root / "data/local/tmp/archsearch/models"
        for name in ("first", "second", "third"):
            model = models.plain(tmp_path, name=name)
            model.with_name(f"{model.name}.data").write_bytes(os.urandom(20_000_000))
            found = events(device, RunPlan(cases=(models.plain_case(model),), rounds=1, **SHORT))
            assert rounds(found) == [("plain", 0)]
        assert len(list(kept.iterdir())) == 1


# -- one at a time -----------------------------------------------------------------------------------------------------------


def test_two_at_once_are_refused(device: Device, phone: FakePhone, tmp_path: Path) -> None:
    first = iter(device.run(short(tmp_path, rounds=1000)))
    while not isinstance(next(first), RoundResult):
        pass
    with pytest.raises(InUseError, match=rf"another archsearch measures on it \(.*process {os.getpid()}\).*wait for it"):
        events(open_device(f"adb:{phone.address}"), short(tmp_path))
    assert isinstance(next(first), RoundResult), "the first goes on undisturbed"
    first.close()  # type: ignore[attr-defined]
    assert rounds(events(device, short(tmp_path))) == [("good", 0)]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (f"{platform.node()}, process {os.getpid()} 00000000", True),  # a session of ours that is over
        (f"{platform.node()}, process 4194305 00000000", True),  # beyond Linux's highest process number
        (f"{platform.node()}, process 1 00000000", False),
        ("another-host, process 4194305 00000000", False),
    ],
)
def test_who_has_ended(text: str, gone: bool) -> None:
    owner = Owner.parse(text)
    assert owner is not None
    assert owner.gone is gone
    assert Owner.parse(owner.line) == owner
    assert Owner.parse("unknown") is None


def test_what_an_earlier_run_left_running_is_ended(device: Device, phone: FakePhone, tmp_path: Path) -> None:
    events(device, short(tmp_path))
    link = connect(f"adb:{phone.address}")
    run(link, f"cd {HOME}/bundles/* && (trap '' HUP; exec sleep 4242 >/dev/null 2>&1 </dev/null) & sleep 0.1")
    assert phone.processes("sleep 4242")
    with taken(link):
        assert not phone.processes("sleep 4242")
    link.close()
