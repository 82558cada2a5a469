"""A phone as a device: it gets the agent and the models once, and runs plans as this machine does."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from devices.adb import describe, state
from devices.adb.clock import PhoneClock
from devices.adb.errors import LinkLostError, NotAttachedError, OfflineError, WrongAbiError
from devices.adb.files import Folder, bring, bundle_folder, model_files, model_folder
from devices.adb.links import connect
from devices.adb.session import Session, taken
from devices.adb.shell import ShellProcess, check, run, running
from devices.adb.stream import Link
from devices.base import AgentError, DeviceInfo
from devices.bundle import ENTRY, Bundle, BundleError
from devices.host import Progress, supervise, tail
from devices.local import QUIET, allocator
from devices.plan import Case, Event, Failed, RunPlan, Started
from devices.protocol import encode_plan

log = logging.getLogger(__name__)
PATIENCE_S = 60.0
"""How long a phone that vanished during a run may take to come back (a loose cable, a restart of adbd) before the run ends."""
LOSSES = 3
"""Connections lost in a row without any progress before the run ends."""
COOLING_LIMIT_S = 180.0
KILL_LIMIT_S = 10.0
FindBundle = Callable[[tuple[str, ...]], Bundle]
"""The bundle for one of these ABIs, the phone's best first; raises BundleError, with a way out, when there is none."""


class PhoneDevice:
    """A phone behind adb. Nothing is done to it before it is asked something.

    Args:
        device_id: "adb:SERIAL" or "adb:HOST:PORT".
        find_bundle: where agents come from.
        patience_s: how long to wait for a phone that has vanished during a run.

    Raises:
        NotAttachedError, DeviceBusyError: it cannot be reached; says what to do.
        WrongAbiError: there is no agent for it.
    """

    def __init__(self, device_id: str, find_bundle: FindBundle, *, patience_s: float = PATIENCE_S) -> None:
        self.device_id, self.patience_s = device_id, patience_s
        link = connect(device_id)
        try:
            self.description = describe.parse(run(link, describe.QUESTION).stdout)
        finally:
            link.close()
        try:
            self.bundle = find_bundle(self.description.abis)
        except BundleError as error:
            raise WrongAbiError(device_id, ", ".join(self.description.abis), str(error)) from error
        self._info = describe.device_info(device_id, self.description, runtime=self.bundle.runtime, problem=None)

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def run(self, plan: RunPlan) -> Iterator[Event]:
        """Run a plan; see `devices.base.Device.run`. A phone that vanishes is waited for, and the plan gone on with.

        Raises:
            DeviceBusyError, PhoneFullError: what stands in the way, and what to do.
            LinkLostError: it vanished and did not come back.
        """
        progress = Progress(self._pinned(plan))
        losses = 0
        while True:
            before = progress.steps
            try:
                yield from self._attempt(progress)
                return
            except LinkLostError as error:
                losses = 1 if progress.steps > before else losses + 1
                if losses >= LOSSES or not self._comes_back(error):
                    raise

    def _attempt(self, progress: Progress) -> Iterator[Event]:
        with contextlib.ExitStack() as stack:
            link = connect(self.device_id)
            stack.callback(link.close)
            session = stack.enter_context(taken(link))
            agent = bundle_folder(self.bundle)
            models: dict[Path, Folder] = {}
            for case in progress.left:
                if failed := self._refused(case):
                    progress.note(failed)
                    yield failed
                elif case.model not in models:
                    models[case.model] = model_folder(case.model)
            bring(link, [agent, *models.values()])
            remote = {path: Path(models[path].target) / path.name for path in models}
            clock = PhoneClock()
            for event in supervise(progress, lambda plan: self._launched(session, agent, plan, remote)):
                yield self._with_habits(clock.corrected(event), session)

    def _refused(self, case: Case) -> Failed | None:
        """What need not be pushed to know that it fails."""
        if not case.model.is_file():
            return Failed(case_id=case.case_id, reason="load_failed", detail=f"{case.model}: no such file")
        size, memory = sum(path.stat().st_size for path in model_files(case.model)), self.description.memory_bytes
        if memory and size > memory:
            detail = f"the model alone takes {size / 1e6:,.0f} MB and the phone has {memory / 1e6:,.0f} MB of memory"
            return Failed(case_id=case.case_id, reason="out_of_memory", detail=detail)
        return None

    def _pinned(self, plan: RunPlan) -> RunPlan:
        cores = plan.cores or describe.biggest(self.description.clusters, plan.threads, self.description.allowed)
        return replace(plan, cores=cores, max_temperature_c=min(plan.max_temperature_c, state.HOT_C))

    # -- one agent -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _launched(self, session: Session, agent: Folder, plan: RunPlan, remote: Mapping[Path, Path]) -> Iterator[_RemoteAgent]:
        self._state, self._waited_s = self._settle(session.link)
        blas = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(plan.threads if plan.purpose == "limits" else 1))
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in (allocator(plan) | QUIET | blas).items())
        # `exec`: the agent is the process that adbd hangs up on. Its number comes first, to end it when it hangs.
        with running(session.link, f"cd {agent.target} && echo $$ && {settings} exec ./{ENTRY}") as process:
            remote_agent = _RemoteAgent(session.link, process, remote)
            try:
                yield remote_agent
            except BaseException:
                with contextlib.suppress(LinkLostError):
                    remote_agent.end()
                raise
            remote_agent.end()  # a phone that cannot be reached any more is not its agent's fault

    def _settle(self, link: Link) -> tuple[state.PhoneState, float]:
        """Wait until the phone is cool."""
        found, waited = state.cooled(lambda: state.parse(check(link, state.QUESTION, "asking for its state")), COOLING_LIMIT_S)
        if found.hot:
            log.warning("%s is still hot after %.0f s: its measurements are flagged", self.device_id, waited)
        return found, waited

    def _with_habits(self, event: Event, session: Session) -> Event:
        """A series' beginning, with what only the host knows of the phone."""
        if not isinstance(event, Started):
            return event
        seen = self._state
        known = {"fixed_performance": session.fixed_performance, "abi": self.bundle.abi}
        known |= {"emulated": True} if self.description.emulated else {}
        known |= {"hot": True} if seen.hot else {}  # the wait ran out
        began = replace(
            event.state,
            waited_s=self._waited_s,
            temperature_c=event.state.temperature_c if event.state.temperature_c is not None else seen.cpu_c,
            on_battery=not seen.plugged if seen.plugged is not None else event.state.on_battery,
            throttled=event.state.throttled or seen.throttled,
            thermal_status=seen.thermal_status,
            battery_percent=seen.battery_percent,
            screen_on=seen.screen_on,
        )
        return replace(event, conditions=replace(event.conditions, extra=event.conditions.extra | known), state=began)

    # -- a phone that vanishes -------------------------------------------------------------------------------------------

    def _comes_back(self, error: LinkLostError) -> bool:
        """Wait until the phone answers again."""
        log.warning("%s: the connection broke (%s); waiting up to %.0f s for it to come back", self.device_id, error.why, self.patience_s)
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.patience_s / 10))
            try:
                link = connect(self.device_id, timeout_s=5.0)
                try:
                    run(link, "true", timeout_s=5.0)
                    return True
                finally:
                    link.close()
            except (LinkLostError, OfflineError, NotAttachedError):
                continue
        return False


