"""Profiles of a phone, behind a real adbd, through everything that happens to phones.

After each fault: what was measured is kept bit by bit and the profile resumes (`resumed`, or the same in place), no agent is left on the
phone (the `device` fixture looks), and the error, where there is one, names the device and the way out.

| fault | test |
|---|---|
| cable pulled during a push | test_the_cable_is_pulled_during_a_push |
| cable pulled during a run | test_the_cable_is_pulled_during_a_run, test_a_loose_cable_is_waited_for |
| cable pulled during a pull | the same: results stream while they are measured, and nothing is pulled |
| agent killed | test_the_agent_dies |
| agent hangs | test_the_agent_hangs, test_a_hung_agent_and_a_pulled_cable |
| phone out of space | test_the_phone_is_full, test_the_phone_fills_up_during_a_push |
| phone reboots (adbd restarts) | test_the_phone_restarts |
| adbd restarts, the phone does not | test_adbd_alone_restarts |
| slow link, silent link | test_a_slow_cable (no error: it takes its time), test_a_connection_that_says_nothing_any_more, \
test_a_connection_that_the_phone_goes_on_waiting_for |
| wrong key | test_the_wrong_key |
| two clients at once | test_two_clients_at_once |
| the same phone listed twice | test_the_same_phone_listed_twice |
| this program ends | test_this_program_ends |
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archsearch.errors import InputError
from archsearch.fleet import profile_all
from archsearch.profile import ProfileEvent, profile
from archsearch.space import Space
from archsearch.store import Store
from devices import DeviceError, open_device
from devices.adb import direct
from devices.adb.device import PhoneDevice
from devices.adb.errors import InUseError, LinkLostError, PhoneFullError, UnauthorizedError
from devices.adb.links import connect
from devices.adb.session import taken
from tests.archsearch.spaces import small
from tests.phone.phone import FakePhone

TINY = small(
    operators=[{"kind": "short_conv", "kernel_size": 3}],
    workloads={"prefill": [16], "decode": [32]},
    measure={"precision": "fp32", "passes": 1, "max_passes": 1, "rounds": 3, "min_time_ms": 30, "timeout_s": 30},
)
LATENCY, MEMORY = 6, 6
"""What TINY's profile consists of: in prefill a chain and the head, in decode three and the head; memory of two chains and the head."""


@pytest.fixture
def device(phone: FakePhone, agent_bundle: Path) -> Iterator[PhoneDevice]:
    """A phone that is not waited for, so that a test sees the error."""
    found = open_device(f"adb:{phone.address}")
    assert isinstance(found, PhoneDevice)
    found.patience_s = 0.0
    yield found
    assert nothing_runs(phone)


