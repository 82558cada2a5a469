"""The host's side of every agent, wherever it runs: it hands over the plan, listens, and judges how an agent ended.

A case that crashes the agent, hangs, or runs out of memory becomes a `Failed` event, and a new agent goes on with the rest.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from devices.base import AgentError
from devices.plan import Case, Event, Failed, FailureReason, MemoryResult, OutputsResult, RoundResult, RunPlan
from devices.protocol import decode_event

START_LIMIT_S = 120.0
"""Importing the runtime takes this long at most, on a busy machine with cold disks."""
UNBLAMED_DEATHS = 3
"""An agent that dies this often while no case is running is broken."""


class AgentProcess(Protocol):
    """A running agent."""

    def send(self, plan: RunPlan) -> None:
        """Hand over the plan, one line of `devices.protocol`; its stdin stays open. An agent that has ended already is no error."""
        ...

    def read_line(self, timeout_s: float) -> str | None:
        """The next line it wrote; None after the last.

        Raises:
            TimeoutError: it was silent for so long.
        """
        ...

    def wait(self) -> int:
        """Its exit status, negative for the signal that killed it."""
        ...

    def said(self) -> str:
        """The last that it wrote to stderr, in one line."""
        ...


Launch = Callable[[RunPlan], AbstractContextManager[AgentProcess]]
"""Starts an agent for a plan; when the block is left, it is dead, whatever it was doing."""


class Progress:
    """Which cases of a plan are over, and which rounds of the others are done."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.done = set(plan.done) if plan.purpose == "latency" else set()
        self._ended: set[str] = set()

    def note(self, event: Event) -> None:
        match event:
            case RoundResult():
                self.done.add((event.case_id, event.round))
            case MemoryResult() | OutputsResult() | Failed():
                self._ended.add(event.case_id)

    def is_over(self, case_id: str) -> bool:
        return case_id in self._ended or all((case_id, number) in self.done for number in range(self.plan.rounds))

    @property
    def left(self) -> tuple[Case, ...]:
        return tuple(case for case in self.plan.cases if not self.is_over(case.case_id))

    @property
    def steps(self) -> int:
        """How much has been achieved, to see whether there was any."""
        return len(self.done) + len(self._ended)


def supervise(progress: Progress, launch: Launch) -> Iterator[Event]:
    """Work through what is left of a plan, with as many agents as it takes; see `devices.base.Device.run`."""
    plan = progress.plan
    if plan.cases and not progress.left:
        return
    deaths = 0
    while True:
        death = yield from _process(replace(plan, cases=progress.left, done=tuple(sorted(progress.done))), progress, launch)
        if death is None:
            return
        if progress.is_over(death.case_id):
            deaths += 1
            if deaths == UNBLAMED_DEATHS:
                raise AgentError(f"the agent keeps dying between two cases: {death.detail}")
        else:
            progress.note(death)
            yield death
        if not progress.left:
            return


def _process(plan: RunPlan, progress: Progress, launch: Launch) -> Generator[Event, None, Failed | None]:
    """One agent from start to end; returns how it died and on which case, None when it has worked through the plan."""
    with launch(plan) as agent:
        agent.send(plan)
        current: str | None = None
        while True:
            limit_s = plan.timeout_s if current is not None else max(plan.timeout_s, START_LIMIT_S)
            try:
                line = agent.read_line(limit_s)
            except TimeoutError:
                if current is None:
                    raise AgentError(f"the agent did not start within {limit_s:g} s: {agent.said()}") from None
                detail = f"no sign of life for {limit_s:g} s; give it longer with a larger timeout, or measure a smaller model"
                return Failed(case_id=current, reason="timeout", detail=detail)
            if line is None:
                break
            try:
                data = json.loads(line)
                if data["event"] == "doing":
                    current = data["case_id"]
                    continue
                event = decode_event(data)
            except (ValueError, KeyError, TypeError) as error:
                raise AgentError(f"the agent wrote a line that is no event: {line[:200]!r}") from error
            progress.note(event)
            yield event
        status = agent.wait()
        if status == 0:
            if progress.left:
                raise AgentError(f"the agent ended without a word on {progress.left[0].case_id}: {agent.said()}")
            return None
        if current is None:
            raise AgentError(f"the agent did not start ({death(status, agent.said())})")
        return Failed(case_id=current, reason=_reason(status, agent.said()), detail=death(status, agent.said()))


def _reason(status: int, said: str) -> FailureReason:
    killed = hasattr(signal, "SIGKILL") and status == -signal.SIGKILL
    return "out_of_memory" if killed or any(word in said for word in ("bad_alloc", "MemoryError")) else "crashed"


def death(status: int, said: str) -> str:
    """How a process ended, in one line, with the last that it said."""
    if hasattr(signal, "SIGKILL") and status == -signal.SIGKILL:
        return "killed by SIGKILL, most likely because memory ran out"
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {said}" if said else how


def tail(errors: str) -> str:
    """The last three lines of stderr as one."""
    return " ".join(" ".join(errors.strip().splitlines()[-3:]).split())[-300:]
