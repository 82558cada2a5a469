"""The local device: the Python agent under the contract, and a host that mistrusts whatever it has started."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from devices import host
from devices.base import AgentError
from devices.local import GIVING_BACK, KEEPING, LocalDevice
from devices.plan import Case, Failed, LimitResult, RoundResult, RunPlan, Started
from tests.contracts import agent_models as models
from tests.contracts.agent_suite import AgentSuite, agents, failures, gone, rounds


class TestPythonAgent(AgentSuite):
    host = "from devices.local import LocalDevice; device = LocalDevice()"


PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from devices.plan import *
from devices.protocol import decode_plan, encode_event
plan = decode_plan(sys.stdin.readline())
state = MachineState(time_unix_s=0.0)
def say(event): print(encode_event(event), flush=True)
def doing(case_id): print(json.dumps({"event": "doing", "case_id": case_id}), flush=True)
def start(): say(Started(conditions=Conditions(agent="fake", runtime="none", threads=plan.threads, cores=None, allow_spinning=False,
    memory_arena=False, huge_pages=None, governor=None, extra=dict(os.environ)), state=state))
def measure(case_id, number): say(RoundResult(case_id=case_id, round=number, wall_ns=(1,), cpu_ns=None, before=state, after=state))
def measure_all():
    for number in range(plan.rounds):
        for case in plan.cases:
            if (case.case_id, number) not in plan.done:
                doing(case.case_id)
                measure(case.case_id, number)
"""


def fake(script: str, *arguments: object) -> LocalDevice:
    """A device whose agent is a script."""
    return LocalDevice((sys.executable, "-P", "-S", "-c", PRELUDE + script, *map(str, arguments)))


def plan(*names: str, rounds: int = 2, timeout_s: float = 60.0) -> RunPlan:
    cases = tuple(Case(case_id=name, model=Path("model.onnx"), feeds=()) for name in names)
    return RunPlan(cases=cases, rounds=rounds, timeout_s=timeout_s)


def test_an_agent_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AgentError, match=r"cannot be started.*no-such-program"):
        list(LocalDevice(("/no-such-program",)).run(plan("a")))


def test_an_agent_that_does_not_start_is_an_error_with_its_last_words() -> None:
    with pytest.raises(AgentError, match=r"did not start \(exit status 1: the runtime is missing\)"):
        list(fake("raise SystemExit('the runtime is missing')").run(plan("a")))


def test_an_agent_that_never_speaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "START_LIMIT_S", 0.5)
    with pytest.raises(AgentError, match=r"did not start within 0\.5 s"):
        list(fake("time.sleep(1000)").run(plan("a", timeout_s=0.1)))
    assert not agents()


@pytest.mark.parametrize("line", ["not json", "[1]", '{"event": "no such"}', '{"event": "loaded", "case_id": "a"}', "{}"])
def test_a_line_that_is_no_event_is_an_error(line: str) -> None:
    with pytest.raises(AgentError, match=r"no event") as caught:
        list(fake("start(); print(sys.argv[1], flush=True); time.sleep(1000)", line).run(plan("a")))
    assert line in str(caught.value)
    assert not agents()


def test_an_agent_that_leaves_work_undone_is_an_error() -> None:
    with pytest.raises(AgentError, match="without a word on b"):
        list(fake("start(); doing('a'); measure('a', 0); measure('a', 1)").run(plan("a", "b")))


def test_memory_errors_that_end_the_agent_are_told_apart_from_crashes() -> None:
    script = """
start()
if plan.cases[0].case_id == "a":
    doing("a")
    sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\\n  what():  std::bad_alloc\\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGABRT)
measure_all()
"""
    found = list(fake(script).run(plan("a", "b")))
    (failed,) = failures(found).values()
    assert (failed.case_id, failed.reason) == ("a", "out_of_memory")
    assert "SIGABRT" in failed.detail
    assert "bad_alloc" in failed.detail
    assert rounds(found) == [("b", 0), ("b", 1)]


def test_every_case_may_bring_its_agent_down() -> None:
    found = list(fake("start(); doing(plan.cases[0].case_id); os._exit(7)").run(plan("a", "b", "c")))
    assert [(event.case_id, event.reason, event.detail) for event in found if isinstance(event, Failed)] == [
        (name, "crashed", "exit status 7") for name in "abc"
    ]


