"""Several devices in one profile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Outcome

from archsearch import run as stages
from archsearch.errors import InputError, RunError
from archsearch.fleet import profile_all
from archsearch.report.files import RunFiles
from archsearch.report.measured import advice, failures, series
from archsearch.space import Space
from archsearch.store import Store
from devices import DeviceError
from devices.base import Device, DeviceInfo
from devices.plan import Event, Failed, MachineState, RoundResult, RunPlan
from tests.archsearch.fake_device import FakeDevice
from tests.archsearch.spaces import MEASURED, MEMORY, small
from tests.phone.helpers import phone_for_test
from tests.phone.phone import FakePhone


class Named(FakeDevice):
    """A fake device with a name and a fingerprint of its own; meets the others at a barrier when one is given."""

    def __init__(self, device_id: str, barrier: threading.Barrier | None = None, dies_after: int | None = None) -> None:
        super().__init__()
        self._id, self._barrier, self._left = device_id, barrier, dies_after

    @property
    def info(self) -> DeviceInfo:
        return replace(super().info, device_id=self._id, fingerprint=f"fp-{self._id}", memory_bytes=8 * 2**30)

    def run(self, plan: RunPlan) -> Iterator[Event]:
        for event in super().run(plan):
            if isinstance(event, RoundResult):
                if self._barrier is not None:
                    self._barrier.wait(timeout=30)
                if self._left is not None:
                    self._left -= 1
                    if self._left < 0:
                        raise DeviceError(f"{self._id}: the connection broke: replug it")
            yield event


def done(run_dir: Path, device_id: str) -> tuple[int, int]:
    """Measurements of a device that are done, and all of them."""
    with Store(run_dir / "measurements.db") as store:
        rows = store.rows(fingerprint=f"fp-{device_id}")
    return sum(row.status == "done" for row in rows), len(rows)


def test_phones_are_measured_side_by_side(tmp_path: Path) -> None:
    # Each round of one waits for a round of the other: one after the other, neither would ever end.
    barrier = threading.Barrier(2)
    devices: dict[str, Device] = {name: Named(name, barrier) for name in ("adb:A", "adb:B")}
    events = list(profile_all(Space.from_dict(small()), tmp_path, devices))
    assert {name for name, _ in events} == {"adb:A", "adb:B"}
    for name in devices:
        complete, total = done(tmp_path, name)
        assert complete == total == MEASURED + MEMORY
        assert [event.stage for device, event in events if device == name][-1] == "finished"


def test_this_machine_is_measured_alone(tmp_path: Path) -> None:
    devices: dict[str, Device] = {name: Named(name) for name in ("adb:A", "local")}
    order = [name for name, event in profile_all(Space.from_dict(small()), tmp_path, devices)]
    assert order == sorted(order, reverse=True), "the phone began before this machine was done"


def test_a_phone_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    devices: dict[str, Device] = {"adb:A": Named("adb:A", dies_after=3), "adb:B": Named("adb:B")}
    with pytest.raises(DeviceError, match="adb:A: the connection broke"):
        list(profile_all(Space.from_dict(small()), tmp_path, devices))
    assert done(tmp_path, "adb:B") == (MEASURED + MEMORY, MEASURED + MEMORY)
    assert 0 < done(tmp_path, "adb:A")[0] < MEASURED + MEMORY
    list(profile_all(Space.from_dict(small()), tmp_path, {name: Named(name) for name in devices}))
    assert done(tmp_path, "adb:A") == (MEASURED + MEMORY, MEASURED + MEMORY)
    with pytest.raises(RunError, match=r"adb:C: .*; adb:D: |adb:D: .*; adb:C: "):
        list(profile_all(Space.from_dict(small()), tmp_path, {name: Named(name, dies_after=0) for name in ("adb:C", "adb:D")}))


def test_one_device_under_two_names_is_refused(tmp_path: Path) -> None:
    devices: dict[str, Device] = {"adb:A": Named("adb:A"), "adb:A:5555": Named("adb:A")}
    with pytest.raises(InputError, match=r"adb:A and adb:A:5555 are the same device .*: name it once"):
        next(profile_all(Space.from_dict(small()), tmp_path, devices))


def test_leaving_ends_the_workers(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    devices: dict[str, Device] = {name: Named(name) for name in ("adb:A", "adb:B")}
    events = profile_all(Space.from_dict(small()), tmp_path, devices)
    for _, event in events:
        if event.stage == "latency":
            break
    assert set(threading.enumerate()) > before
    events.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before
    assert done(tmp_path, "adb:A")[0] + done(tmp_path, "adb:B")[0] < 38


def test_run_measures_phones_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = tmp_path / "space.toml"
    space.write_text(TOML)
    barrier = threading.Barrier(2)
    monkeypatch.setattr(stages, "open_device", lambda name: Named(name, barrier))
    measured: list[str] = []
    events = stages.run(space, tmp_path / "run", ["adb:A", "adb:B"], outcome=stages.RunOutcome())
    for event in events:
        if event.stage == "search":
            break
        if event.event is not None:
            measured.append(event.device)
    events.close()  # type: ignore[attr-defined]
    assert set(measured) == {"adb:A", "adb:B"}
    for name in set(measured):
        complete, total = done(tmp_path / "run", name)
        assert complete == total > 0


@pytest.mark.slow
def test_two_real_adbds_in_one_command(phone: FakePhone, agent_bundle: Path, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    space = tmp_path / "space.toml"
    space.write_text(TOML)
    one = f"adb:{phone.address}"
    with phone_for_test(serial="TEST0002") as other:
        two = f"adb:{other.address}"
        out = call("profile", space, "--run", tmp_path / "run", "--device", one, "--device", two)
        assert out.status == 0, out.err
        assert f"{one}: ms a block" in out.out
        assert f"{two}: ms a block" in out.out
        twice = call("profile", space, "--run", tmp_path / "run", "--device", one, "--device", one.replace("127.0.0.1", "localhost"))
        assert twice.status == 2
        assert "are the same device (archsearch Test Phone): name it once" in twice.err
    gone = call("profile", space, "--run", tmp_path / "run", "--device", one, "--device", two)
    assert gone.status == 2
    assert f"{two} is not attached" in gone.err


class Clocked(Named):
    """Its cores run at a clock of its own, and it is never disturbed."""

    def __init__(self, name: str, mhz: float, *, then_mhz: float | None = None) -> None:
        super().__init__(name)
        self.mhz, self.then_mhz = mhz, then_mhz or mhz

    def run(self, plan: RunPlan) -> Iterator[Event]:
        at = 1_700_000_000.0
        for event in super().run(plan):
            if isinstance(event, RoundResult):
                mhz = self.mhz if event.round == 0 else self.then_mhz
                states = [MachineState(time_unix_s=at + i, clock_mhz=(mhz,), steal_ticks=int(self.mhz)) for i in range(2)]
                event, at = replace(event, before=states[0], after=states[1]), at + 2
            yield event


def test_two_devices_are_not_taken_for_one_whose_clock_fell(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(TOML)
    devices: dict[str, Device] = {"local": Clocked("local", 4000.0), "adb:A": Clocked("adb:A", 2000.0)}
    list(profile_all(Space.read(tmp_path / "space.toml"), tmp_path, devices))
    assert advice(RunFiles(tmp_path)) == ()
    slowing = Clocked("adb:B", 2000.0, then_mhz=1000.0)
    list(profile_all(Space.read(tmp_path / "space.toml"), tmp_path, {"adb:B": slowing}))
    assert [line.partition(" fell")[0] for line in advice(RunFiles(tmp_path)) if "fell" in line] == ["adb:B: The clock"]


def test_a_failure_says_on_which_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]) -> None:
    (tmp_path / "space.toml").write_text(TOML)
    devices: dict[str, Named] = {"adb:A": Named("adb:A"), "adb:B": Named("adb:B")}
    list(profile_all(Space.read(tmp_path / "space.toml"), tmp_path, devices))
    with Store(tmp_path / "measurements.db") as store:
        row = next(row for row in store.rows(fingerprint="fp-adb:B") if row.subject["kind"] == "block" and row.purpose == "latency")
        store.add_failure(row.key, Failed(case_id=row.key, reason="crashed", detail="killed"))
    assert [failure.label for failure in failures(RunFiles(tmp_path))] == ["adb:B: conv3/96"]
    monkeypatch.setattr("devices.open_device", devices.__getitem__)
    monkeypatch.setattr("archsearch.run.keep_limits", lambda *_: None)
    out = call("profile", tmp_path / "space.toml", "--run", tmp_path, "--device", "adb:A", "--device", "adb:B", "--json")
    assert [(failure["device"], failure["label"]) for failure in out.document["failed"]] == [("adb:B", "conv3/96")]


class Heating(Clocked):
    """Begins cool; the last look of every round finds its CPU at 95 degrees."""

    def run(self, plan: RunPlan) -> Iterator[Event]:
        for event in super().run(plan):
            yield replace(event, after=replace(event.after, temperature_c=95.0)) if isinstance(event, RoundResult) else event


def test_a_phone_that_becomes_hot_is_flagged(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(TOML)
    devices: dict[str, Device] = {"adb:A": Heating("adb:A", 2000.0), "adb:B": Clocked("adb:B", 2000.0)}
    list(profile_all(Space.read(tmp_path / "space.toml"), tmp_path, devices))
    assert {(row.device, row.flags) for row in series(RunFiles(tmp_path))} == {("adb:A", ("hot meanwhile",)), ("adb:B", ())}


@pytest.mark.slow
def test_every_stage_on_two_phones(phone: FakePhone, agent_bundle: Path, texts: Path, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    space = tmp_path / "space.toml"
    space.write_text(TOML + STAGES.format(texts=texts))
    one = f"adb:{phone.address}"
    with phone_for_test(serial="TEST0002") as other:
        two = f"adb:{other.address}"
        out = call("run", space, "--run", tmp_path / "run", "--device", one, "--device", two, "--json")
        assert out.status == 0, out.err
    assert out.document["bench"]["device"] == one
    assert all(row["measured_ms"] > 0 for row in out.document["bench"]["workloads"])
    benched = {json.loads(path.read_text())["device"] for path in (tmp_path / "run" / "bench").glob("trained_model-*.json")}
    assert benched == {one, two}
    page = (tmp_path / "run" / "report.html").read_text()
    assert one in page
    assert two in page
    assert "thermal status none" in page
    assert "plugged in, 87 %" in page
    assert f"{one} and {two}" in page
    again = " ".join(page.partition("How to come by these numbers again")[2].split())
    assert f"--device {one}" in again
    assert f"--device {two}" in again
    shared = json.loads((tmp_path / "run" / "search.json").read_text())["shared"]
    assert set(shared) == {one, two}
    assert "One layout for all devices" in page


STAGES = """
[search]
trials = 1
recall_steps = 5
text_steps = 3

[train]
tokens = 6000
data = ["{texts}"]
"""
TOML = """
[model]
name = "small"
hidden_size = 64
vocab_size = 512
layers = 2

[[operators]]
kind = "short_conv"
kernel_size = 3

[ffn]
intermediate_size = 96

[workloads]
prefill = [16]
decode = [32]

[measure]
precision = "fp32"
passes = 1
max_passes = 1
rounds = 2
min_time_ms = 10
"""
