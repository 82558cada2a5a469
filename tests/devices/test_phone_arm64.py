"""An aarch64 phone under qemu: its own adbd, mksh and toybox, and the agent in C with its own C library. No time means anything here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices import open_device
from devices.adb import session
from devices.adb.errors import InUseError, WrongAbiError
from devices.adb.links import connect
from devices.adb.session import HOME, Owner, taken
from devices.adb.shell import run
from devices.bundle import BundleError
from devices.plan import OutputsResult, RunPlan, Started
from tests.contracts import agent_models as models
from tests.contracts.agent_suite import SHORT, events, failures, rounds
from tests.phone.helpers import phone_for_test
from tests.phone.phone import FakePhone


@pytest.fixture(scope="module")
def arm64() -> Iterator[FakePhone]:
    with phone_for_test("arm64", serial="ARM0001") as phone:
        yield phone


@pytest.fixture
def device_id(arm64: FakePhone, lonely: None) -> str:
    return f"adb:{arm64.address}"


def test_its_own_shell_speaks_the_protocol(device_id: str) -> None:
    link = connect(device_id)
    done = run(link, "uname -m; echo err >&2; exit 7", timeout_s=60)
    assert (done.status, done.stdout, done.stderr) == (7, "aarch64\n", "err\n")
    assert run(link, "kill -9 $$").status == 128 + 9
    link.close()


def test_mksh_and_toybox_hold_the_lock_and_let_it_go(device_id: str, arm64: FakePhone) -> None:
    # mksh hides the files it has opened from the programs it starts, flock among them.
    one, two = connect(device_id), connect(device_id)
    with taken(one) as ours:
        assert ours.fixed_performance
        with pytest.raises(InUseError, match="another archsearch measures on it"), taken(two):
            pass
    with taken(two):
        pass
    modes = (arm64.system / "fixed-performance").read_text().split()
    assert modes == ["true", "false"] * 2
    one.close()
    two.close()


LEFT = f"{{ mkdir -p {HOME}/bundles/x && cd {HOME}/bundles/x && trap '' HUP && exec sleep 4242; }} >/dev/null 2>&1 </dev/null & true"
"""What adbd's hanging up does not end."""


def wait_for(true: Callable[[], bool]) -> None:
    """Under qemu a program takes a while to begin, and to end."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.1)


def test_mksh_and_toybox_end_what_is_left_when_they_are_hung_up_on(device_id: str, arm64: FakePhone) -> None:
    link = connect(device_id)
    guard, _ = session._guarded(link, Owner.new())
    run(link, LEFT)
    wait_for(lambda: bool(arm64.processes("sleep 4242")))
    guard.close()
    wait_for(lambda: not arm64.processes("sleep 4242"))
    link.close()


def test_mksh_and_toybox_hand_over_what_a_program_that_has_ended_holds(device_id: str, arm64: FakePhone) -> None:
    one, two = connect(device_id), connect(device_id)
    session._guarded(one, Owner.new())  # of no session that this process knows
    run(one, LEFT)
    wait_for(lambda: bool(arm64.processes("sleep 4242")))
    with taken(two):
        assert not arm64.processes("sleep 4242")
    one.close()
    two.close()


def test_an_agent_for_another_processor_is_refused(device_id: str, agent_bundle: Path) -> None:
    with pytest.raises(WrongAbiError, match=r"no agent for its processor \(arm64-v8a\)"):
        open_device(device_id)


@pytest.mark.slow
def test_the_agent_in_c_measures(
    device_id: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from devices.build import build, cache_folder
    from devices.recipes import glibc_recipe

    try:
        bundle = build(glibc_recipe("arm64-v8a", cache_folder()), cache=tmp_path_factory.mktemp("agents"))
    except BundleError as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(bundle.folder))
    device = open_device(device_id)
    assert device.info.extra["emulated"] is True
    assert device.info.system == "Android 14 arm64-v8a (emulated)"
    case = models.recurrent_case(models.recurrent(tmp_path), "state", shared=False)
    found = events(device, RunPlan(cases=(case,), rounds=2, **SHORT))
    (started,) = (event for event in found if isinstance(event, Started))
    assert started.conditions.extra["emulated"] is True
    assert started.conditions.agent.startswith("c-")
    assert not failures(found)
    assert rounds(found) == [("state", 0), ("state", 1)]
    # Additions and halvings are exact: another processor must compute the very same bits.
    (outputs,) = (
        event for event in events(device, RunPlan(cases=(case,), purpose="outputs", min_runs=3)) if isinstance(event, OutputsResult)
    )
    assert outputs.sha256 == models.expected(case, 3, seed=0)