def test_a_death_between_two_cases_is_nobodys_fault(tmp_path: Path) -> None:
    script = """
start()
flag = Path(sys.argv[1])
if not flag.exists():
    flag.touch()
    doing("a"); measure("a", 0); measure("a", 1)
    os._exit(9)
measure_all()
"""
    found = list(fake(script, tmp_path / "died").run(plan("a", "b")))
    assert not failures(found)
    assert rounds(found) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    with pytest.raises(AgentError, match="keeps dying between two cases: exit status 9"):
        list(fake("start(); doing('a'); [measure('a', n) for n in (0, 1)]; os._exit(9)").run(plan("a", "b")))


def test_rounds_measured_before_a_death_are_not_measured_again() -> None:
    script = """
start()
if plan.done:
    measure_all()
else:
    doing("a"); measure("a", 0)
    doing("b"); measure("b", 0)
    os.kill(os.getpid(), signal.SIGSEGV)
"""
    found = list(fake(script).run(plan("a", "b", rounds=3)))
    assert [event.case_id for event in found if isinstance(event, Failed)] == ["b"]
    assert rounds(found) == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]


def test_a_plan_that_is_done_starts_nothing() -> None:
    whole = RunPlan(cases=plan("a").cases, rounds=2, done=(("a", 0), ("a", 1)))
    assert list(LocalDevice(("/no-such-program",)).run(whole)) == []


def test_a_slow_listener_is_not_taken_for_a_silent_agent() -> None:
    device = fake("start(); measure_all()")
    found = []
    for event in device.run(plan("a", "b", timeout_s=1.0)):
        found.append(event)
        time.sleep(0.3)
    assert len(rounds(found)) == 4
    assert not failures(found)


def test_what_an_agent_has_started_ends_with_it() -> None:
    script = "subprocess.Popen(['sleep', '1000']); start(); measure('a', 0); time.sleep(1000)"
    run = fake(script).run(plan("a"))
    while not isinstance(next(run), RoundResult):
        pass
    own, child = agents()
    run.close()  # type: ignore[attr-defined]
    assert not own.is_running()
    assert gone(child)


def test_noise_on_stderr_does_not_stop_the_agent() -> None:
    found = list(fake("start(); sys.stderr.write('x' * 2_000_000); measure_all()").run(plan("a")))
    assert len(rounds(found)) == 2


def test_the_users_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("ORT_DISABLE_ALL", "1")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    (started,) = (event for event in fake("start(); measure_all()").run(plan("a")) if isinstance(event, Started))
    seen = started.conditions.extra
    assert not {"SECRET_TOKEN", "ORT_DISABLE_ALL"} & set(seen)
    assert seen["OMP_NUM_THREADS"] == seen["OPENBLAS_NUM_THREADS"] == "1"
    assert seen["GLIBC_TUNABLES"] == KEEPING
    (started,) = (event for event in fake("start(); measure_all()").run(replace(plan("a"), purpose="memory")) if isinstance(event, Started))
    assert started.conditions.extra["GLIBC_TUNABLES"] == GIVING_BACK
    assert seen["PYTHONPATH"].endswith("/somewhere")


def test_the_runtime_does_nothing_of_its_own(tmp_path: Path) -> None:
    run = LocalDevice().run(RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), rounds=1000, max_wait_s=0.0))
    while not isinstance(next(run), RoundResult):
        pass
    (agent,) = agents()
    threads = agent.num_threads()
    files = [file.path for file in agent.open_files()]
    connections = agent.net_connections()
    run.close()  # type: ignore[attr-defined]
    assert not [path for path in files if path.endswith(".db")], "the runtime's telemetry keeps a database"
    assert connections == []
    assert threads == 2, "the one that measures, and the one that waits for the host's end"


def test_limits_are_measured_with_the_threads_asked_for() -> None:
    script = """
start(); doing("limits")
say(LimitResult(limit="fp32_matmul", threads=plan.threads, amount=int(os.environ["OPENBLAS_NUM_THREADS"]), wall_ns=(4, 2), method="fake",
    before=state, after=state))
"""
    found = list(fake(script).run(RunPlan(cases=(), purpose="limits", threads=3)))
    (result,) = (event for event in found if isinstance(event, LimitResult))
    assert (result.threads, result.amount) == (3, 3)
    assert result.per_second == 3 / 2e-9


def test_info_describes_this_machine() -> None:
    info = LocalDevice().info
    assert (info.device_id, info.available, info.problem) == ("local", True, None)
    assert info.cores == psutil.cpu_count()
    assert info.memory_bytes == psutil.virtual_memory().total
    assert info.runtime is not None
    assert info.runtime.startswith("onnxruntime ")
    assert info.fingerprint == LocalDevice().info.fingerprint