def nothing_runs(phone: FakePhone) -> bool:
    """Whether agent and guard are gone within a while."""
    deadline = time.monotonic() + 15
    while phone.processes("devices.agent") or phone.processes("set-fixed-performance"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def samples(run_dir: Path) -> dict[tuple[str, int], bytes]:
    """All rounds of a run, with their raw samples."""
    with Store(run_dir / "measurements.db") as store:
        return {(row.key, number): wall.tobytes() for row in store.rows() for number, wall in row.rounds.items()}


def complete(run_dir: Path) -> bool:
    with Store(run_dir / "measurements.db") as store:
        rows = store.rows()
    return len(rows) == LATENCY + MEMORY and all(row.status == "done" for row in rows)


def until(events: Iterator[ProfileEvent], stage: str, count: int = 1) -> None:
    """Go on until the stage's `count`th event."""
    for event in events:
        count -= event.stage == stage
        if count == 0:
            return


def resumed(run_dir: Path, device: Any) -> None:
    """Run the profile again to its end; what was there stays bit by bit."""
    before = samples(run_dir)
    list(profile(Space.from_dict(TINY), run_dir, device))
    after = samples(run_dir)
    assert {key: after[key] for key in before} == before
    assert complete(run_dir)


# -- cables ------------------------------------------------------------------------------------------------------------------


def test_the_cable_is_pulled_during_a_push(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "export", 1)
    phone.relay(cut_after=100_000)
    with pytest.raises(LinkLostError, match=rf"^adb:{phone.address}: the connection broke .*: replug it.*run the same command again"):
        list(events)
    kept = phone.root / "data/local/tmp/archsearch"
    assert not list(kept.glob("models/*")), "half a model was moved into place"
    phone.plug()
    resumed(tmp_path, device)
    assert not list(kept.glob("incoming-*")), "half a model was left behind"


@pytest.mark.slow
def test_the_cable_is_pulled_during_a_run(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "latency", 3)
    phone.unplug()
    with pytest.raises(LinkLostError, match=rf"^{device.device_id}: .*replug it.*what was measured is kept"):
        list(events)
    assert len(samples(tmp_path)) >= 3
    assert nothing_runs(phone)
    with pytest.raises(DeviceError, match="replug"):
        open_device(device.device_id)
    phone.plug()
    resumed(tmp_path, device)


@pytest.mark.slow
def test_a_loose_cable_is_waited_for(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    device.patience_s = 30.0
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "latency", 3)
    before = samples(tmp_path)
    phone.unplug()
    timer = threading.Timer(1.0, phone.plug)
    timer.start()
    list(events)
    timer.join()
    assert complete(tmp_path)
    assert before.items() <= samples(tmp_path).items()


@pytest.mark.slow
def test_a_slow_cable(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    phone.relay(bytes_per_s=1_000_000)
    resumed(tmp_path, device)


@pytest.mark.slow
def test_a_connection_that_says_nothing_any_more(
    phone: FakePhone, device: PhoneDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "PACKET_LIMIT_S", 3.0)
    # A phone out of the wireless network's reach: no end of the connection is ever seen.
    space = Space.from_dict(TINY | {"measure": TINY["measure"] | {"timeout_s": 3}})
    events = profile(space, tmp_path, device)
    until(events, "latency", 2)
    phone.relay(frozen=True)
    with pytest.raises(LinkLostError, match=rf"^{device.device_id}: .*no answer for 3 s.*replug it"):
        list(events)
    phone.unplug()
    phone.relay(frozen=False, plugged=True)
    before = samples(tmp_path)
    list(profile(space, tmp_path, device))
    assert complete(tmp_path), "the silence was held against a model"
    assert before.items() <= samples(tmp_path).items()


def test_a_connection_that_the_phone_goes_on_waiting_for(
    phone: FakePhone, device: PhoneDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Out of the wireless network's reach and back: the phone still holds the old connection, with our guard and our agent.
    monkeypatch.setattr(direct, "PACKET_LIMIT_S", 3.0)
    space = Space.from_dict(TINY | {"measure": TINY["measure"] | {"timeout_s": 3, "min_time_ms": 2000}})
    events = profile(space, tmp_path, device)
    until(events, "latency", 1)
    (agent,) = phone.processes("devices.agent")
    phone.relay(reach=1)
    with pytest.raises(LinkLostError, match=rf"^{device.device_id}: .*no answer for 3 s.*replug it"):
        list(events)
    assert phone.processes("devices.agent") == [agent], "the phone has noticed"
    link = connect(device.device_id)
    with taken(link):
        assert agent not in phone.processes()
    link.close()
    resumed(tmp_path, device)


# -- the phone ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("waits", [True, False], ids=["waited for", "resumed"])
def test_the_phone_restarts(phone: FakePhone, device: PhoneDevice, tmp_path: Path, waits: bool) -> None:
    device.patience_s = 30.0 if waits else 0.0
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "latency", 3)
    restart = threading.Thread(target=phone.reboot, args=(0.5,))
    restart.start()
    if waits:
        list(events)
    else:
        with pytest.raises(LinkLostError, match=rf"^{device.device_id}: .*replug it"):
            list(events)
        restart.join()
        resumed(tmp_path, device)
    restart.join()
    assert complete(tmp_path)


def test_adbd_alone_restarts(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    # Nobody hangs up on what it had started then: the guard sees the end of its input, and ends the agent, even a stopped one.
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "latency", 3)
    (agent,) = phone.processes("devices.agent")
    os.kill(agent, signal.SIGSTOP)
    phone.restart_adbd()
    with pytest.raises(LinkLostError, match=rf"^{device.device_id}: .*replug it"):
        list(events)
    assert nothing_runs(phone)
    assert agent not in phone.processes()
    assert (phone.system / "fixed-performance").read_text().split()[-1] == "false"
    resumed(tmp_path, device)


def test_the_phone_is_full(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    place = phone.root / "data/local/tmp"
    ballast = place / "holiday.mp4"
    with ballast.open("wb") as file:
        stat = os.statvfs(place)
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - 1_000_000)
    with pytest.raises(PhoneFullError, match=rf"^adb:{phone.address}: no space left .* are needed and \d MB are free; free some there"):
        list(profile(Space.from_dict(TINY), tmp_path, device))
    assert not list((place / "archsearch").glob("incoming-*"))
    ballast.unlink()
    resumed(tmp_path, device)


def test_the_phone_fills_up_during_a_push(phone: FakePhone, device: PhoneDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from devices.adb import files

    place = phone.root / "data/local/tmp"
    ballast = place / "holiday.mp4"
    with ballast.open("wb") as file:
        stat = os.statvfs(place)
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - 65536)
    monkeypatch.setattr(files, "free_bytes", lambda link: None)  # a phone that does not say
    with pytest.raises(PhoneFullError, match=rf"^{device.device_id}: no space left .*free some there"):
        list(profile(Space.from_dict(TINY), tmp_path, device))
    ballast.unlink()
    resumed(tmp_path, device)


def test_the_wrong_key(phone: FakePhone, device: PhoneDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adb_shell.auth.keygen import keygen

    from tests.devices.test_phone_link import public_pem

    keys = tmp_path / ".android"
    keys.mkdir()
    keygen(str(keys / "adbkey"))
    keygen(str(tmp_path / "other"))
    monkeypatch.setenv("HOME", str(tmp_path))
    events = profile(Space.from_dict(TINY), tmp_path / "run", device)
    until(events, "latency", 2)
    phone.relay(public_key=public_pem(tmp_path / "other"), plugged=False)
    phone.plug()
    device.patience_s = 5.0
    with pytest.raises(UnauthorizedError, match=rf"^{device.device_id}: .*accept the USB debugging question"):
        list(events)
    phone.relay(public_key=public_pem(keys / "adbkey"))
    resumed(tmp_path / "run", device)


# -- the agent ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV], ids=lambda how: how.name)
def test_the_agent_dies(phone: FakePhone, device: PhoneDevice, tmp_path: Path, how: signal.Signals) -> None:
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "latency", 3)
    (agent,) = phone.processes("devices.agent")
    os.kill(agent, how)
    failures = [event.failed for event in events if event.failed]
    assert len(failures) == 1
    assert how.name in failures[0]
    before = samples(tmp_path)
    list(profile(Space.from_dict(TINY), tmp_path, device, retry_failed=True))
    assert complete(tmp_path)
    assert before.items() <= samples(tmp_path).items()


def test_the_agent_hangs(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    space = Space.from_dict(TINY | {"measure": TINY["measure"] | {"timeout_s": 3}})
    events = profile(space, tmp_path, device)
    until(events, "latency", 3)
    before = samples(tmp_path)
    (agent,) = phone.processes("devices.agent")
    os.kill(agent, signal.SIGSTOP)
    failures = [event.failed for event in events if event.failed]
    assert len(failures) == 1, "one case hung, the others are measured"
    assert "no sign of life for 3 s" in failures[0]
    assert "larger timeout" in failures[0]
    assert agent not in phone.processes()
    list(profile(space, tmp_path, device, retry_failed=True))
    assert complete(tmp_path)
    assert before.items() <= samples(tmp_path).items()


def test_a_hung_agent_and_a_pulled_cable(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    # adbd's hanging up does not end a process that is stopped: the guard on the phone has to.
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "latency", 3)
    (agent,) = phone.processes("devices.agent")
    os.kill(agent, signal.SIGSTOP)
    phone.unplug()
    with pytest.raises(LinkLostError):
        list(events)
    assert nothing_runs(phone), "the guard has ended it: nobody had to come again"
    assert agent not in phone.processes()
    phone.plug()
    resumed(tmp_path, device)


# -- others ------------------------------------------------------------------------------------------------------------------


def test_two_clients_at_once(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    space = Space.from_dict(TINY)
    first = profile(space, tmp_path / "first", device)
    until(first, "latency", 3)
    (agent,) = phone.processes("devices.agent")
    with pytest.raises(InUseError, match=rf"^{device.device_id}: another archsearch measures on it .*wait for it, or stop it"):
        list(profile(space, tmp_path / "second", open_device(device.device_id)))
    assert phone.processes("devices.agent") == [agent], "the second one ended the agent of the first"
    list(first)
    assert complete(tmp_path / "first")
    resumed(tmp_path / "second", device)


def test_the_same_phone_listed_twice(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    space = Space.from_dict(TINY)
    events = profile_all(space, tmp_path, {device.device_id: device})
    until((event for _, event in events), "latency", 3)
    events.close()  # type: ignore[attr-defined]
    other = device.device_id.replace("127.0.0.1", "localhost")
    both = {device.device_id: device, other: open_device(other)}
    with pytest.raises(InputError, match=rf"{device.device_id} and {other} are the same device .*: name it once"):
        list(profile_all(space, tmp_path, both))
    assert samples(tmp_path)
    resumed(tmp_path, device)


# -- this machine ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_this_program_ends(phone: FakePhone, device: PhoneDevice, tmp_path: Path, how: signal.Signals) -> None:
    script = f"""
import signal
from pathlib import Path
from archsearch.profile import profile
from archsearch.space import Space
from devices import open_device
signal.signal(signal.SIGINT, signal.default_int_handler)
for event in profile(Space.from_dict({TINY!r}), Path({str(tmp_path)!r}), open_device({device.device_id!r})):
    if event.stage == "latency":
        print("measured", flush=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert host.stdout is not None
    with host.stdout:
        assert host.stdout.readline() == "measured\n"
        host.send_signal(how)
        host.wait(timeout=60)
    assert nothing_runs(phone)
    modes = (phone.system / "fixed-performance").read_text().split()
    assert modes[-1] == "false", "the phone stays in fixed-performance mode"
    assert modes.count("true") == modes.count("false")
    resumed(tmp_path, device)


def test_the_mode_is_restored_when_the_cable_is_pulled(phone: FakePhone, device: PhoneDevice, tmp_path: Path) -> None:
    events = profile(Space.from_dict(TINY), tmp_path, device)
    until(events, "latency", 2)
    assert (phone.system / "fixed-performance").read_text().split()[-1] == "true"
    phone.unplug()
    with pytest.raises(LinkLostError):
        list(events)
    assert nothing_runs(phone)
    assert (phone.system / "fixed-performance").read_text().split()[-1] == "false"
