"""Times of a phone's events, whatever its clock says."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from devices import open_device
from devices.adb.clock import NOTICED_S, PhoneClock
from devices.plan import Loaded, Look, MachineState, RoundResult, Started
from tests.contracts.agent_suite import events
from tests.devices.test_phone import short
from tests.phone.bundles import python_bundle
from tests.phone.phone import FakePhone

YEARS_S = 20 * 365 * 86400.0
LATE = f"""
import runpy, time
real = time.time
time.time = lambda: real() - {YEARS_S}
runpy.run_module("devices.agent", run_name="__main__")
"""


def look(at: float) -> Look:
    return Look(case_id="case", round=0, state=MachineState(time_unix_s=at))


def times(clock: PhoneClock, *events: Look) -> list[float]:
    found = []
    for event in events:
        corrected = clock.corrected(event)
        assert isinstance(corrected, Look)
        found.append(corrected.state.time_unix_s)
    return found


def test_spans_stay_the_phones_own() -> None:
    here = iter([1000.0, 1001.3, 1002.9])  # what events take to get here differs
    assert times(PhoneClock(lambda: next(here)), look(7.0), look(8.0), look(9.0)) == [1000.0, 1001.0, 1002.0]


def test_a_clock_that_is_set_in_between() -> None:
    here = iter([1000.0, 1001.0, 1002.0])
    assert times(PhoneClock(lambda: next(here)), look(7.0), look(5e8), look(5e8 + 1)) == [1000.0, 1001.0, 1002.0]


def test_a_rounds_two_looks_stay_together() -> None:
    clock = PhoneClock(lambda: 1000.0)
    before, after = MachineState(time_unix_s=7.0), MachineState(time_unix_s=7.0 + 2 * NOTICED_S)
    event = RoundResult(case_id="case", round=0, wall_ns=(1,), cpu_ns=None, before=before, after=after)
    corrected = clock.corrected(event)
    assert corrected == replace(event, before=replace(before, time_unix_s=1000.0 - 2 * NOTICED_S), after=replace(after, time_unix_s=1000.0))
    loaded = Loaded(case_id="case", load_ns=1, first_run_ns=1)
    assert clock.corrected(loaded) is loaded


def test_a_phone_whose_clock_is_years_behind(phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(python_bundle(tmp_path / "agent", script=LATE)))
    begun = time.time()
    found = events(open_device(f"adb:{phone.address}"), short(tmp_path, rounds=2))
    ended = time.time()
    states = [event.state for event in found if isinstance(event, Started)]
    states += [state for event in found if isinstance(event, RoundResult) for state in (event.before, event.after)]
    assert len(states) == 5
    told = [state.time_unix_s for state in states]
    assert told == sorted(told)
    assert begun - 1 <= told[0] <= told[-1] <= ended + 1