class _RemoteAgent:
    """See `devices.host.AgentProcess`."""

    def __init__(self, link: Link, process: ShellProcess, remote: Mapping[Path, Path]) -> None:
        self._link, self._process, self._remote = link, process, remote
        self.pid: int | None = None

    def send(self, plan: RunPlan) -> None:
        cases = tuple(replace(case, model=self._remote[case.model]) for case in plan.cases)
        self._process.write((encode_plan(replace(plan, cases=cases)) + "\n").encode())

    def read_line(self, timeout_s: float) -> str | None:
        line = self._process.read_line(timeout_s)
        if self.pid is None and line is not None:
            if not line.isdigit():
                raise AgentError(f"{self._link.device_id}: the phone's shell said {line[:200]!r} in place of a process number")
            self.pid = int(line)
            line = self._process.read_line(timeout_s)
        return line

    def wait(self) -> int:
        status = self._process.status
        assert status is not None, "asked before its output has ended"
        return 128 - status if status > 128 else status

    def said(self) -> str:
        return tail(self._process.errors.decode(errors="replace"))

    def end(self) -> None:
        """Kill it if it still runs: adbd's hanging up does not end what is stopped, and a caller must not meet it again.

        Raises:
            LinkLostError: the phone does not answer.
        """
        if self._process.status is not None or self.pid is None:
            return
        run(self._link, f"kill -9 {self.pid}", timeout_s=KILL_LIMIT_S)
        with contextlib.suppress(TimeoutError):
            while self._process.read(KILL_LIMIT_S) is not None:
                pass
