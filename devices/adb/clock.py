"""A phone's clock may be years off, and may be set while something is measured: times of its events are told by this machine's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from devices.plan import Event, LimitResult, Look, MachineState, RoundResult, Started

NOTICED_S = 60.0
"""What an event may take from the phone to here; beyond it, somebody has set one of the two clocks."""


class PhoneClock:
    """How far a phone's clock is from this machine's: learnt from its first event, and anew when one of the two is set.

    Spans between two looks stay the phone's own to the microsecond, as long as nobody sets its clock.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._off_s: float | None = None

    def corrected(self, event: Event) -> Event:
        """The event as it came, its states' times by this machine's clock."""
        match event:
            case Started() | Look():
                return replace(event, state=self._state(event.state))
            case RoundResult() | LimitResult():
                after = self._state(event.after)  # the later look tells what time it is now
                before = replace(event.before, time_unix_s=event.before.time_unix_s + (after.time_unix_s - event.after.time_unix_s))
                return replace(event, before=before, after=after)
            case _:
                return event

    def _state(self, state: MachineState) -> MachineState:
        off_s = self._now() - state.time_unix_s
        if self._off_s is None or abs(off_s - self._off_s) > NOTICED_S:
            self._off_s = off_s
        return replace(state, time_unix_s=state.time_unix_s + self._off_s)
